//! Builds the machine, starts the threads, runs, and reports.

use std::fs::File;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Instant;

use papr_intc_frontend::GuestRam;
use papr_intc_protocol::layout::Machine;
use vmm_sys_util::eventfd::{EFD_CLOEXEC, EFD_NONBLOCK, EventFd};

use crate::board::{Board, Cpu, Gone, Numbers, Step};
use crate::cells::Cells;
use crate::cli::Options;
use crate::conductor::{Conductor, MSI_RANGE_START, all_latencies, claim_msis};
use crate::device_process::DeviceProcess;
use crate::devices::{Devices, Source, Style};
use crate::faults::{BrokenBoard, Faults};
use crate::find_daemon::{find_daemon, find_example};
use crate::guest::cpu::Role;
use crate::guest::{self, Platform};
use crate::halt::Halt;
use crate::model::Model;
use crate::real::{Real, Setup};
use crate::ring::{self, Ring};
use crate::rng::Rng;
use crate::tally::{Kind, Tally};
use crate::{chaos, moves, report};

/// Guest RAM: the event queues, and at the end the ring of the vhost-user device.
pub const RAM: u64 = 64 << 20;
/// Number of the VMM's event source (pseries: hot-plug events).
const EVENT_LISN: u32 = 0x1001;
/// First PCI LSI.
const FIRST_LSI: u32 = 0x1200;
/// Device threads.
const DEVICE_THREADS: usize = 2;

type Halts = Arc<Vec<Halt<Role>>>;

/// The whole run; false if something was lost or wrong.
pub fn run(options: Options) -> Step<bool> {
    let halts: Halts = Arc::new((0..options.vcpus).map(|_| Halt::default()).collect());
    let faults = Faults::new(options.fault, options.seed, options.vcpus);
    let sources = plan_sources(&options);
    let (cells, cells_file) = Cells::create(sources.len()).map_err(io("the cells' memfd"))?;
    // The device process first: it inherits descriptors, which nothing started later should.
    let eventfds = make_eventfds(&sources)?;
    let process = spawn_devices(&options, &cells_file, &cells, &sources, &eventfds)?;
    let ram = Arc::new(GuestRam::new(&[(0, RAM)]).map_err(io("guest RAM"))?);
    let ring = start_ring(&sources, &eventfds, &ram)?;
    let board = make_board(&options, &ram, &halts, &faults)?;
    for source in sources.iter().filter(|s| s.lisn() != 0) {
        board.claim(Numbers::Fixed(source.lisn(), source.kind == Kind::Lsi))?;
    }
    let cpus = (0..options.vcpus)
        .map(|vcpu| board.connect(vcpu * options.stride))
        .collect::<Step<Vec<_>>>()?;
    let devices = Arc::new(Devices::new(board.clone(), cells, sources, process, ring));
    let mut rng = Rng::new(options.seed, 1);
    claim_msis(&devices, &mut rng)?;
    let platform = make_platform(board, devices, halts, cpus, options.stride);
    let start = Instant::now();
    let conductor = Conductor {
        platform: platform.clone(),
        eventfds,
        end: start + options.duration,
        options,
        rng,
        kernels: 0,
    };
    conduct(conductor, &platform, &faults, start)
}

fn conduct(
    mut conductor: Conductor,
    platform: &Arc<Platform>,
    faults: &Faults,
    start: Instant,
) -> Step<bool> {
    let options = conductor.options.clone();
    let over = Arc::new(AtomicBool::new(false));
    let threads = spawn_threads(platform, &options);
    let killer = spawn_killer(platform, &options, start, &over);
    let mover = spawn_mover(platform, &options, &over);
    let progress = spawn_progress(platform, &options, start, &over);
    let result = conductor.conduct();
    let ran = start.elapsed();
    over.store(true, Ordering::Relaxed);
    let _ = progress.join();
    let lost = result?;
    let outages = killer.join().unwrap_or_default();
    let moves = mover.join().unwrap_or_default();
    // A vCPU that hangs keeps its thread; the process ends without it.
    if conductor.stop() {
        threads.into_iter().for_each(|t| drop(t.join()));
    }
    let tally = &platform.tally;
    let summary = report::Summary {
        options: &options,
        tally,
        latencies: &all_latencies(platform),
        ran,
        outages: &outages,
        moves: &moves,
        lost: &lost,
        faults: faults.struck(),
    };
    summary.print();
    Ok(lost.is_empty()
        && summary.spurious_is_excused()
        && tally.wrongs.load(Ordering::Relaxed) == 0)
}

fn io(what: &'static str) -> impl Fn(std::io::Error) -> Gone {
    move |e| Gone(format!("{what}: {e}"))
}

/// The event source, then the rest: every eighth a level, of the others half with eventfds.
fn plan_sources(options: &Options) -> Vec<Source> {
    let mut sources = vec![Source::new(EVENT_LISN, Kind::Msi, Style::Asked)];
    let mut next_lsi = FIRST_LSI;
    for i in 0..options.sources {
        let source = match i % 8 {
            7 if next_lsi < FIRST_LSI + 0x80 => {
                next_lsi += 1;
                Source::new(next_lsi - 1, Kind::Lsi, Style::Polite)
            }
            1 if !options.model && i == 1 => Source::new(0, Kind::Ring, Style::Burst),
            1 | 3 | 5 if !options.model && i < 512 => Source::new(0, Kind::Eventfd, Style::Polite),
            2 => Source::new(0, Kind::Msi, Style::Doorbell),
            4 => Source::new(0, Kind::Msi, Style::Burst),
            _ => Source::new(0, Kind::Msi, Style::Polite),
        };
        sources.push(source);
    }
    sources
}

fn make_eventfds(sources: &[Source]) -> Step<Vec<(usize, EventFd)>> {
    let with = sources
        .iter()
        .enumerate()
        .filter(|(_, s)| s.kind.is_elsewhere());
    with.map(|(i, _)| Ok((i, EventFd::new(EFD_NONBLOCK | EFD_CLOEXEC)?)))
        .collect::<std::io::Result<_>>()
        .map_err(io("an eventfd"))
}

fn spawn_devices(
    options: &Options,
    file: &File,
    cells: &Cells,
    sources: &[Source],
    eventfds: &[(usize, EventFd)],
) -> Step<Option<DeviceProcess>> {
    let its: Vec<_> = eventfds
        .iter()
        .filter(|(i, _)| sources[*i].kind == Kind::Eventfd)
        .collect();
    if its.is_empty() {
        return Ok(None);
    }
    DeviceProcess::spawn(file, cells.len(), &its, options.seed)
        .map(Some)
        .map_err(io("the device process"))
}

fn start_ring(
    sources: &[Source],
    eventfds: &[(usize, EventFd)],
    ram: &Arc<GuestRam>,
) -> Step<Option<Ring>> {
    let mut eventfds = eventfds.iter();
    let Some((_, call)) = eventfds.find(|(i, _)| sources[*i].kind == Kind::Ring) else {
        return Ok(None);
    };
    let binary = find_example("vhost_device").map_err(Gone)?;
    let call = call.try_clone().map_err(io("an eventfd"))?;
    Ring::start(&binary, ram.clone(), RAM - ring::SIZE, call)
        .map(Some)
        .map_err(io("the vhost-user device"))
}

fn make_board(
    options: &Options,
    ram: &Arc<GuestRam>,
    halts: &Halts,
    faults: &Arc<Faults>,
) -> Step<Arc<dyn Board>> {
    // And one to be plugged in.
    let servers = (options.vcpus - 1) * options.stride + 2;
    let mode = options.mode.ic_mode();
    let mut machine = Machine::pseries(mode, options.compat.compat(), servers);
    // Room for blocks that are aligned to their size.
    machine.sources = machine.sources.max(MSI_RANGE_START + 2 * options.sources);
    let kick = {
        let (halts, faults, stride) = (halts.clone(), faults.clone(), options.stride);
        move |server: u32| {
            let vcpu = server / stride;
            if !faults.drops_kick(vcpu)
                && let Some(halt) = halts.get(vcpu as usize)
            {
                halt.kick();
            }
        }
    };
    if options.model {
        let board = Arc::new(Model::new(machine, RAM, Arc::new(kick)));
        return Ok(with_faults(board, options, faults, Arc::new(|_| {})));
    }
    let setup = Setup {
        machine,
        ram: ram.clone(),
        remote: options.remote,
        forward_all: options.forward_all,
        daemon: match &options.daemon {
            Some(path) => path.clone(),
            None => find_daemon().map_err(Gone)?,
        },
        next: match options.upgrades() {
            true => Some(find_example("next_daemon").map_err(Gone)?),
            false => None,
        },
    };
    let board = Arc::new(Real::start(setup, Arc::new(kick))?);
    let forget = {
        let board = board.clone();
        Arc::new(move |server| board.forget_resend(server))
    };
    Ok(with_faults(board, options, faults, forget))
}

fn with_faults(
    board: Arc<dyn Board>,
    options: &Options,
    faults: &Arc<Faults>,
    forget_resend: Arc<dyn Fn(u32) + Send + Sync>,
) -> Arc<dyn Board> {
    match options.fault {
        None => board,
        Some(_) => Arc::new(BrokenBoard {
            board,
            faults: faults.clone(),
            forget_resend,
            moving: AtomicBool::new(false),
        }),
    }
}

fn make_platform(
    board: Arc<dyn Board>,
    devices: Arc<Devices>,
    halts: Halts,
    cpus: Vec<Arc<dyn Cpu>>,
    stride: u32,
) -> Arc<Platform> {
    Arc::new(Platform {
        board,
        devices,
        tally: Arc::new(Tally::default()),
        latencies: cpus.iter().map(|_| Mutex::default()).collect(),
        halts,
        stride,
        cpus,
        current: Mutex::new(None),
        failure: Mutex::new(None),
    })
}

type Thread<T = ()> = std::thread::JoinHandle<T>;

fn spawn_threads(platform: &Arc<Platform>, options: &Options) -> Vec<Thread> {
    let seed = options.seed;
    let vcpus = (0..options.vcpus).map(|me| {
        let platform = platform.clone();
        std::thread::spawn(move || guest::cpu::thread(&platform, me, seed))
    });
    let devices = (0..DEVICE_THREADS).map(|nth| {
        let platform = platform.clone();
        std::thread::spawn(move || {
            let rng = Rng::new(seed, 0x200 + nth as u64);
            if let Err(gone) = platform.devices.work(nth, DEVICE_THREADS, rng) {
                platform.fail(format!("device thread {nth}: {gone}"));
            }
        })
    });
    vcpus.chain(devices).collect()
}

fn spawn_killer(
    platform: &Arc<Platform>,
    options: &Options,
    start: Instant,
    over: &Arc<AtomicBool>,
) -> Thread<Vec<chaos::Outage>> {
    let (platform, over) = (platform.clone(), over.clone());
    let (plan, seed) = (chaos::plan(options), options.seed);
    std::thread::spawn(move || {
        let (board, tally) = (&*platform.board, &platform.tally);
        chaos::carry_out(board, tally, start, &plan, seed, &over)
    })
}

fn spawn_mover(
    platform: &Arc<Platform>,
    options: &Options,
    over: &Arc<AtomicBool>,
) -> Thread<Vec<moves::Moved>> {
    let (platform, over) = (platform.clone(), over.clone());
    let options = options.clone();
    std::thread::spawn(move || {
        let (board, tally) = (&*platform.board, &platform.tally);
        moves::carry_out(board, tally, &options, &over)
    })
}

fn spawn_progress(
    platform: &Arc<Platform>,
    options: &Options,
    start: Instant,
    over: &Arc<AtomicBool>,
) -> Thread {
    let (tally, over, duration) = (platform.tally.clone(), over.clone(), options.duration);
    std::thread::spawn(move || report::progress(&tally, start, duration, &over))
}
