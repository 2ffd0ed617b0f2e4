//! The H_INT_* calls that write `tables`: run by the daemon alone (xive.md §5.2, §5.5, §5.11).
//!
//! As in [`super::xive`], the gate is the caller's, and registers change on H_SUCCESS only. A lock
//! whose holder does not move gives H_BUSY, with nothing changed.

use super::codes::opcode::*;
use super::codes::ret::*;
use super::xive::{Args, PRIORITY_MASKED, check_flags, claimed, priority, queue, status, target};
use crate::layout::words::eas;
use crate::layout::{Compat, TableStorage};
use crate::plane::Host;
use crate::plane::xive::config::QueueConfig;
use crate::plane::xive::{Busy, Xive};

/// Runs a call. `None`: it is not one of these. Otherwise the status for r3.
///
/// `ram(address, bytes)` says whether a range is guest RAM as a whole.
pub fn config<S: TableStorage, H: Host>(
    xive: &Xive<'_, S, H>,
    opcode: u64,
    args: &mut Args,
    ram: &dyn Fn(u64, u64) -> bool,
) -> Option<i64> {
    let done = match opcode {
        H_INT_SET_SOURCE_CONFIG => set_source_config(xive, args),
        H_INT_SET_QUEUE_CONFIG => set_queue_config(xive, args, ram),
        H_INT_RESET => reset(xive, args),
        _ => return None,
    };
    Some(status(done))
}

fn busy(Busy: Busy) -> i64 {
    H_BUSY
}

fn set_source_config<S: TableStorage, H: Host>(
    xive: &Xive<'_, S, H>,
    args: &Args,
) -> Result<(), i64> {
    const MASK: u64 = 0x1;
    const SET_EISN: u64 = 0x2;
    check_flags(args[0], MASK | SET_EISN)?;
    let (lisn, old) = claimed(xive, args[1])?;
    // All 64 bits here, the low byte below: as in QEMU.
    let new = if args[3] == PRIORITY_MASKED {
        eas::new(0, 0, true)
    } else {
        let priority = priority(xive, args[3]).ok_or(H_P4)?;
        let server = target(xive, args[2]).ok_or(H_P3)?;
        let eisn = if args[0] & SET_EISN != 0 {
            (args[4] & 0x7fff_ffff) as u32
        } else {
            eas::eisn(old)
        };
        let end = server * 8 + u32::from(priority);
        eas::new(end, eisn, args[0] & MASK != 0)
    };
    xive.set_source_config(lisn, new).map_err(busy)
}

fn set_queue_config<S: TableStorage, H: Host>(
    xive: &Xive<'_, S, H>,
    args: &Args,
    ram: &dyn Fn(u64, u64) -> bool,
) -> Result<(), i64> {
    const ALWAYS_NOTIFY: u64 = 0x1;
    check_flags(args[0], ALWAYS_NOTIFY)?;
    let (server, priority) = queue(xive, args)?;
    let address = args[3];
    let queue = match args[4] {
        0 => None,
        size @ (12 | 16 | 21 | 24) => {
            let bytes = 1 << size;
            if address & (bytes - 1) != 0 || !ram(address, bytes) {
                return Err(H_P4);
            }
            Some(QueueConfig {
                address,
                size: size as u32,
                always_notify: args[0] & ALWAYS_NOTIFY != 0,
            })
        }
        _ => return Err(H_P5),
    };
    xive.set_queue_config(server, priority, queue).map_err(busy)
}

/// All that SET_SOURCE_CONFIG and SET_QUEUE_CONFIG did is undone; rings and levels stay. QEMU 7.2
/// answers success and does nothing.
///
/// H_BUSY may leave part of it done; Linux repeats the call, and repeating is harmless.
fn reset<S: TableStorage, H: Host>(xive: &Xive<'_, S, H>, args: &Args) -> Result<(), i64> {
    check_flags(args[0], 0)?;
    if xive.machine().compat == Compat::Qemu72 {
        return Ok(());
    }
    for lisn in 0..xive.geometry().sources() {
        if xive.source_config(u64::from(lisn)).is_some() {
            xive.turn_off(lisn);
            xive.set_source_config(lisn, eas::new(0, 0, true))
                .map_err(busy)?;
        }
    }
    for end in 0..xive.geometry().ends() {
        xive.set_queue_config(end >> 3, (end & 7) as u8, None)
            .map_err(busy)?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    //! Both halves of the H_INT_* calls: orders of checks, outputs, and the compat rows.
    #![allow(clippy::unwrap_used)]

    use super::*;
    use crate::layout::plain::PlainStorage;
    use crate::layout::{IcMode, Machine};
    use crate::papr::xive::local;
    use crate::plane::LevelInput;

    const ONES: u64 = u64::MAX;
    const MSI: u64 = 4;
    const LSI: u64 = 16;
    const FREE: u64 = 9;

    struct Nobody;
    impl Host for Nobody {
        fn write_queue_entry(&self, _: u64, _: u32) -> bool {
            true
        }
        fn kick(&self, _: u32) {}
    }

    struct Rig {
        machine: Machine,
        storage: PlainStorage,
    }

    impl Rig {
        /// Server 0 is there, server 1 is not; MSI 4 and LSI 16 are claimed.
        fn new(compat: Compat) -> Self {
            let machine = Machine {
                sources: 64,
                xics_base: 16,
                ..Machine::pseries(IcMode::Xive, compat, 2)
            };
            let storage = PlainStorage::new(machine.geometry().unwrap());
            let rig = Self { machine, storage };
            rig.with(|x| {
                (0..64).for_each(|lisn| x.reset_source(lisn));
                (0..16).for_each(|end| x.reset_end(end));
                x.claim(MSI as u32, false);
                x.claim(LSI as u32, true);
                x.connect(0);
            });
            rig
        }

        fn with<T>(&self, f: impl FnOnce(Xive<'_, PlainStorage, Nobody>) -> T) -> T {
            let geometry = self.machine.geometry().unwrap();
            f(Xive::new(&self.storage, &Nobody, &self.machine, &geometry))
        }

        /// The status and r4 to r8.
        fn call(&self, opcode: u64, args: &[u64]) -> (i64, [u64; 5]) {
            let mut regs = [0x77; 9];
            regs[..args.len()].copy_from_slice(args);
            let ram = |gpa: u64, len: u64| gpa < 1 << 30 && gpa + len <= 1 << 30;
            let status = self.with(|x| {
                local(&x, opcode, &mut regs).or_else(|| config(&x, opcode, &mut regs, &ram))
            });
            let mut out = [0; 5];
            out.copy_from_slice(&regs[..5]);
            (status.unwrap(), out)
        }

        fn status(&self, opcode: u64, args: &[u64]) -> i64 {
            let (status, out) = self.call(opcode, args);
            if status != H_SUCCESS {
                assert_eq!(out[..args.len()], *args, "registers keep what they held");
            }
            status
        }
    }

    const BOTH: [Compat; 2] = [Compat::Papr1, Compat::Qemu72];

    #[test]
    fn flags_come_first_and_then_the_order_of_each_call() {
        for compat in BOTH {
            let rig = Rig::new(compat);
            for (opcode, args, status) in [
                (H_INT_GET_SOURCE_INFO, &[1, FREE][..], H_PARAMETER),
                (H_INT_GET_SOURCE_INFO, &[0, FREE], H_P2),
                (H_INT_GET_SOURCE_INFO, &[0, 1 << 32 | MSI], H_P2),
                (H_INT_SET_SOURCE_CONFIG, &[4, FREE, 9, 9, 0], H_PARAMETER),
                (H_INT_SET_SOURCE_CONFIG, &[0, FREE, 9, 9, 0], H_P2),
                (H_INT_SET_SOURCE_CONFIG, &[0, MSI, 9, 7, 0], H_P4),
                (H_INT_SET_SOURCE_CONFIG, &[0, MSI, 9, 0x1ff, 0], H_P4),
                (H_INT_SET_SOURCE_CONFIG, &[0, MSI, 1, 6, 0], H_P3),
                (H_INT_SET_SOURCE_CONFIG, &[0, MSI, 2, 6, 0], H_P3),
                (H_INT_SET_SOURCE_CONFIG, &[0, MSI, ONES, 0xff, 0], H_SUCCESS),
                (H_INT_GET_SOURCE_CONFIG, &[2, FREE], H_PARAMETER),
                (H_INT_GET_SOURCE_CONFIG, &[0, FREE], H_P2),
                (H_INT_GET_QUEUE_INFO, &[1, 1, 7], H_PARAMETER),
                (H_INT_GET_QUEUE_INFO, &[0, 1, 7], H_P3),
                (H_INT_GET_QUEUE_INFO, &[0, 1, 6], H_P2),
                (H_INT_SET_QUEUE_CONFIG, &[2, 1, 7, 1, 1], H_PARAMETER),
                (H_INT_SET_QUEUE_CONFIG, &[0, 1, 7, 1, 1], H_P3),
                (H_INT_SET_QUEUE_CONFIG, &[0, 1, 6, 1, 1], H_P2),
                (H_INT_SET_QUEUE_CONFIG, &[0, 0, 6, 1, 1], H_P5),
                (H_INT_SET_QUEUE_CONFIG, &[0, 0, 6, 0x1000, 16], H_P4),
                (H_INT_SET_QUEUE_CONFIG, &[0, 0, 6, 1 << 30, 12], H_P4),
                (H_INT_SET_QUEUE_CONFIG, &[0, 0, 6, 1, 0], H_SUCCESS),
                (H_INT_GET_QUEUE_CONFIG, &[2, 1, 7], H_PARAMETER),
                (H_INT_GET_QUEUE_CONFIG, &[0, 1, 7], H_P3),
                (H_INT_GET_QUEUE_CONFIG, &[0, 1, 6], H_P2),
                (H_INT_SET_OS_REPORTING_LINE, &[9, 9, 9], H_FUNCTION),
                (H_INT_GET_OS_REPORTING_LINE, &[9, 9, 9], H_FUNCTION),
                (H_INT_ESB, &[2, FREE, ONES, 0], H_PARAMETER),
                (H_INT_ESB, &[0, FREE, ONES, 0], H_P2),
                (H_INT_ESB, &[0, MSI, ONES, 0], H_P3),
                (H_INT_ESB, &[0, MSI, 0x804, 0], H_HARDWARE),
                (H_INT_SYNC, &[1, FREE], H_PARAMETER),
                (H_INT_SYNC, &[0, FREE], H_P2),
                (H_INT_SYNC, &[0, MSI], H_SUCCESS),
                (H_INT_RESET, &[1], H_PARAMETER),
                (H_INT_RESET, &[0], H_SUCCESS),
            ] {
                assert_eq!(rig.status(opcode, args), status, "{opcode:#x} {args:x?}");
            }
        }
    }

    #[test]
    fn source_info_shows_the_pages_of_an_msi_and_hides_those_of_an_lsi() {
        let mut rig = Rig::new(Compat::Papr1);
        let trigger = rig.machine.esb_base + (MSI << 17);
        for (store_eoi, flag) in [(false, 0), (true, 1)] {
            rig.machine.store_eoi = store_eoi;
            let (_, msi) = rig.call(H_INT_GET_SOURCE_INFO, &[0, MSI]);
            assert_eq!(msi, [flag, trigger + 0x10000, trigger, 16, 0x77]);
            let (_, lsi) = rig.call(H_INT_GET_SOURCE_INFO, &[0, LSI]);
            assert_eq!(lsi, [0xc | flag, ONES, ONES, 16, 0x77]);
        }
    }

    #[test]
    fn a_source_is_configured_and_reads_back_through_its_end() {
        let rig = Rig::new(Compat::Papr1);
        let get = || {
            let (status, out) = rig.call(H_INT_GET_SOURCE_CONFIG, &[0, MSI]);
            assert_eq!(status, H_SUCCESS);
            [out[0], out[1], out[2]]
        };
        let set = |flags, target, priority, eisn| {
            let args = [flags, MSI, target, priority, eisn];
            assert_eq!(rig.status(H_INT_SET_SOURCE_CONFIG, &args), H_SUCCESS);
        };
        assert_eq!(get(), [0xffff_fc00, 0xff, 0]);
        set(2, 0, 6, 0x8000_0010);
        assert_eq!(get(), [0xffff_fc00, 0, 0x10], "its END is not configured");
        let args = [1, 0, 6, 0x20000, 16];
        assert_eq!(rig.status(H_INT_SET_QUEUE_CONFIG, &args), H_SUCCESS);
        assert_eq!(get(), [0, 6, 0x10]);
        set(1, 0, 6, 0x99);
        assert_eq!(get(), [0, 0xff, 0x10], "masked; the EISN is kept");
        set(0, 1 << 32, 0x106, 0);
        assert_eq!(
            get(),
            [0, 6, 0x10],
            "target and priority are cut, as in QEMU"
        );
        set(2, ONES, 0xff, 0x99);
        assert_eq!(get(), [0xffff_fc00, 0xff, 0]);
    }

    #[test]
    fn a_queue_reads_back_with_index_and_generation_for_debuggers() {
        for (compat, generation) in [(Compat::Papr1, 2), (Compat::Qemu72, 1 << 62)] {
            let rig = Rig::new(compat);
            let get = |flags| rig.call(H_INT_GET_QUEUE_CONFIG, &[flags, 0, 6]).1;
            assert_eq!(get(1), [0, 0, 0, 0, 0x77]);
            assert_eq!(
                rig.call(H_INT_GET_QUEUE_INFO, &[0, 0, 6]).1[..2],
                [rig.machine.end_base + (6 << 17), 0]
            );
            rig.call(H_INT_SET_QUEUE_CONFIG, &[1, 0, 6, 0x20000, 16]);
            rig.call(H_INT_SET_SOURCE_CONFIG, &[2, MSI, 0, 6, 1]);
            rig.with(|x| x.route(MSI as u32)).unwrap();
            assert_eq!(get(0), [1, 0x20000, 16, 0, 0x77]);
            assert_eq!(get(1), [1 | generation, 0x20000, 16, 1, 0x77]);
            assert_eq!(rig.call(H_INT_GET_QUEUE_INFO, &[0, 0, 6]).1[1], 16);
        }
    }

    #[test]
    fn h_int_esb_is_an_access_to_the_management_page() {
        for compat in BOTH {
            let rig = Rig::new(compat);
            let esb = |flags, offset| {
                let (status, out) = rig.call(H_INT_ESB, &[flags, LSI, offset, 0]);
                assert_eq!(status, H_SUCCESS);
                out[0]
            };
            assert_eq!(esb(0, 0xe00), 1);
            assert_eq!(esb(0, 0x800), 2);
            assert_eq!(esb(1, 0xf00), ONES);
            assert_eq!(esb(0, 0xf800), 3, "modulo 4 KiB");
        }
    }

    #[test]
    fn sync_answers_busy_while_a_forward_runs() {
        use crate::layout::words::source;
        use crate::layout::{Page, Storage};
        use std::sync::atomic::Ordering::Relaxed;

        let rig = Rig::new(Compat::Papr1);
        let word = rig.storage.page(Page::Source(MSI as u32));
        word.fetch_add(source::FORWARD, Relaxed);
        assert_eq!(rig.status(H_INT_SYNC, &[0, MSI]), H_BUSY);
        word.fetch_sub(source::FORWARD, Relaxed);
        assert_eq!(rig.status(H_INT_SYNC, &[0, MSI]), H_SUCCESS);
    }

    #[test]
    fn a_lock_that_does_not_move_is_busy_and_changes_nothing() {
        use crate::layout::words::cursor;
        use crate::layout::{Page, Storage};
        use crate::plane::LockOwner;
        use std::sync::atomic::Ordering::Relaxed;

        struct Daemon;
        impl Host for Daemon {
            fn write_queue_entry(&self, _: u64, _: u32) -> bool {
                true
            }
            fn kick(&self, _: u32) {}
            fn lock_owner(&self) -> LockOwner {
                LockOwner::Daemon {
                    generation: 1,
                    worker: 0,
                }
            }
        }
        let rig = Rig::new(Compat::Papr1);
        rig.call(H_INT_SET_QUEUE_CONFIG, &[1, 0, 6, 0x20000, 16]);
        rig.call(H_INT_SET_SOURCE_CONFIG, &[2, MSI, 0, 6, 1]);
        rig.storage
            .page(Page::EndCursor(6))
            .fetch_or(cursor::LOCKED, Relaxed);
        let geometry = rig.machine.geometry().unwrap();
        let x = Xive::new(&rig.storage, &Daemon, &rig.machine, &geometry);
        for (opcode, args) in [
            (H_INT_SET_QUEUE_CONFIG, [1, 0, 6, 0x30000, 16]),
            (H_INT_SET_SOURCE_CONFIG, [2, MSI, 0, 5, 2]),
        ] {
            let mut regs = [0; 9];
            regs[..5].copy_from_slice(&args);
            let status = config(&x, opcode, &mut regs, &|_, _| true);
            assert_eq!((status, &regs[..5]), (Some(H_BUSY), &args[..]));
        }
        assert_eq!(x.source_config(MSI), Some(eas::new(6, 1, false)));
        assert_eq!(x.end(6).address, 0x20000);
    }

    #[test]
    fn h_int_reset_resets_at_papr_and_nothing_at_qemu() {
        for (compat, resets) in [(Compat::Papr1, true), (Compat::Qemu72, false)] {
            let rig = Rig::new(compat);
            rig.call(H_INT_SET_QUEUE_CONFIG, &[1, 0, 6, 0x20000, 16]);
            rig.call(H_INT_SET_SOURCE_CONFIG, &[2, LSI, 0, 6, 1]);
            rig.call(H_INT_ESB, &[1, LSI, 0xc00, 0]);
            rig.with(|x| {
                x.set_cppr(0, 3);
                x.set_level(LSI as u32, LevelInput::Vmm, true);
            });
            let before = rig.with(|x| x.tima_load(0, 0x20010, 8));
            assert_eq!(rig.status(H_INT_RESET, &[0]), H_SUCCESS);

            let (eas, queue) = rig.with(|x| (x.source_config(LSI), x.end(6)));
            assert_eq!(eas == Some(eas::new(0, 0, true)), resets);
            assert_eq!(queue.valid, !resets);
            let pq = rig.call(H_INT_ESB, &[0, LSI, 0x800, 0]).1[0];
            assert_eq!(pq, if resets { 1 } else { 2 });
            assert_eq!(rig.with(|x| x.tima_load(0, 0x20010, 8)), before);
            // The level is still there: unmasked and ended, the source is pending again.
            rig.call(H_INT_ESB, &[1, LSI, 0xc00, 0]);
            rig.call(H_INT_ESB, &[0, LSI, 0, 0]);
            assert_eq!(rig.call(H_INT_ESB, &[0, LSI, 0x800, 0]).1[0], 2);
        }
    }
}
