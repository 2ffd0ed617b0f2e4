//! What a state holds. Lists are ascending, without doubles, and without what is as after reset: a
//! guest that never used a controller has nothing in its lists.

use crate::layout::header::Mode;
use crate::layout::words::tima;
use crate::layout::{Compat, IcMode, Machine};

/// Everything about one guest's interrupt controllers.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct State {
    /// What is known before the rest.
    pub head: Head,
    /// Claimed numbers, in runs of one kind.
    pub claims: Vec<Claims>,
    /// Sources whose devices hold a level, or wait for something.
    pub inputs: Vec<Input>,
    /// XICS.
    pub xics: Xics,
    /// XIVE.
    pub xive: Xive,
}

/// What the destination has to know to accept or refuse, before the source stops.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Head {
    /// The build that wrote it, for people.
    pub producer: String,
    /// The machine. `ram_shared` is the host's business and is not carried.
    pub machine: Machine,
    /// The active controller.
    pub active: Mode,
    /// CAS selected XIVE.
    pub cas_xive: bool,
    /// Negotiated byte 23 of option vector 5; 0 before CAS.
    pub ov5_byte_23: u8,
    /// Server numbers of the vCPUs that exist.
    pub servers: Vec<u32>,
    /// The claims that a machine reset keeps, so that they can be compared before the source stops; as
    /// [`fixed`] has them.
    pub fixed: Vec<Claims>,
}

/// What a claimed number is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Kind {
    /// Edge, of the machine or a fixed device; the XIVE IPIs too.
    Edge,
    /// Level-sensitive.
    Lsi,
    /// Edge, allocated at run time: a machine reset can free it.
    Msi,
}

impl Kind {
    /// For people.
    pub fn name(self) -> &'static str {
        match self {
            Self::Edge => "edge",
            Self::Lsi => "level-sensitive",
            Self::Msi => "an MSI",
        }
    }
}

/// Consecutive claimed numbers of one kind. Neighbouring runs differ in kind, or have a gap between.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Claims {
    /// First number.
    pub first: u32,
    /// How many, at least one.
    pub count: u32,
    /// What they are.
    pub kind: Kind,
}

/// What reaches a source from outside.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Input {
    /// The claimed number.
    pub lisn: u32,
    /// The VMM's devices hold the level (LSIs only).
    pub level_vmm: bool,
    /// An irqfd holds the level (LSIs only).
    pub level_irqfd: bool,
    /// An event came while the machine was quiesced; it takes effect at the resume.
    pub latched: bool,
    /// The guest has ended the interrupt, and the resamplefds are still to be written (LSIs only).
    pub resample_due: bool,
}

/// XICS: sources and presenters that are not as after reset.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Xics {
    /// Sources.
    pub sources: Vec<XicsSource>,
    /// Interrupt presentation controllers.
    pub icps: Vec<Icp>,
}

/// A XICS source. After reset: server 0, priority and saved priority ff, nothing else.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct XicsSource {
    /// Its number.
    pub irq: u32,
    /// Server number.
    pub server: u16,
    /// Priority; ff is masked.
    pub priority: u8,
    /// What ibm,int-on restores.
    pub saved: u8,
    /// Presented or accepted, and not ended (LSIs only).
    pub sent: bool,
    /// Refused or displaced, to be sent again (MSIs only).
    pub rejected: bool,
    /// Triggered while masked (MSIs only).
    pub masked_pending: bool,
}

impl XicsSource {
    /// As after reset.
    pub fn reset(irq: u32) -> Self {
        Self {
            irq,
            server: 0,
            priority: 0xff,
            saved: 0xff,
            sent: false,
            rejected: false,
            masked_pending: false,
        }
    }
}

/// An ICP. After reset: CPPR 0, nothing presented, MFRR ff.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Icp {
    /// Its vCPU.
    pub server: u32,
    /// Current processor priority.
    pub cppr: u8,
    /// What is presented: 0 nothing, 2 the IPI, else a source.
    pub xisr: u32,
    /// Priority of what is presented, ff if nothing.
    pub pending_priority: u8,
    /// Most favoured request of an IPI; ff none.
    pub mfrr: u8,
}

impl Icp {
    /// As after reset.
    pub fn reset(server: u32) -> Self {
        Self {
            server,
            cppr: 0,
            xisr: 0,
            pending_priority: 0xff,
            mfrr: 0xff,
        }
    }
}

/// XIVE: sources, queues and rings that are not as after reset.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Xive {
    /// Sources and their routing.
    pub sources: Vec<XiveSource>,
    /// Configured event queues.
    pub ends: Vec<End>,
    /// OS rings.
    pub rings: Vec<Ring>,
}

/// A XIVE source and its EAS. After reset: PQ 01, END and EISN 0, masked if it is claimed. EAS.VALID is the
/// claim and is not repeated here.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct XiveSource {
    /// Its number.
    pub lisn: u32,
    /// PQ: P is 2, Q is 1.
    pub pq: u8,
    /// EAS: events are dropped.
    pub masked: bool,
    /// EAS: END index, eight times the server plus the priority.
    pub end: u32,
    /// EAS: event data, 31 bits.
    pub eisn: u32,
}

impl XiveSource {
    /// As after reset.
    pub fn reset(lisn: u32, claimed: bool) -> Self {
        Self {
            lisn,
            pq: 1,
            masked: claimed,
            end: 0,
            eisn: 0,
        }
    }
}

/// A configured event queue. An END after reset has none.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct End {
    /// Index: eight times the server plus the priority.
    pub end: u32,
    /// Guest physical address, aligned to the size.
    pub address: u64,
    /// Log2 of the bytes: 12, 16, 21 or 24.
    pub size: u8,
    /// Every event notifies.
    pub always_notify: bool,
    /// Generation bit of the next entry.
    pub generation: bool,
    /// Next slot, in entries.
    pub index: u32,
    /// PQ of the notification: P is 2, Q is 1.
    pub esn: u8,
}

/// An OS ring: NSR to PIPR as a big-endian u64, AGE 0. After reset [`Ring::RESET`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ring {
    /// Its vCPU.
    pub server: u32,
    /// The bytes.
    pub bytes: u64,
}

impl Ring {
    /// The bytes after reset.
    pub const RESET: u64 = tima::RESET;
}

impl State {
    /// A machine as after power-on.
    pub fn reset(head: Head) -> Self {
        let ipis = head.machine.ic_mode.has_xive().then_some(Claims {
            first: 0,
            count: head.machine.servers,
            kind: Kind::Edge,
        });
        let claims: Vec<Claims> = ipis.into_iter().collect();
        Self {
            head: Head {
                fixed: fixed(&claims),
                ..head
            },
            claims,
            inputs: Vec::new(),
            xics: Xics::default(),
            xive: Xive::default(),
        }
    }

    /// Kind of a claimed number; `None` if it is free.
    pub fn kind(&self, lisn: u32) -> Option<Kind> {
        kind_in(&self.claims, lisn)
    }
}

/// Most runs of [`Head::fixed`]; above, a head says nothing of claims.
pub const MAX_FIXED: usize = 2048;

/// The claims that a machine reset keeps, if they are few enough for a head.
pub fn fixed(claims: &[Claims]) -> Vec<Claims> {
    let keeps = claims.iter().filter(|run| run.kind != Kind::Msi);
    let fixed: Vec<Claims> = keeps.copied().collect();
    if fixed.len() > MAX_FIXED {
        return Vec::new();
    }
    fixed
}

/// Kind of a number in ascending runs.
pub fn kind_in(claims: &[Claims], lisn: u32) -> Option<Kind> {
    let after = claims.partition_point(|run| run.first <= lisn);
    let run = claims.get(after.checked_sub(1)?)?;
    (lisn - run.first < run.count).then_some(run.kind)
}

impl Head {
    /// A machine before it started, without vCPUs.
    pub fn new(producer: &str, machine: Machine) -> Self {
        Self {
            producer: producer.to_owned(),
            machine,
            active: match machine.ic_mode {
                IcMode::Xive => Mode::Xive,
                IcMode::Xics | IcMode::Dual => Mode::Xics,
            },
            cas_xive: false,
            ov5_byte_23: 0,
            servers: Vec::new(),
            fixed: Vec::new(),
        }
    }
}

/// Name of a compat level, on the command line and in a stream.
pub fn level_name(compat: Compat) -> &'static str {
    match compat {
        Compat::Papr1 => "papr-1",
        Compat::Qemu72 => "qemu-7.2",
    }
}

/// The compat level of a name.
pub fn level_of(name: &str) -> Option<Compat> {
    [Compat::Papr1, Compat::Qemu72]
        .into_iter()
        .find(|level| level_name(*level) == name)
}
