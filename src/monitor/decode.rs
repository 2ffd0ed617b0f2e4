//! Shared words as a JSON object (docs/operating.md lists the keys).
//!
//! Every word is outside input (SPEC.md [S-5]): read once, masked or compared before it indexes anything.
//! The words of a running guest change meanwhile; each number is right for some moment.

use std::sync::atomic::Ordering;

use papr_intc_protocol::layout::header::{self, Mode, State, word};
use papr_intc_protocol::layout::plain::PlainStorage;
use papr_intc_protocol::layout::words::{
    cursor, eas, end_config, icp, ics, presence, reason, run, source, tima,
};
use papr_intc_protocol::layout::{AtomicWord, Geometry, Machine, Page, Storage, Table};
use papr_intc_protocol::{LAYOUT_MIN, Versions};
use serde_json::{Value, json};

/// Bytes of the largest memfd there is, rounded up.
pub const LARGEST: u64 = 64 << 20;

/// Describes the copy of a memfd; says why if it is none of ours.
pub fn memfd(bytes: &[u8]) -> Result<Value, String> {
    let smallest = Geometry::in_layout(LAYOUT_MIN, 16, 16, 1).ok_or("no smallest machine")?;
    let head = PlainStorage::copy_of(smallest, bytes.get(..8192).ok_or("it is too short")?);
    // A build with other numbers is looked at as far as the header goes; unknown flags say nothing about
    // the words that are read here.
    let any = Versions {
        plane_min: 0,
        plane: u16::MAX,
        incompat_known: u64::MAX,
        ..Versions::current("status")
    };
    let layout = header::check(&head, &any).map_err(|e| e.to_string())?;
    let machine = Machine::read(&head).ok_or("its machine is damaged")?;
    let geometry = machine.geometry_in(layout);
    let geometry = geometry.ok_or("its machine is damaged")?;
    if geometry.size() != bytes.len() as u64 {
        return Err(format!(
            "it has {} bytes, its machine needs {}",
            bytes.len(),
            geometry.size()
        ));
    }
    Ok(describe(&PlainStorage::copy_of(geometry, bytes), &machine))
}

/// Describes a machine.
pub fn describe<S: Storage>(storage: &S, machine: &Machine) -> Value {
    match machine.geometry() {
        Some(geometry) => Decoder {
            storage,
            machine,
            geometry,
            state: State::read(storage),
        }
        .all(),
        None => json!({}),
    }
}

struct Decoder<'a, S> {
    storage: &'a S,
    machine: &'a Machine,
    geometry: Geometry,
    state: State,
}

fn lower(value: impl std::fmt::Debug) -> String {
    format!("{value:?}").to_lowercase()
}

impl<S: Storage> Decoder<'_, S> {
    // Acquire, uniform: pairs with whatever store led here; an onlooker acts on nothing.
    fn page(&self, at: Page) -> u64 {
        self.storage.page(at).load(Ordering::Acquire)
    }
    fn table(&self, at: Table) -> u64 {
        self.storage.table(at, Ordering::Acquire)
    }
    fn header(&self, w: u32) -> u64 {
        self.table(Table::Header(w))
    }
    fn run(&self, w: u32) -> u64 {
        self.page(Page::Run(w))
    }

    fn all(&self) -> Value {
        let versions = self.header(word::VERSIONS);
        let (claimed, lsi) = self.sources();
        let vcpus = self.vcpus();
        let lines = vcpus.iter().filter(|v| v["line"] == true).count();
        json!({
            "name": self.name(),
            "mode": lower(self.state.mode),
            "gate": lower(self.state.gate),
            "executor": match self.state.executor {
                header::Executor::FrontEnd => "front-end",
                header::Executor::Daemon => "daemon",
            },
            "ic_mode": lower(self.machine.ic_mode),
            "compat": lower(self.machine.compat),
            "generation": self.header(word::GENERATION),
            "start_count": self.header(word::START_COUNT),
            "quiesce_depth": self.header(word::QUIESCE_DEPTH),
            "ov5_byte_23": self.header(word::OV5_BYTE_23),
            "numbers": self.numbers(versions),
            "sources_claimed": claimed,
            "sources_lsi": lsi,
            "servers_connected": vcpus.iter().map(|v| &v["server"]).collect::<Vec<_>>(),
            "lines_up": lines,
            "queues_live": self.queues(),
            "delivered": self.delivered(),
            "presence": self.presence(),
            "daemon_pid": self.run(run::DAEMON_PID),
            "vmm_pid": self.run(run::VMM_PID),
            "since_ms": self.run(run::SINCE),
            "restarts": self.run(run::RESTARTS),
            "last_outage": self.outage(),
            "vcpus": vcpus,
        })
    }

    fn numbers(&self, versions: u64) -> Value {
        let (own, agreed) = (self.run(run::FRONT_END), self.run(run::AGREED));
        json!({
            "memory": { "layout": versions as u16, "plane": (versions >> 16) as u16 },
            "front_end": {
                "protocol": own as u16, "layout": (own >> 16) as u16, "plane": (own >> 32) as u16,
            },
            "agreed": { "protocol": agreed as u16, "layout": (agreed >> 16) as u16 },
        })
    }

    fn name(&self) -> String {
        let words = (0..run::NAME_WORDS).map(|i| self.run(run::NAME + i));
        let bytes: Vec<u8> = words
            .flat_map(u64::to_le_bytes)
            .take_while(|b| *b != 0)
            .collect();
        let text = String::from_utf8_lossy(&bytes);
        // For a terminal.
        text.chars().filter(|c| !c.is_control()).collect()
    }

    fn presence(&self) -> &'static str {
        match self.run(run::PRESENCE) {
            presence::PRESENT => "present",
            presence::ABSENT => "absent",
            presence::GAVE_UP => "gave up",
            presence::SHUT_DOWN => "shut down",
            _ => "unknown",
        }
    }

    fn outage(&self) -> Value {
        let why = self.run(run::OUTAGE_REASON);
        if why == 0 {
            return Value::Null;
        }
        let status = (why >> reason::STATUS_SHIFT) as u8;
        let under_way = self.run(run::PRESENCE) != presence::PRESENT;
        let delivered = if under_way {
            self.delivered().wrapping_sub(self.run(run::OUTAGE_BASE))
        } else {
            self.run(run::OUTAGE_DELIVERED)
        };
        json!({
            "reason": match why & reason::CODE {
                reason::ENDED => "the process ended",
                reason::HUNG_UP => "the connection hung up",
                reason::BROKEN => "a request met a broken connection",
                reason::SILENT => "it did not answer in time",
                reason::REPLACED => "it was replaced",
                _ => "unknown",
            },
            "exit_code": (why & reason::HAS_EXIT != 0).then_some(status),
            "signal": (why & reason::HAS_SIGNAL != 0).then_some(status),
            "began_ms": self.run(run::OUTAGE_BEGAN),
            "length_us": (!under_way).then(|| self.run(run::OUTAGE_LENGTH)),
            "delivered": delivered,
            "under_way": under_way,
        })
    }

    fn delivered(&self) -> u64 {
        (0..self.geometry.epochs())
            .map(|slot| self.page(Page::Delivered(slot)))
            .fold(self.header(word::DELIVERED), u64::wrapping_add)
    }

    /// Claimed numbers, and how many of them are level-sensitive.
    fn sources(&self) -> (u32, u32) {
        (0..self.geometry.sources().div_ceil(64)).fold((0, 0), |(all, lsi), w| {
            let claimed = self.claimed(w);
            let level = claimed & self.table(Table::Lsi(w));
            (all + claimed.count_ones(), lsi + level.count_ones())
        })
    }

    /// A word of the claimed bitmap without bits beyond the last source.
    fn claimed(&self, w: u32) -> u64 {
        let rest = self.geometry.sources() - w * 64;
        let mask = if rest < 64 { (1 << rest) - 1 } else { u64::MAX };
        self.table(Table::Claimed(w)) & mask
    }

    fn queues(&self) -> usize {
        let live = |end: &u32| {
            let slot = u32::from(self.page(Page::EndCursor(*end)) & cursor::SEL != 0);
            self.table(Table::EndConfig(*end, slot, 1)) & end_config::VALID != 0
        };
        (0..self.geometry.ends()).filter(live).count()
    }

    fn vcpus(&self) -> Vec<Value> {
        let waiting = self.waiting();
        let one = |(server, sources): (u32, &u32)| {
            let (icp, ring) = (self.page(Page::Icp(server)), self.page(Page::Tima(server)));
            let connected = icp & icp::CONNECTED != 0 || ring & tima::CONNECTED != 0;
            let (line, cppr) = match self.state.mode {
                Mode::Xics => (icp & icp::XISR != 0, icp::cppr(icp)),
                Mode::Xive => (ring & tima::NSR_EO != 0, tima::cppr(ring)),
            };
            connected.then(
                || json!({ "server": server, "line": line, "cppr": cppr, "pending": sources }),
            )
        };
        (0..).zip(&waiting).filter_map(one).collect()
    }

    /// For each server, how many sources have an event for it that it has not taken.
    fn waiting(&self) -> Vec<u32> {
        let mut waiting = vec![0u32; self.geometry.servers() as usize];
        for w in 0..self.geometry.sources().div_ceil(64) {
            let mut bits = self.claimed(w);
            while bits != 0 {
                let lisn = w * 64 + bits.trailing_zeros();
                bits &= bits - 1;
                if let Some(server) = self.waits_for(lisn)
                    && let Some(count) = waiting.get_mut(server as usize)
                {
                    *count += 1;
                }
            }
        }
        waiting
    }

    fn waits_for(&self, lisn: u32) -> Option<u32> {
        match self.state.mode {
            Mode::Xive => {
                let event = self.page(Page::Source(lisn)) & source::P != 0;
                let target = self.table(Table::Eas(lisn));
                let routed = target & eas::VALID != 0 && target & eas::MASKED == 0;
                (event && routed).then(|| eas::end(target) / 8)
            }
            Mode::Xics => {
                let index = lisn.checked_sub(self.geometry.xics_base())?;
                let word = self.page(Page::IcsSource(index));
                let event = if word & ics::LSI != 0 {
                    word & ics::ASSERTED != 0
                } else {
                    word & (ics::REJECTED | ics::MASKED_PENDING) != 0
                };
                event.then(|| ics::server(word))
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use papr_intc_protocol::layout::{Compat, IcMode, TableStorage};
    use proptest::prelude::*;

    use super::*;

    /// A memfd with a valid header and `fill` in every other word.
    fn scribbled(ic_mode: IcMode, state: u64, mut fill: impl FnMut(usize) -> u64) -> Vec<u8> {
        let machine = Machine::pseries(ic_mode, Compat::Papr1, 2);
        let machine = Machine {
            sources: 0x1041,
            ..machine
        };
        let geometry = machine.geometry().unwrap();
        let head = PlainStorage::new(geometry);
        machine.write(&head);
        let set = |w, v| {
            head.table_word(Table::Header(w))
                .store(v, Ordering::Relaxed)
        };
        set(word::MAGIC, header::MAGIC);
        set(
            word::VERSIONS,
            Versions::current("").header_word(geometry.layout()),
        );
        set(word::STATE, state);
        (0..geometry.size() as usize / 8)
            .map(|i| match i {
                0..=1 | 6 | 8..=13 => head.table(Table::Header(i as u32), Ordering::Relaxed),
                _ => fill(i),
            })
            .flat_map(u64::to_ne_bytes)
            .collect()
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(32))]
        #[test]
        fn any_words_are_described(
            words in prop::collection::vec(any::<u64>(), 1..512),
            state in any::<u64>(),
        ) {
            for ic_mode in [IcMode::Xics, IcMode::Dual] {
                let bytes = scribbled(ic_mode, state, |i| words[i % words.len()]);
                let found = memfd(&bytes).unwrap();
                prop_assert!(found["sources_claimed"].as_u64().unwrap() <= 0x1041);
                crate::monitor::report::text(&found);
            }
        }

        #[test]
        fn any_bytes_are_refused_or_described(bytes in prop::collection::vec(any::<u8>(), 0..20_000)) {
            let _ = memfd(&bytes);
        }
    }

    #[test]
    fn all_ones_and_all_zeros_are_described() {
        for value in [0, u64::MAX] {
            for state in [0b01_01, 0b01_10] {
                let found = memfd(&scribbled(IcMode::Dual, state, |_| value)).unwrap();
                assert_eq!(found["presence"], "unknown");
            }
        }
    }
}
