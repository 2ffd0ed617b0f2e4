//! The sections of the interrupt controllers as QEMU 7.2 lays them out, field by field; nothing is judged here.
//!
//! All integers are big-endian, but for the EAS and END tables of `spapr-xive`: their words are big-endian in
//! QEMU's memory and written as if they were the host's, so a little-endian host's stream has them
//! byte-reversed ([`ByteOrder`]).

/// Why a section's payload is not what it should be.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SectionError {
    /// Too few or too many bytes.
    #[error("section {section}: {bytes} bytes do not hold {what}")]
    Length {
        /// Which section.
        section: &'static str,
        /// How many there are.
        bytes: usize,
        /// What they should hold.
        what: String,
    },
    /// No byte order makes sense of all entries.
    #[error(
        "section spapr-xive: EAS {0:#x} makes sense in neither byte order together with the ones before"
    )]
    ByteOrder(usize),
}

fn length(section: &'static str, bytes: usize, what: impl Into<String>) -> SectionError {
    SectionError::Length {
        section,
        bytes,
        what: what.into(),
    }
}

/// How the host that wrote `spapr-xive` keeps integers.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum ByteOrder {
    /// x86, ppc64le: table words are byte-reversed.
    #[default]
    Little,
    /// ppc64: table words are as PAPR writes them.
    Big,
}

/// A XICS source of `ics`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct IcsEntry {
    /// Server number.
    pub server: u32,
    /// Priority; ff is masked.
    pub priority: u8,
    /// What ibm,int-on restores.
    pub saved: u8,
    /// [`ics_status`].
    pub status: u8,
    /// [`ics_flags`].
    pub flags: u8,
}

/// Bits of [`IcsEntry::status`].
pub mod ics_status {
    /// LSI: the line is high.
    pub const ASSERTED: u8 = 0x01;
    /// LSI: sent for this assertion, not ended or rejected yet.
    pub const SENT: u8 = 0x02;
    /// MSI: refused or displaced.
    pub const REJECTED: u8 = 0x04;
    /// MSI: triggered while masked.
    pub const MASKED_PENDING: u8 = 0x08;
    /// KVM's P bit.
    pub const PRESENTED: u8 = 0x10;
    /// KVM's Q bit.
    pub const QUEUED: u8 = 0x20;
    /// All of them.
    pub const ALL: u8 = 0x3f;
}

/// Values of [`IcsEntry::flags`].
pub mod ics_flags {
    /// Not claimed.
    pub const FREE: u8 = 0;
    /// Claimed, level-sensitive.
    pub const LSI: u8 = 1;
    /// Claimed, edge.
    pub const MSI: u8 = 2;
}

impl IcsEntry {
    /// Eight bytes of the section.
    pub fn from_bytes(b: [u8; 8]) -> Self {
        Self {
            server: u32::from_be_bytes([b[0], b[1], b[2], b[3]]),
            priority: b[4],
            saved: b[5],
            status: b[6],
            flags: b[7],
        }
    }

    /// Eight bytes of the section.
    pub fn to_bytes(self) -> [u8; 8] {
        let s = self.server.to_be_bytes();
        let [p, v, t, f] = [self.priority, self.saved, self.status, self.flags];
        [s[0], s[1], s[2], s[3], p, v, t, f]
    }
}

/// The sources of `ics`.
pub fn ics(payload: &[u8]) -> Result<Vec<IcsEntry>, SectionError> {
    let entries = counted("ics", payload, 8)?;
    let (entries, _) = entries.as_chunks::<8>();
    Ok(entries.iter().map(|b| IcsEntry::from_bytes(*b)).collect())
}

/// The payload of `ics`.
pub fn ics_payload(entries: &[IcsEntry]) -> Vec<u8> {
    let mut out = count(entries.len());
    out.extend(entries.iter().flat_map(|e| e.to_bytes()));
    out
}

/// An ICP of `icp/server`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct IcpEntry {
    /// CPPR in bits 31:24, XISR below.
    pub xirr: u32,
    /// Priority of what XISR holds, ff if nothing.
    pub pending_priority: u8,
    /// Request of an IPI.
    pub mfrr: u8,
}

impl IcpEntry {
    /// From the payload.
    pub fn from_payload(payload: &[u8]) -> Result<Self, SectionError> {
        match *payload {
            [a, b, c, d, pending_priority, mfrr] => Ok(Self {
                xirr: u32::from_be_bytes([a, b, c, d]),
                pending_priority,
                mfrr,
            }),
            _ => Err(length("icp/server", payload.len(), "an ICP")),
        }
    }

    /// The payload.
    pub fn to_payload(self) -> Vec<u8> {
        let mut out = self.xirr.to_be_bytes().to_vec();
        out.extend([self.pending_priority, self.mfrr]);
        out
    }
}

/// Bits of a byte of `xive-source`; PQ is in the lower two.
pub mod xive_status {
    /// P and Q.
    pub const PQ: u8 = 3;
    /// LSI: the line is high.
    pub const ASSERTED: u8 = 4;
}

/// The status bytes of `xive-source`.
pub fn xive_source(payload: &[u8]) -> Result<&[u8], SectionError> {
    counted("xive-source", payload, 1)
}

/// The payload of `xive-source`.
pub fn xive_source_payload(status: &[u8]) -> Vec<u8> {
    let mut out = count(status.len());
    out.extend(status);
    out
}

/// The tables of `spapr-xive`, as PAPR's integers.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct XiveTables {
    /// One EAS for each LISN.
    pub eas: Vec<u64>,
    /// END words, eight ENDs for each server.
    pub ends: Vec<[u32; 8]>,
}

impl XiveTables {
    /// From the payload; without `order`, the one that makes sense of it. Also the order.
    pub fn from_payload(
        payload: &[u8],
        order: Option<ByteOrder>,
    ) -> Result<(Self, ByteOrder), SectionError> {
        const NAME: &str = "spapr-xive";
        let (n, rest) = payload
            .split_first_chunk::<4>()
            .ok_or_else(|| length(NAME, payload.len(), "a count"))?;
        let n = u32::from_be_bytes(*n) as usize;
        let bytes = n.checked_mul(8).filter(|bytes| *bytes <= rest.len());
        let bytes = bytes.ok_or_else(|| length(NAME, payload.len(), format!("{n:#x} EASes")))?;
        let (eas, ends) = rest.split_at(bytes);
        let (eas, _) = eas.as_chunks::<8>();
        let (ends, odd) = ends.as_chunks::<32>();
        if ends.is_empty() || !ends.len().is_multiple_of(8) || !odd.is_empty() {
            let what = format!("{n:#x} EASes and eight ENDs for each server");
            return Err(length(NAME, payload.len(), what));
        }
        let order = match order {
            Some(order) => order,
            None => guess(eas, ends.len())?,
        };
        let eas = eas.iter().map(|b| order.u64(*b)).collect();
        let words = |b: &[u8; 32]| {
            let (words, _) = b.as_chunks::<4>();
            std::array::from_fn(|i| order.u32(words[i]))
        };
        let ends = ends.iter().map(words).collect();
        Ok((Self { eas, ends }, order))
    }

    /// The payload.
    pub fn to_payload(&self, order: ByteOrder) -> Vec<u8> {
        let mut out = count(self.eas.len());
        out.extend(self.eas.iter().flat_map(|eas| order.u64_bytes(*eas)));
        let words = self.ends.iter().flatten();
        out.extend(words.flat_map(|word| order.u32_bytes(*word)));
        out
    }
}

impl ByteOrder {
    fn u64(self, bytes: [u8; 8]) -> u64 {
        match self {
            Self::Little => u64::from_le_bytes(bytes),
            Self::Big => u64::from_be_bytes(bytes),
        }
    }
    fn u32(self, bytes: [u8; 4]) -> u32 {
        match self {
            Self::Little => u32::from_le_bytes(bytes),
            Self::Big => u32::from_be_bytes(bytes),
        }
    }
    fn u64_bytes(self, value: u64) -> [u8; 8] {
        match self {
            Self::Little => value.to_le_bytes(),
            Self::Big => value.to_be_bytes(),
        }
    }
    fn u32_bytes(self, value: u32) -> [u8; 4] {
        match self {
            Self::Little => value.to_le_bytes(),
            Self::Big => value.to_be_bytes(),
        }
    }
}

/// The byte order in which every EAS is one: VALID alone in the top byte (END blocks are 0), an END that there
/// is. If both do, the one with more valid entries; LISN 0 is always claimed, so a stream's own has some.
fn guess(eas: &[[u8; 8]], ends: usize) -> Result<ByteOrder, SectionError> {
    let mut possible = [ByteOrder::Little, ByteOrder::Big].map(|order| (order, Some(0usize)));
    for (lisn, bytes) in eas.iter().enumerate() {
        for (order, valid) in &mut possible {
            let eas = order.u64(*bytes);
            let end = (eas >> 32 & 0xff_ffff) as usize;
            *valid = match eas >> 56 {
                0x80 if end < ends => valid.map(|n| n + 1),
                0 if end < ends => *valid,
                _ => None,
            };
        }
        if possible.iter().all(|(_, valid)| valid.is_none()) {
            return Err(SectionError::ByteOrder(lisn));
        }
    }
    let [(_, little), (_, big)] = possible;
    Ok(if big > little {
        ByteOrder::Big
    } else {
        ByteOrder::Little
    })
}

/// The 64 bytes of `xive-tctx`: rings USER, OS, POOL and PHYS.
pub fn tctx(payload: &[u8]) -> Result<[u8; 64], SectionError> {
    let regs = payload.try_into();
    regs.map_err(|_| length("xive-tctx", payload.len(), "four rings"))
}

/// A bitmap of `N` 64-bit words, bit n in word n / 64 at n mod 64.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Bitmap<const N: usize>([u64; N]);

/// `spapr_option_vector_ov5_cas`: bit (byte - 1) * 8 + bit of option vector 5, bit 0 the most significant.
pub type Ov5 = Bitmap<32>;
/// `spapr_irq_map`: bit n is MSI 0x1300 + n.
pub type IrqMap = Bitmap<52>;

impl<const N: usize> Bitmap<N> {
    /// No bits.
    pub const EMPTY: Self = Self([0; N]);

    /// From the payload of the subsection `section`.
    pub fn from_payload(section: &'static str, payload: &[u8]) -> Result<Self, SectionError> {
        let (words, odd) = payload.as_chunks::<8>();
        if words.len() != N || !odd.is_empty() {
            return Err(length(section, payload.len(), format!("{} bits", N * 64)));
        }
        Ok(Self(std::array::from_fn(|i| u64::from_be_bytes(words[i]))))
    }

    /// The payload.
    pub fn to_payload(&self) -> Vec<u8> {
        self.0.iter().flat_map(|word| word.to_be_bytes()).collect()
    }

    /// A bit; beyond the last it is clear.
    pub fn bit(&self, n: u32) -> bool {
        let word = self.0.get(n as usize / 64);
        word.is_some_and(|word| word >> (n % 64) & 1 == 1)
    }

    /// Sets or clears a bit; beyond the last it is ignored.
    pub fn set(&mut self, n: u32, value: bool) {
        if let Some(word) = self.0.get_mut(n as usize / 64) {
            *word = *word & !(1 << (n % 64)) | u64::from(value) << (n % 64);
        }
    }

    /// No bit is set.
    pub fn is_empty(&self) -> bool {
        self.0.iter().all(|word| *word == 0)
    }
}

impl Ov5 {
    /// A byte of the vector, from 1.
    pub fn byte(&self, byte: u32) -> u8 {
        let bit = |n| u8::from(self.bit((byte - 1) * 8 + n)) << (7 - n);
        (0..8).map(bit).sum()
    }

    /// Sets a byte of the vector, from 1.
    pub fn set_byte(&mut self, byte: u32, value: u8) {
        for n in 0..8 {
            self.set((byte - 1) * 8 + n, value >> (7 - n) & 1 == 1);
        }
    }
}

/// A u32 count, then exactly so many entries of `size` bytes: the entries.
fn counted<'a>(
    section: &'static str,
    payload: &'a [u8],
    size: usize,
) -> Result<&'a [u8], SectionError> {
    let split = payload.split_first_chunk::<4>();
    let (n, entries) = split.ok_or_else(|| length(section, payload.len(), "a count"))?;
    let n = u32::from_be_bytes(*n) as usize;
    if n.checked_mul(size) == Some(entries.len()) {
        Ok(entries)
    } else {
        let what = format!("a count and {n:#x} entries");
        Err(length(section, payload.len(), what))
    }
}

/// A table's length, which a machine bounds to 2^20.
fn count(n: usize) -> Vec<u8> {
    (n as u32).to_be_bytes().to_vec()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn measured_ics_entries() {
        let entry = |server, priority, saved, status, flags| IcsEntry {
            server,
            priority,
            saved,
            status,
            flags,
        };
        for (bytes, is) in [
            ([0, 0, 0, 0, 0xff, 0xff, 0, 2], entry(0, 0xff, 0xff, 0, 2)),
            // LSI 1201, asserted but refused.
            (
                [0, 0, 0, 0, 6, 6, 1, 1],
                entry(0, 6, 6, ics_status::ASSERTED, 1),
            ),
            // MSI 1300, sitting in XISR; 1301 refused; 1302 triggered while masked.
            ([0, 0, 0, 0, 5, 5, 0, 2], entry(0, 5, 5, 0, 2)),
            (
                [0, 0, 0, 1, 7, 7, 4, 2],
                entry(1, 7, 7, ics_status::REJECTED, 2),
            ),
            (
                [0, 0, 0, 0, 0xff, 0xff, 8, 2],
                entry(0, 0xff, 0xff, ics_status::MASKED_PENDING, 2),
            ),
        ] {
            assert_eq!(IcsEntry::from_bytes(bytes), is);
            assert_eq!(is.to_bytes(), bytes);
        }
    }

    #[test]
    fn measured_icps() {
        let open = [0xff, 0, 0x13, 0, 5, 0xff];
        let icp = IcpEntry::from_payload(&open).unwrap();
        let is = (icp.xirr, icp.pending_priority, icp.mfrr);
        assert_eq!(is, (0xff00_1300, 5, 0xff));
        assert_eq!(icp.to_payload(), open);
        assert!(IcpEntry::from_payload(&open[1..]).is_err());
    }

    #[test]
    fn measured_bitmaps() {
        let mut ov5 = Ov5::EMPTY;
        ov5.set_byte(23, 0x40);
        let payload = ov5.to_payload();
        assert_eq!(payload.len(), 256);
        assert_eq!(payload[16..24], 0x0002_0000_0000_0000u64.to_be_bytes());
        assert!(ov5.bit(177));
        ov5.set_byte(24, 0x40);
        assert_eq!(
            ov5.to_payload()[16..24],
            0x0202_0000_0000_0000u64.to_be_bytes()
        );
        assert_eq!((ov5.byte(23), ov5.byte(24), ov5.byte(25)), (0x40, 0x40, 0));
        assert_eq!(Ov5::from_payload("ov5", &ov5.to_payload()), Ok(ov5));

        let mut map = IrqMap::EMPTY;
        for n in 0..3 {
            map.set(n, true);
        }
        assert_eq!(map.to_payload().len(), 416);
        assert_eq!(map.to_payload()[..8], 7u64.to_be_bytes());
        assert!(IrqMap::from_payload("irq_map", &[0; 415]).is_err());
    }

    fn tables() -> XiveTables {
        let mut eas = vec![0; 16];
        eas[0] = 0x8000_0006_0000_0010;
        eas[1] = 0x8000_0000_8000_0000;
        let mut ends = vec![[0; 8]; 8];
        ends[6][0] = 0xe004_0000;
        XiveTables { eas, ends }
    }

    #[test]
    fn measured_tables_of_both_byte_orders() {
        for (order, eas, w0) in [
            (
                ByteOrder::Little,
                [0x10, 0, 0, 0, 6, 0, 0, 0x80],
                [0, 0, 4, 0xe0],
            ),
            (
                ByteOrder::Big,
                [0x80, 0, 0, 6, 0, 0, 0, 0x10],
                [0xe0, 4, 0, 0],
            ),
        ] {
            let payload = tables().to_payload(order);
            assert_eq!(payload[4..12], eas);
            assert_eq!(payload[4 + 16 * 8 + 6 * 32..][..4], w0);
            let read = XiveTables::from_payload(&payload, None);
            assert_eq!(read, Ok((tables(), order)));
        }
    }

    #[test]
    fn a_freed_entry_does_not_turn_the_byte_order() {
        let mut tables = tables();
        // EISN 80 in the low byte, VALID clear: as big-endian it would look valid, of an END there is not.
        tables.eas[2] = 0x0000_0006_0000_0080;
        let payload = tables.to_payload(ByteOrder::Little);
        let read = XiveTables::from_payload(&payload, None);
        assert_eq!(read, Ok((tables, ByteOrder::Little)));
    }

    #[test]
    fn orders_that_contradict_each_other_are_refused() {
        let mut payload = tables().to_payload(ByteOrder::Little);
        payload[12..20].copy_from_slice(&tables().eas[0].to_be_bytes());
        assert_eq!(
            XiveTables::from_payload(&payload, None),
            Err(SectionError::ByteOrder(1))
        );
    }

    #[test]
    fn lengths_are_exact() {
        let payload = tables().to_payload(ByteOrder::Little);
        for bad in [
            &payload[..3],
            &payload[..100],
            &payload[..payload.len() - 1],
        ] {
            assert!(XiveTables::from_payload(bad, None).is_err());
        }
        assert!(XiveTables::from_payload(&[0xff; 64], None).is_err());
        let mut payload = ics_payload(&[IcsEntry::default(); 3]);
        assert_eq!(ics(&payload).unwrap().len(), 3);
        payload.push(0);
        assert!(ics(&payload).is_err());
        assert_eq!(xive_source(&xive_source_payload(&[1, 2])), Ok(&[1, 2][..]));
        assert!(xive_source(&[0, 0, 0, 2, 1]).is_err());
        assert!(tctx(&[0; 63]).is_err());
    }
}
