//! What an idle machine costs: CPU time, memory, threads and descriptors of the daemon and of the VMM's side, which
//! is a process of its own here, so that it can rest while others are measured.

use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use papr_intc_frontend::Executor;
use papr_intc_frontend::protocol::layout::IcMode;

use crate::rig::{Rig, machine, no_kick};
use crate::table::Row;
use crate::timing::{Pairs, Sense};

/// Names the process that holds an idle machine.
pub const REST: &str = "--rest";
const SIZES: [u32; 2] = [8_192, 1 << 20];
/// What a daemon may take beside the state.
const ROOM: f64 = (5 << 20) as f64;

/// Machines at rest.
pub struct Resting(Vec<(u32, Child)>);

/// Starts them; they rest for so long.
pub fn begin(quick: bool) -> Resting {
    let seconds = if quick { "2" } else { "10" };
    let begin = |sources: u32| {
        let own = std::env::current_exe().ok()?;
        let child = Command::new(own)
            .args([REST, &sources.to_string(), seconds])
            .stdout(Stdio::piped())
            .spawn();
        Some((sources, child.ok()?))
    };
    Resting(SIZES.into_iter().filter_map(begin).collect())
}

impl Resting {
    /// What they came to; waits for them.
    pub fn end(self, mut add: impl FnMut(Row)) {
        let mut said = Vec::new();
        for (sources, child) in self.0 {
            let Ok(output) = child.wait_with_output() else {
                continue;
            };
            let text = String::from_utf8_lossy(&output.stdout).into_owned();
            let numbers: Vec<f64> = text
                .split_whitespace()
                .filter_map(|n| n.parse().ok())
                .collect();
            let [time, cpu, vmm_cpu, rss, state, threads, fds] = numbers[..] else {
                println!("{sources} sources at rest: nothing came of it");
                continue;
            };
            let row = |path: &str, ours, limit, aim| {
                let pairs = Pairs {
                    ours: vec![ours],
                    limit: vec![limit],
                    turn: 1,
                };
                Row::new(
                    &format!("at rest, {sources} sources: {path}"),
                    pairs,
                    Sense::Max,
                    aim,
                )
            };
            add(row("daemon's CPU / time", cpu, time, 0.0).gate());
            add(row("front-end's CPU / time", vmm_cpu, time, 0.0).gate());
            add(row("RSS / 5 MiB + state", rss, ROOM + state, 1.0)
                .gate()
                .in_bytes());
            said.push(format!(
                "{sources} sources: {threads} threads, {fds} descriptors"
            ));
        }
        println!("the daemon at rest, {}", said.join("; "));
    }
}

/// The process itself: prints what it found.
pub fn rest(arguments: &[String]) {
    let number = |i: usize| arguments.get(i).and_then(|s| s.parse().ok()).unwrap_or(1);
    let machine = machine(IcMode::Dual, number(0) as u32, 8);
    let rig = Rig::start(machine, Executor::FrontEnd, no_kick()).expect("a machine");
    let daemon = rig.intc.daemon_pid().expect("a daemon that serves");
    let state = machine.geometry().map_or(0, |g| g.size());
    // What its start left to be done.
    std::thread::sleep(Duration::from_millis(500));
    let (begun, before) = (Instant::now(), [cpu(daemon), cpu(std::process::id())]);
    std::thread::sleep(Duration::from_secs(number(1)));
    let time = begun.elapsed().as_nanos();
    let [daemons, own] = [cpu(daemon) - before[0], cpu(std::process::id()) - before[1]];
    let count = |what: &str| {
        let entries = std::fs::read_dir(format!("/proc/{daemon}/{what}"));
        entries.map_or(0, Iterator::count)
    };
    println!(
        "{time} {daemons} {own} {} {state} {} {}",
        resident(daemon),
        count("task"),
        count("fd")
    );
}

/// Nanoseconds that the threads of a process have run, but for the one that asks.
fn cpu(pid: u32) -> u64 {
    let tasks = std::fs::read_dir(format!("/proc/{pid}/task"));
    let asking = std::process::id().to_string();
    tasks
        .into_iter()
        .flatten()
        .flatten()
        .filter(|task| task.file_name().to_str() != Some(&asking))
        .filter_map(|task| std::fs::read_to_string(task.path().join("schedstat")).ok())
        .filter_map(|text| text.split_whitespace().next()?.parse::<u64>().ok())
        .sum()
}

/// Bytes in memory.
fn resident(pid: u32) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
    let line = status.lines().find_map(|l| l.strip_prefix("VmRSS:"));
    let kib = line.and_then(|l| l.split_whitespace().next()?.parse::<u64>().ok());
    kib.unwrap_or(0) * 1024
}
