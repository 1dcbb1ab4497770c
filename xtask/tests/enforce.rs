//! Policy engines on the emulated node enforce for real: what no policy allows is lost, what one allows is not, and
//! what was denied is counted, for each engine, iptables backend, family and side.

use std::io::{Read as _, Write as _};
use std::net::{SocketAddr, TcpStream};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use xtask::testbed::bed::is_root;
use xtask::testbed::enforce::{apply, queue};
use xtask::testbed::traffic::{Connect, TcpServer, Udp, UdpServer, connect};
use xtask::testbed::{
    Allow, Backend, Builder, DenyAction, Engine, Family, Isolation, Pod, Service, Side, Testbed,
};

/// Two cores: one testbed at a time.
static TURN: Mutex<()> = Mutex::new(());

/// Long enough for an answer, too short for a SYN to be sent again: each attempt is one packet.
const SOON: Duration = Duration::from_millis(300);

/// Long enough for one retransmitted SYN, whose ICMP error ends the attempt.
const ONE_RETRANSMIT: Duration = Duration::from_millis(2500);

const POLICY: &str = "shop/web-policy";

fn turn() -> Option<MutexGuard<'static, ()>> {
    if !is_root() {
        println!("skipped: making network namespaces needs root");
        return None;
    }
    Some(TURN.lock().unwrap_or_else(PoisonError::into_inner))
}

/// Three pods and one on the other node: a client, a server, and two that have no business with it.
struct Shop {
    bed: Testbed,
    client: Arc<Pod>,
    web: Arc<Pod>,
    stranger: Arc<Pod>,
    far: Arc<Pod>,
    servers: Vec<TcpServer>,
}

impl Shop {
    fn build(builder: Builder) -> Result<Self> {
        let bed = builder.dual_stack(true).pods(3).build()?;
        let (client, web, stranger, far) = (bed.pod(0), bed.pod(1), bed.pod(2), bed.remote_pod(0));
        let mut servers = Vec::new();
        for family in bed.families() {
            for (pod, port) in [(&web, 8080), (&web, 9090), (&stranger, 8080)] {
                servers.push(TcpServer::echo(pod.netns(), (pod.ip_of(family), port))?);
            }
        }
        Ok(Self {
            bed,
            client,
            web,
            stranger,
            far,
            servers,
        })
    }

    fn attempt(&self, from: &Pod, to: &Pod, family: Family, port: u16) -> Result<Connect> {
        let to = SocketAddr::new(to.ip_of(family), port);
        ensure!(
            self.servers.iter().any(|server| server.address() == to),
            "nobody serves at {to}"
        );
        connect(from.netns(), to, SOON)
    }

    fn denied(&self, side: Side) -> Result<[u64; 2]> {
        let node = self.bed.node();
        Ok([
            node.denied_packets(Some(POLICY), side)?,
            node.denied_packets(None, side)?,
        ])
    }
}

/// One side of the policy of these tests.
fn policy(side: Side) -> Isolation {
    Isolation::new("shop", "web-policy", side)
}

/// All families that an engine knows.
fn families(engine: Engine, bed: &Testbed) -> Vec<Family> {
    let all = bed.families().into_iter();
    all.filter(|family| engine.has(*family)).collect()
}

fn ingress(shop: &Shop, engine: Engine) -> Result<()> {
    let allow = Allow::all().pod(&shop.client).tcp(8080);
    let isolation = policy(Side::Ingress).select(&shop.web).allow(allow);
    shop.bed.enforce(&[isolation])?;
    for family in families(engine, &shop.bed) {
        let before = shop.denied(Side::Ingress)?;
        let attempt = |from, to, port| shop.attempt(from, to, family, port);
        ensure!(attempt(&shop.client, &shop.web, 8080)? == Connect::Connected);
        ensure!(attempt(&shop.client, &shop.web, 9090)? == Connect::TimedOut);
        ensure!(attempt(&shop.stranger, &shop.web, 8080)? == Connect::TimedOut);
        ensure!(attempt(&shop.client, &shop.stranger, 8080)? == Connect::Connected);
        // The way back of a connection that the isolated pod opens is nobody's business.
        ensure!(attempt(&shop.web, &shop.stranger, 8080)? == Connect::Connected);
        ensure!(
            shop.denied(Side::Ingress)? == before.map(|count| count + 2),
            "{family:?}"
        );
        ensure!(attempt(&shop.far, &shop.web, 8080)? == Connect::TimedOut);
        // Azure NPM judges on both nodes, and so already on the other one.
        let here = if engine == Engine::AzureNpm { 2 } else { 3 };
        let after = shop.denied(Side::Ingress)?;
        ensure!(
            after == before.map(|count| count + here),
            "{family:?}: {after:?}"
        );
    }
    ensure!(shop.denied(Side::Egress)? == [0, 0]);
    Ok(())
}

fn egress(shop: &Shop, engine: Engine) -> Result<()> {
    let allow = Allow::all().pod(&shop.web).tcp(8080);
    let isolation = policy(Side::Egress).select(&shop.client).allow(allow);
    shop.bed.enforce(&[isolation])?;
    for family in families(engine, &shop.bed) {
        let before = shop.denied(Side::Egress)?;
        let attempt = |from, to, port| shop.attempt(from, to, family, port);
        ensure!(attempt(&shop.client, &shop.web, 8080)? == Connect::Connected);
        ensure!(attempt(&shop.client, &shop.web, 9090)? == Connect::TimedOut);
        ensure!(attempt(&shop.client, &shop.stranger, 8080)? == Connect::TimedOut);
        ensure!(attempt(&shop.stranger, &shop.web, 9090)? == Connect::Connected);
        ensure!(
            shop.denied(Side::Egress)? == before.map(|count| count + 2),
            "{family:?}"
        );
    }
    ensure!(shop.denied(Side::Ingress)? == [0, 0]);
    Ok(())
}

/// A connection that stood before a policy came goes on; a new one does not come about; afterwards all is open again.
fn established(shop: &Shop, engine: Engine) -> Result<()> {
    shop.bed
        .enforce(&[policy(Side::Ingress).select(&shop.client)])?;
    for family in families(engine, &shop.bed) {
        shop.bed.stop_enforcing()?;
        let to = SocketAddr::new(shop.web.ip_of(family), 8080);
        let open = || Ok(TcpStream::connect_timeout(&to, SOON)?);
        let mut stream = shop.client.netns().run(open)?;
        let mut exchange = || -> Result<()> {
            stream.set_read_timeout(Some(Duration::from_secs(3)))?;
            stream.write_all(b"x")?;
            stream.read_exact(&mut [0]).context("no answer")
        };
        exchange()?;
        shop.bed.enforce(&[
            policy(Side::Ingress).select(&shop.web),
            policy(Side::Egress).select(&shop.client),
        ])?;
        exchange().with_context(|| format!("{family:?}: an established connection broke"))?;
        let new = shop.attempt(&shop.stranger, &shop.web, family, 8080)?;
        ensure!(new == Connect::TimedOut);
        shop.bed.stop_enforcing()?;
        ensure!(shop.bed.denied_packets(POLICY, Side::Ingress).is_err());
        let open = shop.attempt(&shop.stranger, &shop.web, family, 8080)?;
        ensure!(
            open == Connect::Connected,
            "{family:?}: {open:?} with nothing enforced"
        );
    }
    Ok(())
}

/// Two policies for one pod allow together what either allows.
fn union(shop: &Shop, engine: Engine) -> Result<()> {
    let one = policy(Side::Ingress)
        .select(&shop.web)
        .allow(Allow::all().pod(&shop.client).tcp(8080));
    let other = Isolation::new("shop", "another", Side::Ingress)
        .select(&shop.web)
        .allow(Allow::all().tcp(9090));
    shop.bed.enforce(&[one, other])?;
    for family in families(engine, &shop.bed) {
        let before = shop.bed.node().denied_packets(None, Side::Ingress)?;
        let attempt = |from, port| shop.attempt(from, &shop.web, family, port);
        ensure!(attempt(&shop.client, 8080)? == Connect::Connected);
        ensure!(attempt(&shop.stranger, 9090)? == Connect::Connected);
        ensure!(attempt(&shop.stranger, 8080)? == Connect::TimedOut);
        let after = shop.bed.node().denied_packets(None, Side::Ingress)?;
        ensure!(after == before + 1, "{family:?}: {before} then {after}");
    }
    Ok(())
}

fn all(builder: Builder, engine: Engine) -> Result<()> {
    let shop = Shop::build(builder.engine(engine))?;
    ingress(&shop, engine).context("ingress")?;
    egress(&shop, engine).context("egress")?;
    established(&shop, engine).context("established")?;
    union(&shop, engine).context("several policies")
}

#[test]
fn azure_npm_enforces_with_either_backend_behind_a_bridge_and_routed() -> Result<()> {
    let Some(_turn) = turn() else { return Ok(()) };
    for backend in [Backend::Nft, Backend::Legacy] {
        for builder in [Testbed::kubenet(), Testbed::azure_overlay()] {
            all(builder.backend(backend), Engine::AzureNpm)
                .with_context(|| format!("{backend:?}"))?;
        }
    }
    Ok(())
}

#[test]
fn calico_enforces_with_either_backend_in_both_families() -> Result<()> {
    let Some(_turn) = turn() else { return Ok(()) };
    for backend in [Backend::Nft, Backend::Legacy] {
        for builder in [Testbed::azure_overlay(), Testbed::kind()] {
            all(builder.backend(backend), Engine::Calico)
                .with_context(|| format!("{backend:?}"))?;
        }
    }
    Ok(())
}

#[test]
fn calico_rejects_when_told_to() -> Result<()> {
    let Some(_turn) = turn() else { return Ok(()) };
    for backend in [Backend::Nft, Backend::Legacy] {
        let builder = Testbed::azure_node_subnet()
            .engine(Engine::Calico)
            .deny_action(DenyAction::Reject)
            .backend(backend);
        let shop = Shop::build(builder)?;
        shop.bed
            .enforce(&[policy(Side::Ingress).select(&shop.web)])?;
        for family in shop.bed.families() {
            let to = SocketAddr::new(shop.web.ip_of(family), 8080);
            let before = shop.denied(Side::Ingress)?;
            let outcome = connect(shop.client.netns(), to, ONE_RETRANSMIT)?;
            ensure!(
                outcome == Connect::Refused,
                "{backend:?} {family:?}: {outcome:?}"
            );
            let after = shop.denied(Side::Ingress)?;
            ensure!(
                after[0] > before[0] && after[0] <= before[0] + 2,
                "{after:?}"
            );
        }
    }
    Ok(())
}

#[test]
fn calico_is_refused_where_it_could_not_tell_pods_apart() -> Result<()> {
    let Some(_turn) = turn() else { return Ok(()) };
    let bed = Testbed::kubenet().engine(Engine::Calico).build()?;
    let error = bed.enforce(&[]).unwrap_err();
    ensure!(
        format!("{error:#}").contains("another flavour"),
        "{error:#}"
    );
    let rejecting = Testbed::kind()
        .engine(Engine::Kindnet)
        .deny_action(DenyAction::Reject);
    ensure!(rejecting.build().is_err());
    Ok(())
}

#[test]
fn a_table_that_nft_refuses_is_an_error_whether_or_not_the_kernel_can_queue() -> Result<()> {
    let Some(_turn) = turn() else { return Ok(()) };
    let bed = Testbed::kind().build()?;
    let node = bed.node().netns();
    let good = queue::render(queue::KINDNET, &[]);
    apply::load_table(node, &good)?;
    // Without the rules that queue it would be loaded.
    let bad = good.replace("queue flags bypass", "queue flags by-and-by");
    ensure!(bad != good);
    let error = apply::load_table(node, &bad).unwrap_err();
    ensure!(format!("{error:#}").contains("syntax error"), "{error:#}");
    Ok(())
}

#[test]
fn kindnet_enforces_in_both_families() -> Result<()> {
    let Some(_turn) = turn() else { return Ok(()) };
    all(Testbed::kind(), Engine::Kindnet)
}

#[test]
fn kube_network_policies_enforces_with_either_backend() -> Result<()> {
    let Some(_turn) = turn() else { return Ok(()) };
    for backend in [Backend::Nft, Backend::Legacy] {
        let builder = Testbed::azure_overlay().backend(backend);
        all(builder, Engine::KubeNetworkPolicies).with_context(|| format!("{backend:?}"))?;
    }
    Ok(())
}

#[test]
fn denied_datagrams_are_counted_one_by_one() -> Result<()> {
    let Some(_turn) = turn() else { return Ok(()) };
    for (builder, engine) in [
        (Testbed::kubenet(), Engine::AzureNpm),
        (Testbed::azure_overlay(), Engine::Calico),
        (Testbed::kind(), Engine::Kindnet),
        (Testbed::kind(), Engine::KubeNetworkPolicies),
    ] {
        let bed = builder.engine(engine).build()?;
        let (client, web) = (bed.pod(0), bed.pod(1));
        let allowed = UdpServer::echo(web.netns(), (web.ip(), 53))?;
        let denied = UdpServer::echo(web.netns(), (web.ip(), 5353))?;
        bed.enforce(&[policy(Side::Ingress)
            .select(&web)
            .allow(Allow::all().udp(53))])?;
        Udp::to(allowed.address())
            .datagrams(5)
            .run(client.netns())?;
        Udp::to(denied.address())
            .datagrams(7)
            .unanswered()
            .run(client.netns())?;
        bed.settle()?;
        ensure!((allowed.datagrams(), denied.datagrams()) == (5, 0));
        let counted = bed.denied_packets(POLICY, Side::Ingress)?;
        ensure!(counted == 7, "{engine:?}: {counted}");
    }
    Ok(())
}

#[test]
fn policy_judges_the_endpoint_and_not_the_service_that_was_dialled() -> Result<()> {
    let Some(_turn) = turn() else { return Ok(()) };
    for (builder, engine) in [
        (Testbed::kubenet(), Engine::AzureNpm),
        (Testbed::azure_overlay(), Engine::Calico),
        (Testbed::kind(), Engine::Kindnet),
    ] {
        let bed = builder.engine(engine).pods(3).build()?;
        let (client, web, stranger) = (bed.pod(0), bed.pod(1), bed.pod(2));
        let server = TcpServer::echo(web.netns(), (web.ip(), 8080))?;
        let service =
            bed.add_service(Service::cluster_ip("shop", "web", 80).endpoints([server.address()]))?;
        let allow = Allow::all().pod(&client).tcp(8080);
        bed.enforce(&[policy(Side::Ingress).select(&web).allow(allow)])?;
        let dial = |pod: &Pod| connect(pod.netns(), service.address(), SOON);
        ensure!(dial(&client)? == Connect::Connected, "{engine:?}");
        ensure!(dial(&stranger)? == Connect::TimedOut, "{engine:?}");
        ensure!(bed.denied_packets(POLICY, Side::Ingress)? == 1);
    }
    Ok(())
}

#[test]
fn egress_to_the_outside_is_judged_before_it_is_translated() -> Result<()> {
    let Some(_turn) = turn() else { return Ok(()) };
    for (builder, engine) in [
        (Testbed::kubenet(), Engine::AzureNpm),
        (Testbed::azure_overlay(), Engine::Calico),
        (Testbed::kind(), Engine::Kindnet),
    ] {
        let bed = builder.engine(engine).build()?;
        let _servers = [443, 80]
            .map(|port| TcpServer::echo(bed.outside(), (bed.outside_ip(), port)))
            .into_iter()
            .collect::<Result<Vec<_>>>()?;
        let client = bed.pod(0);
        let everywhere = Allow::all().range("0.0.0.0/0".parse()?).tcp(443);
        bed.enforce(&[policy(Side::Egress).select(&client).allow(everywhere)])?;
        let dial = |port| connect(client.netns(), (bed.outside_ip(), port).into(), SOON);
        ensure!(dial(443)? == Connect::Connected, "{engine:?}");
        ensure!(dial(80)? == Connect::TimedOut, "{engine:?}");
        ensure!(bed.denied_packets(POLICY, Side::Egress)? == 1, "{engine:?}");
    }
    Ok(())
}

#[test]
fn enforcing_needs_an_engine_and_each_policy_once() -> Result<()> {
    let Some(_turn) = turn() else { return Ok(()) };
    let bed = Testbed::kind().build()?;
    let error = bed.enforce(&[]).unwrap_err();
    ensure!(
        format!("{error:#}").contains("Builder::engine"),
        "{error:#}"
    );
    let bed = Testbed::kind().engine(Engine::Kindnet).build()?;
    let error = bed
        .enforce(&[policy(Side::Ingress), policy(Side::Ingress)])
        .unwrap_err();
    ensure!(format!("{error:#}").contains("given twice"), "{error:#}");
    Ok(())
}
