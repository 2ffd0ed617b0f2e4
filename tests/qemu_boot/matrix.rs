//! Which boots there are: four axes, their product, and the part of it that gates.

use std::fmt;

use clap::ValueEnum;

/// The machine's property `ic-mode`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum IcMode {
    /// The old controller only.
    Xics,
    /// The new one only.
    Xive,
    /// Both; the guest chooses.
    Dual,
}

/// The processor.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Cpu {
    Power9,
    Power10,
}

/// Who serves the guest's interrupts, and what happens to it meanwhile.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Way {
    /// Ours, left alone.
    Plain,
    /// Ours; SIGKILL to the daemon every second.
    Killed,
    /// Ours; another daemon takes the place of the one that serves, again and again.
    Upgraded,
    /// Ours, executed by the daemon.
    Remote,
    /// QEMU's own; ours follows and compares.
    Shadow,
    /// QEMU's own, without us: the baseline.
    Stock,
    /// Ours with a fault put in: the boot has to notice.
    Broken(Fault),
}

/// What tests/qemu/broken can break.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    LostMessage,
    LevelOnce,
    LostIpi,
    LostEoi,
    NoQ,
    LostEntry,
}

/// Faults and the controllers that can have them.
const FAULTS: [(IcMode, Fault); 9] = [
    (IcMode::Xics, Fault::LostMessage),
    (IcMode::Xics, Fault::LevelOnce),
    (IcMode::Xics, Fault::LostIpi),
    (IcMode::Xics, Fault::LostEoi),
    (IcMode::Xive, Fault::LostMessage),
    (IcMode::Xive, Fault::LevelOnce),
    (IcMode::Xive, Fault::LostIpi),
    (IcMode::Xive, Fault::NoQ),
    (IcMode::Xive, Fault::LostEntry),
];

/// The ways of the matrix.
pub const WAYS: [Way; 4] = [Way::Plain, Way::Killed, Way::Upgraded, Way::Remote];
pub const IC_MODES: [IcMode; 3] = [IcMode::Xics, IcMode::Xive, IcMode::Dual];
pub const VCPUS: [u32; 3] = [1, 2, 4];
pub const CPUS: [Cpu; 2] = [Cpu::Power9, Cpu::Power10];

impl IcMode {
    pub fn name(self) -> &'static str {
        match self {
            Self::Xics => "xics",
            Self::Xive => "xive",
            Self::Dual => "dual",
        }
    }
}

impl Cpu {
    pub fn name(self) -> &'static str {
        match self {
            Self::Power9 => "power9",
            Self::Power10 => "power10",
        }
    }
}

impl Way {
    pub fn name(self) -> &'static str {
        match self {
            Self::Plain => "plain",
            Self::Killed => "killed",
            Self::Upgraded => "upgraded",
            Self::Remote => "remote",
            Self::Shadow => "shadow",
            Self::Stock => "stock",
            Self::Broken(fault) => fault.name(),
        }
    }
}

impl Fault {
    /// Linux gets over these, and shadow mode has to notice: the next IPI to a CPU carries what a lost one was for,
    /// and its handlers of XIVE's levels look at their device again.
    pub fn survives(self, mode: IcMode) -> bool {
        self == Self::LostIpi || (self == Self::LevelOnce && mode == IcMode::Xive)
    }

    pub fn name(self) -> &'static str {
        match self {
            Self::LostMessage => "lost-message",
            Self::LevelOnce => "level-once",
            Self::LostIpi => "lost-ipi",
            Self::LostEoi => "lost-eoi",
            Self::NoQ => "no-q",
            Self::LostEntry => "lost-entry",
        }
    }
}

/// One boot of the matrix.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Boot {
    pub ic_mode: IcMode,
    pub vcpus: u32,
    pub cpu: Cpu,
    pub way: Way,
}

/// Its name, for patterns and folders: `dual-2-power9-killed`.
impl fmt::Display for Boot {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (mode, cpu, way) = (self.ic_mode.name(), self.cpu.name(), self.way.name());
        write!(f, "{mode}-{}-{cpu}-{way}", self.vcpus)
    }
}

/// Twelve boots in which any two values of any two axes meet: the least for 3 modes in 4 ways.
pub fn gating() -> Vec<Boot> {
    let mut boots = Vec::new();
    for (w, &way) in WAYS.iter().enumerate() {
        for (m, &ic_mode) in IC_MODES.iter().enumerate() {
            let step = w + m;
            boots.push(Boot {
                ic_mode,
                vcpus: VCPUS[(step + 1) % VCPUS.len()],
                cpu: CPUS[step % CPUS.len()],
                way,
            });
        }
    }
    boots
}

/// All 72.
pub fn full() -> Vec<Boot> {
    let mut boots = Vec::new();
    for way in WAYS {
        for ic_mode in IC_MODES {
            for vcpus in VCPUS {
                for cpu in CPUS {
                    boots.push(Boot {
                        ic_mode,
                        vcpus,
                        cpu,
                        way,
                    });
                }
            }
        }
    }
    boots
}

/// For every change: each ic-mode once, and one boot with kills.
pub fn quick() -> Vec<Boot> {
    let mut boots = in_each_mode(Way::Plain);
    boots.push(Boot {
        ic_mode: IcMode::Dual,
        vcpus: 2,
        cpu: Cpu::Power9,
        way: Way::Killed,
    });
    boots
}

/// One boot of each ic-mode.
pub fn in_each_mode(way: Way) -> Vec<Boot> {
    let boot = |ic_mode| Boot {
        ic_mode,
        vcpus: 2,
        cpu: Cpu::Power9,
        way,
    };
    IC_MODES.map(boot).to_vec()
}

/// A boot for each fault, in shadow mode if Linux would get over it.
pub fn broken() -> Vec<Boot> {
    let boot = |(ic_mode, fault)| Boot {
        ic_mode,
        vcpus: 2,
        cpu: Cpu::Power9,
        way: Way::Broken(fault),
    };
    FAULTS.map(boot).to_vec()
}

/// The same boots on QEMU's own controllers, each once.
pub fn on_stock(boots: &[Boot]) -> Vec<Boot> {
    let mut stock = Vec::new();
    for &boot in boots {
        let boot = Boot {
            way: Way::Stock,
            ..boot
        };
        if !stock.contains(&boot) {
            stock.push(boot);
        }
    }
    stock
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A value of each axis, as numbers.
    fn values(boot: &Boot) -> [usize; 4] {
        let way = WAYS.iter().position(|w| *w == boot.way);
        [
            boot.ic_mode as usize,
            boot.vcpus as usize,
            boot.cpu as usize,
            way.unwrap(),
        ]
    }

    #[test]
    fn any_two_values_of_any_two_axes_meet_in_a_boot_that_gates() {
        let gating = gating();
        assert_eq!(gating.len(), 12);
        for wanted in full().iter().map(values) {
            for a in 0..4 {
                for b in 0..a {
                    let meets = |v: [usize; 4]| v[a] == wanted[a] && v[b] == wanted[b];
                    assert!(gating.iter().map(values).any(meets), "{wanted:?} {a} {b}");
                }
            }
        }
    }

    #[test]
    fn the_whole_matrix_is_the_product_and_contains_what_gates() {
        let full = full();
        let names: std::collections::HashSet<String> =
            full.iter().map(ToString::to_string).collect();
        assert_eq!(names.len(), 72);
        assert!(gating().iter().chain(&quick()).all(|b| full.contains(b)));
    }

    #[test]
    fn the_quick_boots_are_one_of_each_mode_and_one_with_kills() {
        let quick = quick();
        assert!(
            IC_MODES
                .iter()
                .all(|m| quick.iter().any(|b| b.ic_mode == *m))
        );
        assert_eq!(quick.iter().filter(|b| b.way == Way::Killed).count(), 1);
    }

    #[test]
    fn stock_boots_are_not_repeated() {
        assert_eq!(on_stock(&full()).len(), 18);
    }
}
