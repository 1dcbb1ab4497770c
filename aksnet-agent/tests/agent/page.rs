//! Does the page show a person on call what this node does: in a real browser, inside the emulated node, from the real
//! agent, with the real traffic. `AKSNET_PICTURES=DIRECTORY` has these tests leave pictures of it there.

use std::{
    net::{SocketAddr, TcpListener, TcpStream, UdpSocket},
    path::Path,
    sync::Arc,
    time::Duration,
};

use aksnet_agent::{
    board::Board,
    config::merge,
    live::Snapshot,
    page::{self, Hosts, Shown},
};
use anyhow::{Context as _, Result, ensure};
use nix::sys::signal::Signal;
use serde_json::json;
use xtask::testbed::{
    Engine, PolicyRule, Service, Testbed, Verdict, counters,
    frame::{Frame, Packet},
    traffic::{Connect, FrameSocket, TcpServer, connect},
};

use crate::{
    browser::{Browser, ENTER, TAB},
    cluster,
    denied::web_policy,
    life::{Agent, Home, LISTEN, plan_flags, turn},
    line::Line,
};

/// Where the agent serves it by default.
const PAGE: &str = "http://127.0.0.1:9436/";
const DESK: (u32, u32) = (1440, 1000);
const GAP: Duration = Duration::from_millis(20);
const ONE_RETRANSMIT: Duration = Duration::from_millis(2_500);

/// An accessibility checker, axe-core.
fn axe() -> Result<String> {
    let script = xtask::setup::axe::script().context("axe-core: run `cargo xtask setup`")?;
    Ok(std::fs::read_to_string(script)?)
}

#[test]
fn the_page_shows_what_nat_costs_and_whose_policy_drops() -> Result<()> {
    let Some(_turn) = turn() else { return Ok(()) };
    let bed = Testbed::azure_overlay()
        .engine(Engine::AzureNpm)
        .pods(4)
        .build()?;
    let (frontend, web, batch) = (bed.pod(0), bed.pod(1), bed.pod(3));
    let api = cluster::start(&bed)?;
    api.apply(web_policy());
    let server = TcpServer::echo(web.netns(), (web.ip(), 8080))?;
    let far = TcpServer::echo(bed.outside(), (bed.outside_ip(), 443))?;
    let service = Service::cluster_ip("shop", "web", 80).endpoints([server.address()]);
    let service = bed.add_service(service)?;
    cluster::tell_service(&api, &bed, "web", &service, &[&web]);
    let rule = PolicyRule::new("web-policy", Verdict::NpmIngress);
    bed.add_policy(rule.from(batch.ip()).to(web.ip()))?;
    let home = Home::new()?;
    let mut flags = cluster::flags(&bed, &home)?;
    flags.push("--sample=1".to_owned());
    let agent = Agent::start(&bed, &home, &flags)?;
    let service = service.address();
    let dialled = Line::open(frontend.netns(), service, GAP)?;
    let _egress = Line::open(frontend.netns(), far.address(), GAP)?;
    let refused = connect(batch.netns(), service, ONE_RETRANSMIT)?;
    assert_eq!(refused, Connect::TimedOut);
    let dropped = bed.node().rule_packets("DROP-INGRESS-web-policy")?;

    let browser = Browser::start(bed.node().netns(), DESK)?;
    browser.open(PAGE)?;
    browser.eventually("live", |b| Ok(b.text("#state")? == "Live"))?;
    shows_the_node(&browser, &bed, dropped)?;
    let local = dialled.local();
    let passage = format!(
        "tcp {local} → {service}becomes {local} → {}",
        server.address()
    );
    browser.eventually("the translation of a flow", |b| {
        let cells = b.texts("#t-flows tbody td:nth-child(5)")?;
        Ok(cells.contains(&passage))
    })?;
    browser.eventually("the drop, with its policy and why", |b| {
        let rows = b.texts("#t-records tbody tr")?;
        let parts = ["shop/web-policy", "shop/batch", "shop/web", "did not match"];
        let dialled = format!("dialled {service}");
        Ok(rows
            .iter()
            .any(|row| parts.iter().all(|part| row.contains(part)) && row.contains(&dialled)))
    })?;
    pictures(&browser, "page", (1440, 1500))?;
    is_accessible(&browser)?;
    is_used_by_keyboard(&browser)?;
    is_filtered(&browser)?;

    let said = agent.stop(Signal::SIGTERM)?;
    ensure!(!said.contains("cut off"), "{said}");
    browser.eventually("the agent is gone", |b| {
        let state = b.text("#state")?;
        let old = b.eval("return document.body.classList.contains('old')")?;
        Ok(state.starts_with("No answer from the agent: what is shown is of") && old == true)
    })?;
    assert!(
        !browser.texts("#t-flows tbody tr")?.is_empty(),
        "what was seen stays"
    );
    pictures(&browser, "page-gone", DESK)?;
    let again = Agent::start(&bed, &home, &flags)?;
    browser.eventually("the agent is back", |b| {
        let old = b.eval("return document.body.classList.contains('old')")?;
        Ok(b.text("#state")? == "Live" && old == false)
    })?;
    stays_at_home(&browser)?;
    // While the agent was gone, and of the question with too many words, the browser could not but complain.
    let complaints = browser.complaints()?;
    let other: Vec<&String> = complaints
        .iter()
        .filter(|c| !c.contains("ERR_CONNECTION") && !c.contains("ERR_EMPTY_RESPONSE"))
        .filter(|c| !(c.contains("+w+w+w&") && c.contains("400 (Bad Request)")))
        .collect();
    assert!(other.is_empty(), "{other:#?}");
    again.stop(Signal::SIGTERM)?;
    Ok(())
}

/// The node, its NAT, its drops, its health.
fn shows_the_node(browser: &Browser, bed: &Testbed, dropped: u64) -> Result<()> {
    assert_eq!(browser.text("#node-name")?, bed.node().name());
    let title = browser.eval("return document.title")?;
    assert_eq!(title, format!("{} · aksnet", bed.node().name()));
    browser.eventually("what the node is", |b| {
        let facts = b.text("#facts")?;
        Ok(facts.contains("azure npm") && facts.contains("iptables"))
    })?;
    browser.eventually("what DNAT and SNAT cost", |b| {
        let first = |nat: &str| -> Result<bool> {
            let rows = b.texts("#cost tbody tr")?;
            let row = rows.iter().find(|row| row.starts_with(nat));
            Ok(row.is_some_and(|row| row.contains("99 %: ")))
        };
        Ok(first("DNAT")? && first("SNAT")?)
    })?;
    browser.eventually("who pays", |b| {
        let rows = b.texts("#t-workloads tbody tr")?;
        let pays = |row: &String| {
            row.starts_with("shop/frontendshop/webpod to service") && row.contains("99 %: ")
        };
        Ok(rows.iter().any(pays))
    })?;
    let lost = format!("▼ {dropped} dropped");
    browser.eventually("the drops where they happen", |b| {
        let said = b.text(".lengthwise desc")?;
        let drawn = b.texts(".lengthwise .dropped")?;
        Ok(drawn.contains(&lost)
            && said.contains(&format!("At POLICY {dropped} packets were dropped"))
            && said.contains("With DNAT: "))
    })?;
    let programs = browser.texts("#programs li")?;
    assert_eq!(programs.len(), 3, "{programs:?}");
    for program in &programs {
        assert!(
            program.starts_with("✓ ") && program.ends_with(" runs"),
            "{program}"
        );
    }
    assert!(browser.text("#agent")?.contains("✓ ready"));
    Ok(())
}

/// Nothing was asked of anybody but the page's own origin, since this was looked at last.
fn stays_at_home(browser: &Browser) -> Result<()> {
    let requests = browser.requests()?;
    ensure!(requests.len() > 1, "it asks again and again: {requests:?}");
    let strangers = requests.iter().filter(|url| !url.starts_with(PAGE));
    let strangers: Vec<&String> = strangers.collect();
    ensure!(strangers.is_empty(), "{strangers:?}");
    Ok(())
}

/// In both schemes, and with everything open.
fn is_accessible(browser: &Browser) -> Result<()> {
    let axe = axe()?;
    browser.eval("document.getElementById('by-class').open = true")?;
    for scheme in ["light", "dark"] {
        browser.scheme(scheme)?;
        for (width, height) in [(360, 800), DESK, (1920, 1080)] {
            browser.size(width, height)?;
            let wide = browser.eval("return document.documentElement.scrollWidth")?;
            assert_eq!(wide, width, "no wider than the window");
        }
        browser.size(DESK.0, DESK.1)?;
        let run = "axe.run(document, {runOnly: ['wcag2a', 'wcag2aa', 'wcag21a', 'wcag21aa', 'wcag22aa', \
                   'best-practice']}).then((found) => done({passes: found.passes.length, violations: \
                   found.violations.map((v) => `${v.id}: ${v.help}: ${v.nodes.map((n) => n.html).join(' ')}`)}), \
                   (error) => done({violations: [String(error)]}))";
        let found = browser.eval_later(&format!("{axe}\n{run}"))?;
        assert_eq!(found["violations"], json!([]), "{scheme}");
        assert!(found["passes"].as_u64() > Some(20), "it did look: {found}");
    }
    browser.scheme("light")
}

/// What has the focus.
fn focus(browser: &Browser) -> Result<String> {
    let name = browser.eval(
        "const at = document.activeElement;\
         return at.id || (at.closest('table')?.id ?? '') + ' ' + (at.ariaLabel ?? at.textContent).trim()",
    )?;
    Ok(name.as_str().context("a name")?.to_owned())
}

/// From the top to a column's header and the order it stands for, which keeps the focus while the page goes on.
fn is_used_by_keyboard(browser: &Browser) -> Result<()> {
    browser.open(PAGE)?;
    browser.eventually("live", |b| Ok(b.text("#state")? == "Live"))?;
    browser.press(TAB)?;
    assert_eq!(focus(browser)?, " Skip to the content");
    browser.press(ENTER)?;
    browser.eventually("skipped", |b| Ok(focus(b)? == "main"))?;
    let mut way = Vec::new();
    while way.last().is_none_or(|at| at != "t-flows Packets") {
        ensure!(way.len() < 60, "the header is not reached: {way:?}");
        browser.press(TAB)?;
        way.push(focus(browser)?);
        let seen = browser.eval("return document.activeElement.matches(':focus-visible')")?;
        assert_eq!(seen, true, "{way:?}");
    }
    for stop in [
        "f-text",
        "f-class",
        "f-nat",
        "f-namespace",
        "clear",
        " Table of flows",
    ] {
        assert!(way.iter().any(|at| at == stop), "{stop}: {way:?}");
    }
    let ordered = |way: &str, reverse: bool| {
        let way = way.to_owned();
        move |b: &Browser| -> Result<bool> {
            let sorted = b.eval("return document.activeElement.closest('th').ariaSort")?;
            let address = b.eval("return location.search")?;
            let address = address.as_str().context("a query")?;
            Ok(sorted == way
                && address.contains("sort=packet_rate")
                && address.contains("reverse=true") == reverse)
        }
    };
    browser.press(ENTER)?;
    browser.eventually("the order", ordered("descending", false))?;
    browser.press(ENTER)?;
    browser.eventually("the other way round", ordered("ascending", true))?;
    let sorted = browser.texts("#t-flows th[aria-sort]")?;
    assert_eq!(sorted.len(), 1, "{sorted:?}");
    let as_of = browser.text("#as-of")?;
    browser.eventually("it goes on", |b| Ok(b.text("#as-of")? != as_of))?;
    assert_eq!(focus(browser)?, "t-flows Packets▲");
    Ok(())
}

fn is_filtered(browser: &Browser) -> Result<()> {
    browser.click("#f-text")?;
    browser.press("batch")?;
    browser.eventually("only what has the word", |b| {
        let rows = b.texts("#t-flows tbody tr")?;
        let address = b.eval("return location.search")?;
        Ok(address.as_str().is_some_and(|a| a.contains("text=batch"))
            && rows.iter().all(|row| row.contains("batch")))
    })?;
    browser.press(&" w".repeat(17))?;
    browser.eventually("too many words", |b| {
        Ok(b.text("#f-error")? == "a filter has at most 16 words")
    })?;
    browser.click("#clear")?;
    browser.eventually("all again", |b| {
        let rows = b.texts("#t-flows tbody tr")?;
        Ok(b.text("#f-error")?.is_empty() && rows.iter().any(|row| row.contains("frontend")))
    })
}

/// Pictures of a page, light and dark, where they are wanted.
fn pictures(browser: &Browser, name: &str, size: (u32, u32)) -> Result<()> {
    let Some(directory) = std::env::var_os("AKSNET_PICTURES") else {
        return Ok(());
    };
    for scheme in ["light", "dark"] {
        browser.scheme(scheme)?;
        browser.picture(
            &Path::new(&directory).join(format!("{name}-{scheme}.png")),
            size,
        )?;
    }
    browser.scheme("light")?;
    browser.size(360, 800)?;
    let path = Path::new(&directory).join(format!("{name}-narrow.png"));
    browser.picture(&path, (360, 1600))?;
    browser.size(DESK.0, DESK.1)
}

#[test]
fn five_thousand_flows_are_paged_through() -> Result<()> {
    let Some(_turn) = turn() else { return Ok(()) };
    let bed = Testbed::azure_overlay().offloads(false).build()?;
    let (client, web) = (bed.pod(0), bed.pod(1));
    let home = Home::new()?;
    let mut command = home.command(&bed, "run");
    command
        .args(["--listen", LISTEN, "--idle-timeout=1h"])
        .args(plan_flags(&bed));
    let mut agent = Agent::spawn(&bed, &home, &mut command)?;
    agent.await_ready()?;
    // Somebody has to take them, or each would be answered by an ICMP error.
    let _silent = web.netns().run(|| Ok(UdpSocket::bind((web.ip(), 9))?))?;
    let from = counters::mac(client.netns(), "eth0")?;
    let to = counters::mac(bed.node().netns(), client.veth())?;
    let socket = FrameSocket::open(client.netns(), "eth0")?;
    for port in 20_000..25_200 {
        let source = SocketAddr::new(client.ip(), port);
        let packet = Packet::udp(source, SocketAddr::new(web.ip(), 9), b"live");
        socket.send(&Frame::new(from, to, packet).build())?;
    }

    let browser = Browser::start(bed.node().netns(), DESK)?;
    browser.open(PAGE)?;
    let shown =
        |b: &Browser| Ok::<_, anyhow::Error>(b.text("#p-flows .shown")?.replace('\u{202f}', ""));
    browser.eventually("all flows are counted", |b| {
        let shown = shown(b)?;
        let all = shown
            .strip_prefix("1–50 of ")
            .and_then(|s| s.strip_suffix(" flows"));
        Ok(all.is_some_and(|all| all.parse::<u32>().is_ok_and(|all| all >= 5_200)))
    })?;
    pictures(&browser, "page-5000", DESK)?;
    browser.eval(
        "const on = document.querySelectorAll('#p-flows button')[1];\
         for (let i = 0; i < 200; i += 1) on.click()",
    )?;
    browser.eventually("the last page that can be asked for", |b| {
        Ok(shown(b)?.starts_with("4951–5000 of ") && b.texts("#t-flows tbody tr")?.len() == 50)
    })?;
    let (mut drawn, mut took) = (Vec::new(), Vec::new());
    for _ in 0..5 {
        let as_of = browser.text("#as-of")?;
        browser.eventually("it goes on", |b| Ok(b.text("#as-of")? != as_of))?;
        drawn.push(browser.eval("return document.documentElement.dataset.drawn")?);
        took.push(browser.text("#agent > div:last-child dd")?);
    }
    println!("with {}: drawn in ms {drawn:?}; {took:?}", shown(&browser)?);
    browser.click("#f-text")?;
    browser.press("24321")?;
    browser.eventually("one of them is found", |b| {
        let rows = b.texts("#t-flows tbody tr")?;
        Ok(rows.len() == 1 && rows[0].contains(":24321 → "))
    })?;
    agent.stop(Signal::SIGTERM)?;
    Ok(())
}

const HOSTILE: &str = "<img src=x onerror=\"window.hacked=1\"><script>window.hacked=1</script>";

/// A node on which everything that has a name has this one.
fn hostile() -> Result<Snapshot> {
    let who = json!({"namespace": HOSTILE, "workload": HOSTILE, "pod": format!("{HOSTILE}-0")});
    let ends = json!({"src": "10.244.0.2", "src_port": 1, "dst": "10.244.0.3", "dst_port": 2});
    let end = json!({"address": "10.244.0.2", "port": 1, "namespace": HOSTILE, "workload": HOSTILE, "pod": "p"});
    let flow = json!({
        "time_ms": 1, "class": HOSTILE, "nat": HOSTILE, "scope": HOSTILE, "protocol": HOSTILE, "reply": false,
        "in_interface": HOSTILE, "out_interface": HOSTILE, "from": who, "to": who, "before": ends, "after": null,
        "packets": 1, "bytes": 1, "packets_per_second": 1.0, "bytes_per_second": 1.0, "first": null,
        "established": null, "drops": 1, "drop_reason": HOSTILE, "drop_cause": HOSTILE,
    });
    let record = json!({
        "unix_ms": 1, "packets": 1, "bytes": 1, "connections": 1, "cause": HOSTILE, "reason": HOSTILE,
        "location": HOSTILE, "direction": HOSTILE, "protocol": HOSTILE, "src": end, "dst": end, "dialled": null,
        "in_interface": "", "out_interface": "", "mark": 0, "engine": HOSTILE, "policies": [HOSTILE],
        "confidence": HOSTILE, "why": HOSTILE,
    });
    let kind = json!({"nat": HOSTILE, "class": HOSTILE, "connections": 1});
    let node = json!({
        "name": HOSTILE, "cni": HOSTILE, "policy_engine": HOSTILE, "proxy_mode": HOSTILE, "kernel": HOSTILE,
        "zone": HOSTILE, "programs": [{"program": HOSTILE, "hook": HOSTILE, "up": true}],
        "sources": [{"source": HOSTILE, "synced": true}],
        "pod_ips": [{"source": HOSTILE, "in_use": 1, "limit": 2, "leaked": 1}],
    });
    let snapshot = json!({
        "unix_ms": 1, "interval_ms": 1000, "flows": [flow], "matching": 1,
        "workloads": [{"from": who, "to": who, "classes": [HOSTILE]}], "pairs": 1,
        "nat": {"kinds": [kind], "classes": [kind]}, "node": node,
        "drops": {"records": [record], "matching": 1, "causes": [{"cause": HOSTILE, "policy": HOSTILE, "packets": 1}]},
    });
    Ok(serde_json::from_value(snapshot)?)
}

#[test]
fn hostile_names_stay_text() -> Result<()> {
    let Some(_turn) = turn() else { return Ok(()) };
    let bed = Testbed::azure_overlay().pods(1).build()?;
    let netns = bed.node().netns();
    let listener = netns.run(|| {
        let listener = TcpListener::bind("127.0.0.1:9436")?;
        listener.set_nonblocking(true)?;
        Ok(listener)
    })?;
    let board = Arc::new(Board::new(&merge::merge(vec![])?));
    let snapshot = hostile()?;
    let shown = Shown::new(board, Arc::new(move |_asked| Ok(snapshot.clone())));
    let router = page::router(Arc::new(shown), Hosts::at([127, 0, 0, 1].into()));
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(1)
        .enable_all()
        .build()?;
    runtime.spawn(async move {
        let listener = tokio::net::TcpListener::from_std(listener)?;
        page::serve(listener, router, std::future::pending()).await
    });
    let browser = Browser::start(netns, DESK)?;
    browser.open(PAGE)?;
    browser.eventually("it is shown", |b| Ok(b.text("#node-name")? == HOSTILE))?;
    for cell in [
        "#t-flows tbody",
        "#t-workloads tbody",
        "#t-records tbody",
        "#t-causes tbody",
        "#programs",
        "#facts",
    ] {
        assert!(browser.text(cell)?.contains(HOSTILE), "{cell}");
    }
    let found = browser.eval(
        "return [window.hacked ?? 0, document.querySelectorAll('img, iframe, script:not([type=module])').length]",
    )?;
    assert_eq!(found, json!([0, 0]));
    assert_eq!(browser.complaints()?, Vec::<String>::new());
    Ok(())
}

#[test]
fn the_page_is_where_it_is_wanted() -> Result<()> {
    let Some(_turn) = turn() else { return Ok(()) };
    let bed = Testbed::azure_overlay().pods(1).build()?;
    let home = Home::new()?;
    let dial = || {
        let page = SocketAddr::from(([127, 0, 0, 1], 9436));
        let netns = bed.node().netns();
        netns.run(|| Ok(TcpStream::connect_timeout(&page, Duration::from_secs(2)).is_ok()))
    };
    let index = |agent: &Agent| Ok::<_, anyhow::Error>(agent.get("/", "")?.text()?.to_owned());

    let agent = Agent::start(&bed, &home, plan_flags(&bed))?;
    assert!(dial()?);
    assert!(index(&agent)?.contains("http://127.0.0.1:9436/"));
    agent.stop(Signal::SIGTERM)?;

    let off = plan_flags(&bed)
        .into_iter()
        .chain(["--page=off".to_owned()]);
    let agent = Agent::start(&bed, &home, off)?;
    assert!(!dial()?, "nobody listens");
    assert!(index(&agent)?.contains("switched off"));
    agent.stop(Signal::SIGTERM)?;

    let beside = plan_flags(&bed)
        .into_iter()
        .chain([format!("--page={LISTEN}")]);
    let agent = Agent::start(&bed, &home, beside)?;
    assert!(!dial()?, "one listener serves both");
    assert_eq!(
        agent.get("/", "")?.status,
        403,
        "a node by its name is a stranger"
    );
    assert_eq!(
        agent.get("/metrics", "")?.status,
        200,
        "but not to Prometheus"
    );
    agent.stop(Signal::SIGTERM)?;

    let page = SocketAddr::from(([127, 0, 0, 1], 9436));
    let _taken = bed.node().netns().run(|| Ok(TcpListener::bind(page)?))?;
    let agent = Agent::start(&bed, &home, plan_flags(&bed))?;
    let complaints = agent.complaints();
    assert!(
        complaints
            .iter()
            .any(|line| line.contains("the page is not served") && line.contains("--page")),
        "{complaints:?}"
    );
    assert!(index(&agent)?.contains("the port is in use"));
    agent.stop(Signal::SIGTERM)?;
    Ok(())
}
