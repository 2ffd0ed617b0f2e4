//! From the machine's sizes to byte offsets in the shared memory (SPEC.md chapter 2).
//!
//! A [`Geometry`] is computed from three numbers and never stored: both sides derive the same
//! offsets from the machine in the header, and the layout version says by which rules.
//!
//! Layout 1 has XIVE source words in the order of their numbers. Since layout 2 neighbours are strewn over a
//! block ([`STRIDE`]): an interrupt writes its source's word three times, and sources with neighbouring
//! numbers (a device's MSI-X vectors, the IPIs of a guest's vCPUs) go to different vCPUs, which would
//! take one cache line from each other. Every other word that vCPUs write all the time has a line of its own.

use super::storage::{Page, Table};
use crate::{LAYOUT_MIN, LAYOUT_VERSION};

/// LISNs 0..0x1000 are the XIVE IPIs; XICS numbers start above them.
pub const DEFAULT_XICS_BASE: u32 = 0x1000;
/// Most sources a machine can have.
pub const MAX_SOURCES: u32 = 1 << 20;
/// Most server numbers a machine can have.
pub const MAX_SERVERS: u32 = 4096;
/// Event queues (ENDs) per server: one per priority.
pub const ENDS_PER_SERVER: u32 = 8;
/// Epochs for threads that are not vCPUs, beside one for each server.
pub const DEVICE_EPOCHS: u32 = 1024;

/// Bytes of the header page.
pub const HEADER_BYTES: u64 = 4096;
/// Bytes of the journal.
pub const JOURNAL_BYTES: u64 = 4096;
/// Words of a reply record.
pub const REPLY_WORDS: u32 = 16;
/// Bytes of a line that one thread writes and others read: two cache lines of 64, one of POWER's 128.
pub const LINE: u64 = 128;
/// Both zones start and end on the largest page size of the hosts (64 KiB on POWER).
pub const ZONE_ALIGN: u64 = 65536;

/// XIVE source words are strewn over blocks of so many. A power of two.
pub const BLOCK: u32 = 4096;
/// Places from a source's word to its neighbour's, modulo [`BLOCK`]: odd, so that each place is taken once, and
/// more than a [`LINE`]'s words.
pub const STRIDE: u32 = 17;

const WORD: u64 = 8;
const RUN_BYTES: u64 = 4096;

/// Offsets of one machine's words. Areas are known by their first word.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Geometry {
    sources: u32,
    xics_base: u32,
    servers: u32,
    layout: u16,
    stride: u32,
    replies: u64,
    eas: u64,
    end_config: u64,
    claimed: u64,
    lsi: u64,
    msi: u64,
    tables_size: u64,
    epochs: u64,
    vcpus: u64,
    cursors: u64,
    source_words: u64,
    ics_words: u64,
    common_root: u64,
    mids: u64,
    leaves: u64,
    pages_size: u64,
}

/// Lays areas out one after the other.
struct Cursor(u64);

impl Cursor {
    /// Its first word.
    fn area(&mut self, bytes: u64) -> u64 {
        let at = self.0;
        self.0 = (at + bytes).next_multiple_of(LINE);
        at / WORD
    }
    fn zone_end(&self) -> u64 {
        self.0.next_multiple_of(ZONE_ALIGN)
    }
}

impl Geometry {
    /// Lays out a machine with LISNs `0..sources`, of which XICS serves `xics_base..sources`, and
    /// server numbers `0..servers`, as new memory is. `None` if a number is out of range.
    pub fn new(sources: u32, xics_base: u32, servers: u32) -> Option<Self> {
        Self::in_layout(LAYOUT_VERSION, sources, xics_base, servers)
    }

    /// As [`new`](Self::new), by the rules of a layout; `None` if it is unknown too.
    pub fn in_layout(layout: u16, sources: u32, xics_base: u32, servers: u32) -> Option<Self> {
        let fits = (LAYOUT_MIN..=LAYOUT_VERSION).contains(&layout)
            && (1..=MAX_SOURCES).contains(&sources)
            && (16..=sources).contains(&xics_base)
            && (1..=MAX_SERVERS).contains(&servers);
        if !fits {
            return None;
        }
        let (n, v) = (u64::from(sources), u64::from(servers));
        let ends = v * u64::from(ENDS_PER_SERVER);
        let ics = u64::from(sources - xics_base);
        let bitmap = n.div_ceil(64) * WORD;
        let (stride, places) = match layout {
            1 => (1, n),
            _ => (STRIDE, n.next_multiple_of(u64::from(BLOCK))),
        };

        let mut t = Cursor(HEADER_BYTES + JOURNAL_BYTES);
        let replies = t.area((v + 1) * u64::from(REPLY_WORDS) * WORD);
        let eas = t.area(n * WORD);
        let end_config = t.area(ends * 4 * WORD);
        let claimed = t.area(bitmap);
        let lsi = t.area(bitmap);
        let msi = t.area(bitmap);

        let mut p = Cursor(RUN_BYTES);
        let epochs = p.area((v + u64::from(DEVICE_EPOCHS)) * LINE);
        let vcpus = p.area(v * LINE);
        let cursors = p.area(ends * LINE);
        let source_words = p.area(places * WORD);
        let ics_words = p.area(ics * WORD);
        let common_root = p.area(WORD);
        let leaf_count = ics.div_ceil(64);
        let mids = p.area(leaf_count.div_ceil(64) * WORD);
        let leaves = p.area(leaf_count * WORD);

        Some(Self {
            sources,
            xics_base,
            servers,
            layout,
            stride,
            replies,
            eas,
            end_config,
            claimed,
            lsi,
            msi,
            tables_size: t.zone_end(),
            epochs,
            vcpus,
            cursors,
            source_words,
            ics_words,
            common_root,
            mids,
            leaves,
            pages_size: p.zone_end(),
        })
    }

    /// The version of the rules.
    pub fn layout(&self) -> u16 {
        self.layout
    }
    /// LISNs are `0..sources`.
    pub fn sources(&self) -> u32 {
        self.sources
    }
    /// The block of sources that `lisn` is in: their words lie together, strewn.
    pub(super) fn block_of(&self, lisn: u32) -> std::ops::Range<u32> {
        let first = lisn - lisn % BLOCK;
        let places = match self.stride {
            1 => self.sources - first,
            _ => BLOCK,
        };
        first..first + places.min(BLOCK)
    }
    /// Which word of its block is a source's.
    #[inline]
    pub(super) fn place_in_block(&self, lisn: u32) -> usize {
        (strewn(lisn, self.stride) % BLOCK) as usize
    }
    /// First number that XICS serves.
    pub fn xics_base(&self) -> u32 {
        self.xics_base
    }
    /// How many numbers XICS serves.
    pub fn ics_sources(&self) -> u32 {
        self.sources - self.xics_base
    }
    /// Server numbers are `0..servers`.
    pub fn servers(&self) -> u32 {
        self.servers
    }
    /// END indices are `0..ends`; server `s` at priority `p` has `8 * s + p`.
    pub fn ends(&self) -> u32 {
        self.servers * ENDS_PER_SERVER
    }
    /// Epochs: one for each server, then [`DEVICE_EPOCHS`].
    pub fn epochs(&self) -> u32 {
        self.servers + DEVICE_EPOCHS
    }
    /// Leaves of the pending index.
    pub fn leaves(&self) -> u32 {
        self.ics_sources().div_ceil(64)
    }
    /// Bytes of the zone `tables`, which starts at offset 0 of the memfd.
    pub fn tables_size(&self) -> u64 {
        self.tables_size
    }
    /// Bytes of the zone `pages`, which follows `tables`.
    pub fn pages_size(&self) -> u64 {
        self.pages_size
    }
    /// Bytes of the whole memfd.
    pub fn size(&self) -> u64 {
        self.tables_size + self.pages_size
    }

    /// Byte offset of a word of `tables` in its zone. Always inside the zone for indices in range.
    pub fn table_offset(&self, at: Table) -> u64 {
        self.table_place(at) * WORD
    }

    /// Byte offset of a word of `pages` in its zone. Always inside the zone for indices in range.
    pub fn page_offset(&self, at: Page) -> u64 {
        self.page_place(at) * WORD
    }

    /// Words before a word of `tables` in its zone.
    #[inline]
    pub(super) fn table_place(&self, at: Table) -> u64 {
        let w = |base: u64, i: u32| base + u64::from(i);
        match at {
            Table::Header(i) => w(0, i),
            Table::Journal(i) => w(HEADER_BYTES / WORD, i),
            Table::Reply(channel, i) => w(
                self.replies + u64::from(channel) * u64::from(REPLY_WORDS),
                i,
            ),
            Table::Eas(lisn) => w(self.eas, lisn),
            Table::EndConfig(end, slot, i) => w(self.end_config + u64::from(end) * 4, slot * 2 + i),
            Table::Claimed(i) => w(self.claimed, i),
            Table::Lsi(i) => w(self.lsi, i),
            Table::Msi(i) => w(self.msi, i),
        }
    }

    /// Words before a word of `pages` in its zone.
    #[inline]
    pub(super) fn page_place(&self, at: Page) -> u64 {
        let w = |base: u64, i: u32| base + u64::from(i);
        let line = |base: u64, i: u32| base + u64::from(i) * (LINE / WORD);
        match at {
            Page::Run(i) => w(0, i),
            Page::Epoch(i) => line(self.epochs, i),
            Page::Delivered(i) => line(self.epochs, i) + 1,
            Page::Tima(server) => line(self.vcpus, server),
            Page::Icp(server) => line(self.vcpus, server) + 1,
            Page::PendingRoot(server) => line(self.vcpus, server) + 2,
            Page::CommonRoot => self.common_root,
            Page::PendingMid(i) => w(self.mids, i),
            Page::PendingLeaf(i) => w(self.leaves, i),
            Page::EndCursor(end) => line(self.cursors, end),
            Page::Source(lisn) => w(self.source_words, strewn(lisn, self.stride)),
            Page::IcsSource(i) => w(self.ics_words, i),
        }
    }
}

/// The place of a number: each block is taken in steps of `stride`, over and over.
#[inline]
fn strewn(number: u32, stride: u32) -> u32 {
    const IN_BLOCK: u32 = BLOCK - 1;
    (number & !IN_BLOCK) | (number.wrapping_mul(stride) & IN_BLOCK)
}

// The fixed points of layouts 1 and 2. A change here is a new layout version.
const _: () = {
    assert!(BLOCK == 4096 && STRIDE == 17);
    assert!(HEADER_BYTES == 4096 && JOURNAL_BYTES == 4096 && RUN_BYTES == 4096);
    assert!(LINE == 128 && REPLY_WORDS as u64 * WORD == LINE);
    assert!(ZONE_ALIGN.is_multiple_of(HEADER_BYTES));
};

#[cfg(test)]
mod tests {
    use super::*;

    /// Every area's first and last word, to be found apart and inside its zone.
    fn corners(g: &Geometry) -> (Vec<u64>, Vec<u64>) {
        let ends = g.ends() - 1;
        let tables = [
            Table::Header(0),
            Table::Header(511),
            Table::Journal(0),
            Table::Journal(511),
            Table::Reply(0, 0),
            Table::Reply(g.servers(), REPLY_WORDS - 1),
            Table::Eas(0),
            Table::Eas(g.sources() - 1),
            Table::EndConfig(0, 0, 0),
            Table::EndConfig(ends, 1, 1),
            Table::Claimed(0),
            Table::Claimed((g.sources() - 1) / 64),
            Table::Lsi(0),
            Table::Lsi((g.sources() - 1) / 64),
            Table::Msi(0),
            Table::Msi((g.sources() - 1) / 64),
        ];
        let mut pages = vec![
            Page::Run(0),
            Page::Run(511),
            Page::Epoch(0),
            Page::Epoch(g.epochs() - 1),
            Page::Delivered(g.epochs() - 1),
            Page::Tima(0),
            Page::PendingRoot(g.servers() - 1),
            Page::EndCursor(0),
            Page::EndCursor(ends),
            Page::Source(0),
            Page::Source(g.sources() - 1),
        ];
        if g.ics_sources() > 0 {
            pages.extend([Page::IcsSource(0), Page::IcsSource(g.ics_sources() - 1)]);
            pages.push(Page::CommonRoot);
            pages.extend([Page::PendingMid(0), Page::PendingMid((g.leaves() - 1) / 64)]);
            pages.extend([Page::PendingLeaf(0), Page::PendingLeaf(g.leaves() - 1)]);
        }
        (
            tables.iter().map(|t| g.table_offset(*t)).collect(),
            pages.iter().map(|p| g.page_offset(*p)).collect(),
        )
    }

    #[test]
    fn areas_follow_each_other_inside_their_zones_at_every_size() {
        for (sources, base, servers) in [
            (0x2000, 0x1000, 2),
            (0x1001, 0x1000, 1),
            (1 << 20, 0x1000, 4096),
            (64, 16, 1),
        ] {
            let g = Geometry::new(sources, base, servers).unwrap();
            for (offsets, size) in [
                (corners(&g).0, g.tables_size()),
                (corners(&g).1, g.pages_size()),
            ] {
                assert!(offsets.is_sorted(), "{offsets:x?}");
                assert!(offsets.iter().all(|o| o % WORD == 0 && o + WORD <= size));
                assert_eq!(size % ZONE_ALIGN, 0);
            }
        }
    }

    #[test]
    fn machines_out_of_range_have_no_geometry() {
        for (sources, base, servers) in [
            (0, 16, 1),
            (MAX_SOURCES + 1, 16, 1),
            (64, 15, 1),
            (64, 65, 1),
            (64, 16, 0),
            (64, 16, 4097),
        ] {
            assert_eq!(Geometry::new(sources, base, servers), None);
        }
    }

    #[test]
    fn the_default_machine_keeps_its_offsets() {
        let g = Geometry::new(0x2000, 0x1000, 2).unwrap();
        assert_eq!(g.table_offset(Table::Reply(0, 0)), 0x2000);
        assert_eq!(g.table_offset(Table::Eas(0)), 0x2180);
        assert_eq!(g.table_offset(Table::EndConfig(0, 0, 0)), 0x12180);
        assert_eq!(g.page_offset(Page::Epoch(0)), 0x1000);
        assert_eq!((g.tables_size(), g.pages_size()), (0x20000, 0x40000));
    }

    #[test]
    fn source_words_take_each_place_once_in_every_layout() {
        for layout in LAYOUT_MIN..=LAYOUT_VERSION {
            for sources in [16, 64, 4095, 4096, 4097, 0x2000, 100_000] {
                let g = Geometry::in_layout(layout, sources, 16, 1).unwrap();
                let area = g.source_words * WORD..g.ics_words * WORD;
                let mut places: Vec<u64> = (0..sources)
                    .map(|l| g.page_offset(Page::Source(l)))
                    .collect();
                assert!(places.iter().all(|p| area.contains(p) && p % WORD == 0));
                places.sort_unstable();
                places.dedup();
                assert_eq!(
                    places.len(),
                    sources as usize,
                    "{sources} in layout {layout}"
                );
            }
        }
    }

    #[test]
    fn words_of_sources_with_near_numbers_are_in_different_lines() {
        let g = Geometry::new(0x3000, 0x1000, 1).unwrap();
        let line = |lisn| g.page_offset(Page::Source(lisn)) / LINE;
        for lisn in 0..0x3000u32 {
            for near in lisn + 1..(lisn + 241).min(0x3000) {
                assert_ne!(line(lisn), line(near), "{lisn} and {near}");
            }
        }
    }

    #[test]
    fn layout_1_keeps_source_words_in_order() {
        let g = Geometry::in_layout(1, 100, 16, 1).unwrap();
        let at = |lisn| g.page_place(Page::Source(lisn)) - g.source_words;
        assert!((0..100).all(|lisn| at(lisn) == u64::from(lisn)));
        assert_eq!((g.ics_words - g.source_words) * WORD, 7 * LINE);
    }

    #[test]
    fn layouts_that_are_unknown_have_no_geometry() {
        for layout in [0, LAYOUT_VERSION + 1] {
            assert_eq!(Geometry::in_layout(layout, 64, 16, 1), None);
        }
    }
}
