//! When the guest moves to another daemon, and what came of it. How it moves is told by
//! [`crate::real`]; kills go on meanwhile ([`crate::chaos`]).

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use nix::sys::signal::Signal;

use crate::board::Board;
use crate::chaos::{What, signal};
use crate::cli::Options;
use crate::rng::Rng;
use crate::tally::Tally;

/// How far a move has got, in order.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Phase {
    /// The target has agreed; the guest runs.
    Checked,
    /// The vCPUs stand still, the source latches.
    Quiesced,
    /// The devices stand still, the source's state is at hand.
    Saved,
    /// The target has the state and has not run.
    Loaded,
}

/// All phases, for people.
pub const PHASES: [(Phase, &str); 4] = [
    (Phase::Checked, "check"),
    (Phase::Quiesced, "quiesce"),
    (Phase::Saved, "save"),
    (Phase::Loaded, "load"),
];

/// Asked in each phase: `false` if the move is to be given up there.
pub type GoesOn<'a> = dyn Fn(Phase) -> bool + 'a;

/// A move to another daemon, or one that was given up as it should be.
#[derive(Clone, Copy, Debug, Default)]
pub struct Moved {
    /// It was given up in this phase.
    pub aborted: Option<Phase>,
    /// How long the vCPUs stood still.
    pub stopped: Duration,
    /// Length of the state; 0 if it was not saved.
    pub bytes: usize,
    /// A daemon was killed meanwhile.
    pub killed: bool,
}

impl Moved {
    /// Given up while the guest ran.
    pub fn given_up(at: Phase) -> Self {
        Self {
            aborted: Some(at),
            ..Self::default()
        }
    }
}

/// What is to happen in a move.
struct Plan {
    abort: Option<Phase>,
    /// SIGKILL for one of the daemons, a moment after this phase is reached.
    kill: Option<Phase>,
    /// Which daemon, and how long after.
    which: u64,
    moment: Duration,
    /// How long devices send to the quiesced source.
    linger: Duration,
}

impl Plan {
    /// Every third move is given up, in every third a daemon is killed if `kills`.
    fn choose(rng: &mut Rng, kills: bool) -> Self {
        let phase = |rng: &mut Rng| PHASES[rng.below(PHASES.len() as u64) as usize].0;
        let (abort, kill) = (phase(rng), phase(rng));
        Self {
            abort: rng.one_in(3).then_some(abort),
            kill: (rng.one_in(3) && kills).then_some(kill),
            which: rng.below(2),
            moment: Duration::from_micros(rng.below(400)),
            linger: Duration::from_micros(rng.below(2000)),
        }
    }

    fn goes_on(&self, board: &dyn Board, phase: Phase) -> bool {
        if phase == Phase::Quiesced {
            std::thread::sleep(self.linger);
        }
        if self.kill == Some(phase) {
            let pids = board.daemons();
            let pid = pids.get(self.which as usize).copied();
            let moment = self.moment;
            std::thread::spawn(move || {
                std::thread::sleep(moment);
                pid.is_some_and(|pid| signal(pid, Signal::SIGKILL))
            });
        }
        self.abort != Some(phase)
    }
}

/// Moves the guest every `period` until `over`; each move.
pub fn carry_out(
    board: &dyn Board,
    tally: &Tally,
    options: &Options,
    over: &AtomicBool,
) -> Vec<Moved> {
    let mut moves = Vec::new();
    let Some(period) = options.migrate_every else {
        return moves;
    };
    let kills = options.chaos.as_ref().is_some_and(|c| c.has(What::Kill));
    let mut rng = Rng::new(options.seed, 0x11);
    let mut next = Instant::now() + period;
    while !over.load(Ordering::Relaxed) {
        let now = Instant::now();
        if now < next {
            std::thread::sleep((next - now).min(Duration::from_millis(20)));
            continue;
        }
        let plan = Plan::choose(&mut rng, kills);
        match board.migrate(&|phase| plan.goes_on(board, phase)) {
            Ok(moved) => moves.push(Moved {
                stopped: moved.stopped.saturating_sub(plan.linger),
                killed: plan
                    .kill
                    .is_some_and(|at| moved.aborted.is_none_or(|end| at <= end)),
                ..moved
            }),
            Err(gone) => {
                tally.wrong(format!("move: {gone}"));
                break;
            }
        }
        // Not several at once to make up for one that took long.
        next = Instant::now().max(next + period);
    }
    moves
}
