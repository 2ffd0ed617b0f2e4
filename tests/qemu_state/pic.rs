//! The monitor's `info pic`, read into numbers. It shows the active controller only.

use std::fmt;

/// One of the controllers.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Pic {
    Xics(Xics),
    Xive(Xive),
}

#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Xics {
    pub icps: Vec<Icp>,
    pub sources: Vec<Ics>,
}

/// What a vCPU is presented.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Icp {
    pub xirr: u32,
    /// Priority of what is in the XIRR.
    pub pending: u8,
    pub mfrr: u8,
}

/// A source. Its server and saved priority are not shown.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Ics {
    pub lisn: u32,
    pub level: bool,
    pub priority: u8,
    pub status: u8,
}

/// Bits of [`Ics::status`].
pub mod status {
    pub const ASSERTED: u8 = 1;
    pub const SENT: u8 = 2;
    pub const REJECTED: u8 = 4;
    pub const MASKED_PENDING: u8 = 8;
}

#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Xive {
    /// OS rings: NSR, CPPR, IPB, LSMFB, ACK#, INC, AGE, PIPR.
    pub rings: Vec<[u8; 8]>,
    pub sources: Vec<Eas>,
}

/// A claimed source.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Eas {
    pub lisn: u32,
    pub level: bool,
    /// P and Q.
    pub pq: u8,
    pub asserted: bool,
    pub masked: bool,
    pub eisn: u32,
    /// Where its events go, if that queue is enabled.
    pub queue: Option<Queue>,
}

/// An event queue.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Queue {
    pub server: u32,
    pub priority: u8,
    /// Of the next entry.
    pub index: u32,
    pub entries: u32,
    pub address: u64,
    pub generation: u8,
    /// The five entries before the next, and that.
    pub recent: Vec<u32>,
}

impl Pic {
    /// Panics on what it does not know.
    pub fn parse(text: &str) -> Self {
        let lines = || text.lines().map(str::trim).filter(|line| !line.is_empty());
        let known = |line: &str| panic!("info pic: {line}");
        if lines().any(|line| line.starts_with("CPU[")) {
            let mut xive = Xive::default();
            for line in lines() {
                xive.line(line).unwrap_or_else(|| known(line));
            }
            Self::Xive(xive)
        } else {
            let mut xics = Xics::default();
            for line in lines() {
                xics.line(line).unwrap_or_else(|| known(line));
            }
            Self::Xics(xics)
        }
    }

    /// Panics with the lines that differ.
    pub fn assert_same(&self, expected: &Self, what: &str) {
        let [got, wanted] = [self, expected].map(Self::to_string);
        let not_in = |other: &str, sign, line: &str| {
            let missing = !other.lines().any(|l| l == line);
            missing.then(|| format!("{sign} {line}"))
        };
        let less = wanted.lines().filter_map(|line| not_in(&got, '-', line));
        let more = got.lines().filter_map(|line| not_in(&wanted, '+', line));
        let differences: Vec<String> = less.chain(more).collect();
        let is_same = self == expected;
        assert!(
            is_same,
            "{what}: not as expected:\n{}",
            differences.join("\n")
        );
    }

    /// Without the queues' entries, which are the RAM's and not the controller's.
    pub fn without_entries(mut self) -> Self {
        if let Self::Xive(xive) = &mut self {
            let queues = xive.sources.iter_mut().filter_map(|s| s.queue.as_mut());
            queues.for_each(|queue| queue.recent.clear());
        }
        self
    }

    /// Whether a vCPU's line has to be high.
    pub fn line(&self, cpu: usize) -> bool {
        match self {
            Self::Xics(xics) => xics.icps[cpu].xirr & 0xff_ffff != 0,
            Self::Xive(xive) => xive.rings[cpu][0] & 0x80 != 0,
        }
    }

    pub fn xics(&self) -> &Xics {
        match self {
            Self::Xics(xics) => xics,
            Self::Xive(_) => panic!("XIVE is active"),
        }
    }

    pub fn xive(&self) -> &Xive {
        match self {
            Self::Xive(xive) => xive,
            Self::Xics(_) => panic!("XICS is active"),
        }
    }
}

fn hex<T: TryFrom<u64>>(text: &str) -> Option<T> {
    T::try_from(u64::from_str_radix(text, 16).ok()?).ok()
}

impl Xics {
    /// The state of a source.
    pub fn source(&self, lisn: u32) -> Ics {
        let of = |source: &&Ics| source.lisn == lisn;
        *self.sources.iter().find(of).expect("a claimed source")
    }

    /// `CPU 0 XIRR=ff001101 (0x55..) PP=05 MFRR=ff` or `1101 MSI 05 00`; other lines say nothing.
    fn line(&mut self, line: &str) -> Option<()> {
        let words: Vec<&str> = line.split_whitespace().collect();
        match words[..] {
            // The pointer says whose the XISR is, which follows from it.
            ["CPU", _, xirr, _, pending, mfrr] => self.icps.push(Icp {
                xirr: hex(xirr.strip_prefix("XIRR=")?)?,
                pending: hex(pending.strip_prefix("PP=")?)?,
                mfrr: hex(mfrr.strip_prefix("MFRR=")?)?,
            }),
            [lisn, kind @ ("MSI" | "LSI"), priority, status] => self.sources.push(Ics {
                lisn: hex(lisn)?,
                level: kind == "LSI",
                priority: hex(priority)?,
                status: hex(status)?,
            }),
            ["ICS", ..] | ["irqchip:", ..] => {}
            _ => return None,
        }
        Some(())
    }
}

impl Xive {
    /// The state of a source.
    pub fn source(&self, lisn: u32) -> &Eas {
        let of = |source: &&Eas| source.lisn == lisn;
        self.sources.iter().find(of).expect("a claimed source")
    }

    /// The queue at an address, if a source is routed to it.
    pub fn queue(&self, address: u64) -> Option<&Queue> {
        let mut queues = self.sources.iter().filter_map(|s| s.queue.as_ref());
        queues.find(|q| q.address == address)
    }

    fn line(&mut self, line: &str) -> Option<()> {
        let words: Vec<&str> = line.split_whitespace().collect();
        match words[..] {
            [cpu, "OS", ref ring @ .., _] if cpu.starts_with("CPU[") => {
                let bytes: Option<Vec<u8>> = ring.iter().map(|byte| hex(byte)).collect();
                self.rings.push(bytes?.try_into().ok()?);
            }
            // The other rings are not the guest's.
            [cpu, ..] if cpu.starts_with("CPU[") => {}
            ["LISN", ..] | ["irqchip:", ..] => {}
            [lisn, kind @ ("MSI" | "LSI"), ..] => {
                let columns = line.split_once(kind)?.1;
                self.sources.push(Eas::read(lisn, kind, columns)?);
            }
            _ => return None,
        }
        Some(())
    }
}

impl Eas {
    /// ` P-A  00001200   0/5      0/16384 @2050000 ^1 [ 0 0 0 0 0 ^80001200 ]`, ` -Q  M 00000000`.
    fn read(lisn: &str, kind: &str, columns: &str) -> Option<Self> {
        let mut columns = columns.replace(['/', '@', '^', '[', ']'], " ");
        // P, Q and A are columns of one character.
        let state: Vec<char> = columns.trim_start().chars().take(3).collect();
        columns = columns.trim_start().get(3..)?.to_owned();
        let mut words = columns.split_whitespace().peekable();
        let masked = words.next_if_eq(&"M").is_some();
        Some(Self {
            lisn: hex(lisn)?,
            level: kind == "LSI",
            pq: u8::from(state[0] == 'P') << 1 | u8::from(state[1] == 'Q'),
            asserted: state[2] == 'A',
            masked,
            eisn: hex(words.next()?)?,
            queue: match words.peek() {
                Some(_) => Some(Queue::read(&mut words)?),
                None => None,
            },
        })
    }
}

impl Queue {
    fn read<'a>(words: &mut impl Iterator<Item = &'a str>) -> Option<Self> {
        Some(Self {
            server: words.next()?.parse().ok()?,
            priority: words.next()?.parse().ok()?,
            index: words.next()?.parse().ok()?,
            entries: words.next()?.parse().ok()?,
            address: hex(words.next()?)?,
            generation: hex(words.next()?)?,
            recent: words.map(hex).collect::<Option<Vec<u32>>>()?,
        })
    }
}

impl fmt::Display for Pic {
    /// A line for each thing, to compare by eye.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Xics(xics) => {
                for icp in &xics.icps {
                    writeln!(f, "{icp:x?}")?;
                }
                xics.sources.iter().try_for_each(|s| writeln!(f, "{s:x?}"))
            }
            Self::Xive(xive) => {
                for ring in &xive.rings {
                    writeln!(f, "{ring:02x?}")?;
                }
                xive.sources.iter().try_for_each(|s| writeln!(f, "{s:x?}"))
            }
        }
    }
}

#[test]
fn a_xics_text_is_read() {
    let text = "CPU 0 XIRR=ff001101 (0x5581) PP=05 MFRR=06\nCPU 1 XIRR=00000000 ((nil)) PP=ff MFRR=ff\n\
                ICS 1000..1fff 0x5581\n  1101 MSI 05 00\n  1200 LSI ff 01\nirqchip: emulated\n";
    let pic = Pic::parse(text);
    let xics = pic.xics();
    assert_eq!(xics.icps.len(), 2);
    let icp = Icp {
        xirr: 0xff00_1101,
        pending: 5,
        mfrr: 6,
    };
    assert_eq!(xics.icps[0], icp);
    let source = Ics {
        lisn: 0x1200,
        level: true,
        priority: 0xff,
        status: status::ASSERTED,
    };
    assert_eq!(xics.source(0x1200), source);
}

#[test]
fn a_xive_text_is_read() {
    let text = "CPU[0001]:   QW   NSR CPPR IPB LSMFB ACK# INC AGE PIPR  W2\n\
                CPU[0001]: USER    00   00  00    00   00  00  00   00  00000000\n\
                CPU[0001]:   OS    80   ff  10    ff   ff  00  ff   03  80000401\n\
                  LISN         PQ    EISN     CPU/PRIO EQ\n\
                  00001101 MSI -Q  M 00000000\n\
                  00001104 MSI PQ    01e63110   1/3    153/16384 @20b0000 ^1 [ 80001102 80001102 80001102 80001102 80001102 ^00000000 ]\n\
                  00001202 LSI P-A   00001202\nirqchip: emulated\n";
    let pic = Pic::parse(text);
    let xive = pic.xive();
    assert_eq!(xive.rings, [[0x80, 0xff, 0x10, 0xff, 0xff, 0, 0xff, 3]]);
    assert_eq!(xive.sources.len(), 3);
    assert!(xive.source(0x1101).masked && xive.source(0x1101).pq == 1);
    let queue = xive.queue(0x20b_0000).unwrap();
    assert_eq!(
        (queue.index, queue.entries, queue.generation),
        (153, 16384, 1)
    );
    assert_eq!(queue.recent.len(), 6);
    let line = xive.source(0x1202);
    assert!(line.asserted && line.level && line.queue.is_none() && line.eisn == 0x1202);
}
