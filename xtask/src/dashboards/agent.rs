//! Does the agent see all, and what does it cost?

use super::panel::{Dashboard, Expect, Panel, Row, Unit};
use super::query::{of, of_agents, quantile, rate, sum};

pub(super) fn dashboard() -> Dashboard {
    Dashboard {
        uid: "aksnet-agent",
        title: "aksnet / Agent",
        description: "Whether the agents see everything that they should, and what they cost their nodes.",
        namespaces: false,
        rows: vec![
            Row::new("Does it see all?", sight()),
            Row::new("What does it leave out?", losses()),
            Row::new("What does it cost?", cost()),
            Row::new("Which agents are there?", agents()),
        ],
    }
}

fn sight() -> Vec<Panel> {
    vec![
        Panel::state(
            "Do all programs run?",
            "Whether each program is attached on all chosen nodes. enter and exit see flows and NAT, drop sees \
             drops. While one is down, its counters stand still.",
        )
        .ask(
            format!("min by (program, hook) ({})", of("aksnet_program_up", "")),
            "{{program}} ({{hook}})",
        )
        .at_least(1.0, 1.0)
        .runbook("drops-not-visible"),
        Panel::state(
            "Are names and policies in step?",
            "Whether each source of names has told all it has and tells what changes, on all chosen nodes. Down: \
             names are those last known, or none; without network_policies no drop is a policy's.",
        )
        .ask(
            format!("min by (source) ({})", of("aksnet_agent_identity_synced", "")),
            "{{source}}",
        )
        .at_least(1.0, 1.0)
        .runbook("agent"),
        Panel::graph(
            "How many objects does it know?",
            "Kubernetes objects in the index of the agent that knows most, by kind. Memory grows with them.",
        )
        .ask(
            format!("max by (kind) ({})", of("aksnet_agent_identity_objects", "")),
            "{{kind}}",
        ),
        Panel::graph(
            "Do sweeps go on?",
            "Sweeps of the flow table in a second, on the slowest of the chosen nodes and on the typical one. One \
             in a second is the default; 0 is an agent that is stuck.",
        )
        .ask(
            format!("min({})", rate("aksnet_agent_sweep_seconds_count", "")),
            "slowest",
        )
        .ask(
            format!("quantile(0.5, {})", rate("aksnet_agent_sweep_seconds_count", "")),
            "typical",
        )
        .unit(Unit::PerSecond)
        .runbook("agent"),
    ]
}

fn losses() -> Vec<Panel> {
    vec![
        Panel::graph(
            "How full is the flow table?",
            "Flows of those there is room for, on the ten fullest nodes. A full table still counts all packets, \
             but not whose they are.",
        )
        .ask(
            format!(
                "topk(10, max by (instance) ({} / {}))",
                of("aksnet_agent_flow_map_entries", ""),
                of("aksnet_agent_flow_map_limit", "")
            ),
            "{{instance}}",
        )
        .unit(Unit::Ratio)
        .thresholds(0.7, 0.9)
        .runbook("flow-table"),
        Panel::graph(
            "What is counted without its flow?",
            "Packets and bytes in a second that found no room in the flow table: missing from every series by \
             workload.",
        )
        .ask(
            format!("sum({})", rate("aksnet_agent_flow_overflow_packets_total", "")),
            "packets",
        )
        .expect(Expect::Zeros)
        .ask(
            format!("sum({})", rate("aksnet_agent_flow_overflow_bytes_total", "")),
            "bytes",
        )
        .expect(Expect::Zeros)
        .unit(Unit::PerSecond)
        .runbook("flow-table"),
        Panel::graph(
            "What is not accounted at all?",
            "Packets in a second that the programs skip, by reason. not_ip is ARP and the like, and normal.",
        )
        .ask(
            sum("reason", &rate("aksnet_agent_skipped_packets_total", "")),
            "{{reason}}",
        )
        .unit(Unit::PacketsPerSecond),
        Panel::graph(
            "Which metrics have too many series?",
            "Label sets folded into 'other' by the series budget, by metric: totals stay exact, names are lost.",
        )
        .ask(sum("metric", &of("aksnet_agent_series_folded_total", "")), "{{metric}}")
        .expect(Expect::Zeros)
        .thresholds(1.0, 1000.0)
        .runbook("flow-table"),
        Panel::graph(
            "What do the programs do?",
            "Events of the datapath in a second. exit_matched far below passage_left: packets end on the node. \
             drop_noise is what is no loss, and grows wherever drops can be seen.",
        )
        .ask(
            sum("event", &rate("aksnet_agent_datapath_events_total", "")),
            "{{event}}",
        )
        .unit(Unit::PerSecond)
        .size(24, 8),
    ]
}

fn cost() -> Vec<Panel> {
    let sweep = |q| quantile(q, "", "aksnet_agent_sweep_seconds", "");
    let process = |metric| of_agents(&of(metric, ""));
    let cpu = of_agents(&rate("process_cpu_seconds_total", ""));
    let (seconds, runs) = (
        rate("aksnet_agent_bpf_run_seconds_total", ""),
        rate("aksnet_agent_bpf_runs_total", ""),
    );
    vec![
        Panel::graph(
            "How much processor does it take?",
            "Cores that the agent's process keeps busy: the typical node and the worst. The programs' own time is \
             the packets' and not in here.",
        )
        .ask(format!("quantile(0.5, {cpu})"), "typical")
        .ask(format!("max({cpu})"), "worst")
        .unit(Unit::Cores)
        .picture(),
        Panel::graph(
            "How much memory does it take?",
            "Resident memory: the typical node and the worst. The flow table is the kernel's, charged to the \
             container on top (384 bytes a cell).",
        )
        .ask(format!("quantile(0.5, {})", process("process_resident_memory_bytes")), "typical")
        .ask(format!("max({})", process("process_resident_memory_bytes")), "worst")
        .unit(Unit::Bytes),
        Panel::graph(
            "How long does a sweep take?",
            "Reading and folding the maps once, median and the slowest in a hundred.",
        )
        .ask(sweep("0.5"), "median")
        .ask(sweep("0.99"), "99 %")
        .unit(Unit::Seconds)
        .runbook("agent"),
        Panel::graph(
            "What does a packet pay for being seen?",
            "Mean time of one run of each program, by the kernel's own account. Only while bpf_stats is on, which \
             itself makes each run dearer.",
        )
        .ask(
            format!("{} / {}", sum("program", &seconds), sum("program", &runs)),
            "{{program}}",
        )
        .unit(Unit::Seconds)
        .picture(),
        Panel::graph(
            "How much processor do the programs take?",
            "Cores that each program keeps busy, on all chosen nodes together. Only while bpf_stats is on.",
        )
        .ask(sum("program", &seconds), "{{program}}")
        .unit(Unit::Cores),
        Panel::graph(
            "How many series does it cost Prometheus?",
            "Samples in one scrape of an agent: the typical node and the worst, and all together.",
        )
        .ask(format!("quantile(0.5, {})", process("scrape_samples_scraped")), "typical")
        .ask(format!("max({})", process("scrape_samples_scraped")), "worst")
        .ask(format!("sum({})", process("scrape_samples_scraped")), "all"),
    ]
}

fn agents() -> Vec<Panel> {
    vec![
        Panel::table(
            "Which versions run?",
            "Agents by what was built. More than one row outside a rollout: some nodes did not take it.",
        )
        .ask(
            format!("count by (cluster, version, revision) ({})", of("aksnet_build_info", "")),
            "Agents",
        )
        .size(12, 8),
        Panel::graph(
            "Which agents start again and again?",
            "Starts in the hour before, of the ten agents with most. Each begins its counters at 0; look at the \
             log of the one before (`kubectl logs --previous`).",
        )
        .ask(
            format!(
                "topk(10, {})",
                of_agents(&format!("changes({}[1h])", of("process_start_time_seconds", "")))
            ),
            "{{instance}}",
        )
        .expect(Expect::Zeros)
        .thresholds(1.0, 3.0)
        .runbook("agent"),
    ]
}
