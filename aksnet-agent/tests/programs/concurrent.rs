//! Programs on two CPUs, and the agent, at the same tables at once: every packet is counted once.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::atomic::{AtomicBool, AtomicUsize, Ordering},
    time::{Duration, Instant},
};

use aksnet_agent::{
    bpf::{LoadOptions, MapSource},
    collect::source::Source as _,
};
use aksnet_common::{
    cell::{self, QUIET_MS},
    flow::{FlowKey, ORIGIN_ENTER},
    stats::{Event, Role, Skip},
};
use aya::Ebpf;

use crate::{
    frame::{ACK, Frame},
    headers::{A4, B4, small},
    rig::{self, ENTER_POD, ENTER_UPLINK, Hook, LO, Rig, Skb, bind},
    tables::numbered,
};

/// Packets and bytes by flow.
type Counts = BTreeMap<FlowKey, (u64, u64)>;

fn add(counts: &mut Counts, key: FlowKey, packets: u64, bytes: u64) {
    let sum = counts.entry(key).or_default();
    sum.0 += packets;
    sum.1 += bytes;
}

fn merge(mut a: Counts, b: Counts) -> Counts {
    for (key, (packets, bytes)) in b {
        add(&mut a, key, packets, bytes);
    }
    a
}

/// What passes on one CPU: runs the frames in turn until told to stop, in bursts of `burst`.
fn traffic(ebpf: &Ebpf, cpu: usize, hook: Hook, frames: &[Frame], stop: &AtomicBool) -> Counts {
    assert!(bind(cpu), "a CPU of its own");
    let frames: Vec<_> = frames
        .iter()
        .map(|f| (f.ethernet(), f.key(LO, ORIGIN_ENTER), f.ip_len() as u64))
        .collect();
    let mut counts = Counts::new();
    let mut turn = 0;
    while !stop.load(Ordering::Relaxed) {
        for (bytes, key, len) in &frames {
            turn += 1;
            let burst = [1, 200, 7][turn % 3];
            rig::run(ebpf, hook, bytes, Skb::default(), burst).expect("a test run");
            add(&mut counts, *key, u64::from(burst), u64::from(burst) * len);
        }
    }
    counts
}

/// The agent's side: closes cells that are live, reads and frees them a sweep later, and takes the spill.
#[derive(Default)]
struct Sweeper {
    closing: Vec<u32>,
    counts: Counts,
    retired: u64,
    sweeps: u32,
}

impl Sweeper {
    fn sweep(&mut self, source: &mut MapSource) {
        for index in std::mem::take(&mut self.closing) {
            let hot = source.hot(index);
            add(&mut self.counts, hot.key, hot.skbs, hot.bytes);
            source.free(index);
            self.retired += 1;
        }
        self.sweeps += 1;
        for index in 0..source.cells() {
            let live = source.state(index) & cell::PHASE == cell::LIVE;
            // Not all at once: some flows stay where they are for a few sweeps.
            if live && (index + self.sweeps).is_multiple_of(3) && source.close(index) {
                self.closing.push(index);
            }
        }
        for (key, stats) in source.take_spill().expect("the spill") {
            add(&mut self.counts, key, stats.skbs, stats.bytes);
        }
    }

    /// Everything, when no program runs any more.
    fn finish(mut self, source: &mut MapSource) -> Counts {
        for index in 0..source.cells() {
            if source.state(index) & cell::PHASE != cell::FREE {
                let hot = source.hot(index);
                add(&mut self.counts, hot.key, hot.skbs, hot.bytes);
            }
        }
        for (key, stats) in source.take_spill().expect("the spill") {
            add(&mut self.counts, key, stats.skbs, stats.bytes);
        }
        self.counts
    }
}

/// Runs two kinds of traffic on two CPUs for a while, with the agent sweeping; what was sent, what was
/// counted, and how many cells were retired meanwhile.
fn contend(rig: &mut Rig, frames: [&[Frame]; 2], pause: Duration) -> Option<[Counts; 2]> {
    if !two_cpus() {
        return None;
    }
    let stop = AtomicBool::new(false);
    let source = &mut rig.datapath.source;
    let ebpf: &Ebpf = rig.datapath.attacher.ebpf();
    let mut sweeper = Sweeper::default();
    let sent = std::thread::scope(|scope| {
        let stop = &stop;
        let threads = [(0, ENTER_POD), (1, ENTER_UPLINK)]
            .map(|(cpu, hook)| scope.spawn(move || traffic(ebpf, cpu, hook, frames[cpu], stop)));
        let started = Instant::now();
        while started.elapsed() < Duration::from_millis(1_500) {
            sweeper.sweep(source);
            std::thread::sleep(pause);
        }
        stop.store(true, Ordering::Relaxed);
        let [a, b] = threads.map(|t| t.join().expect("no run failed"));
        merge(a, b)
    });
    println!(
        "{} packets, {} cells retired in {} sweeps",
        sent.values().map(|c| c.0).sum::<u64>(),
        sweeper.retired,
        sweeper.sweeps
    );
    assert!(sweeper.sweeps > 3 && sweeper.retired > 0);
    Some([sent, sweeper.finish(source)])
}

fn two_cpus() -> bool {
    let two = bind(1);
    bind(0);
    if !two {
        println!("skipped: needs two CPUs");
    }
    two
}

const QUIET: Duration = Duration::from_millis(QUIET_MS);

#[test]
fn counts_are_exact_while_two_cpus_share_flows_and_cells_are_retired() {
    let options = LoadOptions {
        flow_cells: 1024,
        ..small()
    };
    rig::with(&options, |mut rig| {
        let shared: Vec<Frame> = (0..40).map(|i| numbered(i, ACK)).collect();
        if let Some([sent, counted]) = contend(&mut rig, [&shared, &shared], QUIET) {
            assert_eq!(counted, sent);
            let packets: u64 = sent.values().map(|c| c.0).sum();
            assert_eq!(rig.look().event(Event::PassageLeft), packets);
        }
    });
}

#[test]
fn counts_are_exact_while_two_cpus_fill_cells_and_spill() {
    let options = LoadOptions {
        flow_cells: 16,
        spill_entries: 256,
        sample: 64,
        ..small()
    };
    rig::with(&options, |mut rig| {
        let all: Vec<Frame> = (0..150).map(|i| numbered(i, ACK)).collect();
        if let Some([sent, counted]) = contend(&mut rig, [&all[..100], &all[50..]], QUIET) {
            assert_eq!(counted, sent);
        }
    });
}

#[test]
fn totals_are_exact_while_two_cpus_overflow_every_table() {
    let options = LoadOptions {
        flow_cells: 4,
        spill_entries: 2,
        sample: 64,
        ..small()
    };
    rig::with(&options, |mut rig| {
        let all: Vec<Frame> = (0..100).map(|i| numbered(i, ACK)).collect();
        if let Some([sent, counted]) = contend(&mut rig, [&all, &all], QUIET) {
            let total = |c: &Counts| {
                let packets: u64 = c.values().map(|c| c.0).sum();
                (packets, c.values().map(|c| c.1).sum::<u64>())
            };
            let (mut packets, mut bytes) = total(&counted);
            let overflow = rig.look().overflow;
            for role in Role::ALL {
                assert_ne!(overflow[role as usize].skbs, 0);
                packets += overflow[role as usize].skbs;
                bytes += overflow[role as usize].bytes;
            }
            assert_eq!((packets, bytes), total(&sent));
        }
    });
}

/// The epoch turns as fast as it can while both CPUs spill.
#[test]
fn each_spilled_packet_is_taken_once_while_programs_run() {
    let options = LoadOptions {
        flow_cells: 4,
        spill_entries: 64,
        sample: 64,
        ..small()
    };
    rig::with(&options, |mut rig| {
        if !two_cpus() {
            return;
        }
        let all: Vec<Frame> = (0..60).map(|i| numbered(i, ACK)).collect();
        let stop = AtomicBool::new(false);
        let source = &mut rig.datapath.source;
        let ebpf: &Ebpf = rig.datapath.attacher.ebpf();
        let mut counted = Counts::new();
        let mut drops = 0;
        let mut turns = 0;
        let sent = std::thread::scope(|scope| {
            let (all, stop) = (&all, &stop);
            let threads =
                [0, 1].map(|cpu| scope.spawn(move || traffic(ebpf, cpu, ENTER_POD, all, stop)));
            let started = Instant::now();
            while started.elapsed() < Duration::from_millis(1_500) {
                // In either order: what the one brought for the other must wait for it.
                if turns % 2 == 0 {
                    drops += source.take_drops().expect("the drops").len();
                }
                for (key, stats) in source.take_spill().expect("the spill") {
                    add(&mut counted, key, stats.skbs, stats.bytes);
                }
                turns += 1;
            }
            stop.store(true, Ordering::Relaxed);
            let [a, b] = threads.map(|t| t.join().expect("no run failed"));
            merge(a, b)
        });
        println!("{turns} turns");
        assert!(turns > 10);
        assert_eq!(drops, 0);
        let seen = rig.take();
        seen.add_to(&mut counted);
        assert_eq!(counted, sent);
    });
}

/// The packet that claims a flow's cell may be overtaken by one of another CPU.
#[test]
fn a_flow_that_two_cpus_meet_at_once_is_one_flow_with_one_beginning() {
    const FLOWS: u16 = 20_000;
    let options = LoadOptions {
        flow_cells: 65_536,
        sample: 1024,
        first_packets: 0,
        ..small()
    };
    rig::with(&options, |mut rig| {
        if !two_cpus() {
            return;
        }
        let ebpf: &Ebpf = rig.datapath.attacher.ebpf();
        let frames: Vec<_> = (0..FLOWS)
            .map(|i| Frame::udp(&format!("10.244.7.7:{i}"), B4).ethernet())
            .collect();
        // Spinning, as a thread that sleeps wakes far later than a packet takes.
        let arrived = AtomicUsize::new(0);
        std::thread::scope(|scope| {
            for cpu in [0, 1] {
                let (frames, arrived) = (&frames, &arrived);
                scope.spawn(move || {
                    bind(cpu);
                    for (i, frame) in frames.iter().enumerate() {
                        arrived.fetch_add(1, Ordering::SeqCst);
                        while arrived.load(Ordering::SeqCst) < 2 * (i + 1) {
                            std::hint::spin_loop();
                        }
                        rig::run(ebpf, ENTER_POD, frame, Skb::default(), 5).expect("a test run");
                    }
                });
            }
        });
        let seen = rig.take();
        let sums = seen.by_key();
        assert_eq!(sums.len(), usize::from(FLOWS));
        assert!(sums.values().all(|&(packets, _)| packets == 10));
        for flow in &seen.flows {
            assert_eq!(flow.hot.connections, 1, "{flow:?}");
            assert_ne!(flow.hot.first_ns, 0, "{flow:?}");
        }
        // Both may claim a cell in rare cases; their counts add up.
        let keys: BTreeSet<FlowKey> = seen.flows.iter().map(|f| f.hot.key).collect();
        let twice = seen.flows.len() - keys.len();
        println!("{twice} of {FLOWS} flows in two cells");
        assert!(twice < usize::from(FLOWS) / 10);
    });
}

#[test]
fn skipped_packets_of_two_cpus_add_up() {
    rig::with(&small(), |mut rig| {
        if !two_cpus() {
            return;
        }
        let ebpf: &Ebpf = rig.datapath.attacher.ebpf();
        let mut frame = Frame::tcp(A4, B4, ACK).ethernet();
        frame[46] = 0x40;
        std::thread::scope(|scope| {
            for cpu in [0, 1] {
                let frame = &frame;
                scope.spawn(move || {
                    bind(cpu);
                    rig::run(ebpf, ENTER_UPLINK, frame, Skb::default(), 50_000)
                        .expect("a test run");
                });
            }
        });
        let seen = rig.take();
        let stats = seen.skipped[Skip::BadTransport as usize];
        assert_eq!(
            (stats.skbs, stats.bytes),
            (100_000, 100_000 * frame.len() as u64)
        );
        assert_eq!(seen.skips(), 100_000);
        assert!(seen.flows.is_empty());
    });
}
