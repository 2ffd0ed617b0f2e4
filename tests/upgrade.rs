//! Planned upgrade and roll back, with two real daemons of different numbers: papr-intc (N) and
//! `examples/next_daemon` (N + 1).
//!
//! * [`numbers`]: what each says of itself, who takes whose memory.
//! * [`load`]: N → N + 1 → N while interrupts flow and calls are outstanding.
//! * [`fire`]: the same while daemons are killed.
//! * [`failures`]: a new daemon that does not fit, dies, or cannot be started again.

#![allow(clippy::unwrap_used)] // tests and their bench say what they mean with unwrap

#[allow(dead_code)] // shared with `lifecycle`, which uses the rest
#[path = "lifecycle/bench.rs"]
mod bench;
#[path = "upgrade/failures.rs"]
mod failures;
#[path = "upgrade/fire.rs"]
mod fire;
#[path = "harness/mod.rs"]
mod harness;
#[path = "upgrade/load.rs"]
mod load;
#[path = "upgrade/numbers.rs"]
mod numbers;

use std::path::PathBuf;
use std::sync::{Arc, Mutex};

use papr_intc_frontend::{Change, Launcher, OnChange};

/// The daemon of the next version, of the same build: cargo puts it beside `deps`, where this test is.
fn next_daemon() -> PathBuf {
    let own = std::env::current_exe().unwrap();
    let path = own.ancestors().nth(2).unwrap().join("examples/next_daemon");
    // `cargo test` builds it; `cargo test --test upgrade` alone does not.
    assert!(path.exists(), "cargo build --example next_daemon first");
    path
}

/// Daemons of version N + 1.
fn next(args: &[&str]) -> Launcher {
    let quiet = ["--log-level", "off"];
    let args = quiet.iter().chain(args).map(Into::into).collect();
    Launcher::spawn(next_daemon(), args)
}

/// What the front-end says about its daemons.
#[derive(Clone, Default)]
struct Heard(Arc<Mutex<Vec<Change>>>);

impl Heard {
    fn listen(&self) -> OnChange {
        let heard = Arc::clone(&self.0);
        OnChange::call(move |change| heard.lock().unwrap().push(change.clone()))
    }

    fn count(&self, what: impl Fn(&Change) -> bool) -> usize {
        self.0.lock().unwrap().iter().filter(|c| what(c)).count()
    }

    /// How often the executor changed: (to the daemon, to the front-end).
    fn turns(&self) -> (usize, usize) {
        (
            self.count(|c| *c == Change::Demoted),
            self.count(|c| *c == Change::Promoted),
        )
    }
}
