//! A *builder* says what a testbed is to be like, and builds it from the fabric inwards: hosts, nodes, pods.

use std::sync::{Arc, Mutex};

use anyhow::{Result, ensure};
use ipnet::IpNet;

use super::bed::{Testbed, is_root};
use super::cni::Hairpin;
use super::enforce::DenyAction;
use super::engine::Engine;
use super::fabric::{self, Fabric};
use super::iptables::Backend;
use super::netns::Netns;
use super::node::{Node, Software};
use super::plan::{Flavour, Plan};
use super::proxy::Proxy;
use super::record::Record;

/// Names of the first pods of a node; later ones are numbered.
const WORKLOADS: [&str; 6] = ["frontend", "web", "db", "batch", "cache", "search"];

/// What a testbed is to be like.
#[derive(Debug, Clone)]
pub struct Builder {
    flavour: Flavour,
    dual_stack: bool,
    pods: usize,
    remote_pods: usize,
    offloads: bool,
    software: Software,
}

impl Builder {
    /// A cluster of this flavour with the defaults.
    pub(super) fn new(flavour: Flavour) -> Self {
        Self {
            flavour,
            dual_stack: false,
            pods: 2,
            remote_pods: 1,
            offloads: true,
            software: Software {
                backend: Backend::Nft,
                hairpin: Hairpin::Promiscuous,
                proxy: Proxy::Iptables,
                engine: Engine::None,
                deny: DenyAction::Drop,
                spared: None,
            },
        }
    }

    /// IPv6 besides IPv4. Default: no.
    #[must_use]
    pub fn dual_stack(self, dual_stack: bool) -> Self {
        Self { dual_stack, ..self }
    }

    /// How many pods the node under test begins with. Default: 2.
    #[must_use]
    pub fn pods(self, pods: usize) -> Self {
        Self { pods, ..self }
    }

    /// How many pods the second node begins with. Default: 1.
    #[must_use]
    pub fn remote_pods(self, remote_pods: usize) -> Self {
        Self {
            remote_pods,
            ..self
        }
    }

    /// Where iptables keeps its rules. Default: `nf_tables`.
    #[must_use]
    pub fn backend(mut self, backend: Backend) -> Self {
        self.software.backend = backend;
        self
    }

    /// Which rules kube-proxy writes. Default: iptables.
    #[must_use]
    pub fn proxy(mut self, proxy: Proxy) -> Self {
        self.software.proxy = proxy;
        self
    }

    /// Which policy engine is installed, without a policy to enforce. Default: none.
    #[must_use]
    pub fn engine(mut self, engine: Engine) -> Self {
        self.software.engine = engine;
        self
    }

    /// What the policy engine does with what it denies. Default: drop. Only Calico can do otherwise.
    #[must_use]
    pub fn deny_action(mut self, deny: DenyAction) -> Self {
        self.software.deny = deny;
        self
    }

    /// The `nonMasqueradeCIDRs` of the masquerade agent. Default: the pod range, or the VNet where pods have its
    /// addresses. None at all makes even pod-to-pod traffic leave with the node's address; a range that is too wide
    /// lets pods out with an address that nobody can answer.
    #[must_use]
    pub fn spared(mut self, ranges: impl IntoIterator<Item = IpNet>) -> Self {
        self.software.spared = Some(ranges.into_iter().collect());
        self
    }

    /// Whether GRO, GSO and TSO are on. Default: yes, as the kernel has it.
    #[must_use]
    pub fn offloads(self, offloads: bool) -> Self {
        Self { offloads, ..self }
    }

    /// kubenet with hairpin mode on the bridge's ports in place of the promiscuous bridge that AKS configures
    /// (see [`Hairpin`]). Without effect on other flavours.
    #[must_use]
    pub fn hairpin(mut self, hairpin: Hairpin) -> Self {
        self.software.hairpin = hairpin;
        self
    }

    /// Builds it.
    ///
    /// # Errors
    /// When the caller is not root, a program is missing (`cargo xtask setup`), or the kernel refuses a step.
    /// What was made until then is removed.
    pub fn build(self) -> Result<Testbed> {
        ensure!(
            is_root(),
            "the testbed makes network namespaces: root is needed"
        );
        ensure!(
            self.software.deny == DenyAction::Drop || self.software.engine == Engine::Calico,
            "only Calico rejects what it denies: choose it with Builder::engine"
        );
        let plan = Plan::new(self.flavour, self.dual_stack);
        let record = Arc::new(Record::create()?);
        let create = |role: &str| -> Result<Netns> {
            let netns = Netns::create(&record, role)?;
            fabric::prepare(&netns, self.dual_stack)?;
            Ok(netns)
        };
        let fabric = Fabric::build(&plan, create)?;
        let mut nodes = Vec::new();
        for (index, host) in ["node", "node2"].into_iter().enumerate() {
            let netns = create(host)?;
            fabric.attach(&plan, host, &netns, plan.nodes[index].address)?;
            for (range, address) in plan.nodes[index]
                .pods
                .iter()
                .zip(plan.nodes[index].address.iter())
            {
                fabric.route(&range.to_string(), host, address)?;
            }
            let root = record.make_directory(host)?;
            nodes.push(Node::build(
                &plan,
                index,
                netns,
                self.software.clone(),
                root,
            )?);
        }
        let nodes =
            <[Node; 2]>::try_from(nodes).map_err(|_| anyhow::anyhow!("two nodes were built"))?;
        if self.flavour == Flavour::Kind {
            route_between(&plan, &nodes, &fabric)?;
        }
        let bed = Testbed {
            plan,
            nodes,
            fabric,
            offloads: self.offloads,
            services: Mutex::default(),
            fillers: Mutex::default(),
            balancer: Mutex::default(),
            policies: Mutex::default(),
            record,
        };
        bed.balance_to(0)?;
        if !self.offloads {
            bed.set_offloads(false)?;
        }
        for at in 0..self.pods {
            bed.add_pod(&workload(at))?;
        }
        for at in 0..self.remote_pods {
            bed.add_remote_pod(&workload(at))?;
        }
        Ok(bed)
    }
}

/// kindnet's routes: each node reaches the other's pods by the other's address.
fn route_between(plan: &Plan, nodes: &[Node; 2], fabric: &Fabric) -> Result<()> {
    for (node, host, other) in [(0, "node", 1), (1, "node2", 0)] {
        let other = plan.nodes[other];
        for (range, address) in other.pods.iter().zip(other.address.iter()) {
            if address.is_ipv6() {
                fabric.answer_for(address, host)?;
            }
            nodes[node].netns().ip([format!(
                "route replace {range} via {address} dev eth0 onlink"
            )])?;
        }
    }
    Ok(())
}

fn workload(at: usize) -> String {
    let name = WORKLOADS[at % WORKLOADS.len()];
    if at < WORKLOADS.len() {
        name.to_owned()
    } else {
        format!("{name}-{}", at / WORKLOADS.len() + 1)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn workloads_have_names_of_their_own() {
        let names: std::collections::BTreeSet<String> = (0..20).map(workload).collect();
        assert_eq!(names.len(), 20);
        assert_eq!(
            (workload(1), workload(7)),
            ("web".to_owned(), "web-2".to_owned())
        );
    }
}
