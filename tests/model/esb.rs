//! XIVE's memory-mapped pages: the two pages of each source (ESB) and the thread context (TIMA).

use super::memory::Memory;
use super::xive::Xive;

const ESB_SIZE_LOG2: u32 = 17;
const MANAGEMENT: u64 = 0x10000;
/// The OS view of the TIMA, the only one with anything behind it.
const OS_PAGE: u64 = 2;

/// All ones in an access of `size` bytes.
fn ones(size: u8) -> u64 {
    if size >= 8 {
        u64::MAX
    } else {
        (1 << (8 * u32::from(size))) - 1
    }
}

impl Xive {
    /// A guest load from the source pages. `offset` counts from the start of the window.
    pub fn esb_load(&mut self, offset: u64, size: u8, mem: &mut Memory) -> u64 {
        let n = (offset >> ESB_SIZE_LOG2) as usize;
        if n >= self.src.len() || self.rules.esb_only_8_bytes && size != 8 {
            return 0;
        }
        if offset & MANAGEMENT == 0 {
            return ones(size);
        }
        self.management_load(n, offset, mem) & ones(size)
    }

    /// A guest store to the source pages. What is stored does not matter.
    pub fn esb_store(&mut self, offset: u64, size: u8, mem: &mut Memory) {
        let n = (offset >> ESB_SIZE_LOG2) as usize;
        if n >= self.src.len() || self.rules.esb_only_8_bytes && size != 8 {
            return;
        }
        if offset & MANAGEMENT == 0 {
            self.trigger(n, mem);
        } else {
            self.management_store(n, offset, mem);
        }
    }

    /// The management page of a source, loads: end of interrupt, look, look and set.
    pub fn management_load(&mut self, n: usize, offset: u64, mem: &mut Memory) -> u64 {
        match offset & 0xfff {
            0..0x800 => u64::from(self.eoi(n, mem)),
            0x800..0xc00 => u64::from(self.src[n].pq),
            o => u64::from(self.set_pq(n, (o >> 8 & 3) as u8, mem)),
        }
    }

    /// The management page of a source, stores.
    pub fn management_store(&mut self, n: usize, offset: u64, mem: &mut Memory) {
        match offset & 0xfff {
            0..0x400 => self.trigger(n, mem),
            0x400..0x800 => {
                if self.layout.store_eoi {
                    self.eoi(n, mem);
                }
            }
            0x800..0xc00 => {
                if self.rules.inject {
                    self.route(n, mem);
                }
            }
            o => {
                self.set_pq(n, (o >> 8 & 3) as u8, mem);
            }
        }
    }

    /// The 64 bytes of the context as the OS page shows them: what is not readable is zero.
    fn os_bytes(&self, server: usize) -> [u8; 64] {
        let r = &self.ring[server];
        let mut bytes = [0; 64];
        bytes[0x10..0x18].copy_from_slice(&[r.nsr, r.cppr, r.ipb, 0xff, 0xff, 0, 0, r.pipr]);
        bytes
    }

    /// A guest load from the TIMA by the vCPU itself. `offset` counts from the first (HW) page.
    pub fn tima_load(&mut self, server: usize, offset: u64, size: u8) -> u64 {
        let o = offset & 0xfff;
        if offset >> 16 != OS_PAGE {
            return ones(size);
        }
        if (o, size) == (0x810, 2) {
            return u64::from(self.ring[server].acknowledge());
        }
        let first = (o & 0x3f) as usize;
        // Readable on this page: ring bytes 0-5 and 7; byte 6 (AGE) reads 0.
        let covered = first..first + size as usize;
        let readable = (0x10..0x18).any(|b| b != 0x16 && covered.contains(&b));
        if o & 0x800 != 0 || size < 4 || !first.is_multiple_of(size as usize) || !readable {
            return ones(size);
        }
        self.os_bytes(server)[covered]
            .iter()
            .fold(0, |v, b| v << 8 | u64::from(*b))
    }

    /// A guest store to the TIMA by the vCPU itself.
    pub fn tima_store(&mut self, server: usize, offset: u64, size: u8, value: u64) {
        let o = offset & 0xfff;
        if offset >> 16 != OS_PAGE {
            return;
        }
        match (o, size) {
            (0x11, 1) => self.ring[server].set_cppr(value as u8),
            (0x812, 1) => self.ring[server].pend(value as u8),
            (_, 4 | 8) if o & 0x800 == 0 && o & 0x3f == 0x10 => {
                // Bytes from the most significant: NSR, CPPR, ...; only CPPR can be written.
                let cppr = (value >> (8 * (u32::from(size) - 2))) as u8;
                if self.rules.raw_cppr {
                    self.ring[server].cppr = cppr;
                } else {
                    self.ring[server].set_cppr(cppr);
                }
            }
            _ => {}
        }
    }
}
