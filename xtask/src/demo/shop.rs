//! The demo's *shop*: pods with workload names, services between them, and rounds of traffic of every kind that a
//! node translates.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use anyhow::Result;

use crate::testbed::traffic::{Ping, Tcp, TcpServer, Udp, UdpServer, connect};
use crate::testbed::{Pod, Service, Testbed};

/// Kinds of exchanges.
const KINDS: usize = 9;

/// Connections of each kind in a round.
const CONNECTIONS: u32 = 2;

/// The port at which every node takes connections for the storefront.
pub(super) const NODE_PORT: u16 = 30_080;

/// Servers, services and addresses of the shop.
pub(super) struct Shop<'a> {
    bed: &'a Testbed,
    frontend: Arc<Pod>,
    web: Arc<Pod>,
    pub(super) db: Arc<Pod>,
    pub(super) batch: Arc<Pod>,
    far: TcpServer,
    database: TcpServer,
    internet: TcpServer,
    web_service: Service,
    dns_service: Service,
    balanced: Service,
    pub(super) db_service: Service,
    rounds: AtomicUsize,
    /// Servers that are reached through services only: they run for as long as the shop is open.
    _behind_services: (TcpServer, UdpServer),
}

/// The other node's `web`, which may be there already.
pub(super) fn far_web(bed: &Testbed) -> Result<Arc<Pod>> {
    match bed.node2().pod("web") {
        Some(pod) => Ok(pod),
        None => bed.add_remote_pod("web"),
    }
}

impl<'a> Shop<'a> {
    /// Starts the servers and writes the services' rules.
    pub(super) fn open(bed: &'a Testbed) -> Result<Self> {
        let (frontend, web, db, batch) = (bed.pod(0), bed.pod(1), bed.pod(2), bed.pod(3));
        let (far_web, dns_pod) = (far_web(bed)?, bed.add_remote_pod("coredns")?);
        let near = TcpServer::echo(web.netns(), (web.ip(), 8080))?;
        let far = TcpServer::echo(far_web.netns(), (far_web.ip(), 8080))?;
        let database = TcpServer::echo(db.netns(), (db.ip(), 5432))?;
        let dns = UdpServer::echo(dns_pod.netns(), (dns_pod.ip(), 53))?;
        let internet = TcpServer::echo(bed.outside(), (bed.outside_ip(), 443))?;
        let both = [near.address(), far.address()];
        let web_service = bed.add_service(
            Service::cluster_ip("shop", "web", 80)
                .port_name("http")
                .endpoints(both),
        )?;
        let dns_service = bed.add_service(
            Service::cluster_ip("kube-system", "kube-dns", 53)
                .port_name("dns")
                .udp()
                .endpoints([dns.address()]),
        )?;
        let db_service = bed
            .add_service(Service::cluster_ip("shop", "db", 5432).endpoints([database.address()]))?;
        let balanced = bed.add_service(
            Service::load_balancer("shop", "storefront", 80, NODE_PORT, bed.frontend_ip())
                .endpoints([near.address()]),
        )?;
        Ok(Self {
            bed,
            frontend,
            web,
            db,
            batch,
            far,
            database,
            internet,
            web_service,
            dns_service,
            balanced,
            db_service,
            rounds: AtomicUsize::new(0),
            _behind_services: (near, dns),
        })
    }

    /// The services, each with its namespace, the application behind it, and its port.
    pub(super) fn services(&self) -> [(&'static str, &Service, &'static str, u16); 4] {
        [
            ("shop", &self.web_service, "web", 80),
            ("kube-system", &self.dns_service, "coredns", 53),
            ("shop", &self.db_service, "db", 5432),
            ("shop", &self.balanced, "web", 80),
        ]
    }

    /// What flows, in words.
    pub(super) fn legend(&self) -> String {
        let rows = [
            (
                "frontend → db",
                self.database.address().to_string(),
                "pod to pod on this node",
            ),
            (
                "frontend → far web",
                self.far.address().to_string(),
                "pod to pod across nodes",
            ),
            (
                "frontend → web",
                self.web_service.address().to_string(),
                "ClusterIP: destination translated",
            ),
            (
                "frontend → kube-dns",
                self.dns_service.address().to_string(),
                "ClusterIP over UDP",
            ),
            (
                "web → web",
                self.web_service.address().to_string(),
                "hairpin: both ends translated",
            ),
            (
                "batch → internet",
                self.internet.address().to_string(),
                "source translated to the node's",
            ),
            (
                "internet → storefront",
                self.balanced.frontend().to_string(),
                "load balancer: both ends translated",
            ),
            (
                "internet → node port",
                format!("{}:{NODE_PORT}", self.bed.node().ip()),
                "the same by the node's port",
            ),
            (
                "batch → internet",
                self.bed.outside_ip().to_string(),
                "ping",
            ),
        ];
        rows.map(|(who, to, what)| format!("  {who:<22} {to:<22} {what}"))
            .join("\n")
    }

    /// One round of each kind. Every round begins with another one: the first after a pause finds the caches cold,
    /// and no kind shall look slower than it is.
    pub(super) fn round(&self) -> Result<()> {
        let number = self.rounds.fetch_add(1, Ordering::Relaxed);
        (0..KINDS).try_for_each(|step| self.exchange((number + step) % KINDS))
    }

    /// One exchange of a kind: the same number of connections for each.
    fn exchange(&self, kind: usize) -> Result<()> {
        let (client, batch, outside) = (
            self.frontend.netns(),
            self.batch.netns(),
            self.bed.outside(),
        );
        let tcp = |to: SocketAddr, bytes| Tcp::to(to).connections(CONNECTIONS).bytes(bytes);
        match kind {
            0 => tcp(self.database.address(), 4_000).run(client).map(drop),
            1 => tcp(self.web_service.address(), 1_500).run(client).map(drop),
            2 => tcp(self.internet.address(), 20_000).run(batch).map(drop),
            3 => tcp(self.balanced.frontend(), 3_000).run(outside).map(drop),
            4 => tcp(self.far.address(), 2_000).run(client).map(drop),
            // The service picks an endpoint at random: half of these are hairpins.
            5 => tcp(self.web_service.address(), 500)
                .run(self.web.netns())
                .map(drop),
            6 => {
                let port = (self.bed.node().ip(), NODE_PORT);
                tcp(port.into(), 800).run(outside).map(drop)
            }
            7 => {
                let dns = Udp::to(self.dns_service.address());
                dns.datagrams(5).size(64).run(client).map(drop)
            }
            _ => {
                let ping = Ping::to(self.bed.outside_ip());
                ping.count(2).run(batch).map(drop)
            }
        }
    }

    /// So many attempts of batch to reach db by its service, after a policy denies it.
    pub(super) fn denied(&self, attempts: u32) -> Result<()> {
        for _ in 0..attempts {
            connect(
                self.batch.netns(),
                self.db_service.address(),
                Duration::from_millis(20),
            )?;
        }
        Ok(())
    }
}
