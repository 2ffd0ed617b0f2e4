//! What C hands in by pointer: strings, arrays, structs of another version's size.
#![allow(unsafe_code)] // the reading of memory that only the caller vouches for

use std::ffi::{CStr, c_char};

use crate::boundary::Fail;

/// What must not be NULL.
pub fn given<T>(pointer: Option<T>, name: &str) -> Result<T, Fail> {
    pointer.ok_or_else(|| Fail::invalid(format!("{name} is NULL")))
}

/// A string; none if NULL.
///
/// # Safety
/// `at` is NULL or a string that ends, and stays for `'a`.
pub unsafe fn text<'a>(at: *const c_char, name: &str) -> Result<Option<&'a str>, Fail> {
    if at.is_null() {
        return Ok(None);
    }
    // SAFETY: as the caller says.
    let text = unsafe { CStr::from_ptr(at) }.to_str();
    let text = text.map_err(|_| Fail::invalid(format!("{name} is not UTF-8")))?;
    Ok(Some(text))
}

/// Strings up to a NULL; none if there is no array.
///
/// # Safety
/// `at` is NULL or an array of strings as for [`text`], the last followed by NULL.
pub unsafe fn texts<'a>(at: *const *const c_char, name: &str) -> Result<Vec<&'a str>, Fail> {
    let mut all = Vec::new();
    let mut next = at;
    while !next.is_null() {
        // SAFETY: the end has not been reached, as the caller says.
        let Some(one) = unsafe { text(*next, name) }? else {
            break;
        };
        all.push(one);
        // SAFETY: at least the NULL follows.
        next = unsafe { next.add(1) };
    }
    Ok(all)
}

/// An array; NULL is one without elements.
///
/// # Safety
/// `at` points to `count` initialised elements that stay for `'a`, unless `count` is 0.
pub unsafe fn array<'a, T>(at: *const T, count: usize, name: &str) -> Result<&'a [T], Fail> {
    if count == 0 {
        return Ok(&[]);
    }
    let fits = count
        .checked_mul(size_of::<T>())
        .is_some_and(|n| n <= isize::MAX as usize);
    if at.is_null() || !at.is_aligned() || !fits {
        return Err(Fail::invalid(format!("{name} is NULL or no array")));
    }
    // SAFETY: not NULL, aligned, of a possible size; the rest as the caller says.
    Ok(unsafe { std::slice::from_raw_parts(at, count) })
}

/// As [`array()`], to be written.
///
/// # Safety
/// As for [`array()`], and nobody else uses it meanwhile.
pub unsafe fn array_mut<'a, T>(at: *mut T, count: usize, name: &str) -> Result<&'a mut [T], Fail> {
    if count == 0 {
        return Ok(&mut []);
    }
    // SAFETY: as the caller says.
    unsafe { array(at.cast_const(), count, name) }?;
    // SAFETY: checked by `array`; nobody else uses it, as the caller says.
    Ok(unsafe { std::slice::from_raw_parts_mut(at, count) })
}

/// A struct that begins with its size, a u32.
///
/// # Safety
/// `repr(C)`, begins with a u32, and is valid if all bytes are zero.
pub unsafe trait Growing: Copy {
    /// Its name in the header.
    const NAME: &'static str;
    /// The size that the first version had.
    const LEAST: usize;
}

/// No struct of any version will be larger.
const LARGEST: usize = 4096;

fn size_of_theirs<T: Growing>(at: *const T) -> Result<usize, Fail> {
    if at.is_null() || !at.is_aligned() {
        return Err(Fail::invalid(format!("the {} is NULL", T::NAME)));
    }
    // SAFETY: not NULL, aligned; every one begins so.
    let size = unsafe { at.cast::<u32>().read() } as usize;
    if !(T::LEAST..=LARGEST).contains(&size) {
        let why = format!("{}.size is {size}; it is to be sizeof({0})", T::NAME);
        return Err(Fail::invalid(why));
    }
    Ok(size)
}

/// The struct, with zeros for what an older VMM does not have. What a newer one has must be zero.
///
/// # Safety
/// `at` is NULL or points to as many bytes as its size says.
pub unsafe fn read<T: Growing>(at: *const T) -> Result<T, Fail> {
    let size = size_of_theirs(at)?;
    let ours = size_of::<T>();
    // SAFETY: all zero is a `T` (Growing).
    let mut value: T = unsafe { std::mem::zeroed() };
    // SAFETY: no more than `at` has and `value` takes; they are two.
    unsafe {
        std::ptr::copy_nonoverlapping(
            at.cast::<u8>(),
            (&raw mut value).cast::<u8>(),
            size.min(ours),
        );
    }
    let unknown = size.saturating_sub(ours);
    // SAFETY: `at` has `ours + unknown` bytes if there are any.
    let unknown = unsafe { array(at.cast::<u8>().wrapping_add(ours), unknown, T::NAME) }?;
    if unknown.iter().any(|b| *b != 0) {
        let why = format!("{} has fields that this library does not know", T::NAME);
        return Err(Fail::invalid(why));
    }
    Ok(value)
}

/// Writes as much of a struct as the VMM has room for; its size stays.
///
/// # Safety
/// As for [`read`], and nobody else uses it meanwhile.
pub unsafe fn write<T: Growing>(at: *mut T, value: T) -> Result<(), Fail> {
    const HEAD: usize = size_of::<u32>();
    let size = size_of_theirs(at.cast_const())?.min(size_of::<T>());
    // SAFETY: both have `size` bytes; they are two.
    unsafe {
        std::ptr::copy_nonoverlapping(
            (&raw const value).cast::<u8>().add(HEAD),
            at.cast::<u8>().add(HEAD),
            size - HEAD,
        );
    }
    Ok(())
}
