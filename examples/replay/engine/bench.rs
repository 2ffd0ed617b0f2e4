//! The machine around the controller under test, as a VMM keeps it: claims, MSI numbers, LSI levels.

use std::collections::{BTreeMap, BTreeSet};

use super::guest::{CasReply, Guest, Outcome, Shape, Space};

/// Byte 23 of option vector 5 that asks for XIVE.
const OV5_XIVE: u8 = 0x40;

/// A controller under test and the VMM's own bookkeeping.
pub struct Bench {
    /// The controller.
    pub guest: Box<dyn Guest>,
    /// The machine's shape.
    pub shape: Shape,
    lsis: BTreeSet<u32>,
    levels: BTreeSet<u32>,
    /// Device index to number.
    msis: BTreeMap<u64, u32>,
}

impl Bench {
    /// Around a new machine.
    pub fn new(guest: Box<dyn Guest>, shape: Shape) -> Bench {
        Bench {
            guest,
            shape,
            lsis: BTreeSet::new(),
            levels: BTreeSet::new(),
            msis: BTreeMap::new(),
        }
    }

    /// Claims a number for good.
    pub fn claim(&mut self, lisn: u32, lsi: bool) -> Outcome<bool> {
        if lsi {
            self.lsis.insert(lisn);
        } else {
            self.lsis.remove(&lisn);
        }
        self.guest.claim(lisn, lsi)
    }

    /// A device acts: `level` on an LSI, a message on anything else. A bus passes on only changes of level.
    pub fn irq(&mut self, lisn: u32, level: bool) -> Outcome<()> {
        if !self.lsis.contains(&lisn) {
            return if level {
                self.guest.pulse(lisn)
            } else {
                Ok(())
            };
        }
        let changed = if level {
            self.levels.insert(lisn)
        } else {
            self.levels.remove(&lisn)
        };
        if changed {
            self.guest.set_level(lisn, level)
        } else {
            Ok(())
        }
    }

    /// A guest load. Of one that is not aligned TCG makes two that are, and takes what it needs.
    pub fn load(&mut self, server: u32, space: Space, offset: u64, size: u8) -> Outcome<u64> {
        let over = (offset % u64::from(size)) as u8;
        if over == 0 {
            return self.guest.load(server, space, offset, size);
        }
        let first = offset - u64::from(over);
        let high = self.guest.load(server, space, first, size)?;
        let low = self
            .guest
            .load(server, space, first + u64::from(size), size)?;
        let value = high << (8 * over) | low >> (8 * (size - over));
        Ok(value & (u64::MAX >> (64 - 8 * u32::from(size))))
    }

    /// A guest store. Of one that is not aligned TCG makes single bytes, in ascending order.
    pub fn store(
        &mut self,
        server: u32,
        space: Space,
        offset: u64,
        size: u8,
        value: u64,
    ) -> Outcome<()> {
        if offset.is_multiple_of(u64::from(size)) {
            return self.guest.store(server, space, offset, size, value);
        }
        let bytes = value.to_be_bytes();
        for (at, byte) in (offset..).zip(&bytes[8 - usize::from(size)..]) {
            self.guest.store(server, space, at, 1, u64::from(*byte))?;
        }
        Ok(())
    }

    /// A device gets an MSI: the lowest free number.
    pub fn msi_on(&mut self, device: u64) -> Outcome<u32> {
        let taken: BTreeSet<u32> = self.msis.values().copied().collect();
        let lisn = (Shape::MSI_BASE..Shape::LISNS)
            .find(|n| !taken.contains(n))
            .unwrap_or(Shape::LISNS);
        self.msis.insert(device, lisn);
        self.claim(lisn, false)?;
        Ok(lisn)
    }

    /// A device gives its MSI back.
    pub fn msi_off(&mut self, device: u64) -> Outcome<Option<u32>> {
        let lisn = self.msis.remove(&device);
        if let Some(lisn) = lisn {
            self.guest.free(lisn)?;
        }
        Ok(lisn)
    }

    /// Machine reset: devices drop their lines, the controllers reset, the PCI host frees its MSIs.
    pub fn reset(&mut self) -> Outcome<()> {
        for lisn in std::mem::take(&mut self.levels) {
            self.guest.set_level(lisn, false)?;
        }
        self.guest.machine_reset()?;
        for lisn in std::mem::take(&mut self.msis).into_values() {
            self.guest.free(lisn)?;
        }
        Ok(())
    }

    /// CAS as the recorder's guest makes it: a vector of 24 bytes whose byte 23 chooses.
    pub fn cas(&mut self, server: u32, byte23: u8) -> Outcome<CasReply> {
        let mut ov5 = [0; 25];
        ov5[0] = 23;
        ov5[23] = byte23;
        self.guest.cas(server, &ov5)
    }

    /// CAS for a named controller.
    pub fn cas_for(&mut self, server: u32, xive: bool) -> Outcome<CasReply> {
        self.cas(server, if xive { OV5_XIVE } else { 0 })
    }

    /// The lines of all vCPUs.
    pub fn lines(&mut self) -> Outcome<Vec<bool>> {
        let vcpus = self.shape.vcpus.clone();
        vcpus.into_iter().map(|s| self.guest.line(s)).collect()
    }
}
