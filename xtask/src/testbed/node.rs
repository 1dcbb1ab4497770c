//! A *node*: a namespace with an uplink `eth0`, pods behind CNI, and the rules that a real node has.

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};

use anyhow::{Context as _, Result};
use ipnet::IpNet;
use serde_json::Value;

use super::azure;
use super::cni::{self, Attachment, Chain, Hairpin, HostPort};
use super::counters::{self, ConntrackEntry, LinkCounters};
use super::enforce::{DenyAction, Engaged, Isolation, Side, apply};
use super::engine::Engine;
use super::fabric;
use super::iptables::{self, Backend, Rule};
use super::lock;
use super::masq;
use super::netns::Netns;
use super::nftables::{self, Blocks, Ground};
use super::plan::{Addresses, Family, Flavour, NodePlan, Plan, WIRESERVER, nth};
use super::pod::Pod;
use super::policy::{self, PolicyRule};
use super::proxy::{self, Locality, Proxy};
use super::record::Record;
use super::service::Service;

/// What runs on a node besides its pods.
#[derive(Debug, Clone)]
pub(super) struct Software {
    /// Where iptables keeps its rules.
    pub(super) backend: Backend,
    /// How a pod behind kubenet's bridge reaches itself.
    pub(super) hairpin: Hairpin,
    /// Which rules kube-proxy writes.
    pub(super) proxy: Proxy,
    /// Which policy engine is installed.
    pub(super) engine: Engine,
    /// What it does with what it denies.
    pub(super) deny: DenyAction,
    /// What the masquerade agent leaves alone; by the flavour when not given.
    pub(super) spared: Option<Vec<IpNet>>,
}

/// How a node's pods are wired.
#[derive(Debug)]
enum Wiring {
    /// By CNI plugins.
    Plugins(Chain),
    /// As azure-vnet does, which is no plugin of this machine's; host ports are the real `portmap`'s.
    Transparent {
        /// The addresses that are free, lowest last.
        free: Mutex<Vec<Addresses>>,
        /// Its configuration, with portmap as the last plugin.
        conflist: Value,
    },
}

/// A node of a testbed.
#[derive(Debug)]
pub struct Node {
    plan: NodePlan,
    cluster: Plan,
    index: usize,
    netns: Netns,
    wiring: Wiring,
    root: PathBuf,
    software: Software,
    pods: Mutex<Vec<Arc<Pod>>>,
    /// Whether FORWARD leads to Azure NPM's chains.
    npm: AtomicBool,
    /// The per-service chains of the last sync, by family.
    chains: Mutex<[BTreeSet<String>; 2]>,
    /// The services of the last sync in nftables mode, by family.
    written: Mutex<[Option<Blocks>; 2]>,
    /// What the policy engine enforces.
    engaged: Mutex<Engaged>,
}

impl Node {
    /// Sets up a node without pods. Its link to the fabric is attached by then.
    pub(super) fn build(
        cluster: &Plan,
        index: usize,
        netns: Netns,
        software: Software,
        root: PathBuf,
    ) -> Result<Self> {
        let plan = cluster.nodes[index];
        let dual_stack = cluster.is_dual_stack();
        fabric::forward(&netns, dual_stack)?;
        for bridge in [
            "net.bridge.bridge-nf-call-iptables",
            "net.bridge.bridge-nf-call-ip6tables",
        ] {
            if netns.has_sysctl(bridge) {
                netns.sysctl(bridge, "1")?;
            }
        }
        let store = root.join("var/lib/cni/networks");
        let (file, conflist) = cni::conflist(cluster.flavour, software.hairpin, plan.pods, &store);
        let directory = root.join("etc/cni/net.d");
        std::fs::create_dir_all(&directory)?;
        std::fs::write(
            directory.join(file),
            serde_json::to_string_pretty(&conflist)?,
        )?;
        let wiring = if cluster.flavour.is_transparent() {
            for scope in ["all", "default"] {
                netns.sysctl(&format!("net.ipv4.conf.{scope}.proxy_arp"), "0")?;
            }
            Wiring::Transparent {
                free: Mutex::new(free_addresses(&plan)),
                conflist,
            }
        } else {
            Wiring::Plugins(Chain::new(conflist)?)
        };
        let node = Self {
            plan,
            cluster: *cluster,
            index,
            netns,
            wiring,
            root,
            software,
            pods: Mutex::default(),
            npm: AtomicBool::new(false),
            chains: Mutex::default(),
            written: Mutex::default(),
            engaged: Mutex::default(),
        };
        node.write_base_rules()?;
        node.netns.sysctl("net.netfilter.nf_conntrack_acct", "1")?;
        Ok(node)
    }

    fn write_base_rules(&self) -> Result<()> {
        let Software {
            proxy,
            engine,
            spared,
            ..
        } = &self.software;
        for family in self.cluster.families() {
            match proxy {
                Proxy::Iptables => self.restore(family, &proxy::base())?,
                Proxy::Nftables => self.restore(family, &proxy::kubelet())?,
            }
            self.restore(family, &policy::base())?;
            let spared: Vec<IpNet> = match spared {
                None => masq::spared(&self.cluster, family),
                Some(ranges) => ranges
                    .iter()
                    .copied()
                    .filter(|range| Family::of(range.network()) == family)
                    .collect(),
            };
            self.restore(family, &masq::agent(self.cluster.flavour, &spared))?;
            if engine.has(family) {
                self.idle_engine(family)?;
            }
        }
        if let Some(table) = engine.nftables() {
            apply::load_table(&self.netns, &table)?;
        }
        if self.cluster.flavour != Flavour::Kind {
            self.restore(Family::V4, &masq::wireserver_block())?;
        }
        self.sync_services(&[])
    }

    /// The policy engine's rules as they are without a policy.
    fn idle_engine(&self, family: Family) -> Result<()> {
        let Software { engine, .. } = self.software;
        if engine == Engine::AzureNpm {
            self.jump_to_npm()?;
        }
        let pods = if self.cluster.flavour.is_transparent() {
            "azv"
        } else {
            "veth"
        };
        if let Some(rules) = engine.iptables(pods) {
            self.restore(family, &rules)?;
        }
        match engine.iptables_v6().filter(|_| family == Family::V6) {
            Some(rules) => self.restore(family, &rules),
            None => Ok(()),
        }
    }

    /// Leads FORWARD to Azure NPM's chains, once.
    fn jump_to_npm(&self) -> Result<()> {
        if self.npm.swap(true, Ordering::SeqCst) {
            return Ok(());
        }
        self.cluster
            .families()
            .try_for_each(|family| self.restore(family, policy::NPM_JUMP))
    }

    /// The name that Kubernetes would have for it.
    #[must_use]
    pub fn name(&self) -> &'static str {
        self.plan.name
    }

    /// Its namespace.
    #[must_use]
    pub fn netns(&self) -> &Netns {
        &self.netns
    }

    /// Its addresses on `eth0`.
    #[must_use]
    pub fn address(&self) -> Addresses {
        self.plan.address
    }

    /// Its IPv4 address.
    #[must_use]
    pub fn ip(&self) -> IpAddr {
        self.plan.address.v4.into()
    }

    /// What its pods get their addresses from.
    #[must_use]
    pub fn plan(&self) -> &NodePlan {
        &self.plan
    }

    /// Its uplink.
    #[must_use]
    pub fn uplink(&self) -> &'static str {
        "eth0"
    }

    /// A directory that has the files of a node's root that matter here: `etc/cni/net.d`, `var/lib/cni/networks`.
    #[must_use]
    pub fn root(&self) -> &Path {
        &self.root
    }

    /// Which iptables its rules are in.
    #[must_use]
    pub fn backend(&self) -> Backend {
        self.software.backend
    }

    /// Which rules its kube-proxy writes.
    #[must_use]
    pub fn proxy(&self) -> Proxy {
        self.software.proxy
    }

    /// Its pods, oldest first.
    #[must_use]
    pub fn pods(&self) -> Vec<Arc<Pod>> {
        lock(&self.pods).clone()
    }

    /// The pod of this name.
    #[must_use]
    pub fn pod(&self, name: &str) -> Option<Arc<Pod>> {
        lock(&self.pods)
            .iter()
            .find(|pod| pod.name == name)
            .cloned()
    }

    /// Wires a pod and adds it.
    pub(super) fn add_pod(
        &self,
        record: &Arc<Record>,
        namespace: &str,
        name: &str,
        ports: &[HostPort],
    ) -> Result<Arc<Pod>> {
        let role = if self.index == 0 {
            name.to_owned()
        } else {
            format!("node{}-{name}", self.index + 1)
        };
        let netns = Netns::create(record, &role)?;
        fabric::prepare(&netns, self.cluster.is_dual_stack())?;
        let attachment = match &self.wiring {
            Wiring::Plugins(chain) => chain.add(&self.netns, &netns, ports)?,
            Wiring::Transparent { free, conflist } => {
                let address = lock(free)
                    .pop()
                    .context("the node has no free pod address")?;
                let veth = azure::veth(namespace, name);
                self.netns.ip(azure::node_end(&veth, &netns, address))?;
                self.netns
                    .sysctl(&format!("net/ipv4/conf/{veth}/proxy_arp"), "1")?;
                netns.ip(azure::pod_end(address))?;
                let result = azure::result(&veth, &netns, address);
                if !ports.is_empty() {
                    Chain::new(conflist.clone())?.map_ports(
                        &self.netns,
                        &netns,
                        "ADD",
                        ports,
                        &result,
                    )?;
                }
                Attachment {
                    veth,
                    address,
                    result,
                }
            }
        };
        if self.cluster.flavour == Flavour::Kubenet && lock(&self.pods).is_empty() {
            self.hide_promiscuous_duplicates()?;
        }
        let pod = Arc::new(Pod {
            namespace: namespace.to_owned(),
            name: name.to_owned(),
            netns,
            attachment,
            ports: ports.to_vec(),
            node: self.index,
        });
        lock(&self.pods).push(Arc::clone(&pod));
        Ok(pod)
    }

    /// Unwires a pod. Its namespace goes with the last holder of the `Arc`; its veth is gone when this returns.
    pub(super) fn delete_pod(&self, name: &str) -> Result<()> {
        let pod = self
            .pod(name)
            .with_context(|| format!("no pod {name} on {}", self.plan.name))?;
        lock(&self.pods).retain(|other| other.name != name);
        match &self.wiring {
            Wiring::Plugins(chain) => {
                chain.delete(&self.netns, &pod.netns, &pod.ports, &pod.attachment)
            }
            Wiring::Transparent { free, conflist } => {
                if !pod.ports.is_empty() {
                    let result = &pod.attachment.result;
                    Chain::new(conflist.clone())?.map_ports(
                        &self.netns,
                        &pod.netns,
                        "DEL",
                        &pod.ports,
                        result,
                    )?;
                }
                self.netns.ip([format!("link del {}", pod.veth())])?;
                lock(free).insert(0, pod.address());
                Ok(())
            }
        }
    }

    /// AKS's `ensure-no-dup.sh`: a promiscuous bridge hands frames both to their port and to the node, which routes
    /// them back; these copies are dropped at the bridge.
    fn hide_promiscuous_duplicates(&self) -> Result<()> {
        let bridge = counters::links(&self.netns)?
            .into_iter()
            .find(|link| link.name == "cbr0")
            .context("no cbr0")?;
        let gateway =
            nth(self.plan.pods.v4.into(), 1).context("the bridge has the first address")?;
        let (mac, pods) = (&bridge.mac, self.plan.pods.v4);
        for line in [
            "-N AKS-DEDUP-PROMISC".to_owned(),
            format!("-A AKS-DEDUP-PROMISC -p IPv4 -s {mac} -o veth+ --ip-src {gateway} -j ACCEPT"),
            format!("-A AKS-DEDUP-PROMISC -p IPv4 -s {mac} -o veth+ --ip-src {pods} -j DROP"),
            "-A OUTPUT -j AKS-DEDUP-PROMISC".to_owned(),
        ] {
            let words: Vec<&str> = ["-t", "filter"]
                .into_iter()
                .chain(line.split(' '))
                .collect();
            self.netns.output("ebtables", words)?;
        }
        Ok(())
    }

    /// Writes kube-proxy's chains for these services.
    pub(super) fn sync_services(&self, services: &[Service]) -> Result<()> {
        let mut chains = lock(&self.chains);
        let mut written = lock(&self.written);
        for (at, family) in self.cluster.families().enumerate() {
            let locality = self.locality(family)?;
            if self.software.proxy == Proxy::Nftables {
                let no_family = "the family is the cluster's";
                let ground = Ground {
                    family,
                    locality,
                    services: self.cluster.services.of(family).context(no_family)?,
                    node: self.plan.address.of(family).context(no_family)?,
                };
                let after = nftables::blocks(&ground, services);
                let before = written[at].as_ref();
                nftables::load(&self.netns, &nftables::transaction(&ground, before, &after))?;
                written[at] = Some(after);
                continue;
            }
            self.restore(
                family,
                &proxy::sync(family, locality, services, &chains[at]),
            )?;
            chains[at] = proxy::chains(family, locality, services);
        }
        Ok(())
    }

    /// Writes these policy rules in place of those before.
    pub(super) fn sync_policies(&self, rules: &[PolicyRule]) -> Result<()> {
        let npm = rules.iter().any(PolicyRule::is_npm);
        if npm {
            self.jump_to_npm()?;
        }
        for family in self.cluster.families() {
            self.restore(family, &policy::render(family, rules))?;
            if npm || !self.npm.load(Ordering::SeqCst) {
                continue;
            }
            if self.software.engine == Engine::AzureNpm && Engine::AzureNpm.has(family) {
                self.idle_engine(family)?;
            } else {
                self.restore(family, "*filter\n:AZURE-NPM - [0:0]\nCOMMIT\n")?;
            }
        }
        Ok(())
    }

    /// Has the policy engine enforce these in place of those before.
    pub(super) fn enforce(&self, isolations: &[Isolation]) -> Result<()> {
        lock(&self.engaged)
            .enforce(&self.ground(), isolations)
            .with_context(|| format!("cannot enforce policies on {}", self.plan.name))
    }

    /// Has the policy engine enforce nothing any more.
    pub(super) fn stop_enforcing(&self) -> Result<()> {
        lock(&self.engaged).stop(&self.ground())
    }

    /// The packets that its policy engine has denied on a side since the policies were enforced: of pods that this
    /// policy (`namespace/policy`) selects, or in all. (Of Azure NPM see [`Engaged::denied`].)
    ///
    /// # Errors
    /// When nothing is enforced, or the counters cannot be read.
    pub fn denied_packets(&self, policy: Option<&str>, side: Side) -> Result<u64> {
        lock(&self.engaged).denied(&self.ground(), policy, side)
    }

    fn ground(&self) -> apply::Ground<'_> {
        let Software {
            backend,
            engine,
            deny,
            ..
        } = self.software;
        apply::Ground {
            netns: &self.netns,
            backend,
            families: self.cluster.families().collect(),
            flavour: self.cluster.flavour,
            engine,
            deny,
            pods: self.pods().iter().map(|pod| (&**pod).into()).collect(),
        }
    }

    fn locality(&self, family: Family) -> Result<Locality> {
        Ok(Locality {
            cluster: self
                .cluster
                .pods
                .of(family)
                .context("the family is the cluster's")?,
            node: self
                .plan
                .pods
                .of(family)
                .context("the family is the cluster's")?,
        })
    }

    /// Applies `iptables-restore --noflush` input of a test's own.
    ///
    /// # Errors
    /// When iptables refuses it.
    pub fn restore(&self, family: Family, text: &str) -> Result<()> {
        iptables::restore(&self.netns, self.software.backend, family, text)
    }

    /// All rules with their counters.
    ///
    /// # Errors
    /// When they cannot be read.
    pub fn rules(&self, family: Family) -> Result<Vec<Rule>> {
        iptables::rules(&self.netns, self.software.backend, family)
    }

    /// The packets that rules with this comment have matched, over both families.
    ///
    /// # Errors
    /// When there is no such rule.
    pub fn rule_packets(&self, comment: &str) -> Result<u64> {
        let mut found = Vec::new();
        for family in self.cluster.families() {
            found.extend(
                self.rules(family)?
                    .into_iter()
                    .filter(|rule| rule.comment() == Some(comment)),
            );
        }
        anyhow::ensure!(!found.is_empty(), "no rule has the comment {comment:?}");
        Ok(found.iter().map(|rule| rule.packets).sum())
    }

    /// The packets that AKS's rules have kept from a port of Azure's wireserver.
    ///
    /// # Errors
    /// When there is no such rule, as on kind.
    pub fn wireserver_packets(&self, port: u16) -> Result<u64> {
        let rules = self.rules(Family::V4)?;
        let port = format!("--dport {port} ");
        let mut ours = rules.iter().filter(|rule| {
            rule.spec.contains(&WIRESERVER.to_string()) && rule.spec.contains(&port)
        });
        let rule = ours.next().context("no rule keeps pods from there")?;
        Ok(rule.packets)
    }

    /// Counters of one of its interfaces.
    ///
    /// # Errors
    /// When there is no such interface.
    pub fn link(&self, name: &str) -> Result<LinkCounters> {
        counters::link(&self.netns, name)
    }

    /// Its conntrack entries with their counters.
    ///
    /// # Errors
    /// When they cannot be read.
    pub fn conntrack(&self) -> Result<Vec<ConntrackEntry>> {
        counters::conntrack(&self.netns)
    }
}

fn free_addresses(plan: &NodePlan) -> Vec<Addresses> {
    let address = |n| -> Option<Addresses> {
        let v4 = match nth(plan.pods.v4.into(), n)? {
            IpAddr::V4(ip) => ip,
            IpAddr::V6(_) => return None,
        };
        let v6 = plan.pods.v6.and_then(|range| match nth(range.into(), n) {
            Some(IpAddr::V6(ip)) => Some(ip),
            _ => None,
        });
        Some(Addresses { v4, v6 })
    };
    (4..254).rev().filter_map(address).collect()
}
