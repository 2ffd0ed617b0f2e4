//! Any sequence of memory and log requests against a model of a few lines: what is accepted, what is backed, and which pages
//! are in the log. A refusal in between must change none of it.

use std::collections::{BTreeMap, BTreeSet};

use proptest::prelude::*;

use super::*;

const PAGE: u64 = 4096;
/// Pages of each region's file; a region that wants more is refused.
const FILE_PAGES: u64 = 12;

#[derive(Clone, Debug)]
enum Step {
    Table(Vec<(u64, u64)>),
    Add(u64, u64),
    Remove(u64, u64),
    /// A log of so many bytes, one bit per page.
    Log(u64),
    LogAll(bool),
    Write(u64),
    Reset,
    NextVmm,
}

fn step() -> impl Strategy<Value = Step> {
    let region = || {
        (
            0u64..40,
            prop_oneof![9 => 1u64..8, 1 => Just(FILE_PAGES + 1)],
        )
    };
    prop_oneof![
        2 => prop::collection::vec(region(), 1..4).prop_map(Step::Table),
        4 => region().prop_map(|(page, pages)| Step::Add(page, pages)),
        3 => region().prop_map(|(page, pages)| Step::Remove(page, pages)),
        2 => (1u64..8).prop_map(Step::Log),
        2 => any::<bool>().prop_map(Step::LogAll),
        8 => (0u64..50).prop_map(Step::Write),
        1 => Just(Step::Reset),
        1 => Just(Step::NextVmm),
    ]
}

#[derive(Default)]
struct Model {
    /// First page to number of pages.
    regions: BTreeMap<u64, u64>,
    log_bytes: Option<u64>,
    all: bool,
    dirty: BTreeSet<u64>,
}

impl Model {
    fn backed(&self, page: u64) -> bool {
        self.regions
            .iter()
            .any(|(first, pages)| (*first..first + pages).contains(&page))
    }

    /// The table, if it is acceptable.
    fn accept(&self, mut table: Vec<(u64, u64)>) -> Option<BTreeMap<u64, u64>> {
        table.sort_unstable();
        let apart = table
            .windows(2)
            .all(|pair| pair[0].0 + pair[0].1 <= pair[1].0);
        let fits = |(first, pages): &(u64, u64)| {
            *pages <= FILE_PAGES
                && self
                    .log_bytes
                    .is_none_or(|bytes| first + pages <= bytes * 8)
        };
        (apart && table.iter().all(fits)).then(|| table.into_iter().collect())
    }

    /// Does the step; says whether it is accepted.
    fn step(&mut self, step: &Step) -> bool {
        let current = || self.regions.iter().map(|(first, pages)| (*first, *pages));
        let table = match step {
            Step::Table(table) => self.accept(table.clone()),
            Step::Add(first, pages) => self.accept(current().chain([(*first, *pages)]).collect()),
            Step::Remove(first, pages) => (self.regions.get(first) == Some(pages))
                .then(|| current().filter(|region| region.0 != *first).collect()),
            Step::Log(bytes) => {
                let reaches = current().all(|(first, pages)| first + pages <= bytes * 8);
                let accepted = reaches && !self.regions.is_empty();
                if accepted {
                    (self.log_bytes, self.dirty) = (Some(*bytes), BTreeSet::new());
                }
                return accepted;
            }
            Step::LogAll(on) => {
                self.all = *on;
                return true;
            }
            Step::Write(page) => {
                let backed = self.backed(*page);
                if backed && self.all && self.log_bytes.is_some() {
                    self.dirty.insert(*page);
                }
                return backed;
            }
            Step::Reset => return true,
            Step::NextVmm => {
                *self = Self::default();
                return true;
            }
        };
        let accepted = table.is_some();
        self.regions = table.unwrap_or_else(|| std::mem::take(&mut self.regions));
        accepted
    }
}

struct System {
    standard: Standard,
    ram: GuestRam,
    file: File,
    log: Option<File>,
}

impl System {
    fn new() -> Self {
        let standard = Standard::new(identity()).unwrap();
        let ram = standard.ram();
        let mut system = Self {
            standard,
            ram,
            file: memfd(FILE_PAGES * PAGE),
            log: None,
        };
        system.shake_hands();
        system
    }

    fn shake_hands(&mut self) {
        let protocol = PROTOCOL_FEATURES.bits().to_ne_bytes();
        self.ask(FrontendReq::SET_PROTOCOL_FEATURES, &protocol, 0);
    }

    fn ask(&mut self, request: FrontendReq, body: &[u8], fds: usize) -> Vec<u8> {
        let message = RawMessage {
            request: request.into(),
            flags: 1 | FLAG_NEED_REPLY,
            body: body.to_vec(),
            fds: (0..fds)
                .map(|_| OwnedFd::from(self.file.try_clone().unwrap()))
                .collect(),
        };
        self.standard.serve(message).unwrap().reply.unwrap().body
    }

    fn set(&mut self, request: FrontendReq, body: &[u8], fds: usize) -> bool {
        self.ask(request, body, fds) == 0u64.to_ne_bytes()
    }

    fn step(&mut self, step: &Step) -> bool {
        let one = |first: u64, pages: u64| {
            let mut body = table_body(&[(first * PAGE, pages * PAGE, 0)]);
            // One region has padding where the table has its count.
            body[..8].fill(0);
            body
        };
        match step {
            Step::Table(table) => {
                let bytes: Vec<_> = table.iter().map(|(p, n)| (p * PAGE, n * PAGE, 0)).collect();
                self.set(FrontendReq::SET_MEM_TABLE, &table_body(&bytes), table.len())
            }
            Step::Add(p, n) => self.set(FrontendReq::ADD_MEM_REG, &one(*p, *n), 1),
            Step::Remove(p, n) => self.set(FrontendReq::REM_MEM_REG, &one(*p, *n), 0),
            Step::Log(bytes) => {
                let log = memfd(*bytes);
                let body = [bytes.to_ne_bytes(), [0; 8]].concat();
                let message = RawMessage {
                    request: FrontendReq::SET_LOG_BASE.into(),
                    flags: 1,
                    body: body.clone(),
                    fds: vec![OwnedFd::from(log.try_clone().unwrap())],
                };
                let accepted = self.standard.serve(message).unwrap().reply.unwrap().body == body;
                if accepted {
                    self.log = Some(log);
                }
                accepted
            }
            Step::LogAll(on) => {
                let features = if *on { FEATURES } else { FEATURES & !LOG_ALL };
                self.set(FrontendReq::SET_FEATURES, &features.to_ne_bytes(), 0)
            }
            Step::Write(page) => self.ram.write_queue_entry(page * PAGE + 8, 1),
            Step::Reset => self.set(FrontendReq::RESET_DEVICE, &[], 0),
            Step::NextVmm => {
                self.standard.connection_ended().unwrap();
                self.log = None;
                self.shake_hands();
                true
            }
        }
    }

    fn dirty(&self) -> BTreeSet<u64> {
        self.log.iter().flat_map(logging::dirty).collect()
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(60))]

    #[test]
    fn any_sequence_is_served_as_the_model_says(steps in prop::collection::vec(step(), 1..60)) {
        let mut model = Model::default();
        let mut system = System::new();
        for step in &steps {
            prop_assert_eq!(system.step(step), model.step(step), "{:?}", step);
            prop_assert_eq!(system.ram.regions(), model.regions.len(), "{:?}", step);
            prop_assert_eq!(system.dirty(), model.dirty.clone(), "{:?}", step);
            for page in 0..50 {
                let backed = system.ram.is_backed(page * PAGE, PAGE);
                prop_assert_eq!(backed, model.backed(page), "{:?} page {}", step, page);
            }
        }
        // One descriptor and one mapping per region, beside our own.
        prop_assert_eq!(references(&system.file), 1 + 2 * model.regions.len());
    }
}
