//! What this node is, as far as its own kernel tells: interfaces and their roles, and the address plan.
//!
//! [`netlink`] reads and [`watch`] follows; what they give is a [`Snapshot`] of plain values. Everything
//! that is concluded from it ([`roles`], [`knowledge`], [`Node::describe`]) is pure.

// What the kernel says.
pub mod address;

pub mod link;

pub mod route;

pub mod netlink;

pub mod watch;

// What follows from it.
pub mod pattern;

pub mod interface;

pub mod roles;

pub mod knowledge;

// Who else works on it: the packet filter's rules, and what follows about CNI, proxy and policy engine.
pub mod rules;

pub mod found;

// What others on the node, or beside it, are asked.
pub(crate) mod http;

pub mod metadata;

pub mod pod_ips;

use std::{collections::BTreeSet, sync::Arc};

use crate::{config::Config, plan::Plan};

use ipnet::IpNet;

use address::Address;
use found::Found;
use interface::Interface;
use knowledge::Fact;
use link::Link;
use roles::{PassedOver, Watched};
use route::Route;

/// What the kernel said at one moment.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Snapshot {
    /// All links, by index.
    pub links: Vec<Link>,
    /// All addresses.
    pub addresses: Vec<Address>,
    /// The routes of the main table.
    pub routes: Vec<Route>,
    /// Indices that were deleted since the snapshot before. One that is here and in `links` is another
    /// device now, even under the old name.
    pub deleted: BTreeSet<u32>,
}

impl Snapshot {
    /// The link with this index.
    #[must_use]
    pub fn link(&self, index: u32) -> Option<&Link> {
        self.links.iter().find(|l| l.index == index)
    }
}

/// What is known beside the kernel's word: by surveys and by Kubernetes.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Context {
    /// What the node was found to be.
    pub found: Option<Found>,
    /// Where the cluster's pods live (`spec.podCIDRs` of all nodes).
    pub pod_cidrs: Vec<IpNet>,
    /// Where this node's pods live (`spec.podCIDRs` of this node).
    pub own_pod_cidrs: Vec<IpNet>,
}

/// What follows from a snapshot and the config.
#[derive(Clone, Debug)]
pub struct Node {
    /// The interfaces to watch, and why.
    pub watched: Vec<Watched>,
    /// The others, and why not.
    pub passed_over: Vec<PassedOver>,
    /// What the address plan rests on.
    pub facts: Vec<Fact>,
    /// The address plan.
    pub plan: Arc<Plan>,
}

impl Node {
    /// Concludes. `host_name` is this node's name where the config gives none.
    #[must_use]
    pub fn describe(
        snapshot: &Snapshot,
        config: &Config,
        host_name: &str,
        context: &Context,
    ) -> Self {
        let roles = roles::assign(snapshot, config);
        let facts = knowledge::gather(snapshot, &roles.watched, config, context);
        let name = if config.node_name.is_empty() {
            host_name
        } else {
            &config.node_name
        };
        let found = context.found.as_ref();
        let plan = Arc::new(knowledge::plan(
            &facts,
            &roles.watched,
            &snapshot.links,
            name,
            found,
        ));
        Self {
            watched: roles.watched,
            passed_over: roles.passed_over,
            facts,
            plan,
        }
    }

    /// The interfaces to watch.
    pub fn interfaces(&self) -> impl Iterator<Item = &Interface> {
        self.watched.iter().map(|w| &w.interface)
    }
}

#[cfg(test)]
pub(crate) mod tests {
    //! Builders of nodes as they are in the field; see DOMAIN 1.2 to 1.6.
    use super::{route::RouteKind, *};
    use aksnet_common::packet;

    /// A link with the usual properties.
    pub(crate) fn link(index: u32, name: &str, kind: &str) -> Link {
        Link {
            index,
            name: name.to_owned(),
            kind: kind.to_owned(),
            master: None,
            peer_elsewhere: false,
            layer: Some(packet::Link::Ethernet),
            loopback: false,
            up: true,
            mac: vec![2, 0, 0, 0, 0, 1],
            below: None,
        }
    }

    /// The host side of a pod's veth.
    pub(crate) fn veth(index: u32, name: &str) -> Link {
        Link {
            peer_elsewhere: true,
            ..link(index, name, "veth")
        }
    }

    pub(crate) fn port(link: Link, master: u32) -> Link {
        Link {
            master: Some(master),
            ..link
        }
    }

    pub(crate) fn lo() -> Link {
        Link {
            loopback: true,
            ..link(1, "lo", "")
        }
    }

    pub(crate) fn address(index: u32, net: &str) -> Address {
        Address {
            index,
            net: net.parse().unwrap(),
        }
    }

    /// `to` may be `default` or `default6`; `via` may be empty.
    pub(crate) fn route(to: &str, via: &str, device: u32) -> Route {
        let to = match to {
            "default" => "0.0.0.0/0",
            "default6" => "::/0",
            other => other,
        };
        Route {
            to: to.parse().unwrap(),
            kind: RouteKind::Unicast,
            hops: vec![(device, via.parse().ok())],
            bird: false,
        }
    }

    pub(crate) fn kubenet() -> Snapshot {
        Snapshot {
            links: vec![
                lo(),
                link(2, "eth0", ""),
                // Accelerated networking: the virtual function under eth0.
                port(link(3, "enP1s1", ""), 2),
                link(4, "cbr0", "bridge"),
                port(veth(5, "veth1a2b3c4d"), 4),
                port(veth(6, "veth99887766"), 4),
            ],
            addresses: vec![
                address(1, "127.0.0.1/8"),
                address(2, "10.224.0.4/16"),
                address(2, "fe80::1/64"),
                address(4, "10.244.0.1/24"),
            ],
            routes: vec![
                route("default", "10.224.0.1", 2),
                route("10.224.0.0/16", "", 2),
                route("10.244.0.0/24", "", 4),
                route("168.63.129.16/32", "10.224.0.1", 2),
                route("169.254.169.254/32", "10.224.0.1", 2),
            ],
            ..Snapshot::default()
        }
    }

    pub(crate) fn kind() -> Snapshot {
        Snapshot {
            links: vec![
                lo(),
                // In a kind node eth0 is itself a veth whose peer lives in the host's namespace.
                veth(2, "eth0"),
                veth(3, "veth0a0a0a0a"),
                veth(4, "veth0b0b0b0b"),
            ],
            addresses: vec![
                address(2, "172.18.0.2/16"),
                address(2, "fc00:f853:ccd:e793::2/64"),
                address(3, "10.244.0.1/32"),
                address(4, "10.244.0.1/32"),
            ],
            routes: vec![
                route("default", "172.18.0.1", 2),
                route("default6", "fc00:f853:ccd:e793::1", 2),
                route("172.18.0.0/16", "", 2),
                route("10.244.0.2/32", "", 3),
                route("10.244.0.3/32", "", 4),
                route("10.244.1.0/24", "172.18.0.3", 2),
                route("10.244.2.0/24", "172.18.0.4", 2),
                route("fd00:10:244:1::/64", "fc00:f853:ccd:e793::3", 2),
            ],
            ..Snapshot::default()
        }
    }

    pub(crate) fn azure_transparent() -> Snapshot {
        Snapshot {
            links: vec![
                lo(),
                link(2, "eth0", ""),
                veth(3, "azv0123456789a"),
                // Created a moment ago: no route yet.
                veth(4, "azvfedcba98765"),
            ],
            addresses: vec![address(2, "10.224.0.4/16")],
            routes: vec![
                route("default", "10.224.0.1", 2),
                route("10.224.0.10/32", "", 3),
            ],
            ..Snapshot::default()
        }
    }

    pub(crate) mod netns {
        //! A network namespace of the test's own: nothing outside is read or changed.
        use std::{
            fs::File,
            os::fd::{AsRawFd, RawFd},
            sync::mpsc,
            thread,
        };

        use nix::sched::{CloneFlags, unshare};

        /// Runs `test` in a thread with a fresh network namespace, on a runtime of that thread alone. It is
        /// given a second namespace, for the other ends of veths. Prints why, when it cannot.
        pub(crate) fn run<F: Future<Output = ()>>(test: impl FnOnce(RawFd) -> F + Send) {
            if !nix::unistd::geteuid().is_root() {
                eprintln!("skipped: needs root, to create a network namespace");
                return;
            }
            thread::scope(|scope| {
                let (other, take) = mpsc::channel();
                let (done, wait) = mpsc::channel::<()>();
                scope.spawn(move || {
                    let namespace = unshare(CloneFlags::CLONE_NEWNET)
                        .map(|()| File::open("/proc/thread-self/ns/net").expect("/proc"));
                    other.send(namespace).expect("the test waits for it");
                    let _ended = wait.recv();
                });
                let test = scope.spawn(move || {
                    let pod = match take.recv().expect("the other thread sends it") {
                        Ok(pod) => pod,
                        Err(error) => {
                            eprintln!("skipped: no network namespace can be created here: {error}");
                            return;
                        }
                    };
                    unshare(CloneFlags::CLONE_NEWNET).expect("as the other thread's");
                    tokio::runtime::Builder::new_current_thread()
                        .enable_all()
                        .build()
                        .expect("a runtime")
                        .block_on(test(pod.as_raw_fd()));
                });
                let result = test.join();
                drop(done);
                if let Err(panic) = result {
                    std::panic::resume_unwind(panic);
                }
            });
        }
    }

    #[test]
    fn a_node_is_described_from_one_snapshot() {
        let node = Node::describe(&kubenet(), &Config::default(), "aks-1", &Context::default());
        let names: Vec<&str> = node.interfaces().map(|i| i.name.as_str()).collect();
        assert_eq!(names, ["eth0", "veth1a2b3c4d", "veth99887766"]);
        let own = node
            .plan
            .site(std::net::IpAddr::from([10, 244, 0, 1]).into());
        assert_eq!(node.plan.name(own), "node/aks-1");
    }
}
