//! What the lines of a boot say: the guest's on its console, the rig's on QEMU's standard error, the kernel's.

/// Who said it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stream {
    /// The guest's console: QEMU's standard output.
    Console,
    /// QEMU, the rig in it, the daemon: standard error.
    Errors,
}

/// The rig's summary at the end.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Served {
    pub hcalls: u64,
    pub loads: u64,
    pub stores: u64,
    pub events: u64,
    pub queue_writes: u64,
    pub restarts: u64,
    pub differences: u64,
}

/// How an exercise of the guest's ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum How {
    Ok,
    Failed,
    /// It found nothing to work on.
    Skipped,
}

/// A line that matters.
#[derive(Clone, Debug, PartialEq)]
pub enum Said {
    /// The guest has reached userland: whose interrupts its kernel chose, how many CPUs it has.
    Up { interrupts: String, cpus: u32 },
    /// An exercise of the guest's ended.
    Step {
        name: String,
        how: How,
        details: String,
    },
    /// A measurement of the guest's.
    Figure {
        name: String,
        value: f64,
        unit: String,
    },
    /// The guest asks for something that only its host can do.
    Want(String),
    /// A numbered line of the guest's /proc/interrupts at its end: how many there were on all CPUs.
    Interrupts(u64),
    /// The guest has finished; so many of its exercises failed.
    Done { failed: u64 },
    /// The rig does not know this QEMU.
    Refused(String),
    /// The rig lost its daemon, and why.
    DaemonLost(String),
    /// Shadow mode: an operation that ended otherwise with us than with QEMU.
    Difference(String),
    /// The rig's summary.
    Served(Served),
    /// The guest's kernel is in trouble.
    Trouble(String),
    /// The kernel is lost: nothing more will come.
    Panic(String),
    /// A line of ours that cannot be read.
    Garbled(String),
}

const GUEST: &str = "papr-guest: ";
const RIG: &str = "papr-intc-rig: ";

/// Signs of an interrupt that was lost, doubled or never ended, and of a kernel that met what cannot be.
const TROUBLE: [&str; 9] = [
    "Oops: ",
    "kernel BUG at",
    "nobody cared",
    "soft lockup",
    "hard LOCKUP",
    "detected stalls",
    "self-detected stall",
    "blocked for more than",
    "spurious interrupt",
];

/// What a line says, if it matters.
pub fn parse(stream: Stream, line: &str) -> Option<Said> {
    match stream {
        // The kernel's lines may begin in the middle of ours, not the other way round.
        Stream::Console => match line.find(GUEST) {
            Some(at) => guest(&line[at + GUEST.len()..], line),
            None => kernel(line),
        },
        Stream::Errors => rig(line.strip_prefix(RIG)?, line),
    }
}

fn guest(text: &str, line: &str) -> Option<Said> {
    let (verb, rest) = text.split_once(' ').unwrap_or((text, ""));
    let said = match verb.trim_end() {
        "UP" => up(rest),
        "STEP" => step(rest),
        "FIGURE" => figure(rest),
        "WANT" => Some(Said::Want(rest.trim().to_owned())),
        "DONE" => done(rest.trim()),
        "INTERRUPTS" => return interrupts(rest),
        _ => return None,
    };
    Some(said.unwrap_or_else(|| Said::Garbled(line.to_owned())))
}

/// The controller is a word of its own; other words may be there.
fn up(rest: &str) -> Option<Said> {
    let mut words = rest.split_whitespace();
    let cpus = words.clone().find_map(|w| w.strip_prefix("cpus="))?;
    Some(Said::Up {
        interrupts: words.find(|w| matches!(*w, "xics" | "xive"))?.to_owned(),
        cpus: cpus.parse().ok()?,
    })
}

fn step(rest: &str) -> Option<Said> {
    let mut words = rest.trim().splitn(3, ' ');
    let name = words.next()?.to_owned();
    let end = words.next()?;
    let details = words.next().unwrap_or_default().to_owned();
    let how = match end {
        "ok" if details.starts_with("skipped") => How::Skipped,
        "ok" => How::Ok,
        "FAILED" => How::Failed,
        _ => return None,
    };
    Some(Said::Step { name, how, details })
}

fn figure(rest: &str) -> Option<Said> {
    let mut words = rest.split_whitespace();
    let name = words.next()?.to_owned();
    let value: f64 = words.next()?.parse().ok()?;
    let unit = words.next().unwrap_or_default().to_owned();
    value
        .is_finite()
        .then_some(Said::Figure { name, value, unit })
}

/// `17: 5 0 XIVE 4608 Edge virtio0`; lines with names instead of numbers are the kernel's own counts.
fn interrupts(rest: &str) -> Option<Said> {
    let (number, counts) = rest.trim().split_once(':')?;
    number.parse::<u32>().ok()?;
    let words = counts.split_whitespace();
    Some(Said::Interrupts(
        words.map_while(|w| w.parse::<u64>().ok()).sum(),
    ))
}

fn done(rest: &str) -> Option<Said> {
    let failed = match rest.split(' ').next()? {
        "ok" => 0,
        word => word.strip_prefix("failed=")?.parse().ok()?,
    };
    Some(Said::Done { failed })
}

fn kernel(line: &str) -> Option<Said> {
    if line.contains("Kernel panic - not syncing") {
        return Some(Said::Panic(line.to_owned()));
    }
    let troubled = TROUBLE.iter().any(|sign| line.contains(sign));
    troubled.then(|| Said::Trouble(line.to_owned()))
}

fn rig(text: &str, line: &str) -> Option<Said> {
    if let Some(why) = text.strip_prefix("refused: ") {
        return Some(Said::Refused(why.to_owned()));
    }
    if let Some(why) = text.strip_prefix("the daemon is lost: ") {
        return Some(Said::DaemonLost(why.to_owned()));
    }
    if let Some(what) = text.strip_prefix("difference: ") {
        return Some(Said::Difference(what.to_owned()));
    }
    let counts = text.strip_prefix("served ")?;
    let served = served(counts).map(Said::Served);
    Some(served.unwrap_or_else(|| Said::Garbled(line.to_owned())))
}

/// `name=N` each; the three that verdicts rest on must be there, later ones may be added.
fn served(counts: &str) -> Option<Served> {
    let mut served = Served::default();
    let mut seen = Vec::new();
    for word in counts.split_whitespace() {
        let (name, value) = word.split_once('=')?;
        let value: u64 = value.parse().ok()?;
        match name {
            "hcalls" => served.hcalls = value,
            "loads" => served.loads = value,
            "stores" => served.stores = value,
            "events" => served.events = value,
            "queue-writes" => served.queue_writes = value,
            "restarts" => served.restarts = value,
            "differences" => served.differences = value,
            _ => {}
        }
        seen.push(name);
    }
    let needed = ["hcalls", "restarts", "differences"];
    needed.iter().all(|n| seen.contains(n)).then_some(served)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn console(line: &str) -> Option<Said> {
        parse(Stream::Console, line)
    }

    #[test]
    fn the_guests_lines_are_read_wherever_they_begin() {
        let step = Said::Step {
            name: "blk".into(),
            how: How::Failed,
            details: "read timed out".into(),
        };
        assert_eq!(
            console("[  3.1] papr-guest: STEP blk FAILED read timed out"),
            Some(step)
        );
        let figure = Said::Figure {
            name: "ipi".into(),
            value: 1234.5,
            unit: "1/s".into(),
        };
        assert_eq!(console("papr-guest: FIGURE ipi 1234.5 1/s"), Some(figure));
        let up = Said::Up {
            interrupts: "xive".into(),
            cpus: 2,
        };
        let line = "papr-guest: UP 6.1.0-powerpc64le work=plain boot=0 xive cpus=2 seconds=2.50";
        assert_eq!(console(line), Some(up));
        assert_eq!(
            console("papr-guest: WANT device_del net9"),
            Some(Said::Want("device_del net9".into()))
        );
        assert_eq!(
            console("papr-guest: DONE failed=2"),
            Some(Said::Done { failed: 2 })
        );
        assert_eq!(console("papr-guest: hello"), None);
    }

    #[test]
    fn interrupts_are_summed_over_the_cpus() {
        let line = "papr-guest: INTERRUPTS  17:   5   2  XIVE 4608 Edge      virtio0-req.0";
        assert_eq!(console(line), Some(Said::Interrupts(7)));
        let own = "papr-guest: INTERRUPTS LOC:  500  300   Local timer interrupts";
        assert_eq!(console(own), None);
        assert_eq!(console("papr-guest: INTERRUPTS      CPU0   CPU1"), None);
    }

    #[test]
    fn a_line_of_ours_that_is_cut_short_is_not_taken_for_silence() {
        for line in [
            "UP 6.1 cpus=2 xi",
            "STEP blk",
            "STEP",
            "STEP blk OK",
            "DONE",
            "DONE o",
            "FIGURE ipi",
            "FIGURE ipi fast",
        ] {
            let line = format!("papr-guest: {line}");
            assert_eq!(console(&line), Some(Said::Garbled(line.clone())));
        }
        let line = "papr-intc-rig: served hcalls=1 loads=";
        assert_eq!(
            parse(Stream::Errors, line),
            Some(Said::Garbled(line.to_owned()))
        );
    }

    #[test]
    fn the_rigs_summary_is_read_and_may_grow() {
        let line = "papr-intc-rig: served hcalls=61 loads=4200 stores=3300 events=1770 \
                    queue-writes=2086 restarts=3 differences=1 later=5";
        let served = Served {
            hcalls: 61,
            loads: 4_200,
            stores: 3_300,
            events: 1_770,
            queue_writes: 2_086,
            restarts: 3,
            differences: 1,
        };
        assert_eq!(parse(Stream::Errors, line), Some(Said::Served(served)));
        // The guest cannot say it for the rig.
        assert_eq!(console(line), None);
    }

    #[test]
    fn a_kernel_in_trouble_is_noticed() {
        let trouble = [
            "[   30.1] irq 18: nobody cared (try booting with the \"irqpoll\" option)",
            "[   40.0] watchdog: BUG: soft lockup - CPU#1 stuck for 22s! [swapper/1:0]",
            "[   60.2] rcu: INFO: rcu_sched detected stalls on CPUs/tasks:",
            "[    1.0] Oops: Kernel access of bad area, sig: 11 [#1]",
        ];
        for line in trouble {
            assert_eq!(console(line), Some(Said::Trouble(line.to_owned())));
        }
        let line = "[    1.0] Kernel panic - not syncing: No working init found.";
        assert_eq!(console(line), Some(Said::Panic(line.to_owned())));
        assert_eq!(console("Kernel command line: console=hvc0 panic=-1"), None);
    }
}
