//! Cut while a migration sends the guest's RAM: what is in a queue in the end is on the other side too.

use papr_intc_frontend::Executor::{Daemon, FrontEnd};
use papr_intc_frontend::LOG_PAGE;
use papr_intc_frontend::protocol::papr::codes::opcode;

use crate::cut;
use crate::guest::{A, B, ELSEWHERE, Guest};
use crate::scenarios::{
    Operation, Results, Scenario, Step, quiesce_and_resume, xive, xive_pending,
};

const RAM: usize = 4 << 20;

impl Guest {
    /// All of RAM is sent, and what changes from now on is logged.
    fn start_sending(&self) {
        self.intc.start_dirty_log().unwrap();
        // Nobody else may take pages between the two.
        let mut sent = self.sent.lock().unwrap();
        self.intc.take_dirty();
        *sent = Some(self.all_of_ram());
    }

    /// Sends the dirty pages.
    fn send_dirty(&self) {
        let Some(sent) = &mut *self.sent.lock().unwrap() else {
            return;
        };
        for gpa in self.intc.take_dirty().iter() {
            let at = gpa as usize;
            let page = &mut sent[at..at + LOG_PAGE as usize];
            assert!(self.ram.read(gpa, page));
        }
    }

    fn all_of_ram(&self) -> Vec<u8> {
        let mut bytes = vec![0; RAM];
        assert!(self.ram.read(0, &mut bytes));
        bytes
    }

    /// After the dirty pages are sent: the pages that differ all the same, for a view.
    pub fn unsent(&self) -> Option<String> {
        self.send_dirty();
        let sent = self.sent.lock().unwrap();
        let now = self.all_of_ram();
        let size = LOG_PAGE as usize;
        let pages = sent.as_ref()?.chunks(size).zip(now.chunks(size));
        let differing = pages.enumerate().filter(|(_, (was, is))| was != is);
        let differing: Vec<usize> = differing.map(|(page, _)| page * size).collect();
        Some(format!("pages not sent {differing:x?}"))
    }
}

fn sending(guest: &Guest) {
    xive(guest);
    guest.start_sending();
}

fn sending_pending(guest: &Guest) {
    xive_pending(guest);
    guest.start_sending();
}

fn trigger_both(guest: &Guest) -> Results {
    guest.trigger(A);
    guest.trigger(B);
    vec![]
}

fn start(guest: &Guest) -> Results {
    guest.start_sending();
    vec![]
}

/// The log was started before: once more is nothing.
fn stop_and_start(guest: &Guest) -> Results {
    guest.intc.stop_dirty_log().unwrap();
    guest.start_sending();
    trigger_both(guest)
}

fn move_queue(guest: &Guest) -> Results {
    let args = [1, 0, 6, ELSEWHERE, 12];
    let moved = guest.hcall(0, opcode::H_INT_SET_QUEUE_CONFIG, &args).0;
    guest.trigger(A);
    vec![moved]
}

const LOGGED: &[(&str, Step, Operation)] = &[
    ("logged: triggers, XIVE", sending, trigger_both),
    (
        "logged: ESB load: EOI of what came again",
        sending_pending,
        |g| vec![g.esb(A, 0) as i64],
    ),
    ("logged: quiesce and resume, XIVE", sending, |g| {
        quiesce_and_resume(g, None)
    }),
    (
        "logged: H_INT_SET_QUEUE_CONFIG moves a queue",
        sending,
        move_queue,
    ),
    ("the dirty log is started", xive, start),
    (
        "the dirty log is stopped and started",
        sending,
        stop_and_start,
    ),
];

/// All of them. While the daemon stands still, what is dirty at that moment is sent.
pub fn all() -> impl Iterator<Item = Scenario> {
    LOGGED.iter().map(|(name, setup, operation)| Scenario {
        name,
        executor: Daemon,
        setup: *setup,
        operation: *operation,
        active: [Guest::send_dirty, Guest::send_dirty],
        recovery: name.starts_with("logged: quiesce"),
    })
}

/// Beside an executing front-end the daemon may queue an event twice (SPEC.md §3.9), but not in secret.
#[test]
fn what_the_daemon_queues_beside_the_front_end_is_sent_wherever_it_is_cut() {
    let scenario = Scenario {
        name: "logged: quiesce and resume, XIVE",
        executor: FrontEnd,
        setup: sending,
        operation: |g| quiesce_and_resume(g, None),
        active: [Guest::send_dirty, Guest::send_dirty],
        recovery: false,
    };
    for n in 1.. {
        let cut = cut(&scenario, [n, 0, 0]);
        if cut.hits == 0 {
            assert!(n > 20, "{n} points");
            return;
        }
        let sent = cut.view.iter().any(|line| line == "pages not sent []");
        assert!(sent, "point {n}, {}: {:?}", cut.point, cut.view);
    }
}
