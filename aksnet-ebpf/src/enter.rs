//! ENTER: tc ingress of a pod's host veth or of an uplink. A packet is counted here, once.

use aksnet_common::{flow::ORIGIN_ENTER, packet::Link, stats::Role};
use aya_ebpf::{bindings::TC_ACT_UNSPEC, macros::classifier, programs::TcContext};

use crate::account::{At, account};

/// A pod's host veth.
#[classifier]
pub fn aksnet_enter_pod(ctx: TcContext) -> i32 {
    account(
        ctx.skb.skb,
        At::new(Role::Pod, ORIGIN_ENTER, Link::Ethernet),
    );
    TC_ACT_UNSPEC
}

/// An uplink with a link layer.
#[classifier]
pub fn aksnet_enter_uplink(ctx: TcContext) -> i32 {
    account(
        ctx.skb.skb,
        At::new(Role::Uplink, ORIGIN_ENTER, Link::Ethernet),
    );
    TC_ACT_UNSPEC
}

/// An uplink whose packets start with the IP header.
#[classifier]
pub fn aksnet_enter_uplink_ip(ctx: TcContext) -> i32 {
    account(ctx.skb.skb, At::new(Role::Uplink, ORIGIN_ENTER, Link::Ip));
    TC_ACT_UNSPEC
}
