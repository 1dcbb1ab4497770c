//! A loaded datapath on a CPU and in a network namespace of its own: run a frame, then look at the maps.

use std::collections::BTreeMap;

use aksnet_agent::{
    bpf::{self, LoadOptions, Loaded, datapath::Datapath as _, status::ProgramState},
    collect::source::{Source as _, Totals},
};
use aksnet_common::{
    cell,
    flow::{ColdCell, FlowKey, HotCell, ORIGIN_ENTER, ORIGIN_NODE, SpillStats},
    packet::Link,
    stats::{Event, Role, Skip, SkipStats},
};
use aya::{
    Ebpf,
    programs::{ProgramType, SchedClassifier, TestRun as _, TestRunOptions},
};
use nix::{
    sched::{CloneFlags, CpuSet, sched_getaffinity, sched_setaffinity, unshare},
    unistd::{Pid, geteuid},
};
use rtnetlink::LinkVeth;

/// A program, and what it counts as.
#[derive(Clone, Copy, Debug)]
pub struct Hook {
    pub program: &'static str,
    pub role: Role,
    /// Of the packets that it counts: EXIT counts those that came in nowhere.
    pub origin: u8,
    pub link: Link,
}

pub const ENTER_POD: Hook = hook("aksnet_enter_pod", Role::Pod, ORIGIN_ENTER, Link::Ethernet);
pub const ENTER_UPLINK: Hook = hook(
    "aksnet_enter_uplink",
    Role::Uplink,
    ORIGIN_ENTER,
    Link::Ethernet,
);
pub const ENTER_UPLINK_IP: Hook = hook(
    "aksnet_enter_uplink_ip",
    Role::Uplink,
    ORIGIN_ENTER,
    Link::Ip,
);
pub const EXIT_POD: Hook = hook("aksnet_exit_pod", Role::Pod, ORIGIN_NODE, Link::Ethernet);
pub const EXIT_UPLINK: Hook = hook(
    "aksnet_exit_uplink",
    Role::Uplink,
    ORIGIN_NODE,
    Link::Ethernet,
);
pub const EXIT_UPLINK_IP: Hook = hook("aksnet_exit_uplink_ip", Role::Uplink, ORIGIN_NODE, Link::Ip);

pub const HOOKS: [Hook; 6] = [
    ENTER_POD,
    ENTER_UPLINK,
    ENTER_UPLINK_IP,
    EXIT_POD,
    EXIT_UPLINK,
    EXIT_UPLINK_IP,
];

const fn hook(program: &'static str, role: Role, origin: u8, link: Link) -> Hook {
    Hook {
        program,
        role,
        origin,
        link,
    }
}

/// The loopback interface, on which a test run is unless the context says otherwise.
pub const LO: u32 = 1;

/// What the kernel is to say of the packet besides its bytes.
#[derive(Clone, Copy, Debug, Default)]
pub struct Skb {
    /// 0: loopback.
    pub ifindex: u32,
    /// 0: the node sent it.
    pub ingress: u32,
    pub gso_segs: u32,
    pub gso_size: u32,
    /// Bytes in the linear part, where the kernel [`Rig::makes_long_packets`]; 0: as many as fit.
    pub linear: u32,
}

impl Skb {
    pub fn from_to(ingress: u32, ifindex: u32) -> Self {
        Self {
            ifindex,
            ingress,
            ..Self::default()
        }
    }

    pub fn gso(segs: u32, size: u32) -> Self {
        Self {
            gso_segs: segs,
            gso_size: size,
            ..Self::default()
        }
    }

    /// As `struct __sk_buff` (include/uapi/linux/bpf.h). The mark, the priority and the control block are
    /// set only to see that they stay.
    fn context(self) -> [u8; 192] {
        let mut bytes = [0; 192];
        let mut set = |at: usize, value: u32| {
            bytes[at..at + 4].copy_from_slice(&value.to_ne_bytes());
        };
        set(8, 0x4000);
        set(32, 6);
        set(36, self.ingress);
        set(40, self.ifindex);
        set(48, 0xcb00_cb00);
        set(80, self.linear);
        set(164, self.gso_segs);
        set(176, self.gso_size);
        bytes
    }
}

/// Runs a test with a datapath, on a thread of its own that is bound to one CPU and has a new network
/// namespace. Prints why where that cannot be.
pub fn with(options: &LoadOptions, test: impl FnOnce(Rig) + Send) {
    if !geteuid().is_root() {
        println!("skipped: needs root");
        return;
    }
    if !std::path::Path::new("/sys/kernel/btf/vmlinux").exists() {
        println!("skipped: the kernel has no BTF");
        return;
    }
    match aya::sys::is_program_supported(ProgramType::SchedClassifier) {
        Ok(true) => {}
        Ok(false) => {
            println!("skipped: the kernel has no BPF tc programs");
            return;
        }
        Err(error) => {
            println!("skipped: BPF is not allowed here: {error}");
            return;
        }
    }
    std::thread::scope(|scope| {
        let test = scope.spawn(|| {
            bind(0);
            if let Err(error) = unshare(CloneFlags::CLONE_NEWNET) {
                println!("skipped: no network namespace of its own: {error}");
                return;
            }
            let datapath = bpf::load(options).expect("the datapath loads");
            for state in datapath.attacher.programs() {
                // The drop tracepoint is not in every kernel, but none may refuse it.
                assert!(!matches!(state.state, ProgramState::Failed(_)), "{state:?}");
            }
            let before = datapath.source.totals().expect("totals");
            test(Rig { datapath, before });
        });
        if let Err(panic) = test.join() {
            std::panic::resume_unwind(panic);
        }
    });
}

/// Binds the calling thread to the `n`th CPU the process may run on; false where there are not as many.
pub fn bind(n: usize) -> bool {
    // The main thread's: it is never bound.
    let allowed = sched_getaffinity(Pid::this()).expect("the process's CPUs");
    let nth = (0..CpuSet::count())
        .filter(|&cpu| allowed.is_set(cpu).unwrap_or(false))
        .nth(n);
    let Some(cpu) = nth else {
        return false;
    };
    let mut only = CpuSet::new();
    only.set(cpu).expect("a CPU");
    sched_setaffinity(Pid::from_raw(0), &only).expect("binding to a CPU");
    true
}

/// Two more interfaces of the thread's network namespace.
pub fn devices() -> [u32; 2] {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .expect("a runtime");
    runtime.block_on(async {
        let (connection, handle, _) = rtnetlink::new_connection().expect("a netlink socket");
        tokio::spawn(connection);
        let pair = LinkVeth::new("one", "two").build();
        let added = handle.link().add(pair).execute().await;
        added.expect("a pair of interfaces");
    });
    ["one", "two"].map(|name| nix::net::if_::if_nametoindex(name).expect("its index"))
}

/// One cell that is not free.
#[derive(Clone, Copy, Debug)]
pub struct Flow {
    pub index: u32,
    pub hot: HotCell,
    pub cold: ColdCell,
}

/// What the maps hold, and what the totals gained since the last look.
#[derive(Debug)]
pub struct Seen {
    pub flows: Vec<Flow>,
    pub spill: Vec<(FlowKey, SpillStats)>,
    pub overflow: [SpillStats; Role::COUNT as usize],
    pub skipped: [SkipStats; Skip::COUNT as usize],
    events: [u64; Event::COUNT as usize],
}

impl Seen {
    pub fn event(&self, event: Event) -> u64 {
        self.events[event as usize]
    }

    /// The only cell.
    #[track_caller]
    pub fn flow(&self) -> &Flow {
        assert_eq!(self.flows.len(), 1, "one flow: {self:?}");
        &self.flows[0]
    }

    /// The cell of this key.
    #[track_caller]
    pub fn flow_of(&self, key: &FlowKey) -> &Flow {
        let found: Vec<_> = self.flows.iter().filter(|f| f.hot.key == *key).collect();
        assert_eq!(found.len(), 1, "one cell of {key:?}: {self:?}");
        found[0]
    }

    /// The only reason, skipped once.
    #[track_caller]
    pub fn skip(&self) -> (Skip, u64) {
        let found: Vec<_> = Skip::ALL
            .into_iter()
            .filter(|&s| self.skipped[s as usize] != SkipStats::default())
            .collect();
        assert_eq!(found.len(), 1, "one reason: {self:?}");
        let stats = self.skipped[found[0] as usize];
        assert_eq!(stats.skbs, 1, "{self:?}");
        (found[0], stats.bytes)
    }

    /// Whether the programs left no trace at all.
    pub fn is_nothing(&self) -> bool {
        self.flows.is_empty()
            && self.spill.is_empty()
            && self.overflow.iter().all(|o| *o == SpillStats::default())
            && self.skips() == 0
            && self.events.iter().all(|&n| n == 0)
    }

    pub fn skips(&self) -> u64 {
        self.skipped.iter().map(|s| s.skbs).sum()
    }

    /// Packets and bytes by flow, over cells and spill.
    pub fn by_key(&self) -> BTreeMap<FlowKey, (u64, u64)> {
        let mut sums = BTreeMap::new();
        self.add_to(&mut sums);
        sums
    }

    pub fn add_to(&self, sums: &mut BTreeMap<FlowKey, (u64, u64)>) {
        let cells = self
            .flows
            .iter()
            .map(|f| (f.hot.key, f.hot.skbs, f.hot.bytes));
        let spilled = self.spill.iter().map(|(k, s)| (*k, s.skbs, s.bytes));
        for (key, skbs, bytes) in cells.chain(spilled) {
            let sum = sums.entry(key).or_insert((0, 0));
            sum.0 += skbs;
            sum.1 += bytes;
        }
    }
}

/// A loaded datapath.
pub struct Rig {
    pub datapath: Loaded,
    before: Totals,
}

impl Rig {
    /// Runs a frame through a program, and sees to it that the program left the packet alone.
    #[track_caller]
    pub fn run(&mut self, hook: Hook, frame: &[u8], skb: Skb) {
        let result = run(self.datapath.attacher.ebpf(), hook, frame, skb, 1);
        if let Err(error) = result {
            panic!("test run of {} bytes with {skb:?}: {error}", frame.len());
        }
    }

    /// As [`Self::run`]; false where the kernel does not make such a packet.
    pub fn try_run(&mut self, hook: Hook, frame: &[u8], skb: Skb) -> bool {
        run(self.datapath.attacher.ebpf(), hook, frame, skb, 1).is_ok()
    }

    /// Whether this kernel makes test packets longer than a page, which have parts that are not linear (6.19
    /// or later). Says so if not.
    pub fn makes_long_packets(&mut self) -> bool {
        let frame = crate::frame::Frame::udp("10.0.0.1:1", "10.0.0.2:2").payload(8_000);
        let does = self.try_run(ENTER_POD, &frame.ethernet(), Skb::default());
        if !does {
            println!("skipped: this kernel makes no test packets longer than a page");
        }
        self.take();
        does
    }

    /// What there is now. Takes the spill.
    pub fn look(&mut self) -> Seen {
        let source = &mut self.datapath.source;
        let flows = (0..source.cells())
            .filter(|&index| source.state(index) & cell::PHASE != cell::FREE)
            .map(|index| Flow {
                index,
                hot: source.hot(index),
                cold: source.cold(index),
            })
            .collect();
        let spill = source.take_spill().expect("the spill");
        let now = source.totals().expect("totals");
        let before = std::mem::replace(&mut self.before, now);
        Seen {
            flows,
            spill,
            overflow: std::array::from_fn(|i| {
                let (now, before) = (now.overflow[i], before.overflow[i]);
                SpillStats {
                    skbs: now.skbs - before.skbs,
                    bytes: now.bytes - before.bytes,
                    gso_packets: now.gso_packets - before.gso_packets,
                    gso_bytes: now.gso_bytes - before.gso_bytes,
                    tcp_flags: now.tcp_flags,
                    connections: now.connections - before.connections,
                }
            }),
            skipped: std::array::from_fn(|i| SkipStats {
                skbs: now.skipped[i].skbs - before.skipped[i].skbs,
                bytes: now.skipped[i].bytes - before.skipped[i].bytes,
            }),
            events: std::array::from_fn(|i| now.events[i] - before.events[i]),
        }
    }

    /// What there is now, and frees every cell. Only while nothing runs.
    pub fn take(&mut self) -> Seen {
        let seen = self.look();
        for flow in &seen.flows {
            let source = &self.datapath.source;
            assert!(source.close(flow.index), "was live: {flow:?}");
            source.free(flow.index);
            assert_eq!(source.state(flow.index), cell::FREE);
        }
        seen
    }
}

/// Runs a frame `repeat` times through a program of `ebpf`.
pub fn run(
    ebpf: &Ebpf,
    hook: Hook,
    frame: &[u8],
    skb: Skb,
    repeat: u32,
) -> Result<(), aya::programs::ProgramError> {
    let program: &SchedClassifier = ebpf
        .program(hook.program)
        .expect("the object has the program")
        .try_into()
        .expect("a tc program");
    let context = skb.context();
    let mut context_after = context;
    let mut frame_after = vec![0; frame.len()];
    let result = program.test_run(TestRunOptions {
        data_in: Some(frame),
        data_out: Some(&mut frame_after),
        ctx_in: Some(&context),
        ctx_out: Some(&mut context_after),
        repeat,
        ..TestRunOptions::new()
    })?;
    assert_eq!(
        result.return_value.cast_signed(),
        -1,
        "passes every packet on"
    );
    assert_eq!(frame_after, frame, "the packet stays as it is");
    for field in [8..12, 32..40, 48..68, 152..160] {
        assert_eq!(context_after[field.clone()], context[field]);
    }
    Ok(())
}
