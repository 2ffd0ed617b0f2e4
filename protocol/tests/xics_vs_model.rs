//! Random operations on the XICS plane, sequentially, after each of them:
//!
//! * at `qemu-7.2`: results, ICPs, sources and lines equal those of a slow restatement of QEMU's
//!   rules that scans every source and has no index;
//! * at `papr-1`: the invariants that this level promises (SPEC.md chapter 3, XICS invariants).
//!
//! Sizes with one, two and three levels of pending index.

#![allow(clippy::unwrap_used)]

mod xics_model;

use papr_intc_protocol::layout::Compat;
use papr_intc_protocol::layout::words::{icp, ics};
use proptest::prelude::*;
use xics_model::bench::{Bench, Op, SERVERS, USED, ops};
use xics_model::{Icp, Kind, Model};

fn equals_qemu(ics_sources: u32, ops: &[(bool, Op)]) -> Result<(), TestCaseError> {
    let bench = Bench::new(Compat::Qemu72, ics_sources);
    let mut model = Model::new(SERVERS, &bench.used, &bench.kinds);
    for (step, (daemon, op)) in ops.iter().enumerate() {
        let got = bench.run(*daemon, *op);
        let want = apply(&mut model, &bench, *daemon, *op);
        prop_assert_eq!(got, want, "result of step {}: {:x?}", step, op);
        for (k, want) in model.icps.iter().enumerate() {
            let i = bench.icp(k as u32);
            let got = Icp {
                connected: i & icp::CONNECTED != 0,
                cppr: icp::cppr(i),
                xisr: icp::xisr(i),
                pp: icp::pp(i),
                mfrr: icp::mfrr(i),
            };
            prop_assert_eq!(got, *want, "ICP {} after step {}: {:x?}", k, step, op);
            let line = bench.xics(*daemon).line(k as u32);
            prop_assert_eq!(line, want.xisr != 0);
        }
        for (n, want) in model.sources.iter().enumerate() {
            let got = bench.xics(*daemon).source(bench.used[n]).unwrap();
            prop_assert_eq!(
                (got.claimed, got.routing.server, got.routing.priority),
                (want.claimed, want.server, want.priority),
                "source {:x} after step {}: {:x?}",
                bench.used[n],
                step,
                op
            );
            prop_assert_eq!(
                (got.routing.saved, got.status),
                (want.saved, want.status),
                "source {:x} after step {}: {:x?}",
                bench.used[n],
                step,
                op
            );
        }
        bench.check_words()?;
    }
    Ok(())
}

/// The same operation on the model, with the same form of result.
fn apply(m: &mut Model, bench: &Bench, daemon: bool, op: Op) -> Vec<u64> {
    let irq = |n: usize| u64::from(bench.used[n]);
    let parameter = -4i64 as u64;
    match op {
        Op::Trigger(n) => m.pulse(n),
        Op::Level(n, input, level) => m.set_level(n, input, level),
        Op::Xirr(k) => return vec![0, u64::from(m.accept(k)), if daemon { 0x1234 } else { 0 }],
        Op::Eoi(k, p, x) => {
            m.eoi(k, p, None);
            return vec![0, u64::from(p) << 24 | u64::from(x), 0];
        }
        Op::EoiOf(k, p, n) => {
            m.eoi(k, p, Some(n));
            return vec![0, 5 << 32 | u64::from(p) << 24 | irq(n), 0];
        }
        Op::Cppr(k, p) => {
            m.set_cppr(k, p);
            return vec![0, 0xab00 | u64::from(p), 0];
        }
        Op::Ipi(_, t, p) => {
            let code = if m.set_mfrr(t, p) { 0 } else { parameter };
            return vec![code, 7 << 32 | u64::from(t), 0x100 | u64::from(p)];
        }
        Op::Poll(t) => {
            return match m.icps.get(t as usize).filter(|i| i.connected) {
                Some(i) => vec![
                    0,
                    u64::from(i.cppr) << 24 | u64::from(i.xisr),
                    u64::from(i.mfrr),
                ],
                None => vec![parameter, u64::from(t), 0],
            };
        }
        Op::SetXive(n, k, p) => {
            if !m.icps[k as usize].connected {
                return vec![u64::from(-3i32 as u32)];
            }
            m.write(n, k, p, p);
            return vec![0];
        }
        Op::IntOff(n) => {
            let s = m.sources[n];
            m.write(n, s.server, 0xff, s.priority);
            return vec![0];
        }
        Op::IntOn(n) => {
            let s = m.sources[n];
            m.write(n, s.server, s.saved, s.saved);
            return vec![0];
        }
        Op::GetXive(n) => {
            let s = m.sources[n];
            return vec![0, u64::from(s.server), u64::from(s.priority)];
        }
        Op::Disconnect(k) => m.reset_icp(k, false),
        Op::Connect(k) => m.icps[k as usize].connected = true,
        Op::Reset(k) => {
            let connected = m.icps[k as usize].connected;
            m.reset_icp(k, connected);
        }
        Op::Free(n) => m.free(n),
        Op::Claim(n) => m.sources[n].claimed = true,
    }
    vec![]
}

fn keeps_papr_invariants(ics_sources: u32, ops: &[(bool, Op)]) -> Result<(), TestCaseError> {
    let bench = Bench::new(Compat::Papr1, ics_sources);
    let mut unserved = [false; USED];
    for (daemon, op) in ops {
        let result = bench.run(*daemon, *op);
        match op {
            Op::Trigger(n) if bench.kinds[*n] == Kind::Msi => {
                unserved[*n] |= bench.source(*n) & ics::CLAIMED != 0;
            }
            Op::Free(n) => unserved[*n] = false,
            Op::Xirr(_) => {
                let xisr = result[1] as u32 & 0xff_ffff;
                if let Ok(n) = bench.used.binary_search(&xisr) {
                    unserved[n] = false;
                }
            }
            _ => {}
        }
        bench.check_words()?;
        bench.check_nothing_stalls()?;
        bench.check_nothing_vanished(&unserved)?;
    }
    Ok(())
}

const ONE_LEVEL: u32 = 20;
const TWO_LEVELS: u32 = 5000;
const THREE_LEVELS: u32 = 300_000;

/// Sequences of 1000 operations on average. `PROPTEST_CASES` overrides the number of them.
fn cases(default: u32) -> ProptestConfig {
    let asked = std::env::var("PROPTEST_CASES").ok();
    ProptestConfig {
        cases: asked.and_then(|n| n.parse().ok()).unwrap_or(default),
        max_shrink_iters: 600,
        ..ProptestConfig::default()
    }
}

proptest! {
    #![proptest_config(cases(40))]

    #[test]
    fn qemu_7_2_equals_the_model_with_one_index_word(ops in ops(2000)) {
        equals_qemu(ONE_LEVEL, &ops)?;
    }
    #[test]
    fn qemu_7_2_equals_the_model_with_mid_words(ops in ops(2000)) {
        equals_qemu(TWO_LEVELS, &ops)?;
    }
    #[test]
    fn papr_1_keeps_its_invariants_with_one_index_word(ops in ops(2000)) {
        keeps_papr_invariants(ONE_LEVEL, &ops)?;
    }
    #[test]
    fn papr_1_keeps_its_invariants_with_mid_words(ops in ops(2000)) {
        keeps_papr_invariants(TWO_LEVELS, &ops)?;
    }
}

proptest! {
    #![proptest_config(cases(8))]

    #[test]
    fn qemu_7_2_equals_the_model_with_several_mid_words_a_slice(ops in ops(2000)) {
        equals_qemu(THREE_LEVELS, &ops)?;
    }
    #[test]
    fn papr_1_keeps_its_invariants_with_several_mid_words_a_slice(ops in ops(2000)) {
        keeps_papr_invariants(THREE_LEVELS, &ops)?;
    }
}
