//! *Runs* of a program by itself (`BPF_PROG_TEST_RUN`), on a frame that stands for many flows.

use std::net::{IpAddr, SocketAddr};

use aksnet_agent::{
    bpf::{LoadOptions, Loaded, load},
    collect::source::Source as _,
};
use aksnet_common::{cell, packet::TCP, stats::Event};
use anyhow::{Context as _, Result, ensure};
use aya::programs::{SchedClassifier, TestRun as _, TestRunOptions};
use xtask::testbed::frame::{Frame, Packet};

/// Programs that only the benchmarks load.
pub(crate) const EMPTY: &str = "aksnet_empty";
pub(crate) const VARIED: &str = "aksnet_bench_empty";
pub(crate) const TOUCH: &str = "aksnet_bench_touch";
pub(crate) const ENTER: &str = "aksnet_bench_enter";
pub(crate) const PASSAGE: &str = "aksnet_bench_passage";

/// A frame that stands for many flows; see aksnet-ebpf's `bench`.
#[derive(Clone)]
pub(crate) struct Test {
    pub(crate) frame: Vec<u8>,
    pub(crate) flows: u32,
}

impl Test {
    pub(crate) fn tcp(flags: u8) -> Self {
        let mut segment = vec![0; 84];
        segment[..4].copy_from_slice(&[0x9c, 0x40, 0x1f, 0x90]);
        segment[12] = 0x50;
        segment[13] = flags;
        let addresses: [IpAddr; 2] = [[10, 0, 0, 1].into(), [10, 0, 1, 1].into()];
        Self::of(Packet::new(addresses[0], addresses[1], TCP, segment))
    }

    pub(crate) fn udp6() -> Self {
        let addresses: [SocketAddr; 2] = [
            ([0xfd00, 0, 0, 0, 0, 0, 0, 1], 40_000).into(),
            ([0xfd00, 0, 0, 1, 0, 0, 0, 1], 8_080).into(),
        ];
        Self::of(Packet::udp(addresses[0], addresses[1], &[0; 64]))
    }

    fn of(packet: Packet) -> Self {
        let mut frame = Frame::new([2, 0, 0, 0, 0, 1], [2, 0, 0, 0, 0, 2], packet).build();
        // Each packet is as far ahead in its stream as it is long.
        frame[92..96].copy_from_slice(&64_u32.to_le_bytes());
        Self { frame, flows: 1 }
    }

    pub(crate) fn flows(mut self, flows: u32) -> Self {
        self.frame[80..84].copy_from_slice(&flows.to_le_bytes());
        self.flows = flows;
        self
    }

    /// The frame as it shall be for repetitions from this flow and packet on.
    pub(crate) fn from(&self, flow: u32, packet: u32) -> Vec<u8> {
        let mut frame = self.frame.clone();
        frame[84..88].copy_from_slice(&flow.to_le_bytes());
        frame[88..92].copy_from_slice(&packet.to_le_bytes());
        frame
    }
}

/// Programs loaded afresh, with a table of their own.
pub(crate) struct Bench {
    pub(crate) datapath: Loaded,
    packets: u32,
}

impl Bench {
    pub(crate) fn start(options: &LoadOptions) -> Result<Self> {
        Ok(Self {
            datapath: load(&LoadOptions {
                further: &[EMPTY, VARIED, TOUCH, ENTER, PASSAGE],
                ..options.clone()
            })?,
            packets: 0,
        })
    }

    /// ns per run of a program on a frame that came in through an interface.
    pub(crate) fn run(&mut self, name: &str, frame: &[u8], repeat: u32) -> Result<f64> {
        // The head of `struct __sk_buff` up to `ingress_ifindex`; the kernel takes the rest as zeros.
        let mut context = [0; 40];
        context[36] = 2;
        let mut options = TestRunOptions::new();
        options.data_in = Some(frame);
        options.ctx_in = Some(&context);
        options.repeat = repeat;
        let result = program(&mut self.datapath, name)?.test_run(options)?;
        ensure!(
            result.return_value == u32::MAX,
            "{name} says {}",
            result.return_value
        );
        #[expect(clippy::cast_precision_loss, reason = "nanoseconds of one run")]
        Ok(result.duration.as_nanos() as f64)
    }

    /// As [`Bench::run`], for packets of a number of flows in turn, each next in its stream.
    pub(crate) fn run_flows(&mut self, name: &str, test: &Test, repeat: u32) -> Result<f64> {
        let frame = test.from(0, self.packets);
        self.packets = self.packets.wrapping_add(repeat);
        self.run(name, &frame, repeat)
    }

    pub(crate) fn events(&self, event: Event) -> Result<u64> {
        Ok(self.datapath.source.totals()?.events[event as usize])
    }

    /// Gives back every cell. Nothing runs meanwhile, so closing and freeing need no time in between.
    pub(crate) fn retire(&self) {
        let source = &self.datapath.source;
        for index in 0..source.cells() {
            if source.state(index) & cell::PHASE == cell::LIVE {
                source.close(index);
                source.free(index);
            }
        }
    }
}

fn program<'a>(datapath: &'a mut Loaded, name: &str) -> Result<&'a mut SchedClassifier> {
    datapath
        .attacher
        .ebpf()
        .program_mut(name)
        .with_context(|| format!("no program {name}"))?
        .try_into()
        .context("a classifier")
}
