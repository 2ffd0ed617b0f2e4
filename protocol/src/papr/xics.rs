//! The hcalls and RTAS calls of XICS (LoPAR, interrupt presentation and interrupt source calls).
//!
//! Takes register and argument values, gives back what goes into registers and return cells. The
//! mode check (H_FUNCTION, H_HARDWARE, RTAS -1) is the caller's, before anything here runs. RTAS
//! argument blocks in guest memory are the VMM's.

use super::codes::{RtasCall, opcode, ret, rtas as status};
use crate::layout::Storage;
use crate::plane::Host;
use crate::plane::xics::{Routing, Xics};

/// Return cells of an RTAS call that are in use at most.
pub const MAX_RETS: usize = 16;

/// The return cells of an RTAS call.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RtasReply {
    /// Status, then results.
    pub rets: [u32; MAX_RETS],
    /// How many cells are to be written. On an error only the status is.
    pub count: u32,
}

impl RtasReply {
    /// A status alone.
    pub fn status(code: i32) -> Self {
        Self::of(&[code as u32])
    }

    fn of(cells: &[u32]) -> Self {
        let mut rets = [0; MAX_RETS];
        rets[..cells.len()].copy_from_slice(cells);
        Self {
            rets,
            count: cells.len() as u32,
        }
    }

    /// The cells to be written.
    pub fn cells(&self) -> &[u32] {
        &self.rets[..(self.count as usize).min(MAX_RETS)]
    }
}

/// What an RTAS call comes to after its checks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RtasPlan {
    /// Nothing is to be written: the reply.
    Reply(RtasReply),
    /// This routing is to be written with [`Xics::write`]; absolute, so a daemon journals it first.
    Write {
        /// The source.
        irq: u32,
        /// Its routing.
        to: Routing,
    },
}

/// Runs one of the six hcalls for vCPU `server`; `None`: not one of them.
///
/// `args` are r4..r12; results are written over them, and they stay as they are on an error. Any
/// vCPU of the partition may be the target of H_IPI and H_IPOLL, the others act on `server`.
/// `time_base` is what H_XIRR_X reports. (xics.md §3.2)
#[inline]
pub fn local<S: Storage, H: Host>(
    xics: &Xics<'_, S, H>,
    server: u32,
    opcode: u64,
    args: &mut [u64; 9],
    time_base: u64,
) -> Option<i64> {
    match opcode {
        opcode::H_EOI => xics.eoi(server, args[0] as u32),
        opcode::H_CPPR => xics.set_cppr(server, args[0] as u8),
        opcode::H_IPI => {
            if !xics.set_mfrr(args[0] as u32, args[1] as u8) {
                return Some(ret::H_PARAMETER);
            }
        }
        opcode::H_IPOLL => {
            let Some((xirr, mfrr)) = xics.poll(args[0] as u32) else {
                return Some(ret::H_PARAMETER);
            };
            args[0] = u64::from(xirr);
            args[1] = u64::from(mfrr);
        }
        opcode::H_XIRR => args[0] = u64::from(xics.accept(server)),
        opcode::H_XIRR_X => {
            args[0] = u64::from(xics.accept(server));
            args[1] = time_base;
        }
        _ => return None,
    }
    Some(ret::H_SUCCESS)
}

/// ibm,get-xive: reads only, so any executor may run it.
pub fn rtas_get_xive<S: Storage, H: Host>(
    xics: &Xics<'_, S, H>,
    args: &[u32],
    nret: u32,
) -> RtasReply {
    let (&[irq], 3) = (args, nret) else {
        return RtasReply::status(status::PARAMETER);
    };
    match xics.source(irq) {
        None => RtasReply::status(status::PARAMETER),
        Some(source) => RtasReply::of(&[
            status::SUCCESS as u32,
            source.routing.server,
            u32::from(source.routing.priority),
        ]),
    }
}

/// The checks of an RTAS call, in their order: counts, number, server, priority.
pub fn rtas_plan<S: Storage, H: Host>(
    xics: &Xics<'_, S, H>,
    call: RtasCall,
    args: &[u32],
    nret: u32,
) -> RtasPlan {
    let routing = match (call, args, nret) {
        (RtasCall::GetXive, ..) => return RtasPlan::Reply(rtas_get_xive(xics, args, nret)),
        (RtasCall::SetXive, &[irq, server, priority], 1) => {
            set_xive_routing(xics, irq, server, priority).map(|to| (irq, to))
        }
        (RtasCall::IntOff, &[irq], 1) => xics.masked_routing(irq).map(|to| (irq, to)),
        (RtasCall::IntOn, &[irq], 1) => xics.unmasked_routing(irq).map(|to| (irq, to)),
        _ => None,
    };
    match routing {
        Some((irq, to)) => RtasPlan::Write { irq, to },
        None => RtasPlan::Reply(RtasReply::status(status::PARAMETER)),
    }
}

fn set_xive_routing<S: Storage, H: Host>(
    xics: &Xics<'_, S, H>,
    irq: u32,
    server: u32,
    priority: u32,
) -> Option<Routing> {
    xics.source(irq)?;
    let priority = u8::try_from(priority).ok()?;
    xics.is_connected(server).then_some(Routing {
        server,
        priority,
        saved: priority,
    })
}

/// Runs one of the four RTAS calls. The daemon's: three of them write routing. `args` has exactly
/// the guest's nargs cells.
pub fn rtas<S: Storage, H: Host>(
    xics: &Xics<'_, S, H>,
    call: RtasCall,
    args: &[u32],
    nret: u32,
) -> RtasReply {
    match rtas_plan(xics, call, args, nret) {
        RtasPlan::Reply(reply) => reply,
        RtasPlan::Write { irq, to } => match xics.write(irq, to) {
            Ok(()) => RtasReply::status(status::SUCCESS),
            Err(_) => RtasReply::status(status::HARDWARE),
        },
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::layout::plain::PlainStorage;
    use crate::layout::{Compat, IcMode, Machine};

    struct Quiet;
    impl Host for Quiet {
        fn write_queue_entry(&self, _: u64, _: u32) -> bool {
            unreachable!("XICS has no event queues")
        }
        fn kick(&self, _: u32) {}
    }

    /// A pseries machine with servers 0 and 1 of 4 plugged; 0x1300 is a claimed MSI.
    fn with_xics(check: impl FnOnce(&Xics<'_, PlainStorage, Quiet>)) {
        let machine = Machine::pseries(IcMode::Dual, Compat::Qemu72, 4);
        let storage = PlainStorage::new(machine.geometry().unwrap());
        let xics = Xics::new(&storage, &Quiet, &machine, storage.geometry());
        xics.create();
        for server in [0, 1] {
            xics.connect(server);
        }
        xics.claim(0x1300, false);
        check(&xics);
    }

    const SPARE: [u64; 9] = [1, 2, 3, 4, 5, 6, 7, 8, 9];

    fn with(r4: u64, r5: u64) -> [u64; 9] {
        let mut args = SPARE;
        (args[0], args[1]) = (r4, r5);
        args
    }

    #[test]
    fn arguments_are_cut_to_their_width() {
        with_xics(|xics| {
            let mut args = with(0xffff_ffff_ffff_f1ff, 2);
            assert_eq!(local(xics, 0, opcode::H_CPPR, &mut args, 0), Some(0));
            assert_eq!(args, with(0xffff_ffff_ffff_f1ff, 2));
            // Server 1_0000_0000 is server 0.
            let mut args = with(0x1_0000_0000, 0xf04);
            assert_eq!(local(xics, 1, opcode::H_IPI, &mut args, 0), Some(0));
            let mut args = with(0x7_0000_0000, 2);
            assert_eq!(local(xics, 1, opcode::H_IPOLL, &mut args, 0), Some(0));
            assert_eq!(args, with(0xff00_0002, 4));
            let mut args = with(0xabcd_0000_0000, 2);
            assert_eq!(local(xics, 0, opcode::H_XIRR_X, &mut args, 77), Some(0));
            assert_eq!(args, with(0xff00_0002, 77));
            let mut args = with(0x5555_ff00_0002, 2);
            assert_eq!(local(xics, 0, opcode::H_EOI, &mut args, 0), Some(0));
            let mut args = SPARE;
            assert_eq!(local(xics, 0, opcode::H_XIRR, &mut args, 77), Some(0));
            assert_eq!(args, with(0xff00_0002, 2));
        });
    }

    #[test]
    fn a_vcpu_that_is_not_plugged_is_no_target() {
        with_xics(|xics| {
            for server in [2, 3, 4, 0xffff_ffff] {
                for opcode in [opcode::H_IPI, opcode::H_IPOLL] {
                    let mut args = with(server, 4);
                    let code = local(xics, 0, opcode, &mut args, 0);
                    assert_eq!((code, args), (Some(ret::H_PARAMETER), with(server, 4)));
                }
            }
        });
    }

    #[test]
    fn other_opcodes_are_not_ours() {
        with_xics(|xics| {
            for other in [0, 0x60, 0x78, opcode::H_INT_RESET] {
                assert_eq!(local(xics, 0, other, &mut SPARE.clone(), 0), None);
            }
        });
    }

    #[test]
    fn rtas_refuses_wrong_counts_numbers_servers_and_priorities() {
        use RtasCall::{GetXive, IntOff, IntOn, SetXive};
        with_xics(|xics| {
            let refused: &[(RtasCall, &[u32], u32)] = &[
                (SetXive, &[0x1300, 0], 1),
                (SetXive, &[0x1300, 0, 5, 0], 1),
                (SetXive, &[0x1300, 0, 5], 0),
                (SetXive, &[0x1300, 0, 5], 2),
                (SetXive, &[0xfff, 0, 5], 1),
                (SetXive, &[0x2000, 0, 5], 1),
                (SetXive, &[2, 0, 5], 1),
                (SetXive, &[0x1300, 2, 5], 1),
                (SetXive, &[0x1300, 4, 5], 1),
                (SetXive, &[0x1300, 0, 0x100], 1),
                (GetXive, &[], 3),
                (GetXive, &[0x1300], 1),
                (GetXive, &[0xfff], 3),
                (IntOff, &[0x1300], 3),
                (IntOff, &[0x2000], 1),
                (IntOn, &[0x1300, 0], 1),
                (IntOn, &[0xfff], 1),
            ];
            for (call, args, nret) in refused {
                let reply = rtas(xics, *call, args, *nret);
                assert_eq!(reply.cells(), [-3i32 as u32], "{call:?} {args:x?} {nret}");
            }
            assert_eq!(rtas(xics, GetXive, &[0x1300], 3).cells(), [0, 0, 0xff]);
        });
    }

    #[test]
    fn int_off_saves_the_priority_and_get_xive_shows_the_current_one() {
        use RtasCall::{GetXive, IntOff, IntOn, SetXive};
        with_xics(|xics| {
            let get = || rtas(xics, GetXive, &[0x1fff], 3).cells().to_vec();
            assert_eq!(rtas(xics, SetXive, &[0x1fff, 1, 5], 1).cells(), [0]);
            assert_eq!(get(), [0, 1, 5]);
            assert_eq!(rtas(xics, IntOff, &[0x1fff], 1).cells(), [0]);
            assert_eq!(get(), [0, 1, 0xff]);
            assert_eq!(rtas(xics, IntOn, &[0x1fff], 1).cells(), [0]);
            assert_eq!(get(), [0, 1, 5]);
            // Twice off loses it (as in QEMU).
            rtas(xics, IntOff, &[0x1fff], 1);
            rtas(xics, IntOff, &[0x1fff], 1);
            rtas(xics, IntOn, &[0x1fff], 1);
            assert_eq!(get(), [0, 1, 0xff]);
        });
    }
}
