//! What events make of the state, and how that reads on screens of three sizes.

use proptest::prelude::*;
use ratatui::{
    Terminal,
    backend::TestBackend,
    crossterm::event::{KeyCode, KeyEvent, KeyModifiers},
};

use super::{
    app::{App, Link, Options, View},
    event::{Effect, Event},
    keys::BINDINGS,
    text,
    theme::Theme,
};
use crate::{
    droplog::record::tests::record,
    live::{
        ByDestination, Causes, Conntrack, FlowId, Health, LiveQuery, Nat, NatCost, Node,
        PodAddresses, Ports, Program, Snapshot, Sort, Synced, Totals, Workload,
    },
    top::model::{Ends, Row, Timing, Who},
};

fn who(namespace: &str, workload: &str, pod: &str) -> Who {
    Who {
        namespace: namespace.to_owned(),
        workload: workload.to_owned(),
        pod: pod.to_owned(),
    }
}

fn ends(src: &str, dst: &str) -> Ends {
    let socket = |s: &str| s.parse::<std::net::SocketAddr>().unwrap();
    let (src, dst) = (socket(src), socket(dst));
    Ends {
        src: src.ip(),
        src_port: src.port(),
        dst: dst.ip(),
        dst_port: dst.port(),
    }
}

#[expect(clippy::unnecessary_wraps, reason = "as rows have it")]
fn timing(ns: f64) -> Option<Timing> {
    Some(Timing {
        samples: 40,
        p50_ns: ns,
        p99_ns: ns * 3.0,
    })
}

/// A flow of frontend's to the service web, translated.
fn dialled() -> Row {
    Row {
        time_ms: 50_000_000,
        class: "pod_to_service".to_owned(),
        nat: "dnat".to_owned(),
        scope: "same_node".to_owned(),
        protocol: "tcp".to_owned(),
        reply: false,
        in_interface: "veth1".to_owned(),
        out_interface: "veth2".to_owned(),
        from: who("shop", "frontend", "frontend-7d4b9c6f5d-x2k9p"),
        to: who("shop", "web", "web-7d4b9c6f5d-x2k9p"),
        before: ends("10.244.0.3:40000", "10.0.0.10:80"),
        after: Some(ends("10.244.0.3:40000", "10.244.0.4:8080")),
        packets: 1_234,
        bytes: 1_500_000,
        packets_per_second: 120.0,
        bytes_per_second: 125_000.0,
        first: timing(98_000.0),
        established: timing(4_200.0),
        drops: 0,
        drop_reason: None,
        drop_cause: None,
    }
}

/// A flow of batch's to the internet, and one of its packets lost.
fn egress() -> Row {
    Row {
        class: "pod_to_external".to_owned(),
        nat: "snat".to_owned(),
        scope: "external".to_owned(),
        from: who("shop", "batch", "batch-0"),
        to: who("", "internet", ""),
        before: ends("10.244.0.5:41000", "93.184.216.34:443"),
        after: Some(ends("10.224.0.4:41000", "93.184.216.34:443")),
        bytes_per_second: 50_000.0,
        first: None,
        drops: 3,
        drop_reason: Some("netfilter_drop".to_owned()),
        drop_cause: Some("policy".to_owned()),
        ..dialled()
    }
}

/// A flow that nothing rewrites.
fn direct() -> Row {
    Row {
        class: "pod_to_pod".to_owned(),
        nat: "none".to_owned(),
        to: who("data", "db", "db-0"),
        before: ends("10.244.0.3:42000", "10.244.0.6:5432"),
        after: Some(ends("10.244.0.3:42000", "10.244.0.6:5432")),
        bytes_per_second: 10.0,
        ..dialled()
    }
}

fn node() -> Node {
    let ports = |in_use, saturation| Ports {
        protocol: "tcp".to_owned(),
        family: "ipv4".to_owned(),
        in_use,
        limit: 64_512,
        saturation,
    };
    Node {
        name: "aks-nodepool1-0".to_owned(),
        cni: "azure_overlay".to_owned(),
        policy_engine: "azure_npm".to_owned(),
        proxy_mode: "iptables".to_owned(),
        kernel: "6.8.0-1059-azure".to_owned(),
        zone: "westeurope-1".to_owned(),
        conntrack: Conntrack {
            entries: Some(554),
            limit: Some(262_144),
            insert_failed: Some(7),
            drop: Some(0),
            early_drop: None,
        },
        snat_ports: Some(vec![ports(63_000, 0.97)]),
        azure_snat_ports: vec![Ports {
            limit: 1_024,
            ..ports(900, 0.88)
        }],
        pod_ips: vec![PodAddresses {
            source: "host_local".to_owned(),
            in_use: 4,
            limit: Some(253),
            leaked: Some(1),
        }],
        programs: vec![
            Program {
                program: "enter".to_owned(),
                hook: "tcx_ingress".to_owned(),
                up: true,
            },
            Program {
                program: "drop".to_owned(),
                hook: "tp_btf/kfree_skb".to_owned(),
                up: false,
            },
        ],
        flow_cells: 800,
        flow_cells_limit: 65_536,
        sources: vec![Synced {
            source: "pods".to_owned(),
            synced: false,
        }],
    }
}

fn snapshot() -> Snapshot {
    let pair = |from: &str, to: Who, nated, rate, drops| Workload {
        from: who("shop", from, ""),
        to,
        classes: vec!["pod_to_service".to_owned()],
        connections: 4,
        open: 2,
        nated,
        bytes_out: rate,
        bytes_in: rate / 2.0,
        packets: 10,
        bytes: 10_000,
        first: timing(98_000.0),
        established: timing(4_200.0),
        drops,
        ..Workload::default()
    };
    let cost = |nat: &str, over| NatCost {
        nat: nat.to_owned(),
        connections: 2,
        first: timing(60_000.0),
        established: timing(5_000.0),
        first_overhead_ns: over,
        established_overhead_ns: over.map(|ns: f64| ns / 10.0),
        ..NatCost::default()
    };
    Snapshot {
        unix_ms: 50_000_000,
        interval_ms: 1_000,
        totals: Totals {
            flows: 6,
            connections: 3,
            open: 3,
            nated: 2,
            packets_per_second: 250.0,
            bytes_per_second: 175_010.0,
        },
        flows: vec![dialled(), egress(), direct()],
        matching: 3,
        workloads: vec![
            pair("frontend", who("shop", "web", ""), 4, 125_000.0, 0),
            pair("batch", who("", "internet", ""), 2, 50_000.0, 3),
        ],
        pairs: 2,
        nat: Nat {
            kinds: ["none", "snat", "dnat", "both"]
                .map(|nat| cost(nat, (nat != "none").then_some(9_000.0)))
                .into(),
            classes: vec![
                NatCost {
                    class: "pod_to_service".to_owned(),
                    ..cost("dnat", None)
                },
                NatCost {
                    class: "pod_to_external".to_owned(),
                    ..cost("snat", None)
                },
            ],
            destinations: vec![ByDestination {
                protocol: "tcp".to_owned(),
                node: [10, 224, 0, 4].into(),
                to: [93, 184, 216, 34].into(),
                port: 443,
                who: who("", "internet", ""),
                in_use: 63_000,
                limit: 64_512,
            }],
            all_destinations: Some(1),
        },
        drops: crate::live::Drops {
            records: vec![record()],
            matching: 1,
            causes: vec![Causes {
                cause: "policy".to_owned(),
                policy: "shop/web-policy".to_owned(),
                packets: 3,
                connections: 1,
            }],
        },
        node: node(),
        health: Some(Health {
            version: "0.1.0".to_owned(),
            ready: true,
            uptime_seconds: 3_723,
            ..Health::default()
        }),
        ..Snapshot::default()
    }
}

const OPTIONS: Options = Options {
    interval: 1.0,
    limit: 1_000,
    sort: Sort::ByteRate,
    count: None,
};

fn started() -> App {
    let mut app = App::new(&OPTIONS);
    app.on(Event::Connected { own: false }, 10);
    app.on(Event::Snapshot(Box::new(snapshot())), 20);
    app
}

fn press(app: &mut App, code: KeyCode) -> Vec<Effect> {
    let key = KeyEvent::new(code, KeyModifiers::NONE);
    app.on(Event::Key(key), app.now)
}

fn type_in(app: &mut App, text: &str) -> Vec<Effect> {
    for c in text.chars() {
        press(app, KeyCode::Char(c));
    }
    press(app, KeyCode::Enter)
}

/// What is on a screen of this size; every line is exactly as wide.
fn screen(app: &App, theme: Theme, width: u16, height: u16) -> String {
    let mut terminal = Terminal::new(TestBackend::new(width, height)).unwrap();
    terminal
        .draw(|frame| {
            super::draw(app, theme, frame);
        })
        .unwrap();
    // The test's screen cannot write down what has no columns.
    if width == 0 {
        return String::new();
    }
    terminal.backend().to_string()
}

const PLAIN: Theme = Theme::new(false);
const SIZES: [(u16, u16); 3] = [(80, 24), (120, 36), (200, 60)];

#[track_caller]
fn has(screen: &str, words: &[&str]) {
    for word in words {
        assert!(screen.contains(word), "no {word:?} on\n{screen}");
    }
}

#[test]
fn each_view_has_its_content_at_three_sizes_and_without_colour() {
    let views: [(char, &[&str]); 5] = [
        (
            '1',
            &[
                "[1 Flows]",
                "FROM",
                "RATE▼",
                "1.0Mbit",
                "dnat",
                "✗3",
                "internet",
                "4.2µs/13µs",
            ],
        ),
        (
            '2',
            &[
                "[2 Workloads]",
                "shop/frontend",
                "shop/web",
                "100%",
                "50%",
                "✗3",
                "1.0Mbit",
                "500kbit",
            ],
        ),
        (
            '3',
            &[
                "[3 NAT]",
                "(all)",
                "+9.0µs",
                "+900ns",
                "93.184.216.34:443",
                "63,000",
                "64,512",
                "98%",
                "src 10.244.0.5:41000 → 10.2",
            ],
        ),
        (
            '4',
            &[
                "[4 Drops]",
                "last minute: policy shop/web-policy: ✗3 packets, 1 new connection",
                "shop/batch",
                "why: policy shop/web-policy isolates",
            ],
        ),
        (
            '5',
            &[
                "[5 Node]",
                "554 of 262,144",
                "<1%",
                "97%",
                "FULL",
                "nearly full",
                "1 addresses of host_local belong to no pod",
                "(insert_failed): 7",
            ],
        ),
    ];
    for (key, words) in views {
        for (width, height) in SIZES {
            let mut app = started();
            press(&mut app, KeyCode::Char(key));
            let plain = screen(&app, PLAIN, width, height);
            has(&plain, words);
            has(
                &plain,
                &[
                    "aks-nodepool1-0",
                    "agent live, 1 s  13:53:20Z",
                    "? help",
                    "✗3 dropped/min",
                ],
            );
            assert_eq!(
                screen(&app, Theme::new(true), width, height),
                plain,
                "colour tells nothing alone"
            );
        }
    }
}

#[test]
fn what_has_no_room_on_a_small_screen_is_on_a_large_one() {
    let mut app = started();
    assert!(!screen(&app, PLAIN, 80, 24).contains("REWRITTEN"));
    has(
        &screen(&app, PLAIN, 200, 60),
        &[
            "REWRITTEN",
            "dst 10.0.0.10:80 → 10.244.0.4:8080",
            "same_node",
            "SEEN",
            "13:53:20Z",
        ],
    );
    press(&mut app, KeyCode::Char('5'));
    has(&screen(&app, PLAIN, 80, 24), &["more lines below (↓)"]);
    for _ in 0..40 {
        press(&mut app, KeyCode::Down);
    }
    has(
        &screen(&app, PLAIN, 80, 24),
        &["! NOT SYNCED", "! DOWN (tp_btf/kfree_skb)"],
    );
    has(
        &screen(&app, PLAIN, 200, 60),
        &["554 of 262,144", "! DOWN", "up 1:02:03"],
    );
}

#[test]
fn selection_stays_on_its_row_as_the_order_changes() {
    let mut app = started();
    press(&mut app, KeyCode::Down);
    let id = FlowId::of(app.selected_flow().unwrap());
    assert_eq!(id, FlowId::of(&egress()));
    let mut next = snapshot();
    next.flows[1].bytes_per_second = 1e9;
    next.flows.rotate_right(1);
    app.on(Event::Snapshot(Box::new(next.clone())), 1_020);
    assert_eq!(app.cursor(), 0);
    assert_eq!(FlowId::of(app.selected_flow().unwrap()), id);
    press(&mut app, KeyCode::Char('r'));
    assert_eq!(app.cursor(), 2);
    assert_eq!(FlowId::of(app.selected_flow().unwrap()), id);
    // It goes: the cursor stays where there is something.
    next.flows.retain(|row| FlowId::of(row) != id);
    app.on(Event::Snapshot(Box::new(next)), 2_020);
    assert_eq!(app.cursor(), 1);
    // Each view has a cursor of its own.
    press(&mut app, KeyCode::Tab);
    assert_eq!((app.view, app.cursor()), (View::Workloads, 0));
    press(&mut app, KeyCode::BackTab);
    assert_eq!(app.cursor(), 1);
    // At the top nothing was chosen: it stays the top.
    let mut app = started();
    let mut next = snapshot();
    next.flows[2].bytes_per_second = 1e9;
    app.on(Event::Snapshot(Box::new(next)), 1_020);
    assert_eq!(
        FlowId::of(app.selected_flow().unwrap()),
        FlowId::of(&direct())
    );
}

#[test]
fn what_is_chosen_is_asked_and_shown_at_once() {
    let mut app = started();
    press(&mut app, KeyCode::Char('/'));
    has(&screen(&app, PLAIN, 80, 24), &["filter: _"]);
    let effects = type_in(&mut app, "batch");
    let [Effect::Ask(query)] = effects.as_slice() else {
        panic!("{effects:?}")
    };
    assert_eq!(query.filter.text, "batch");
    let shown = screen(&app, PLAIN, 120, 24);
    has(&shown, &["/batch", "1 of 3", "shop/batch:41000"]);
    assert!(!shown.contains("frontend"), "{shown}");
    // Escape forgets it.
    assert_eq!(
        press(&mut app, KeyCode::Esc),
        [Effect::Ask(Box::new(LiveQuery {
            limit: 1_000,
            ..LiveQuery::default()
        }))]
    );

    press(&mut app, KeyCode::Char('n'));
    type_in(&mut app, "data");
    assert_eq!(app.flows().count(), 1);
    press(&mut app, KeyCode::Esc);
    press(&mut app, KeyCode::Char('c'));
    assert_eq!(app.filter_words(), "class=pod_to_service");
    press(&mut app, KeyCode::Char('c'));
    assert_eq!(app.filter_words(), "class=pod_to_external");
    press(&mut app, KeyCode::Char('c'));
    assert_eq!(app.filter_words(), "");
    for (words, flows) in [
        ("nat=translated", 2),
        ("nat=snat", 1),
        ("nat=dnat", 1),
        ("nat=both", 0),
        ("nat=none", 1),
        ("", 3),
    ] {
        press(&mut app, KeyCode::Char('x'));
        assert_eq!(
            (app.filter_words().as_str(), app.flows().count()),
            (words, flows)
        );
    }
    // The view of NAT asks for what NAT translates.
    let effects = press(&mut app, KeyCode::Char('3'));
    let [Effect::Ask(query)] = effects.as_slice() else {
        panic!("{effects:?}")
    };
    assert_eq!(query.filter.nat, ["snat", "dnat", "both"]);
    assert_eq!(app.flows().count(), 2);
    // What the agent does not understand is said, and the next key takes it away.
    app.on(Event::Refused("no class 'x'".to_owned()), 30);
    has(&screen(&app, PLAIN, 80, 24), &["! no class 'x'"]);
    press(&mut app, KeyCode::Down);
    assert_eq!(app.notice, None);
}

#[test]
fn a_pair_opens_its_flows() {
    let mut app = started();
    press(&mut app, KeyCode::Char('2'));
    press(&mut app, KeyCode::Down);
    press(&mut app, KeyCode::Enter);
    assert_eq!(app.view, View::Flows);
    assert_eq!(app.filter_words(), "/shop/batch internet");
    assert_eq!(app.flows().count(), 1);
}

#[test]
fn every_measure_orders_flows_and_pairs_both_ways() {
    let mut app = started();
    for sort in Sort::ALL.into_iter().skip(1).chain([Sort::ByteRate]) {
        press(&mut app, KeyCode::Char('s'));
        assert_eq!(app.sort, sort);
        assert_eq!(app.query().sort, sort);
        if sort == Sort::Drops {
            assert_eq!(app.flows().next().map(|row| row.drops), Some(3));
            assert_eq!(app.workloads().next().map(|pair| pair.drops), Some(3));
        }
        if sort == Sort::First {
            // Without a time it is last, whichever the way.
            assert_eq!(app.flows().last().unwrap().first, None);
            press(&mut app, KeyCode::Char('r'));
            assert_eq!(app.flows().last().unwrap().first, None);
            press(&mut app, KeyCode::Char('r'));
        }
    }
    press(&mut app, KeyCode::Char('S'));
    assert_eq!(app.sort, Sort::Recent);
    press(&mut app, KeyCode::Char('r'));
    has(&screen(&app, PLAIN, 200, 24), &["by time▲", "SEEN▲"]);
}

#[test]
fn details_have_all_that_is_known_and_a_chart_of_the_looks_before() {
    let mut app = started();
    for look in 1..=20_u32 {
        let mut next = snapshot();
        next.flows[0].bytes_per_second = 200_000.0 * f64::from(look);
        app.on(Event::Snapshot(Box::new(next)), u64::from(look) * 1_000);
    }
    let effects = press(&mut app, KeyCode::Enter);
    // The flow is followed, should others come before it.
    let [Effect::Ask(query)] = effects.as_slice() else {
        panic!("{effects:?}")
    };
    assert_eq!(query.follow, Some(FlowId::of(&dialled())));
    for (width, height) in SIZES {
        let shown = screen(&app, PLAIN, width, height);
        has(
            &shown,
            &[
                "from  shop/frontend-7d4b9c6f5d-x2k9p:40000",
                "10.0.0.10:80",
                "dst 10.0.0.10:80 → 10.244.0.4:8080",
                "last 21 looks; top 32Mbit/s",
                "█",
            ],
        );
    }
    has(
        &screen(&app, PLAIN, 120, 36),
        &[
            "half took at most 98µs, 99 in 100 at most 294µs (40 timed)",
            "veth1 → veth2",
        ],
    );
    press(&mut app, KeyCode::Esc);
    assert!(!app.detail);

    press(&mut app, KeyCode::Char('4'));
    press(&mut app, KeyCode::Enter);
    has(
        &screen(&app, PLAIN, 120, 36),
        &[
            "dialled  10.0.0.10:80",
            "netfilter_drop in nft_do_chain",
            "exact",
            "mark 0x400",
            "azure_npm",
        ],
    );
}

#[test]
fn an_agent_that_goes_away_is_told_with_the_age_of_what_is_shown() {
    let mut app = started();
    app.on(Event::Gone { retry_ms: 500 }, 5_020);
    app.on(Event::Gone { retry_ms: 4_000 }, 8_020);
    for (width, height) in SIZES {
        has(
            &screen(&app, PLAIN, width, height),
            &["! NO AGENT: data 8 s old, retry in 4 s", "shop/front"],
        );
    }
    assert!(app.is_old());
    app.on(Event::Connected { own: false }, 12_000);
    app.on(Event::Snapshot(Box::new(snapshot())), 12_010);
    assert!(!app.is_old());
    // One that hangs is told, too.
    app.on(Event::Tick, 30_000);
    has(&screen(&app, PLAIN, 80, 24), &["! NO NEWS for 17 s"]);

    let mut app = App::new(&OPTIONS);
    has(
        &screen(&app, PLAIN, 80, 24),
        &["connecting…", "Waiting for the first look"],
    );
    app.on(Event::Gone { retry_ms: 500 }, 1_000);
    assert_eq!(
        app.link,
        Link::Gone {
            since: 1_000,
            retry: 1_500
        }
    );
    has(
        &screen(&app, PLAIN, 80, 24),
        &["! NO AGENT: retry in 1 s", "No agent answers."],
    );

    let mut app = started();
    app.on(Event::Connected { own: true }, 40);
    has(&screen(&app, PLAIN, 80, 24), &["own programs live"]);
}

#[test]
fn held_it_stays_as_it_is_and_can_still_be_ordered() {
    let mut app = started();
    press(&mut app, KeyCode::Char(' '));
    let mut next = snapshot();
    next.flows.clear();
    app.on(Event::Snapshot(Box::new(next)), 60_000);
    assert_eq!(app.flows().count(), 3);
    has(&screen(&app, PLAIN, 80, 24), &["PAUSED at 13:53:20Z"]);
    press(&mut app, KeyCode::Char('r'));
    assert_eq!(
        app.flows().next().map(FlowId::of),
        Some(FlowId::of(&direct()))
    );
    press(&mut app, KeyCode::Char('p'));
    app.on(Event::Snapshot(Box::new(snapshot())), 61_000);
    assert!(!app.paused && !app.is_old());
}

#[test]
fn units_addresses_and_the_interval_are_changed_by_keys() {
    let mut app = started();
    press(&mut app, KeyCode::Char('u'));
    has(&screen(&app, PLAIN, 120, 36), &["125kB"]);
    press(&mut app, KeyCode::Char('a'));
    has(&screen(&app, PLAIN, 200, 36), &["shop/batch-0:41000"]);
    press(&mut app, KeyCode::Char('a'));
    has(
        &screen(&app, PLAIN, 120, 36),
        &["10.244.0.3:40000", "10.0.0.10:80"],
    );
    let effects = press(&mut app, KeyCode::Char('+'));
    assert!(matches!(&effects[..], [Effect::Ask(query)] if (query.interval - 0.5).abs() < 1e-9));
    for _ in 0..20 {
        press(&mut app, KeyCode::Char('-'));
    }
    assert!((app.interval - 30.0).abs() < 1e-9);
}

#[test]
fn the_help_has_every_key_and_scrolls_where_it_has_no_room() {
    let mut app = started();
    press(&mut app, KeyCode::Char('?'));
    let large = screen(&app, PLAIN, 200, 60);
    for binding in BINDINGS {
        has(&large, &[&binding.shown(), binding.help]);
    }
    has(&large, &["✗  dropped packets"]);
    let mut seen = String::new();
    for _ in 0..60 {
        seen += &screen(&app, PLAIN, 80, 24);
        press(&mut app, KeyCode::Down);
    }
    for binding in BINDINGS {
        has(&seen, &[binding.help]);
    }
    press(&mut app, KeyCode::Esc);
    assert!(!app.help);
    press(&mut app, KeyCode::Char('?'));
    press(&mut app, KeyCode::Char('4'));
    assert!(
        !app.help && app.view == View::Drops,
        "a view's key shows the view"
    );
}

#[test]
fn it_ends_by_key_by_signal_and_after_so_many_looks() {
    assert_eq!(press(&mut started(), KeyCode::Char('q')), [Effect::Quit]);
    let interrupt = KeyEvent::new(KeyCode::Char('c'), KeyModifiers::CONTROL);
    assert_eq!(started().on(Event::Key(interrupt), 30), [Effect::Quit]);
    let mut app = started();
    press(&mut app, KeyCode::Char('/'));
    assert_eq!(press(&mut app, KeyCode::Char('q')), [], "it is typed");
    assert_eq!(app.on(Event::Key(interrupt), 30), [Effect::Quit]);
    assert_eq!(started().on(Event::Stop, 30), [Effect::Quit]);
    let mut app = App::new(&Options {
        count: Some(2),
        ..OPTIONS
    });
    assert_eq!(app.on(Event::Snapshot(Box::default()), 1), []);
    assert_eq!(app.on(Event::Snapshot(Box::default()), 2), [Effect::Quit]);
}

/// Names as somebody would choose them who wants to break the screen.
fn hostile() -> Snapshot {
    let mut snapshot = snapshot();
    let names = [
        "\x1b[2J\x1b[31mred\x07",
        "日本語のとても長いポッドの名前日本語のとても長いポッドの名前",
        "e\u{301}\u{301}\u{301}e\u{301}",
        "\u{202e}txt.exe\u{200b}\r\n\t",
        &"a".repeat(300),
    ];
    for (at, row) in snapshot.flows.iter_mut().cycle_names(&names) {
        row.from.pod = at.clone();
        row.to.workload = at.clone();
        row.to.pod = at.clone();
        row.class = at.clone();
        row.nat = at.clone();
        row.protocol = at.clone();
        row.drop_cause = Some(at.clone());
        row.in_interface = at;
    }
    for (at, pair) in snapshot.workloads.iter_mut().cycle_names(&names) {
        pair.from.namespace = at.clone();
        pair.to.workload = at;
    }
    for (at, record) in snapshot.drops.records.iter_mut().cycle_names(&names) {
        record.why = at.clone();
        record.policies = vec![at.clone()];
        record.src.workload = at;
    }
    snapshot.node.name = names[0].to_owned();
    snapshot.node.cni = names[1].to_owned();
    snapshot.drops.causes[0].policy = names[3].to_owned();
    if let Some(health) = &mut snapshot.health {
        health.ready = false;
        health.not_ready_because = names.concat();
    }
    snapshot
}

trait CycleNames<'a, T: 'a>: Iterator<Item = &'a mut T> + Sized {
    fn cycle_names(self, names: &[&str]) -> impl Iterator<Item = (String, &'a mut T)> {
        let names: Vec<String> = names.iter().map(|name| (*name).to_owned()).collect();
        names.into_iter().cycle().zip(self)
    }
}

impl<'a, T: 'a, I: Iterator<Item = &'a mut T>> CycleNames<'a, T> for I {}

#[test]
fn hostile_names_neither_move_the_cursor_nor_break_the_columns() {
    let mut app = App::new(&OPTIONS);
    app.on(Event::Connected { own: false }, 1);
    app.on(Event::Snapshot(Box::new(hostile())), 2);
    for (width, height) in SIZES {
        for key in ['1', '2', '3', '4', '5'] {
            press(&mut app, KeyCode::Char(key));
            for open in [false, true] {
                app.detail = open;
                let shown = screen(&app, PLAIN, width, height);
                let plain = |c: char| c == '\n' || text::clean(&c.to_string()) == c.to_string();
                assert!(shown.chars().all(plain), "{shown:?}");
            }
        }
        app.detail = false;
    }
    // Columns stand where they should: the rate of each row ends below its head.
    press(&mut app, KeyCode::Char('1'));
    let shown = screen(&app, PLAIN, 120, 36);
    let lines: Vec<&str> = shown.lines().collect();
    let column = |line: &str, word: &str| {
        let at = line.find(word)?;
        Some(text::width(&line[..at]) + text::width(word))
    };
    let head = lines.iter().find_map(|line| column(line, "RATE▼")).unwrap();
    for rate in ["1.0Mbit", "400kbit", "80bit"] {
        let at = lines[4..].iter().find_map(|line| column(line, rate));
        assert_eq!(at, Some(head), "{rate}\n{shown}");
    }
}

fn any_event() -> impl Strategy<Value = Event> {
    let keys = BINDINGS.iter().flat_map(|b| b.keys).copied();
    let bound: Vec<KeyEvent> = keys
        .map(|(code, control)| {
            let modifiers = if control {
                KeyModifiers::CONTROL
            } else {
                KeyModifiers::NONE
            };
            KeyEvent::new(code, modifiers)
        })
        .collect();
    let typed =
        any::<char>().prop_map(|c| Event::Key(KeyEvent::new(KeyCode::Char(c), KeyModifiers::NONE)));
    let backspace = Just(Event::Key(KeyEvent::new(
        KeyCode::Backspace,
        KeyModifiers::NONE,
    )));
    prop_oneof![
        8 => prop::sample::select(bound).prop_map(Event::Key),
        2 => typed,
        1 => backspace,
        1 => any::<String>().prop_map(Event::Paste),
        1 => any::<String>().prop_map(Event::Refused),
        1 => any::<bool>().prop_map(|own| Event::Connected { own }),
        1 => any::<u32>().prop_map(|ms| Event::Gone { retry_ms: ms.into() }),
        1 => Just(Event::Tick),
        1 => Just(Event::Resize),
        1 => Just(Event::Snapshot(Box::new(snapshot()))),
        1 => Just(Event::Snapshot(Box::new(hostile()))),
        1 => Just(Event::Snapshot(Box::default())),
        1 => odd_numbers().prop_map(|s| Event::Snapshot(Box::new(s))),
    ]
}

/// Numbers that no agent should send.
fn odd_numbers() -> impl Strategy<Value = Snapshot> {
    (any::<f64>(), any::<u64>()).prop_map(|(x, n)| {
        let mut odd = snapshot();
        for row in &mut odd.flows {
            row.bytes_per_second = x;
            row.packets_per_second = -x;
            (row.packets, row.bytes, row.drops, row.time_ms) = (n, n, n, n);
            row.first = timing(x);
        }
        odd.unix_ms = n;
        odd.node.conntrack.entries = Some(n);
        odd.node.conntrack.limit = Some(n / 2);
        for ports in odd.node.snat_ports.iter_mut().flatten() {
            ports.saturation = x;
        }
        for kind in &mut odd.nat.kinds {
            kind.first_overhead_ns = Some(x);
        }
        for to in &mut odd.nat.destinations {
            (to.in_use, to.limit) = (n, n / 3);
        }
        odd
    })
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 96, ..ProptestConfig::default() })]

    #[test]
    fn no_event_at_no_size_breaks_it(
        events in prop::collection::vec((any_event(), 0u64..3_000), 0..40),
        sizes in prop::collection::vec((0u16..220, 0u16..70), 1..6),
        colour in any::<bool>(),
    ) {
        let mut app = App::new(&OPTIONS);
        let mut now = 0;
        for (at, (event, later)) in events.into_iter().enumerate() {
            now += later;
            app.on(event, now);
            let (width, height) = sizes[at % sizes.len()];
            screen(&app, Theme::new(colour), width, height);
        }
        for (width, height) in sizes {
            screen(&app, Theme::new(colour), width, height);
        }
    }
}
