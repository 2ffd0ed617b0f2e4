//! Cut while the state is saved, loaded, or given up: the source goes on with everything, the destination has
//! all of the state or is back to reset and asked again.

use std::sync::OnceLock;
use std::time::Duration;

use papr_intc_frontend::Executor::{Daemon, FrontEnd};

use crate::control::Control;
use crate::guest::{A, Guest};
use crate::scenarios::{Operation, Results, Scenario, Step, errno, xics_pending, xive_pending};

const LONG: Duration = Duration::from_secs(60);

/// Stands for a state among the results: its length, and a sum of its bytes by their places.
fn print(state: &[u8]) -> Results {
    let sum = state.iter().fold(7i64, |sum, byte| {
        sum.wrapping_mul(31).wrapping_add((*byte).into())
    });
    vec![state.len() as i64, sum]
}

/// The state that a machine has after `setup` and one more event.
fn state_after(setup: Step) -> Vec<u8> {
    let guest = Guest::start(&Control::new(), FrontEnd);
    setup(&guest);
    guest.intc.quiesce(LONG).unwrap();
    guest.trigger(A);
    guest.intc.state_save().unwrap()
}

fn xics_state() -> &'static [u8] {
    static STATE: OnceLock<Vec<u8>> = OnceLock::new();
    STATE.get_or_init(|| state_after(xics_pending))
}

fn xive_state() -> &'static [u8] {
    static STATE: OnceLock<Vec<u8>> = OnceLock::new();
    STATE.get_or_init(|| state_after(xive_pending))
}

fn save(guest: &Guest) -> Results {
    guest.intc.quiesce(LONG).unwrap();
    guest.trigger(A);
    let saved = print(&guest.intc.state_save().unwrap());
    let aborted = errno(guest.intc.state_abort());
    let resumed = errno(guest.intc.resume(None));
    [saved, aborted, resumed].concat()
}

fn load(guest: &Guest, state: &[u8]) -> Results {
    guest.intc.quiesce(LONG).unwrap();
    let loaded = errno(guest.intc.state_load(state));
    let saved = print(&guest.intc.state_save().unwrap());
    let resumed = errno(guest.intc.resume(None));
    [loaded, saved, resumed].concat()
}

fn give_up(guest: &Guest, state: &[u8]) -> Results {
    guest.intc.quiesce(LONG).unwrap();
    let loaded = errno(guest.intc.state_load(state));
    let aborted = errno(guest.intc.state_abort());
    let saved = print(&guest.intc.state_save().unwrap());
    let resumed = errno(guest.intc.resume(None));
    [loaded, aborted, saved, resumed].concat()
}

fn nothing(_: &Guest) {}

const MOVING: &[(&str, Step, Operation)] = &[
    ("state saved, XICS", xics_pending, save),
    ("state saved, XIVE", xive_pending, save),
    ("state loaded, XICS", nothing, |g| load(g, xics_state())),
    ("state loaded, XIVE", nothing, |g| load(g, xive_state())),
    ("state loaded and given up", nothing, |g| {
        give_up(g, xive_state())
    }),
];

/// All of them, in both ways to run the machine. Nobody else is active: a machine whose state moves stands
/// still, and what devices do meanwhile is in the state or not.
pub fn all() -> Vec<Scenario> {
    let both = MOVING
        .iter()
        .flat_map(|row| [(row, FrontEnd), (row, Daemon)]);
    both.map(|((name, setup, operation), executor)| Scenario {
        name,
        executor,
        setup: *setup,
        operation: *operation,
        active: [nothing, nothing],
        recovery: *name == "state loaded, XIVE",
    })
    .collect()
}
