//! Bounded encoding of message bodies: fixed-width integers in host byte order, no padding but what
//! the structures name (the socket never leaves the host; SPEC.md §1.2).

/// A body that does not have the form its code asks for. Answered with EPROTO.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Malformed {
    /// The body ends inside a field.
    #[error("the body is too short")]
    Short,
    /// Bytes are left over.
    #[error("{0} bytes too many")]
    Trailing(usize),
    /// A text is not UTF-8.
    #[error("a text is not UTF-8")]
    Text,
    /// A reserved field is not zero.
    #[error("a reserved field is not zero")]
    Reserved,
}

/// Takes fields off the front of a body.
#[derive(Debug)]
pub struct Reader<'a>(&'a [u8]);

impl<'a> Reader<'a> {
    /// Reads `body` from its start.
    pub fn new(body: &'a [u8]) -> Self {
        Self(body)
    }
    /// The next `n` bytes.
    pub fn take(&mut self, n: usize) -> Result<&'a [u8], Malformed> {
        let (head, tail) = self.0.split_at_checked(n).ok_or(Malformed::Short)?;
        self.0 = tail;
        Ok(head)
    }
    /// Whatever is left.
    pub fn rest(&mut self) -> &'a [u8] {
        std::mem::take(&mut self.0)
    }
    /// Everything must have been taken.
    pub fn finish(self) -> Result<(), Malformed> {
        match self.0.len() {
            0 => Ok(()),
            n => Err(Malformed::Trailing(n)),
        }
    }
}

/// A value with a place in a message body.
pub trait Wire: Sized {
    /// Appends the value.
    fn put(&self, out: &mut Vec<u8>);
    /// Takes the value.
    fn get(body: &mut Reader<'_>) -> Result<Self, Malformed>;

    /// The value alone, as a whole payload.
    fn to_bytes(&self) -> Vec<u8> {
        // Exact for numbers, a beginning for lists and texts.
        let mut out = Vec::with_capacity(size_of::<Self>());
        self.put(&mut out);
        out
    }
    /// A whole payload; nothing may be left over.
    fn from_bytes(body: &[u8]) -> Result<Self, Malformed> {
        let mut reader = Reader::new(body);
        let value = Self::get(&mut reader)?;
        reader.finish()?;
        Ok(value)
    }
}

macro_rules! integers {
    ($($int:ty),*) => {$(
        impl Wire for $int {
            fn put(&self, out: &mut Vec<u8>) {
                out.extend_from_slice(&self.to_ne_bytes());
            }
            fn get(body: &mut Reader<'_>) -> Result<Self, Malformed> {
                let bytes = body.take(size_of::<Self>())?;
                Ok(Self::from_ne_bytes(bytes.try_into().map_err(|_| Malformed::Short)?))
            }
        }
    )*};
}
integers!(u16, u32, u64, i32, i64);

impl Wire for () {
    fn put(&self, _out: &mut Vec<u8>) {}
    fn get(_body: &mut Reader<'_>) -> Result<Self, Malformed> {
        Ok(())
    }
}

impl<T: Wire + Copy + Default, const N: usize> Wire for [T; N] {
    fn put(&self, out: &mut Vec<u8>) {
        self.iter().for_each(|v| v.put(out));
    }
    fn get(body: &mut Reader<'_>) -> Result<Self, Malformed> {
        let mut values = [T::default(); N];
        for v in &mut values {
            *v = T::get(body)?;
        }
        Ok(values)
    }
}

/// A count (u32), a zero (u32), then the items. The count is not trusted for allocation.
impl<T: Wire> Wire for Vec<T> {
    fn put(&self, out: &mut Vec<u8>) {
        (self.len() as u32).put(out);
        0u32.put(out);
        self.iter().for_each(|v| v.put(out));
    }
    fn get(body: &mut Reader<'_>) -> Result<Self, Malformed> {
        let count = u32::get(body)?;
        if u32::get(body)? != 0 {
            return Err(Malformed::Reserved);
        }
        (0..count).map(|_| T::get(body)).collect()
    }
}

/// Bytes to the end of the body: always the last field.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Rest(pub Vec<u8>);

impl Wire for Rest {
    fn put(&self, out: &mut Vec<u8>) {
        out.extend_from_slice(&self.0);
    }
    fn get(body: &mut Reader<'_>) -> Result<Self, Malformed> {
        Ok(Self(body.rest().to_vec()))
    }
}

/// UTF-8 to the end of the body: always the last field.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Text(pub String);

impl Wire for Text {
    fn put(&self, out: &mut Vec<u8>) {
        out.extend_from_slice(self.0.as_bytes());
    }
    fn get(body: &mut Reader<'_>) -> Result<Self, Malformed> {
        String::from_utf8(body.rest().to_vec())
            .map(Self)
            .map_err(|_| Malformed::Text)
    }
}

/// Declares message structures whose fields follow each other in the body.
macro_rules! wire_structs {
    ($($(#[$meta:meta])* pub struct $name:ident {
        $($(#[$fmeta:meta])* pub $field:ident: $ty:ty,)*
    })*) => {$(
        $(#[$meta])*
        #[derive(Clone, Debug, PartialEq, Eq)]
        pub struct $name { $($(#[$fmeta])* pub $field: $ty,)* }

        impl $crate::wire::Wire for $name {
            #[allow(unused_variables)]
            fn put(&self, out: &mut Vec<u8>) {
                $($crate::wire::Wire::put(&self.$field, out);)*
            }
            #[allow(unused_variables)]
            fn get(body: &mut $crate::wire::Reader<'_>) -> Result<Self, $crate::wire::Malformed> {
                Ok(Self { $($field: $crate::wire::Wire::get(body)?,)* })
            }
        }
    )*};
}
pub(crate) use wire_structs;
