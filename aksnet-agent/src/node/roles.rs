//! Which links are watched, and as what: uplinks and the host sides of pods' interfaces. One packet shall
//! meet one ENTER and one EXIT, so of devices that carry the same packet only one is watched: a bridge's
//! ports and not the bridge; the bond and not its members; eth0 and not the virtual function below it.

use std::collections::BTreeMap;

use aksnet_common::stats::Role;

use super::{Snapshot, interface::Interface, link::Link};
use crate::{
    config::{Config, suggest},
    exit::{Exit, Failure},
};

/// Masters whose ports see packets of their own; a member of any other master shows its master's.
const BRIDGING: [&str; 3] = ["bridge", "openvswitch", "vrf"];

/// Names that CNI plugins give the host side of a pod's interface (DOMAIN 1.4 to 1.6).
const POD_NAMES: [&str; 3] = ["azv", "cali", "lxc"];

/// A link that is watched.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Watched {
    /// The interface.
    pub interface: Interface,
    /// What told that it is one.
    pub why: String,
}

/// A link that is not watched.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PassedOver {
    /// Its name.
    pub name: String,
    /// Why not.
    pub why: String,
}

/// Every link is in one of the two.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Roles {
    /// To watch, by index.
    pub watched: Vec<Watched>,
    /// Not to.
    pub passed_over: Vec<PassedOver>,
}

/// Gives every link its role.
#[must_use]
pub fn assign(snapshot: &Snapshot, config: &Config) -> Roles {
    let uplinks = if config.uplink.is_empty() {
        default_devices(snapshot)
    } else {
        BTreeMap::new()
    };
    let mut roles = Roles::default();
    for link in &snapshot.links {
        match role(link, snapshot, config, &uplinks) {
            Ok((role, why)) => {
                let Some(layer) = link.layer else {
                    roles.passed_over.push(PassedOver {
                        name: link.name.clone(),
                        why: "its frames are neither Ethernet nor plain IP".to_owned(),
                    });
                    continue;
                };
                roles.watched.push(Watched {
                    interface: Interface {
                        index: link.index,
                        name: link.name.clone(),
                        role,
                        link: layer,
                        bridge: link
                            .master
                            .filter(|&index| snapshot.link(index).is_some_and(Link::is_bridge)),
                    },
                    why,
                });
            }
            Err(why) => roles.passed_over.push(PassedOver {
                name: link.name.clone(),
                why,
            }),
        }
    }
    roles
}

/// One ordered chain: the first rule that fits decides.
fn role(
    link: &Link,
    snapshot: &Snapshot,
    config: &Config,
    uplinks: &BTreeMap<u32, String>,
) -> Result<(Role, String), String> {
    if link.loopback {
        return Err("loopback".to_owned());
    }
    if link.is_bridge() {
        return Err("a bridge: its ports are watched".to_owned());
    }
    if config.uplink.contains(&link.name) {
        return Ok((Role::Uplink, "named by uplink".to_owned()));
    }
    if let Some(why) = uplinks.get(&link.index) {
        return Ok((Role::Uplink, why.clone()));
    }
    let master = link.master.and_then(|index| snapshot.link(index));
    if let Some(pattern) = config.pod_interface.iter().find(|p| p.matches(&link.name)) {
        return Ok((Role::Pod, format!("fits pod_interface '{pattern}'")));
    }
    if let Some(master) = master
        && !BRIDGING.contains(&master.kind.as_str())
    {
        return Err(format!(
            "a member of {}, which carries its packets",
            master.name
        ));
    }
    if !config.pod_interface.is_empty() {
        return Err("fits no pod_interface".to_owned());
    }
    if !link.is_pair() {
        return Err("neither a default route's device nor a pod's".to_owned());
    }
    if POD_NAMES.iter().any(|prefix| link.name.starts_with(prefix)) {
        return Ok((Role::Pod, format!("{} with a CNI plugin's name", link.kind)));
    }
    if !link.peer_elsewhere {
        return Err("both ends are in this network namespace".to_owned());
    }
    if let Some(master) = master {
        return Ok((
            Role::Pod,
            format!(
                "{} into another namespace, port of {}",
                link.kind, master.name
            ),
        ));
    }
    let to = snapshot
        .routes
        .iter()
        .find(|r| r.is_host() && r.hops.iter().any(|(device, _)| *device == link.index));
    match to {
        Some(route) => Ok((
            Role::Pod,
            format!(
                "{} into another namespace, route to {}",
                link.kind,
                route.to.addr()
            ),
        )),
        None => {
            Err("leads into another namespace, but no bridge and no route leads to it".to_owned())
        }
    }
}

/// The devices of the default routes; of a bridge (Azure CNI's bridge mode, a virtual machine host) the
/// ports that lead out.
fn default_devices(snapshot: &Snapshot) -> BTreeMap<u32, String> {
    let mut devices = BTreeMap::new();
    for route in snapshot.routes.iter().filter(|r| r.is_default()) {
        let family = if route.to.addr().is_ipv4() {
            "IPv4"
        } else {
            "IPv6"
        };
        for link in route
            .hops
            .iter()
            .filter_map(|(index, _)| snapshot.link(*index))
        {
            if link.is_bridge() {
                for port in &snapshot.links {
                    if port.master == Some(link.index) && !port.is_pair() {
                        let why =
                            format!("{family} default route through its bridge {}", link.name);
                        devices.entry(port.index).or_insert(why);
                    }
                }
            } else {
                devices
                    .entry(link.index)
                    .or_insert(format!("{family} default route"));
            }
        }
    }
    devices
}

/// Whether the interfaces that the config names exist. Only asked at start: later they may come and go.
///
/// # Errors
/// Names the first that does not exist, or that cannot be watched, and what would be right.
pub fn check_named(snapshot: &Snapshot, config: &Config) -> Result<(), Failure> {
    let uplinks = config.uplink.iter().map(|name| ("uplink", name.as_str()));
    let pods = config
        .pod_interface
        .iter()
        .filter(|p| !p.is_glob())
        .map(|p| ("pod-interface", p.as_str()));
    for (flag, name) in uplinks.chain(pods) {
        let names = || snapshot.links.iter().map(|l| l.name.as_str());
        let Some(link) = snapshot.links.iter().find(|l| l.name == name) else {
            return Err(Failure::new(
                Exit::NoInput,
                format_args!(
                    "--{flag}: this node has no interface '{name}'{}; it has {}",
                    suggest::hint(name, names()),
                    names().collect::<Vec<_>>().join(", ")
                ),
            ));
        };
        if link.is_bridge() {
            let ports: Vec<&str> = snapshot
                .links
                .iter()
                .filter(|l| l.master == Some(link.index))
                .map(|l| l.name.as_str())
                .collect();
            return Err(Failure::new(
                Exit::Usage,
                format_args!(
                    "--{flag}: '{name}' is a bridge, whose packets all pass one of its ports as well \
                     and would be counted twice; name the ports instead ({})",
                    if ports.is_empty() {
                        "it has none now".to_owned()
                    } else {
                        ports.join(", ")
                    }
                ),
            ));
        }
        if link.loopback || link.layer.is_none() {
            return Err(Failure::new(
                Exit::Usage,
                format_args!(
                    "--{flag}: '{name}' cannot be watched: its frames are neither Ethernet nor plain IP"
                ),
            ));
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::node::{
        pattern::Pattern,
        tests::{azure_transparent, kind, kubenet, link, lo, port, route, veth},
    };

    fn watched(snapshot: &Snapshot, config: &Config) -> Vec<(String, Role)> {
        assign(snapshot, config)
            .watched
            .into_iter()
            .map(|w| (w.interface.name, w.interface.role))
            .collect()
    }

    fn names(snapshot: &Snapshot, config: &Config, role: Role) -> Vec<String> {
        watched(snapshot, config)
            .into_iter()
            .filter(|(_, r)| *r == role)
            .map(|(name, _)| name)
            .collect()
    }

    fn why_not(snapshot: &Snapshot, name: &str) -> String {
        assign(snapshot, &Config::default())
            .passed_over
            .into_iter()
            .find(|p| p.name == name)
            .map(|p| p.why)
            .unwrap()
    }

    #[test]
    fn kubenet_watches_eth0_and_the_bridges_ports() {
        let node = kubenet();
        let config = Config::default();
        assert_eq!(names(&node, &config, Role::Uplink), ["eth0"]);
        assert_eq!(
            names(&node, &config, Role::Pod),
            ["veth1a2b3c4d", "veth99887766"]
        );
        assert_eq!(why_not(&node, "cbr0"), "a bridge: its ports are watched");
        assert_eq!(
            why_not(&node, "enP1s1"),
            "a member of eth0, which carries its packets"
        );
    }

    #[test]
    fn a_kind_nodes_eth0_is_an_uplink_although_it_is_a_veth() {
        let node = kind();
        let config = Config::default();
        assert_eq!(names(&node, &config, Role::Uplink), ["eth0"]);
        assert_eq!(
            names(&node, &config, Role::Pod),
            ["veth0a0a0a0a", "veth0b0b0b0b"]
        );
    }

    #[test]
    fn azure_veths_are_known_by_name_before_their_route_is_there() {
        let node = azure_transparent();
        assert_eq!(
            names(&node, &Config::default(), Role::Pod),
            ["azv0123456789a", "azvfedcba98765"]
        );
    }

    #[test]
    fn a_veth_without_route_or_bridge_is_nobodys() {
        let mut node = kind();
        node.routes.retain(|r| r.to.to_string() != "10.244.0.3/32");
        assert!(why_not(&node, "veth0b0b0b0b").starts_with("leads into another namespace, but"));
        node.links[3].peer_elsewhere = false;
        assert_eq!(
            why_not(&node, "veth0b0b0b0b"),
            "both ends are in this network namespace"
        );
    }

    #[test]
    fn bridge_mode_watches_the_physical_port_of_the_default_routes_bridge() {
        let node = Snapshot {
            links: vec![
                lo(),
                port(link(2, "eth0", ""), 4),
                link(4, "azure0", "bridge"),
                port(veth(5, "azv11111111111"), 4),
                port(veth(6, "veth5"), 4),
            ],
            routes: vec![route("default", "10.224.0.1", 4)],
            ..Snapshot::default()
        };
        let config = Config::default();
        assert_eq!(names(&node, &config, Role::Uplink), ["eth0"]);
        assert_eq!(
            names(&node, &config, Role::Pod),
            ["azv11111111111", "veth5"]
        );
    }

    #[test]
    fn a_bond_is_watched_and_its_members_are_not() {
        let node = Snapshot {
            links: vec![
                port(link(2, "eth0", ""), 4),
                port(link(3, "eth1", ""), 4),
                link(4, "bond0", "bond"),
            ],
            routes: vec![route("default6", "fe80::1", 4)],
            ..Snapshot::default()
        };
        assert_eq!(
            watched(&node, &Config::default()),
            [("bond0".to_owned(), Role::Uplink)]
        );
        assert_eq!(
            why_not(&node, "eth1"),
            "a member of bond0, which carries its packets"
        );
    }

    #[test]
    fn named_interfaces_replace_what_would_be_found() {
        let node = kubenet();
        let config = Config {
            uplink: vec!["veth1a2b3c4d".into()],
            pod_interface: vec![Pattern::new("veth*").unwrap()],
            ..Config::default()
        };
        assert_eq!(names(&node, &config, Role::Uplink), ["veth1a2b3c4d"]);
        assert_eq!(names(&node, &config, Role::Pod), ["veth99887766"]);
    }

    #[test]
    fn unreadable_frames_are_passed_over() {
        let mut node = kubenet();
        node.links[1].layer = None;
        assert_eq!(
            why_not(&node, "eth0"),
            "its frames are neither Ethernet nor plain IP"
        );
    }

    #[test]
    fn an_unknown_name_is_answered_with_the_nearest() {
        let config = Config {
            uplink: vec!["eht0".into()],
            ..Config::default()
        };
        let failure = check_named(&kubenet(), &config).unwrap_err();
        assert_eq!(failure.exit, Exit::NoInput);
        let text = failure.to_string();
        assert!(
            text.starts_with("--uplink: this node has no interface 'eht0'; did you mean 'eth0'?; it has lo, eth0,"),
            "{text}"
        );
    }

    #[test]
    fn a_bridge_cannot_be_named_and_a_glob_need_not_fit() {
        let config = |pattern: &str| Config {
            pod_interface: vec![Pattern::new(pattern).unwrap()],
            ..Config::default()
        };
        let failure = check_named(&kubenet(), &config("cbr0")).unwrap_err();
        assert_eq!(failure.exit, Exit::Usage);
        assert!(failure.to_string().contains("(veth1a2b3c4d, veth99887766)"));
        assert!(check_named(&kubenet(), &config("azv*")).is_ok());
        assert!(check_named(&kubenet(), &config("lo")).is_err());
    }
}
