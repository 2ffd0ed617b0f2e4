//! Who may take whose state: compat levels and capabilities, by tables that are frozen per level and used on
//! both sides (SPEC.md §6.3).
//!
//! A capability is a small number; more is more. One rule: **what the source's compat level does not know is
//! absent from its stream, and means that level's frozen default.** It never means the default of who reads: that
//! would give a capability invented later a value that older sources never had (the failure of xics.md §7.3).

use crate::layout::{IcMode, Machine};

use super::model::{Claims, Head, Kind, kind_in, level_name};

/// What one compat level knows of one capability.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Knows {
    /// Its streams carry the value.
    Carried,
    /// Its streams do not have it; its machines behave as with this value.
    Frozen(u32),
}

/// A capability, and what each compat level knows of it.
#[derive(Clone, Copy, Debug)]
pub struct Capability {
    /// Its name in the stream.
    pub name: &'static str,
    /// One entry for each level that there is.
    pub levels: &'static [(&'static str, Knows)],
}

/// The capabilities of this build. A row is never changed; a new capability is a new row with
/// [`Knows::Frozen`] for every level of before.
pub const CAPABILITIES: &[Capability] = &[
    Capability {
        name: "xics",
        levels: &[("papr-1", Knows::Carried), ("qemu-7.2", Knows::Carried)],
    },
    Capability {
        name: "xive",
        levels: &[("papr-1", Knows::Carried), ("qemu-7.2", Knows::Carried)],
    },
    Capability {
        name: "store-eoi",
        // QEMU's pseries machine never offers it.
        levels: &[("papr-1", Knows::Carried), ("qemu-7.2", Knows::Frozen(0))],
    },
];

/// A value on its way: as it is in a stream.
pub type Carried = (String, u32);

/// Why a state cannot be taken, or not be written: the item, and both values.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Mismatch {
    /// Source and destination have different numbers.
    #[error("{item} is {there} in the incoming state and {here} here")]
    Differs {
        /// Which.
        item: String,
        /// In the stream.
        there: String,
        /// At the destination.
        here: String,
    },
    /// The source has more of a capability.
    #[error("capability {name} is {there} in the incoming state, this machine has {here}")]
    Higher {
        /// Which.
        name: String,
        /// In the stream, or frozen for its level.
        there: u32,
        /// At the destination.
        here: u32,
    },
    /// A capability that this build does not have.
    #[error("capability {name} (value {there}) of the incoming state is not known here")]
    UnknownCapability {
        /// Which.
        name: String,
        /// Its value.
        there: u32,
    },
    /// The level carries it, the stream does not.
    #[error("capability {name} is missing: compat level {level} carries it")]
    Missing {
        /// Which.
        name: String,
        /// The source's level.
        level: String,
    },
    /// The level does not carry it, the stream does.
    #[error("capability {name} (value {there}) is not one that compat level {level} carries")]
    NotCarried {
        /// Which.
        name: String,
        /// Its value.
        there: u32,
        /// The source's level.
        level: String,
    },
    /// The source is of a level that this build does not have.
    #[error("compat level {0} of the incoming state is not known here")]
    UnknownLevel(String),
    /// The machine has what the wanted level cannot carry.
    #[error(
        "capability {name} is {value}, which compat level {level} takes for {frozen} and cannot carry"
    )]
    Unsayable {
        /// Which.
        name: String,
        /// This machine's.
        value: u32,
        /// The level.
        level: String,
        /// Its frozen default.
        frozen: u32,
    },
    /// A number is claimed here, and in the state is another kind or free.
    #[error("interrupt {lisn:#x} is {there} in the incoming state and {here} here")]
    Claim {
        /// Which.
        lisn: u32,
        /// In the stream.
        there: &'static str,
        /// At the destination.
        here: &'static str,
    },
    /// A vCPU of the state does not exist here.
    #[error("vCPU with server number {0} exists in the incoming state and not here")]
    NoServer(u32),
}

/// A capability table: the build's, or a test's.
#[derive(Clone, Copy, Debug)]
pub struct Table<'a>(pub &'a [Capability]);

impl Table<'static> {
    /// This build's.
    pub const BUILD: Self = Table(CAPABILITIES);
}

impl Capability {
    fn at(&self, level: &str) -> Option<Knows> {
        let found = self.levels.iter().find(|(name, _)| *name == level);
        found.map(|(_, knows)| *knows)
    }
}

impl Table<'_> {
    /// What a source of `level` puts into its stream, from `own`, its values in the order of the table.
    ///
    /// # Errors
    /// A value that the level has no word for and that is not its frozen default.
    pub fn carry(&self, level: &str, own: &[u32]) -> Result<Vec<Carried>, Mismatch> {
        let mut carried = Vec::new();
        for (capability, value) in self.0.iter().zip(own) {
            let name = capability.name.to_owned();
            match capability.at(level) {
                None => return Err(Mismatch::UnknownLevel(level.to_owned())),
                Some(Knows::Carried) => carried.push((name, *value)),
                Some(Knows::Frozen(frozen)) if frozen == *value => {}
                Some(Knows::Frozen(frozen)) => {
                    let (value, level) = (*value, level.to_owned());
                    return Err(Mismatch::Unsayable {
                        name,
                        value,
                        level,
                        frozen,
                    });
                }
            }
        }
        Ok(carried)
    }

    /// What a source of `level` had, in the order of the table, from what its stream carries.
    pub fn read(&self, level: &str, carried: &[Carried]) -> Result<Vec<u32>, Mismatch> {
        let known = |name: &str| self.0.iter().any(|c| c.name == name);
        if let Some((name, there)) = carried.iter().find(|(name, _)| !known(name)) {
            let (name, there) = (name.clone(), *there);
            return Err(Mismatch::UnknownCapability { name, there });
        }
        self.0
            .iter()
            .map(|capability| {
                let name = || capability.name.to_owned();
                let there = carried.iter().find(|(n, _)| n == capability.name);
                match (capability.at(level), there) {
                    (None, _) => Err(Mismatch::UnknownLevel(level.to_owned())),
                    (Some(Knows::Carried), Some((_, value))) => Ok(*value),
                    (Some(Knows::Carried), None) => Err(Mismatch::Missing {
                        name: name(),
                        level: level.to_owned(),
                    }),
                    (Some(Knows::Frozen(default)), None) => Ok(default),
                    (Some(Knows::Frozen(_)), Some((_, there))) => Err(Mismatch::NotCarried {
                        name: name(),
                        there: *there,
                        level: level.to_owned(),
                    }),
                }
            })
            .collect()
    }

    /// May a machine with `here` take the state of one with `there`? Both in the order of the table.
    pub fn check(&self, there: &[u32], here: &[u32]) -> Result<(), Mismatch> {
        let rows = self.0.iter().zip(there.iter().zip(here));
        for (capability, (there, here)) in rows {
            if there > here {
                let name = capability.name.to_owned();
                let (there, here) = (*there, *here);
                return Err(Mismatch::Higher { name, there, here });
            }
        }
        Ok(())
    }
}

/// The values of a machine, in the order of [`CAPABILITIES`].
pub fn of(machine: &Machine) -> [u32; CAPABILITIES.len()] {
    [
        machine.ic_mode.has_xics().into(),
        machine.ic_mode.has_xive().into(),
        machine.store_eoi.into(),
    ]
}

/// Controllers and StoreEOI from values in the order of [`CAPABILITIES`]; `None` if they make no machine.
pub(super) fn controllers(values: &[u32]) -> Option<(IcMode, bool)> {
    let store_eoi = match values.get(2)? {
        0 => false,
        1 => true,
        _ => return None,
    };
    match (values.first()?, values.get(1)?) {
        (1, 0) => Some((IcMode::Xics, store_eoi)),
        (0, 1) => Some((IcMode::Xive, store_eoi)),
        (1, 1) => Some((IcMode::Dual, store_eoi)),
        _ => None,
    }
}

/// May `machine`, with vCPUs of these server numbers (ascending), take the state that `head` announces?
///
/// Controllers and StoreEOI by the rule of capabilities: the destination may have more. All the rest of the
/// machine is the same on both sides; vCPUs beyond the source's stay as after reset.
pub fn accept(head: &Head, machine: &Machine, servers: &[u32]) -> Result<(), Mismatch> {
    let there = &head.machine;
    if there.compat != machine.compat {
        return Err(Mismatch::Differs {
            item: "compat level".to_owned(),
            there: level_name(there.compat).to_owned(),
            here: level_name(machine.compat).to_owned(),
        });
    }
    Table::BUILD.check(&of(there), &of(machine))?;
    same_machine(there, machine)?;
    let missing = head.servers.iter().find(|s| !servers.contains(s));
    missing.map_or(Ok(()), |server| Err(Mismatch::NoServer(*server)))
}

/// Claims without the IPIs, which belong to the machine and are what XIVE brings.
pub fn of_devices(machine: &Machine, claims: Vec<Claims>) -> impl Iterator<Item = Claims> + use<> {
    let ipis = match machine.ic_mode.has_xive() {
        true => machine.servers,
        false => 0,
    };
    claims.into_iter().filter_map(move |run| {
        let (first, end) = (run.first.max(ipis), run.first + run.count);
        let count = end.checked_sub(first).filter(|count| *count > 0)?;
        Some(Claims {
            first,
            count,
            ..run
        })
    })
}

/// Every number that is claimed here, for a device, must be claimed in the state, and be of the same kind. Other
/// claims come with it.
pub fn accept_claims(there: &[Claims], here: &[Claims]) -> Result<(), Mismatch> {
    for run in here {
        for lisn in run.first..run.first + run.count {
            let kind = kind_in(there, lisn);
            if kind != Some(run.kind) {
                return Err(Mismatch::Claim {
                    lisn,
                    there: kind.map_or("free", Kind::name),
                    here: run.kind.name(),
                });
            }
        }
    }
    Ok(())
}

fn same_machine(there: &Machine, here: &Machine) -> Result<(), Mismatch> {
    let h = |value: u64| format!("{value:#x}");
    let d = |value: u32| value.to_string();
    for (item, there, here) in [
        ("sources", h(there.sources.into()), h(here.sources.into())),
        (
            "xics_base",
            h(there.xics_base.into()),
            h(here.xics_base.into()),
        ),
        ("servers", d(there.servers), d(here.servers)),
        ("phandle", h(there.phandle.into()), h(here.phandle.into())),
        ("esb_base", h(there.esb_base), h(here.esb_base)),
        ("end_base", h(there.end_base), h(here.end_base)),
        ("tima_base", h(there.tima_base), h(here.tima_base)),
        ("hv_prio", d(there.hv_prio.into()), d(here.hv_prio.into())),
    ] {
        if there != here {
            let item = item.to_owned();
            return Err(Mismatch::Differs { item, there, here });
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests;
