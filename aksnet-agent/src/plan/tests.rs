//! Lookups, and what tells plans apart.

use ipnet::IpNet;
use proptest::prelude::*;

use super::*;

fn addr(s: &str) -> Addr {
    s.parse::<IpAddr>().expect("an address").into()
}

fn net(s: &str) -> IpNet {
    s.parse().expect("a range")
}

fn plan() -> Plan {
    Plan::builder()
        .pod_cidr(net("10.244.0.0/16"))
        .pod_cidr(net("fd00:10:244::/56"))
        .local_pod_cidr(net("10.244.1.0/24"))
        .service_cidr(net("10.0.0.0/16"))
        .node_name("aks-1")
        .node_address("10.224.0.4".parse().expect("ip"))
        .node_address("10.244.1.1".parse().expect("ip"))
        .other_node("aks-2", "10.224.0.5".parse().expect("ip"))
        .node_cidr(net("10.224.0.0/24"))
        .vnet_cidr(net("10.224.0.0/12"))
        .named_cidr("on_premises", net("10.100.0.0/16"))
        .named_cidr("everything6", net("::/0"))
        .interface(7, Role::Pod, "veth7")
        .local_pod("10.244.1.9".parse().expect("ip"), 7)
        .build()
}

#[test]
fn longest_prefix_wins() {
    let plan = plan();
    for (address, place, name) in [
        ("10.244.2.3", Place::RemotePod, ""),
        ("10.244.1.3", Place::LocalPod, ""),
        ("10.244.1.1", Place::ThisNode, "node/aks-1"),
        ("10.224.0.4", Place::ThisNode, "node/aks-1"),
        ("10.224.0.5", Place::OtherNode, "node/aks-2"),
        ("10.224.0.6", Place::OtherNode, "node"),
        ("10.225.0.6", Place::Vnet, "vnet"),
        ("10.100.9.9", Place::Named, "on_premises"),
        ("10.0.0.1", Place::Service, ""),
        ("fd00:10:244::9", Place::RemotePod, ""),
    ] {
        let site = plan.site(addr(address));
        assert_eq!((site.place, plan.name(site)), (place, name), "of {address}");
    }
}

#[test]
fn addresses_outside_the_plan_are_told_apart_by_kind() {
    let plan = plan();
    for (address, place) in [
        ("1.1.1.1", Place::Internet),
        ("172.16.0.1", Place::Private),
        ("100.64.0.1", Place::Private),
        ("169.254.1.1", Place::Link),
        ("224.0.0.251", Place::Link),
        ("168.63.129.16", Place::Wireserver),
        ("169.254.169.254", Place::Metadata),
        ("169.254.20.10", Place::LocalDns),
    ] {
        assert_eq!(plan.place(addr(address)), place, "of {address}");
    }
    let plan = Plan::default();
    for (address, place) in [
        ("2001:db8::1", Place::Internet),
        ("fd12::1", Place::Private),
        ("fe80::1", Place::Link),
        ("ff02::2", Place::Link),
    ] {
        assert_eq!(plan.place(addr(address)), place, "of {address}");
    }
}

#[test]
fn an_ipv6_range_never_holds_an_ipv4_address() {
    let plan = plan();
    assert_eq!(plan.place(addr("8.8.8.8")), Place::Internet);
    assert_eq!(plan.place(addr("2001:db8::1")), Place::Named);
}

#[test]
fn a_node_address_stays_the_nodes_when_the_range_is_entered_later() {
    let plan = Plan::builder()
        .node_address("10.244.1.1".parse().expect("ip"))
        .local_pod("10.244.1.1".parse().expect("ip"), 3)
        .build();
    assert_eq!(plan.place(addr("10.244.1.1")), Place::ThisNode);
}

#[test]
fn the_id_tells_plans_apart_and_not_the_order_of_building() {
    let a = Plan::builder()
        .pod_cidr(net("10.244.0.0/16"))
        .service_cidr(net("10.0.0.0/16"));
    let b = Plan::builder()
        .service_cidr(net("10.0.0.0/16"))
        .pod_cidr(net("10.244.0.0/16"));
    assert_eq!(a.clone().build().id(), b.build().id());
    assert_ne!(
        a.clone().build().id(),
        a.interface(3, Role::Uplink, "eth0").build().id()
    );
}

#[test]
fn every_place_is_at_its_number() {
    for (number, place) in PLACES.iter().enumerate() {
        assert_eq!(*place as usize, number);
    }
}

proptest! {
    #[test]
    fn lookup_agrees_with_trying_every_range(
        nets in prop::collection::vec((any::<u32>(), 0u8..=32), 0..20),
        address in any::<u32>(),
    ) {
        let mut builder = Plan::builder();
        let nets: Vec<IpNet> = nets
            .iter()
            .map(|(a, l)| ipnet::Ipv4Net::new(Ipv4Addr::from(*a), *l).expect("a length").trunc().into())
            .collect();
        for net in &nets {
            builder = builder.named_cidr(&net.to_string(), *net);
        }
        let plan = builder.build();
        // Half of the time an address within one of the ranges.
        let address = match nets.first() {
            Some(IpNet::V4(n)) if address % 2 == 0 =>
                Ipv4Addr::from(u32::from(n.network()) | (address & !u32::from(n.netmask()))),
            _ => Ipv4Addr::from(address),
        };
        let best = nets.iter().filter(|n| n.contains(&IpAddr::V4(address))).max_by_key(|n| n.prefix_len());
        let site = plan.site(IpAddr::V4(address).into());
        if let Some(best) = best
            && best.prefix_len() < 32
            && site.place == Place::Named
        {
            prop_assert_eq!(plan.name(site), best.to_string());
        } else if best.is_none() {
            prop_assert_ne!(site.place, Place::Named);
        }
    }
}
