//! What a sweep *allocates*: nothing for a flow that it knows, however many there are and whether or not they have
//! changed. A process that allocates for each flow each second would grow and stall with them.

use std::net::Ipv4Addr;

use aksnet_agent::{
    classify::Whois,
    collect::{
        CollectConfig, Collector, DropNames, Now,
        fake::{FakePacket, FakeSource},
    },
    metrics::{Metrics, MetricsConfig},
    plan::Plan,
};
use aksnet_common::flow::{Addr, FlowKey, WAYS};

#[global_allocator]
static COUNTING: dhat::Alloc = dhat::Alloc;

/// A sweep allocates so often at the most. None was measured; a table may have to grow now and then.
const ALLOCATIONS: u64 = 10;

fn datagram(flow: u32) -> FakePacket {
    let [a, b, c, d] = Ipv4Addr::from(0x0af4_0000 + flow).octets();
    FakePacket {
        key: FlowKey {
            src: Addr::v4([a, b, c, d]),
            dst: Addr::v4([10, 224, 0, 9]),
            src_port: 40_000,
            dst_port: 53,
            ifindex: 11,
            protocol: 17,
            family: 4,
            ..FlowKey::default()
        },
        bytes: 64,
        ..FakePacket::default()
    }
}

struct Bed {
    source: FakeSource,
    collector: Collector,
    plan: Plan,
    ms: u64,
}

impl Bed {
    fn with_flows(flows: u32) -> Self {
        let buckets = (4 * flows as usize / WAYS).next_power_of_two();
        let mut source = FakeSource::new(buckets, 0);
        for flow in 0..flows {
            source.play(&datagram(flow));
        }
        let config = CollectConfig {
            idle_ms: u32::MAX,
            closed_idle_ms: u32::MAX,
            ..CollectConfig::default()
        };
        let mut bed = Self {
            source,
            collector: Collector::new(config, Metrics::new(MetricsConfig::default()), 7),
            plan: Plan::builder().build(),
            ms: 1_000,
        };
        // Flows are met, judged, and asked about again for as long as they are young.
        for _ in 0..20 {
            bed.source.touch_all(64);
            bed.sweep();
        }
        bed
    }

    /// The allocations of one sweep.
    fn sweep(&mut self) -> u64 {
        self.ms += 1_000;
        let now = Now {
            monotonic_ns: self.ms * 1_000_000,
            unix_ms: self.ms,
        };
        let before = dhat::HeapStats::get().total_blocks;
        self.collector.sweep(
            &mut self.source,
            now,
            Whois::without_names(&self.plan),
            &DropNames::default(),
        );
        dhat::HeapStats::get().total_blocks - before
    }
}

/// One test, as all of a process's threads are counted.
#[test]
fn a_sweep_allocates_nothing_for_a_flow_that_it_knows() {
    let _counted = dhat::Profiler::builder().testing().build();
    for flows in [100, 20_000] {
        let mut bed = Bed::with_flows(flows);
        let quiet = bed.sweep();
        bed.source.touch_all(64);
        let changed = bed.sweep();
        bed.source.touch_all_timed(64);
        let timed = bed.sweep();
        println!(
            "{flows} flows: {quiet} allocations; {changed} when all have changed; {timed} with a timed packet each"
        );
        for allocations in [quiet, changed, timed] {
            assert!(
                allocations <= ALLOCATIONS,
                "{flows} flows: {allocations} allocations"
            );
        }
    }
    // What is counted is counted: flows that are new have places in the agent's own tables.
    let mut bed = Bed::with_flows(100);
    for flow in 100..20_000 {
        bed.source.play(&datagram(flow));
    }
    assert!(bed.sweep() > 0);
}
