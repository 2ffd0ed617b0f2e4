//! Which values of a [`State`] make sense together: asked before a state is written, and before anything of
//! one that was read takes effect. Sources: xics.md §8.7 (what an importer must refuse), SPEC.md chapter 6.

use super::blocks::{Block, Held};
use super::model::*;
use crate::layout::Geometry;
use crate::layout::header::Mode;

/// What is wrong with a state: the item, and its value.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{item}: {what}")]
pub struct Invalid {
    /// Which item.
    pub item: String,
    /// What is wrong with it, with the value.
    pub what: String,
}

fn invalid(item: impl Into<String>, what: impl Into<String>) -> Invalid {
    Invalid {
        item: item.into(),
        what: what.into(),
    }
}

/// Asks for `true`, or says what is wrong. The texts are made only then.
macro_rules! must {
    ($holds:expr, $item:expr, $($what:tt)+) => {
        if !$holds {
            return Err(invalid($item, format!($($what)+)));
        }
    };
}

/// The name of the build that wrote a state is no longer.
pub const MAX_PRODUCER: usize = 256;

/// It is shown and logged.
pub(super) fn producer(name: &str) -> Result<(), Invalid> {
    let length = name.len();
    must!(
        length <= MAX_PRODUCER && !name.contains(char::is_control),
        "producer",
        "{length} bytes, which are not at most {MAX_PRODUCER} without control characters"
    );
    Ok(())
}

/// Numbers rise.
fn ascending(name: &str, numbers: impl Iterator<Item = u32>) -> Result<(), Invalid> {
    let mut last = None;
    for n in numbers {
        must!(
            last.is_none_or(|last| last < n),
            format!("{name} {n:#x}"),
            "comes after {:#x}, but the list must rise",
            last.unwrap_or(0)
        );
        last = Some(n);
    }
    Ok(())
}

impl State {
    /// The first thing that is wrong.
    pub fn validate(&self) -> Result<(), Invalid> {
        let checker = Checker::new(&self.head, &self.claims)?;
        checker.xics_sources(&self.xics.sources)?;
        checker.icps(&self.xics.icps)?;
        checker.xive_sources(&self.xive.sources)?;
        checker.ends(&self.xive.ends)?;
        checker.rings(&self.xive.rings)?;
        checker.inputs(&self.inputs)
    }
}

/// Checks the lists of a state.
pub(super) struct Checker<'a> {
    head: &'a Head,
    claims: &'a [Claims],
    geometry: Geometry,
}

impl<'a> Checker<'a> {
    /// Checks head and claims.
    pub(super) fn new(head: &'a Head, claims: &'a [Claims]) -> Result<Self, Invalid> {
        let geometry = head.machine.geometry();
        let geometry = geometry.ok_or_else(|| invalid("machine", "its numbers make no machine"))?;
        let checker = Self {
            head,
            claims,
            geometry,
        };
        checker.head()?;
        checker.claims()?;
        Ok(checker)
    }

    fn head(&self) -> Result<(), Invalid> {
        let head = self.head;
        producer(&head.producer)?;
        let ic_mode = head.machine.ic_mode;
        let has = match head.active {
            Mode::Xics => ic_mode.has_xics(),
            Mode::Xive => ic_mode.has_xive(),
        };
        must!(
            has,
            "active controller",
            "{:?} on a machine with {ic_mode:?}",
            head.active
        );
        must!(
            !head.cas_xive || head.active == Mode::Xive,
            "cas_xive",
            "CAS selected XIVE, but {:?} is active",
            head.active
        );
        ascending("server", head.servers.iter().copied())?;
        if let Some(last) = head.servers.last() {
            self.server("server", *last)?;
        }
        Ok(())
    }

    fn server(&self, item: &str, server: u32) -> Result<(), Invalid> {
        let servers = self.geometry.servers();
        must!(server < servers, item, "server {server} of {servers}");
        Ok(())
    }

    fn connected(&self, item: &str, server: u32) -> Result<(), Invalid> {
        let exists = self.head.servers.binary_search(&server).is_ok();
        must!(
            exists,
            format!("{item} of server {server}"),
            "there is no such vCPU"
        );
        Ok(())
    }

    fn claims(&self) -> Result<(), Invalid> {
        let machine = &self.head.machine;
        let mut end = 0;
        let mut last = None;
        for run in self.claims {
            let item = || format!("claim {:#x}+{:#x}", run.first, run.count);
            let run_end = u64::from(run.first) + u64::from(run.count);
            let sources = self.geometry.sources();
            must!(run.count > 0, item(), "of no numbers");
            must!(
                run_end <= u64::from(sources),
                item(),
                "beyond the {sources:#x} sources"
            );
            must!(
                u64::from(run.first) >= end,
                item(),
                "overlaps the run before"
            );
            must!(
                u64::from(run.first) > end || last != Some(run.kind),
                item(),
                "goes on with the run before, of the same kind"
            );
            if run.first < machine.xics_base {
                let ipis = machine.ic_mode.has_xive()
                    && (run.first, run.count, run.kind) == (0, machine.servers, Kind::Edge);
                // The IPIs may touch the next run, if the servers reach the base.
                let joined = machine.ic_mode.has_xive()
                    && machine.servers == machine.xics_base
                    && run.count >= machine.servers
                    && (run.first, run.kind) == (0, Kind::Edge);
                must!(
                    ipis || joined,
                    item(),
                    "is not the {} IPIs",
                    machine.servers
                );
            }
            (end, last) = (run_end, Some(run.kind));
        }
        must!(
            self.head.fixed == fixed(self.claims),
            "claims",
            "the head has others than the claims that a reset keeps"
        );
        let first = self.claims.first();
        must!(
            !machine.ic_mode.has_xive() || first.is_some_and(|run| run.first == 0),
            "claim 0x0",
            "the IPIs are not claimed"
        );
        Ok(())
    }

    pub(super) fn inputs(&self, inputs: &[Input]) -> Result<(), Invalid> {
        ascending("input", inputs.iter().map(|i| i.lisn))?;
        for input in inputs {
            let item = || format!("input {:#x}", input.lisn);
            let kind = kind_in(self.claims, input.lisn);
            let level = input.level_vmm || input.level_irqfd || input.resample_due;
            must!(kind.is_some(), item(), "the number is not claimed");
            must!(level || input.latched, item(), "nothing is held there");
            must!(
                !level || kind == Some(Kind::Lsi),
                item(),
                "has a level, but is no LSI"
            );
        }
        Ok(())
    }

    /// A block of sources that are listed.
    pub(super) fn listed<B: Block>(&self, held: &Held<B>) -> Result<(), Invalid> {
        let served = B::is_of(self.head.machine.ic_mode);
        let reset = held.listed & !held.block.used(held.kinds);
        match served && reset == 0 && B::fits(held, &self.geometry) {
            true => Ok(()),
            false => self.each(held),
        }
    }

    /// One of which all is listed that is not as after reset, of a machine that has the controller.
    pub(super) fn used<B: Block>(&self, held: &Held<B>) -> Result<(), Invalid> {
        match B::fits(held, &self.geometry) {
            true => Ok(()),
            false => self.each(held),
        }
    }

    /// Says which one it is.
    fn each<B: Block>(&self, held: &Held<B>) -> Result<(), Invalid> {
        held.entries()
            .try_for_each(|(entry, kind)| B::check(self, &entry, kind))
    }

    fn xics_sources(&self, sources: &[XicsSource]) -> Result<(), Invalid> {
        ascending("xics source", sources.iter().map(|s| s.irq))?;
        let check = |s: &XicsSource| self.xics_source(s, kind_in(self.claims, s.irq));
        sources.iter().try_for_each(check)
    }

    pub(super) fn xics_source(&self, s: &XicsSource, kind: Option<Kind>) -> Result<(), Invalid> {
        let has = self.head.machine.ic_mode.has_xics();
        must!(has, "xics sources", "on a machine without XICS");
        let item = || format!("xics source {:#x}", s.irq);
        let base = self.geometry.xics_base();
        let (irq, servers) = (s.irq, self.geometry.servers());
        must!(
            (base..self.geometry.sources()).contains(&irq),
            item(),
            "XICS serves {base:#x} to {:#x}",
            self.geometry.sources() - 1
        );
        must!(
            u32::from(s.server) < servers,
            item(),
            "server {} of {servers}",
            s.server
        );
        must!(
            s.priority == s.saved || s.priority == 0xff,
            item(),
            "priority {:#x} is neither the saved {:#x} nor ff",
            s.priority,
            s.saved
        );
        must!(
            !s.sent || kind == Some(Kind::Lsi),
            item(),
            "sent, but no LSI"
        );
        must!(
            !(s.rejected || s.masked_pending) || matches!(kind, Some(Kind::Edge | Kind::Msi)),
            item(),
            "rejected or masked-pending, but no MSI"
        );
        must!(*s != XicsSource::reset(irq), item(), "is as after reset");
        Ok(())
    }

    pub(super) fn icps(&self, icps: &[Icp]) -> Result<(), Invalid> {
        let has = self.head.machine.ic_mode.has_xics();
        must!(has || icps.is_empty(), "icps", "on a machine without XICS");
        ascending("icp", icps.iter().map(|i| i.server))?;
        for i in icps {
            let item = || format!("icp of server {}", i.server);
            self.connected("icp", i.server)?;
            let served = self.geometry.xics_base()..self.geometry.sources();
            must!(
                matches!(i.xisr, 0 | 2) || served.contains(&i.xisr),
                item(),
                "XISR {:#x} is no source",
                i.xisr
            );
            must!(
                (i.pending_priority == 0xff) == (i.xisr == 0),
                item(),
                "pending priority {:#x} with XISR {:#x}",
                i.pending_priority,
                i.xisr
            );
            must!(*i != Icp::reset(i.server), item(), "is as after reset");
        }
        Ok(())
    }

    fn xive_sources(&self, sources: &[XiveSource]) -> Result<(), Invalid> {
        ascending("xive source", sources.iter().map(|s| s.lisn))?;
        let check = |s: &XiveSource| self.xive_source(s, kind_in(self.claims, s.lisn));
        sources.iter().try_for_each(check)
    }

    pub(super) fn xive_source(&self, s: &XiveSource, kind: Option<Kind>) -> Result<(), Invalid> {
        let has = self.head.machine.ic_mode.has_xive();
        must!(has, "xive sources", "on a machine without XIVE");
        let item = || format!("xive source {:#x}", s.lisn);
        let (all, ends) = (self.geometry.sources(), self.geometry.ends());
        must!(s.lisn < all, item(), "beyond the {all:#x} sources");
        must!(s.pq < 4, item(), "PQ {:#x}", s.pq);
        must!(s.end < ends, item(), "END {:#x} of {ends:#x}", s.end);
        must!(
            s.eisn < 1 << 31,
            item(),
            "EISN {:#x} has more than 31 bits",
            s.eisn
        );
        must!(
            *s != XiveSource::reset(s.lisn, kind.is_some()),
            item(),
            "is as after reset"
        );
        Ok(())
    }

    pub(super) fn ends(&self, ends: &[End]) -> Result<(), Invalid> {
        let has = self.head.machine.ic_mode.has_xive();
        must!(has || ends.is_empty(), "ends", "on a machine without XIVE");
        ascending("end", ends.iter().map(|e| e.end))?;
        for e in ends {
            let item = || format!("end {:#x}", e.end);
            let all = self.geometry.ends();
            must!(e.end < all, item(), "beyond the {all:#x} ENDs");
            must!(
                matches!(e.size, 12 | 16 | 21 | 24),
                item(),
                "a queue of 2^{} bytes",
                e.size
            );
            let bytes = 1u64 << e.size;
            must!(
                e.address % bytes == 0 && e.address.checked_add(bytes).is_some(),
                item(),
                "queue at {:#x}, not aligned to its {bytes:#x} bytes",
                e.address
            );
            must!(
                u64::from(e.index) < bytes / 4,
                item(),
                "index {:#x} of {:#x}",
                e.index,
                bytes / 4
            );
            must!(e.esn < 4, item(), "ESn {:#x}", e.esn);
        }
        Ok(())
    }

    pub(super) fn rings(&self, rings: &[Ring]) -> Result<(), Invalid> {
        let has = self.head.machine.ic_mode.has_xive();
        must!(
            has || rings.is_empty(),
            "rings",
            "on a machine without XIVE"
        );
        ascending("ring", rings.iter().map(|r| r.server))?;
        for r in rings {
            let item = || format!("ring of server {}", r.server);
            self.connected("ring", r.server)?;
            must!(
                r.bytes & 0xff00 == 0,
                item(),
                "AGE is {:#x}",
                r.bytes >> 8 & 0xff
            );
            must!(
                r.bytes >> 56 & 0x7f == 0,
                item(),
                "NSR is {:#x}",
                r.bytes >> 56
            );
            must!(r.bytes != Ring::RESET, item(), "is as after reset");
        }
        Ok(())
    }
}
