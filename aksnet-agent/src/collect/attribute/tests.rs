//! One test for each kind of evidence.

use aksnet_common::packet::{TCP, UDP};

use super::*;

/// A packet past routing with this conntrack info, whose entry has this status.
const fn entry(info: u32, status: u32) -> DropState {
    let read = DropState::CT_READ | DropState::ENTRY | DropState::ENTRY_READ;
    DropState(read | ROUTED | info << DropState::INFO_SHIFT | status)
}

const ROUTED: u32 = DropState::ROUTE_READ | DropState::ROUTED;
const NO_ENTRY: DropState = DropState(DropState::CT_READ | ROUTED);

/// A new connection from one pod of this node to another, dropped by a rule in FORWARD.
fn forwarded(engine: Engine) -> Evidence<'static> {
    Evidence {
        reason: "netfilter_drop",
        symbol: "nft_do_chain",
        mark: 0,
        engine,
        state: entry(2, 0),
        source_translated: false,
        tracking: true,
        table_full: Some(false),
        ttl: 63,
        dst: Place::LocalPod,
        dst_port: 8080,
        protocol: TCP,
        egress: Opinion::None,
        ingress: Opinion::None,
    }
}

fn found(evidence: Evidence) -> (Cause, Because) {
    let Attribution { cause, because } = attribute(&evidence);
    (cause, because)
}

#[test]
fn npms_mark_names_the_direction_whatever_the_policies_say() {
    use Opinion::{Allows, Denies, None, Undetermined};
    let base = forwarded(Engine::AzureNpm);
    let of = |mark, egress, ingress| {
        found(Evidence {
            mark,
            egress,
            ingress,
            ..base
        })
    };
    let (ingress, egress) = (Side::Ingress, Side::Egress);
    for (mark, e, i, because) in [
        (0x400, None, Denies, Because::Denied(ingress)),
        (0x800, Denies, None, Because::Denied(egress)),
        // Both isolate it: ingress is judged first, unless a rule allows that.
        (0xc00, Denies, Denies, Because::Denied(ingress)),
        (0xe00, Denies, Allows, Because::Denied(egress)),
        (0x400, None, Undetermined, Because::Likely(ingress)),
        (0x400, None, Allows, Because::Unexplained(ingress)),
    ] {
        assert_eq!(of(mark, e, i), (Cause::Policy, because), "{mark:#x}");
    }
    // Marked for ingress and allowed there, and no egress mark: another rule.
    let other = (Cause::Firewall, Because::Rule);
    assert_eq!(of(0x600, None, Allows), other);
    assert_eq!(of(0x4000, None, Denies), other);
    assert_eq!(of(0, Denies, Denies), other);
}

#[test]
fn calicos_drop_is_a_policys_if_the_policies_deny_a_new_connection() {
    let base = forwarded(Engine::Calico);
    let denied = Evidence {
        ingress: Opinion::Denies,
        ..base
    };
    let policy = (Cause::Policy, Because::Denied(Side::Ingress));
    assert_eq!(found(denied), policy);
    let legacy = Evidence {
        symbol: "nf_hook_slow",
        ..denied
    };
    assert_eq!(found(legacy), policy);
    let unsure = Evidence {
        ingress: Opinion::Undetermined,
        ..base
    };
    assert_eq!(
        found(unsure),
        (Cause::Policy, Because::Likely(Side::Ingress))
    );
    let established = Evidence {
        state: entry(0, DropState::CONFIRMED),
        ..denied
    };
    for not in [
        established,
        base,
        Evidence {
            ingress: Opinion::Allows,
            ..base
        },
    ] {
        assert_eq!(found(not), (Cause::Firewall, Because::Rule));
    }
}

#[test]
fn kindnet_drops_by_its_program_and_never_by_a_rule() {
    for engine in [Engine::Kindnet, Engine::KubeNetworkPolicies] {
        let queued = Evidence {
            reason: "not_specified",
            symbol: "nfqnl_reinject",
            egress: Opinion::Denies,
            ..forwarded(engine)
        };
        let policy = (Cause::Policy, Because::Denied(Side::Egress));
        assert_eq!(found(queued), policy);
        let older = Evidence {
            symbol: "nf_reinject",
            ..queued
        };
        assert_eq!(found(older), policy);
        let by_rule = Evidence {
            reason: "netfilter_drop",
            symbol: "nft_do_chain",
            ..queued
        };
        assert_eq!(found(by_rule), (Cause::Firewall, Because::Rule));
        let allowed = Evidence {
            egress: Opinion::Allows,
            ..queued
        };
        assert_eq!(found(allowed), (Cause::Firewall, Because::Refused));
        // Accepted by the program, and then lost at the end of POSTROUTING, in the same function.
        let clash = Evidence {
            source_translated: true,
            ..queued
        };
        assert_eq!(found(clash), (Cause::Nat, Because::Clash));
        let nobody = Evidence {
            symbol: "nf_queue",
            ..queued
        };
        assert_eq!(found(nobody), (Cause::Firewall, Because::NotQueued));
    }
    let elsewhere = Evidence {
        symbol: "nfqnl_reinject",
        egress: Opinion::Denies,
        ..forwarded(Engine::Calico)
    };
    assert_eq!(found(elsewhere), (Cause::Firewall, Because::Refused));
}

#[test]
fn without_an_engine_nothing_is_a_policys() {
    let denied = Evidence {
        ingress: Opinion::Denies,
        ..forwarded(Engine::None)
    };
    assert_eq!(found(denied), (Cause::Firewall, Because::Rule));
    // Not having been able to look is another thing.
    let unknown = Evidence {
        engine: Engine::Kubernetes,
        ..denied
    };
    assert_eq!(
        found(unknown),
        (Cause::Policy, Because::Denied(Side::Ingress))
    );
}

#[test]
fn what_looks_like_a_policys_drop_and_is_none() {
    // Even where policies deny the same flow.
    let base = Evidence {
        egress: Opinion::Denies,
        ..forwarded(Engine::Calico)
    };
    let wireserver = Evidence {
        dst: Place::Wireserver,
        dst_port: 80,
        ..base
    };
    let block = (Cause::AzurePlatformBlock, Because::PlatformBlock);
    assert_eq!(found(wireserver), block);
    let port = |dst_port| Evidence {
        dst_port,
        ..wireserver
    };
    assert_eq!(found(port(32_526)), block);
    assert_eq!(found(port(53)).0, Cause::Policy);
    let over_udp = Evidence {
        protocol: UDP,
        ..wireserver
    };
    assert_eq!(found(over_udp).0, Cause::Policy);
    let metadata = Evidence {
        dst: Place::Metadata,
        dst_port: 80,
        ..base
    };
    assert_eq!(found(metadata), block);
    let invalid = Evidence {
        state: NO_ENTRY,
        ..base
    };
    assert_eq!(found(invalid), (Cause::Conntrack, Because::Invalid));
    let clash = Evidence {
        symbol: "nf_hook_slow",
        source_translated: true,
        ..base
    };
    assert_eq!(found(clash), (Cause::Nat, Because::Clash));
    let full = Evidence {
        symbol: "nf_hook_slow",
        state: DropState(DropState::CT_READ | DropState::ROUTE_READ),
        table_full: Some(true),
        ..base
    };
    assert_eq!(found(full), (Cause::Conntrack, Because::TableFull));
    let raw = Evidence {
        table_full: Some(false),
        ..full
    };
    assert_eq!(found(raw), (Cause::Firewall, Because::Rule));
    for dst in [Place::Service, Place::LoadBalancer] {
        let service = Evidence { dst, ..base };
        assert_eq!(found(service), (Cause::Firewall, Because::Service));
    }
}

#[test]
fn a_node_without_conntrack_has_no_invalid_packets() {
    let evidence = Evidence {
        state: NO_ENTRY,
        tracking: false,
        ..forwarded(Engine::None)
    };
    assert_eq!(found(evidence), (Cause::Firewall, Because::Rule));
    let untracked = Evidence {
        state: DropState(NO_ENTRY.0 | 7 << DropState::INFO_SHIFT),
        tracking: true,
        ..evidence
    };
    assert_eq!(found(untracked), (Cause::Firewall, Because::Rule));
}

#[test]
fn cilium_drops_in_tc_and_older_kernels_do_not_name_a_ttl() {
    let tc = Evidence {
        reason: "tc_ingress",
        symbol: "__netif_receive_skb_core",
        egress: Opinion::Denies,
        ..forwarded(Engine::Cilium)
    };
    assert_eq!(found(tc), (Cause::Policy, Because::Denied(Side::Egress)));
    let not = Evidence {
        egress: Opinion::Allows,
        ..tc
    };
    assert_eq!(found(not), (Cause::Other, Because::Reason));
    let old = Evidence {
        reason: "not_specified",
        symbol: "ip_forward",
        ttl: 1,
        ..forwarded(Engine::None)
    };
    assert_eq!(found(old), (Cause::Ttl, Because::Reason));
    let more = Evidence { ttl: 9, ..old };
    assert_eq!(found(more).0, Cause::Route);
    // Before reasons: MTU, but in IPv6, where a missing route may end there as well.
    let none = Evidence {
        reason: "0",
        ..more
    };
    assert_eq!(found(none).0, Cause::Mtu);
    let six = Evidence {
        symbol: "ip6_forward",
        ..none
    };
    assert_eq!(found(six).0, Cause::Route);
}
