//! When the guest moves to another daemon, and what came of it. How it moves is told by
//! [`crate::real`]; kills go on meanwhile ([`crate::chaos`]).

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use crate::board::Board;
use crate::rng::Rng;
use crate::tally::Tally;

/// How far a move has got.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
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

/// A move to make.
#[derive(Clone, Copy, Debug)]
pub struct Move {
    /// Give it up after this.
    pub abort: Option<Phase>,
    /// How long devices send to the quiesced source.
    pub linger: Duration,
}

impl Move {
    /// Every third is given up.
    fn choose(rng: &mut Rng) -> Self {
        let phase = rng.below(PHASES.len() as u64) as usize;
        Self {
            abort: Some(PHASES[phase].0),
            linger: Duration::from_micros(rng.below(2000)),
        }
    }
}

/// A move that was made, or given up as it should be.
#[derive(Clone, Copy, Debug, Default)]
pub struct Moved {
    /// It was given up after this.
    pub aborted: Option<Phase>,
    /// How long the vCPUs stood still, [`Move::linger`] left out.
    pub stopped: Duration,
    /// Length of the state; 0 if it was not saved.
    pub bytes: usize,
}

impl Moved {
    /// A move that was given up before anything was saved.
    pub fn given_up(after: Phase) -> Self {
        Self {
            aborted: Some(after),
            ..Self::default()
        }
    }
}

/// Moves the guest every `period` until `over`; each move.
pub fn carry_out(
    board: &dyn Board,
    tally: &Tally,
    period: Duration,
    seed: u64,
    over: &AtomicBool,
) -> Vec<Moved> {
    let mut rng = Rng::new(seed, 0x11);
    let mut moves = Vec::new();
    let mut next = Instant::now() + period;
    while !over.load(Ordering::Relaxed) {
        let now = Instant::now();
        if now < next {
            std::thread::sleep((next - now).min(Duration::from_millis(20)));
            continue;
        }
        match board.migrate(&Move::choose(&mut rng)) {
            Ok(moved) => moves.push(moved),
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
