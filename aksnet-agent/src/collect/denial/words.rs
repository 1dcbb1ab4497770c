//! The reasoning of a drop in words, for the drop log. One line, no full stop.

use super::{Asked, Judged};
use crate::{
    classify::Whois,
    collect::{
        attribute::{Attribution, Because},
        cause::Cause,
    },
    plan::Place,
    policy::{engine::Engine, model::Side},
};

/// Why a packet was dropped.
pub(in crate::collect) fn words(
    attribution: Attribution,
    engine: Engine,
    judged: Option<&Judged>,
    asked: &Asked,
    whois: &Whois,
) -> String {
    let said = |side: Side| judged.map_or("", |judged| judged.side(side).words.as_str());
    match attribution.because {
        Because::Reason => by_reason(attribution.cause).to_owned(),
        Because::PlatformBlock => match asked.dst.1.place() {
            Place::Metadata => "AKS keeps pods from the instance metadata service".to_owned(),
            _ => "AKS keeps pods from the wireserver".to_owned(),
        },
        Because::Invalid => "conntrack can place it in no connection (INVALID), and a rule drops such packets".to_owned(),
        Because::TableFull => "the conntrack table is full".to_owned(),
        Because::Clash => {
            "another connection took the translated source port first (SNAT clash)".to_owned()
        }
        Because::Denied(side) => said(side).to_owned(),
        Because::Likely(side) => format!("{} (labels of the other end are not known)", said(side)),
        Because::Unexplained(side) => format!(
            "{} marked it as denied by an {} policy, but no policy that is known denies it: stale rules, or a policy of \
             another kind",
            engine.title(),
            side.name()
        ),
        Because::Refused => {
            "a program in user space refused it (NFQUEUE), and no network policy that is known denies it".to_owned()
        }
        Because::NotQueued => {
            "it could not be queued for a program in user space (NFQUEUE): none is there, or its queue is full".to_owned()
        }
        Because::Service => service(asked, whois),
        // kube-proxy rejects what is for a node port without an endpoint.
        Because::Rule if is_node_port(asked, whois) => service(asked, whois),
        Because::Rule => "a netfilter rule dropped it, and no network policy explains that".to_owned(),
    }
}

const fn by_reason(cause: Cause) -> &'static str {
    match cause {
        Cause::Policy => "a network policy denies it",
        Cause::AzurePlatformBlock => "AKS keeps pods from it",
        Cause::Conntrack => "connection tracking refused it",
        Cause::Nat => "address translation failed",
        Cause::Route => "there is no route to it, or one that refuses",
        Cause::Neighbour => "the next hop does not answer (ARP or neighbour discovery)",
        Cause::RpFilter => "its source could not have come in there (rp_filter)",
        Cause::Socket => "no socket takes it, or the socket's buffer is full",
        Cause::Queue => "a queue in front of a device or processor is full",
        Cause::Ttl => "its time to live is over: too many hops, or a loop",
        Cause::Mtu => "it is larger than the way out takes, and may not be fragmented",
        Cause::Firewall => "netfilter dropped it",
        Cause::Other => "",
    }
}

fn is_node_port(asked: &Asked, whois: &Whois) -> bool {
    let to_node = asked.dst.1.place() == Place::ThisNode;
    to_node && whois.index.node_port(asked.protocol, asked.port).is_some()
}

/// Addressed to a service, and not translated: kube-proxy translates whatever has an endpoint and may pass.
fn service(asked: &Asked, whois: &Whois) -> String {
    let (address, _) = asked.dst;
    let Some(service) = whois.index.service_at(address, asked.protocol, asked.port) else {
        return "it was addressed to a service that the node does not translate: no such port, or no endpoint".to_owned();
    };
    let name = format!("{}/{}", service.namespace, service.name);
    let client: std::net::IpAddr = asked.src.0.into();
    let ranges = &service.source_ranges;
    if service.frontends.contains(&address)
        && !ranges.is_empty()
        && !ranges.iter().any(|range| range.contains(&client))
    {
        return format!("loadBalancerSourceRanges of service {name} do not have {client}");
    }
    if service.local {
        return format!(
            "service {name} has no endpoint, or with its traffic policy Local none on this node"
        );
    }
    format!("service {name} has no endpoint")
}
