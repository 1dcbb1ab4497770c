//! What is attached to the route under test: nothing, programs that do nothing, or the agent's programs with a reader
//! of their tables.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    thread::JoinHandle,
    time::Duration,
};

use aksnet_agent::{
    bpf::{Attacher, LoadOptions, Loaded, MapSource, datapath::Datapath as _, load},
    collect::source::Source as _,
    node::interface::Interface,
};
use aksnet_common::{
    cell,
    packet::{FIN, Link, RST, TCP},
    stats::{Event, Role},
};
use anyhow::{Context as _, Result};
use aya::programs::{
    BtfTracePoint, Link as _, LinkOrder, SchedClassifier, TcAttachType,
    tc::{SchedClassifierLink, TcAttachOptions},
    tp_btf::BtfTracePointLink,
};
use xtask::{bench::row, testbed::Netns};

use crate::{
    bed::{Bed, Route},
    cpu,
};

/// The agent's programs on a pod's veth.
pub const ENTER: &str = "aksnet_enter_pod";
pub const EXIT: &str = "aksnet_exit_pod";
pub const DROP: &str = "aksnet_drop";
/// Programs that only benchmarks load.
pub const EMPTY: &str = "aksnet_empty";
const SINK: &str = "aksnet_bench_sink";

/// How long between two looks at the tables.
const SWEEP: Duration = Duration::from_secs(1);

/// Sweeps without a packet after which a flow is retired; sooner once it was closed.
const IDLE_SWEEPS: u8 = 30;

/// What can be attached, and is or is not.
pub enum Probe {
    Nothing,
    Empty(Box<Tools>, Vec<SchedClassifierLink>),
    Agent(Box<Agent>),
}

impl Probe {
    /// The agent's programs, loaded afresh.
    pub fn agent(options: &LoadOptions) -> Result<Self> {
        Ok(Self::Agent(Box::new(Agent::start(options)?)))
    }

    pub fn empty() -> Result<Self> {
        Ok(Self::Empty(Box::new(Tools::load()?), Vec::new()))
    }

    /// Its row in the tables.
    pub fn name(&self) -> &'static str {
        match self {
            Self::Nothing => row::NOTHING,
            Self::Empty(..) => row::EMPTY,
            Self::Agent(_) => row::AGENT,
        }
    }

    /// Attaches it to both ends of the route under test, in both directions, as on a node.
    pub fn attach(&mut self, bed: &Bed) -> Result<()> {
        match self {
            Self::Nothing => Ok(()),
            Self::Empty(tools, links) => {
                *links = tools.empty(bed)?;
                Ok(())
            }
            Self::Agent(agent) => agent.attach(bed),
        }
    }

    pub fn detach(&mut self) -> Result<()> {
        match self {
            Self::Nothing => Ok(()),
            Self::Empty(_, links) => links.drain(..).try_for_each(|link| Ok(link.detach()?)),
            Self::Agent(agent) => agent.detach(),
        }
    }

    /// Time and number of a program's runs so far, while the kernel keeps such statistics.
    pub fn runs(&mut self, program: &str) -> Result<(f64, f64)> {
        let ebpf = match self {
            Self::Nothing => return Ok((0.0, 0.0)),
            Self::Empty(tools, _) => tools.0.attacher.ebpf(),
            Self::Agent(agent) => agent.attacher.ebpf(),
        };
        let info = ebpf
            .program(program)
            .with_context(|| format!("no program {program}"))?
            .info()?;
        #[expect(
            clippy::cast_precision_loss,
            reason = "numbers of runs in one benchmark"
        )]
        Ok((info.run_time().as_secs_f64() * 1e9, info.run_count() as f64))
    }

    /// Packets that found no cell since it was loaded.
    pub fn without_cell(&self) -> [u64; 2] {
        match self {
            Self::Agent(agent) => agent.without_cell(),
            _ => [0; 2],
        }
    }
}

/// Programs of the object that are not the agent's.
pub struct Tools(Loaded);

impl Tools {
    pub fn load() -> Result<Self> {
        // The flow table is not used here: the smallest will do.
        let options = LoadOptions {
            flow_cells: 64,
            further: &[EMPTY, SINK],
            ..LoadOptions::default()
        };
        Ok(Self(load(&options)?))
    }

    /// Takes every frame away that arrives at these routes' ends.
    pub fn sinks(&mut self, routes: [&Route; 2]) -> Result<Vec<SchedClassifierLink>> {
        routes
            .map(|route| self.link(&route.to.netns, "eth0", SINK, TcAttachType::Ingress))
            .into_iter()
            .collect()
    }

    fn empty(&mut self, bed: &Bed) -> Result<Vec<SchedClassifierLink>> {
        let mut links = Vec::new();
        for pod in [&bed.hooked.from, &bed.hooked.to] {
            for at in [TcAttachType::Ingress, TcAttachType::Egress] {
                links.push(self.link(&bed.node, &pod.veth, EMPTY, at)?);
            }
        }
        Ok(links)
    }

    fn link(
        &mut self,
        netns: &Netns,
        interface: &str,
        program: &str,
        at: TcAttachType,
    ) -> Result<SchedClassifierLink> {
        let program: &mut SchedClassifier = self
            .0
            .attacher
            .ebpf()
            .program_mut(program)
            .context("the object has it")?
            .try_into()?;
        netns.run(|| {
            let options = TcAttachOptions::TcxOrder(LinkOrder::first());
            let id = program.attach_with_options(interface, at, options)?;
            Ok(program.take_link(id)?)
        })
    }
}

/// The agent's programs, and a thread that reads and retires as the agent does.
pub struct Agent {
    attacher: Attacher,
    drops: Option<BtfTracePointLink>,
    stop: Arc<AtomicBool>,
    reader: Option<JoinHandle<Result<MapSource>>>,
    watching: Vec<u32>,
    /// Spilled and overflowed packets, kept by the reader.
    counts: Arc<[std::sync::atomic::AtomicU64; 2]>,
}

impl Agent {
    fn start(options: &LoadOptions) -> Result<Self> {
        let datapath = load(options)?;
        let stop = Arc::new(AtomicBool::new(false));
        let counts: Arc<[std::sync::atomic::AtomicU64; 2]> = Arc::default();
        let reader = {
            let (stop, counts) = (Arc::clone(&stop), Arc::clone(&counts));
            let source = datapath.source;
            std::thread::spawn(move || {
                cpu::pin(cpu::READER)?;
                read(source, &stop, &counts)
            })
        };
        Ok(Self {
            attacher: datapath.attacher,
            drops: None,
            stop,
            reader: Some(reader),
            watching: Vec::new(),
            counts,
        })
    }

    fn attach(&mut self, bed: &Bed) -> Result<()> {
        for pod in [&bed.hooked.from, &bed.hooked.to] {
            let target = Interface {
                index: xtask::testbed::counters::link(&bed.node, &pod.veth)?.index,
                name: pod.veth.clone(),
                role: Role::Pod,
                link: Link::Ethernet,
                bridge: None,
            };
            let attacher = &mut self.attacher;
            bed.node.run(|| Ok(attacher.attach(&target)?))?;
            self.watching.push(target.index);
        }
        let program: &mut BtfTracePoint = self
            .attacher
            .ebpf()
            .program_mut(DROP)
            .context("the object has it")?
            .try_into()?;
        let id = program.attach()?;
        self.drops = Some(program.take_link(id)?);
        Ok(())
    }

    fn detach(&mut self) -> Result<()> {
        for index in self.watching.drain(..) {
            self.attacher.detach(index);
        }
        if let Some(link) = self.drops.take() {
            link.detach()?;
        }
        Ok(())
    }

    fn without_cell(&self) -> [u64; 2] {
        [0, 1].map(|i| self.counts[i].load(Ordering::Relaxed))
    }
}

impl Drop for Agent {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        if let Some(reader) = self.reader.take() {
            reader.thread().unpark();
            if let Ok(Err(error)) = reader.join() {
                eprintln!("the reader of the tables failed: {error:#}");
            }
        }
    }
}

/// Looks at every cell once a second, retires what is closed or idle, and takes what was spilled and dropped.
fn read(
    mut source: MapSource,
    stop: &AtomicBool,
    counts: &[std::sync::atomic::AtomicU64; 2],
) -> Result<MapSource> {
    let cells = source.cells();
    let mut seen = vec![(0_u64, 0_u8); cells as usize];
    while !stop.load(Ordering::Relaxed) {
        for index in 0..cells {
            let (packets, idle) = &mut seen[index as usize];
            match source.state(index) & cell::PHASE {
                cell::CLOSING => {
                    std::hint::black_box((source.hot(index), source.cold(index)));
                    source.free(index);
                    (*packets, *idle) = (0, 0);
                }
                cell::LIVE => {
                    let now = source.counts(index).0;
                    if now != *packets {
                        (*packets, *idle) = (now, 0);
                        std::hint::black_box((source.hot(index), source.cold(index)));
                        continue;
                    }
                    *idle += 1;
                    let hot = source.hot(index);
                    let closed =
                        hot.key.protocol == TCP && hot.tcp_flags & u32::from(FIN | RST) != 0;
                    if closed || *idle >= IDLE_SWEEPS {
                        source.close(index);
                    }
                }
                _ => {}
            }
        }
        std::hint::black_box((source.take_spill()?, source.take_drops()?));
        let events = source.totals()?.events;
        for (count, event) in counts.iter().zip([Event::Spilled, Event::Overflowed]) {
            count.store(events[event as usize], Ordering::Relaxed);
        }
        std::thread::park_timeout(SWEEP);
    }
    Ok(source)
}
