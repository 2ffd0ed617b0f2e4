//! Who reads which count, and what it becomes, when a device, a daemon and the VMM are at it at once.

use std::os::fd::AsFd;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::thread::{self, JoinHandle};

use super::*;

#[derive(Debug, PartialEq, Eq)]
enum Seen {
    Trigger(u32),
    Kick(u32),
}

struct Record(Mutex<Sender<Seen>>);

impl Sink for Record {
    fn trigger_here(&self, irqfd: &Irqfd) -> bool {
        self.trigger(irqfd);
        true
    }
    fn trigger(&self, irqfd: &Irqfd) {
        lock(&self.0).send(Seen::Trigger(irqfd.lisn)).unwrap();
    }
    fn kicked(&self, server: u32) {
        lock(&self.0).send(Seen::Kick(server)).unwrap();
    }
}

fn start(reading: bool) -> (Arc<Intake>, Receiver<Seen>, JoinHandle<()>) {
    let intake = Arc::new(Intake::new(reading).unwrap());
    let (send, seen) = channel();
    let thread = thread::spawn({
        let intake = Arc::clone(&intake);
        move || intake.run(&Record(Mutex::new(send)))
    });
    (intake, seen, thread)
}

/// An eventfd for the intake, and the writer's copy.
fn pair() -> (Event, Event) {
    let fd = Event::new().unwrap();
    let copy = Event(fd.as_fd().try_clone_to_owned().unwrap());
    (fd, copy)
}

fn edge(lisn: u32, trigger: Event) -> Irqfd {
    Irqfd {
        lisn,
        input: 0,
        trigger: Arc::new(trigger),
        resample: None,
    }
}

#[test]
fn a_resample_reaches_every_input_of_its_source_and_no_other() {
    let intake = Intake::new(true).unwrap();
    let level = |lisn, input| {
        let (fd, device) = pair();
        let irqfd = Irqfd {
            input,
            resample: Some(Arc::new(fd)),
            ..edge(lisn, Event::new().unwrap())
        };
        intake.add_irqfd(irqfd).unwrap();
        device
    };
    let devices = [(6, 9), (7, 0), (7, 3), (8, 0)].map(|(lisn, input)| level(lisn, input));
    assert_eq!(intake.levels(), [6, 7, 7, 8]);
    intake.resample(7);
    assert_eq!(devices.map(|d| d.take()), [false, true, true, false]);
}

#[test]
fn counts_become_triggers_and_kicks() {
    let (intake, seen, thread) = start(true);
    let ((irqfd, device), (kick, daemon)) = (pair(), pair());
    assert!(intake.add_irqfd(edge(0x1234, irqfd)).unwrap());
    intake.add_kick(7, Arc::new(kick)).unwrap();
    device.signal();
    assert_eq!(seen.recv().unwrap(), Seen::Trigger(0x1234));
    daemon.signal();
    assert_eq!(seen.recv().unwrap(), Seen::Kick(7));
    intake.stop();
    thread.join().unwrap();
}

#[test]
fn a_count_written_while_paused_stays_for_the_next_reader() {
    let (intake, seen, thread) = start(true);
    let (irqfd, device) = pair();
    intake.add_irqfd(edge(5, irqfd)).unwrap();
    let handed = intake.pause();
    assert_eq!(handed.iter().map(|i| i.lisn).collect::<Vec<_>>(), [5]);
    device.signal();
    // The daemon reads it once; a second count comes when the front-end reads again.
    assert!(handed[0].trigger.take());
    device.signal();
    intake.unpause().unwrap();
    assert_eq!(seen.recv().unwrap(), Seen::Trigger(5));
    intake.stop();
    thread.join().unwrap();
    assert!(seen.recv().is_err(), "counted twice");
}

#[test]
fn while_the_daemon_reads_a_new_irqfd_is_left_to_it() {
    let (intake, seen, thread) = start(false);
    let (irqfd, device) = pair();
    assert!(!intake.add_irqfd(edge(5, irqfd)).unwrap());
    device.signal();
    assert_eq!(intake.remove_irqfd((5, 0)), Some(false));
    assert_eq!(intake.remove_irqfd((5, 0)), None);
    intake.stop();
    thread.join().unwrap();
    assert!(seen.recv().is_err() && device.take());
}

#[test]
fn a_replaced_irqfd_is_not_read_any_more() {
    let (intake, seen, thread) = start(true);
    let ((old, old_device), (new, new_device)) = (pair(), pair());
    intake.add_irqfd(edge(5, old)).unwrap();
    intake.add_irqfd(edge(5, new)).unwrap();
    old_device.signal();
    new_device.signal();
    assert_eq!(seen.recv().unwrap(), Seen::Trigger(5));
    intake.stop();
    thread.join().unwrap();
    assert!(seen.recv().is_err() && old_device.take());
}

/// Does what a test wants at the moment of an early trigger, and says whether that one is done.
struct During<F>(F, Mutex<Vec<&'static str>>);

impl<F: Fn() -> bool> During<F> {
    fn new(during: F) -> Self {
        Self(during, Mutex::default())
    }
    fn seen(&self) -> Vec<&'static str> {
        lock(&self.1).clone()
    }
}

impl<F: Fn() -> bool> Sink for During<F> {
    fn trigger_here(&self, _: &Irqfd) -> bool {
        let done = (self.0)();
        lock(&self.1).push(if done { "early" } else { "not here" });
        done
    }
    fn trigger(&self, _: &Irqfd) {
        lock(&self.1).push("after the read");
    }
    fn kicked(&self, _: u32) {}
}

/// An intake without a thread, with one edge; the device's end, and the edge's token.
fn by_hand() -> (Intake, Event, u64) {
    let intake = Intake::new(true).unwrap();
    let (irqfd, device) = pair();
    intake.add_irqfd(edge(5, irqfd)).unwrap();
    let token = IRQFD | u64::from(lock(&intake.table).last);
    (intake, device, token)
}

#[test]
fn one_count_is_one_trigger_and_nothing_of_it_is_left() {
    let (intake, device, token) = by_hand();
    let sink = During::new(|| true);
    device.signal();
    intake.handle(token, 0, &sink);
    assert_eq!(sink.seen(), ["early"]);
    assert!(!device.take());
}

#[test]
fn what_is_written_between_trigger_and_read_is_triggered_again() {
    let (intake, device, token) = by_hand();
    let sink = During::new(|| {
        device.signal();
        true
    });
    device.signal();
    intake.handle(token, 0, &sink);
    assert_eq!(sink.seen(), ["early", "after the read"]);
    assert!(!device.take());
}

#[test]
fn where_another_executes_the_count_is_read_first() {
    let (intake, device, token) = by_hand();
    let sink = During::new(|| false);
    device.signal();
    intake.handle(token, 0, &sink);
    assert_eq!(sink.seen(), ["not here", "after the read"]);
    assert!(!device.take());
}

#[test]
fn who_takes_an_irqfd_over_while_it_is_acted_on_finds_no_count() {
    type Take = fn(&Intake);
    let takers: [Take; 3] = [
        |intake| _ = intake.pause(),
        |intake| assert_eq!(intake.remove_irqfd((5, 0)), Some(true)),
        |intake| assert!(intake.add_irqfd(edge(5, Event::new().unwrap())).unwrap()),
    ];
    for (i, taker) in takers.into_iter().enumerate() {
        // The thread itself, which a kick may make do such things.
        let (intake, device, token) = by_hand();
        let _ = intake.thread.set(thread::current().id());
        let left = Mutex::new(None);
        let sink = During::new(|| {
            taker(&intake);
            *lock(&left) = Some(device.take());
            // Of the next owner.
            device.signal();
            true
        });
        device.signal();
        intake.handle(token, 0, &sink);
        assert_eq!(*lock(&left), Some(false), "{i}: counted twice");
        assert_eq!(sink.seen(), ["early"], "{i}");
        assert!(device.take(), "{i}: the next owner's count is gone");
    }
}

#[test]
fn two_counts_that_are_handed_over_half_way_are_triggered_twice() {
    let (intake, device, token) = by_hand();
    let sink = During::new(|| {
        device.signal();
        intake.pause();
        true
    });
    device.signal();
    intake.handle(token, 0, &sink);
    assert_eq!(sink.seen(), ["early", "after the read"]);
    assert!(!device.take());
}

#[test]
fn a_count_that_another_may_have_read_since_epoll_was_asked_is_looked_for_first() {
    let (intake, device, token) = by_hand();
    let sink = During::new(|| true);
    device.signal();
    let handed = intake.pause();
    assert!(handed[0].trigger.take());
    intake.unpause().unwrap();
    intake.handle(token, 0, &sink);
    assert_eq!(sink.seen(), [""; 0]);
    device.signal();
    intake.handle(token, 0, &sink);
    assert_eq!(sink.seen(), ["after the read"]);
}

#[test]
fn each_write_of_the_daemon_kicks_though_none_is_read() {
    let (intake, seen, thread) = start(true);
    let (kick, daemon) = pair();
    intake.add_kick(7, Arc::new(kick)).unwrap();
    for _ in 0..3 {
        daemon.signal();
        assert_eq!(seen.recv().unwrap(), Seen::Kick(7));
    }
    intake.stop();
    thread.join().unwrap();
    assert!(seen.recv().is_err());
}
