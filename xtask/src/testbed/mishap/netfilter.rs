//! Packets that a *rule* drops which is no policy's: AKS's own, kube-proxy's, an administrator's.

use std::net::{IpAddr, SocketAddr};

use anyhow::{Context as _, Result};

use super::{BOTH, Loss, Mishap, ONLY_V4, Sender};
use crate::testbed::bed::Testbed;
use crate::testbed::frame::{ACK, Packet, SYN};
use crate::testbed::plan::{Family, Flavour, IMDS, WIRESERVER};
use crate::testbed::proxy::Proxy;
use crate::testbed::service::{Service, Transport};
use crate::testbed::traffic::send_packets;

pub(super) const MISHAPS: &[Mishap] = &[
    Mishap::new(
        "wireserver",
        "azure_platform_block",
        ONLY_V4,
        |bed, family, packets| wireserver(bed, family, packets, 80),
    )
    .only_if(on_azure),
    Mishap::new(
        "wireserver certificates",
        "azure_platform_block",
        ONLY_V4,
        |bed, family, packets| wireserver(bed, family, packets, 32_526),
    )
    .only_if(on_azure),
    Mishap::new(
        "IMDS restriction",
        "azure_platform_block",
        ONLY_V4,
        |bed, family, packets| imds(bed, family, packets, "filter"),
    )
    .only_if(on_azure),
    Mishap::new(
        "IMDS restriction in mangle",
        "azure_platform_block",
        ONLY_V4,
        |bed, family, packets| imds(bed, family, packets, "mangle"),
    )
    .only_if(on_azure),
    Mishap::new("conntrack INVALID", "conntrack", BOTH, invalid)
        .only_if(|bed| bed.node().proxy() == Proxy::Iptables),
    Mishap::new("service without endpoints", "firewall", BOTH, no_endpoints),
    Mishap::new("source ranges", "firewall", BOTH, source_ranges),
    Mishap::new("administrator's rule", "firewall", BOTH, administrator),
];

fn on_azure(bed: &Testbed) -> bool {
    bed.plan().flavour != Flavour::Kind
}

/// Every AKS node keeps pods from Azure's wireserver.
fn wireserver(bed: &Testbed, family: Family, packets: u16, port: u16) -> Result<Loss> {
    let sender = Sender::new(bed, family);
    let to = SocketAddr::new(WIRESERVER.into(), port);
    sender.lose_syns(to, packets, "the rule", || {
        bed.node().wireserver_packets(port)
    })
}

/// What `AgentBaker`'s `ensure_imds_restriction.sh` writes where pods are to be kept from instance metadata.
fn imds(bed: &Testbed, family: Family, packets: u16, table: &str) -> Result<Loss> {
    const COMMENT: &str =
        "AKS managed: added by AgentBaker ensureIMDSRestriction for IMDS restriction feature";
    let sender = Sender::new(bed, family);
    let node = bed.node().ip();
    let rule = format!(
        "! -s {node} -d {IMDS}/32 -p tcp -m tcp --dport 80 -m comment --comment \"{COMMENT}\" -j DROP"
    );
    sender.with_rule([table, "FORWARD", &rule], || {
        let to = SocketAddr::new(IMDS.into(), 80);
        sender.lose_syns(to, packets, "the rule", || bed.node().rule_packets(COMMENT))
    })
}

/// Segments out of the blue, where connection tracking does not take them up.
fn invalid(bed: &Testbed, family: Family, packets: u16) -> Result<Loss> {
    let sender = Sender::new(bed, family);
    let to = sender.outside(443)?;
    let loose = |value: &str| {
        sender
            .node()
            .sysctl("net.netfilter.nf_conntrack_tcp_loose", value)
    };
    let dropped = || -> Result<u64> {
        let rules = bed.node().rules(family)?;
        let rule = rules
            .iter()
            .find(|rule| rule.chain == "KUBE-FORWARD" && rule.spec.contains("INVALID"))
            .context("kube-proxy drops what is invalid")?;
        Ok(rule.packets)
    };
    super::with(
        || loose("0"),
        || {
            let segment = Packet::tcp(sender.source(), to, ACK, super::number());
            sender.lose(
                (Transport::Tcp, to),
                &segment,
                packets,
                "KUBE-FORWARD",
                dropped,
            )
        },
        || loose("1"),
    )
}

/// A ClusterIP that nothing stands behind: rejected.
fn no_endpoints(bed: &Testbed, family: Family, packets: u16) -> Result<Loss> {
    let sender = Sender::new(bed, family);
    let service = Service::cluster_ip("shop", "nobody", 80);
    let service = bed.add_service(match family {
        Family::V4 => service,
        Family::V6 => service.v6(),
    })?;
    let to = service.address();
    super::with(
        || Ok(()),
        || {
            sender.with_every_error(|| {
                sender.lose_syns(to, packets, "ICMP errors", || sender.unreachable_sent())
            })
        },
        || bed.remove_service("shop", "nobody"),
    )
}

/// `loadBalancerSourceRanges` that the client is not in.
fn source_ranges(bed: &Testbed, family: Family, packets: u16) -> Result<Loss> {
    let sender = Sender::new(bed, family);
    let plan = bed.plan();
    let frontend = plan.load_balancer.of(family).context("a frontend")?;
    let to = SocketAddr::new(frontend, 8443);
    let (range, _) = sender.nowhere(1)?;
    let endpoint = SocketAddr::new(bed.pod(1).ip_of(family), 8080);
    let service = Service::load_balancer("shop", "guarded", to.port(), 30_443, frontend)
        .source_ranges([range])
        .endpoints([endpoint]);
    bed.add_service(service)?;
    let source = sender.outside(super::CLIENT_PORT)?;
    let dropped = || -> Result<(&'static str, u64)> {
        if bed.node().proxy() == Proxy::Nftables {
            // kube-proxy's rule has no counter; it stands before the routing decision.
            return Ok(("came and went no further", sender.vanished()?));
        }
        let rules = bed.node().rules(family)?;
        let mut ours = rules.iter().filter(|rule| {
            rule.chain == "KUBE-PROXY-FIREWALL" && rule.spec.contains("shop/guarded")
        });
        let rule = ours
            .next()
            .context("kube-proxy drops what is not in the ranges")?;
        Ok(("KUBE-PROXY-FIREWALL", rule.packets))
    };
    super::with(
        || Ok(()),
        || {
            let (counter, before) = dropped()?;
            send_packets(
                bed.outside(),
                &Packet::tcp(source, to, SYN, super::number()),
                packets,
            )?;
            bed.settle()?;
            Ok(Loss {
                packets: packets.into(),
                transport: Transport::Tcp,
                source,
                destination: to,
                interface: bed.node().uplink().to_owned(),
                counted: Some((counter, dropped()?.1 - before)),
            })
        },
        || bed.remove_service("shop", "guarded"),
    )
}

/// A rule of somebody's own.
fn administrator(bed: &Testbed, family: Family, packets: u16) -> Result<Loss> {
    const COMMENT: &str = "site firewall: no syslog to the internet";
    let sender = Sender::new(bed, family);
    let to = sender.outside(514)?;
    let ip: IpAddr = to.ip();
    let rule =
        format!("-d {ip} -p udp -m udp --dport 514 -m comment --comment \"{COMMENT}\" -j DROP");
    sender.with_rule(["filter", "FORWARD", &rule], || {
        sender.lose_datagrams(to, packets, "the rule", || bed.node().rule_packets(COMMENT))
    })
}
