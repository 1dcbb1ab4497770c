//! EXIT: tc egress of a pod's host veth or of an uplink. The node's own packets are counted here; for a
//! forwarded one it completes the passage, if it has one.

use aksnet_common::{
    flow::ORIGIN_NODE,
    packet::{self, Link, Parsed},
    stats::{Event, Role},
};
use aya_ebpf::{
    bindings::{__sk_buff, TC_ACT_UNSPEC},
    macros::classifier,
    programs::TcContext,
};

use crate::{
    account::{At, account, parse_uncommon},
    maps, passage,
    skb::TcPacket,
};

#[inline(always)]
pub fn leave_node(packet: &TcPacket, link: Link, role: Role) {
    if packet.ingress_ifindex() == 0 {
        account(packet.skb(), At::new(role, ORIGIN_NODE, link));
        return;
    }
    let Some(table) = passage::table() else {
        return;
    };
    if passage::every_packet() || passage::pending(table) {
        complete(packet.skb(), At::passing(link).word());
    }
}

/// A subprogram of its own, so that a packet without a passage does not carry it.
#[inline(never)]
fn complete(skb: *mut __sk_buff, at: u32) -> u32 {
    if matches!(At::of_word(at).link(), Link::Ethernet) && complete_common(skb) == 0 {
        return 0;
    }
    if parse_uncommon(skb, at) != 0 {
        maps::count_tc(Event::ExitSkipped);
        return 0;
    }
    complete_uncommon(skb)
}

/// The shapes that nearly all packets have, read in place; 1 for the others.
#[inline(never)]
fn complete_common(skb: *mut __sk_buff) -> u32 {
    let packet = TcPacket::new(skb);
    match packet::parse_common(&packet) {
        Some(parsed) => {
            complete_parsed(&packet, &parsed);
            0
        }
        None => 1,
    }
}

#[inline(never)]
fn complete_uncommon(skb: *mut __sk_buff) -> u32 {
    if let Some(headers) = maps::HEADERS.get_ptr_mut(0) {
        // SAFETY: this CPU's value; tc programs run with softirqs off, so nothing interleaves.
        complete_parsed(&TcPacket::new(skb), unsafe { &(*headers).parsed });
    }
    0
}

#[inline(always)]
fn complete_parsed(packet: &TcPacket, parsed: &Parsed) {
    let Some(table) = passage::table() else {
        return;
    };
    match passage::take(table, packet, parsed) {
        Some(found) => passage::complete(&found, &parsed.key.tuple(), packet.ifindex()),
        None => maps::count_tc(Event::ExitUnmatched),
    }
}

/// A pod's host veth.
#[classifier]
pub fn aksnet_exit_pod(ctx: TcContext) -> i32 {
    leave_node(&TcPacket::new(ctx.skb.skb), Link::Ethernet, Role::Pod);
    TC_ACT_UNSPEC
}

/// An uplink with a link layer.
#[classifier]
pub fn aksnet_exit_uplink(ctx: TcContext) -> i32 {
    leave_node(&TcPacket::new(ctx.skb.skb), Link::Ethernet, Role::Uplink);
    TC_ACT_UNSPEC
}

/// An uplink whose packets start with the IP header.
#[classifier]
pub fn aksnet_exit_uplink_ip(ctx: TcContext) -> i32 {
    leave_node(&TcPacket::new(ctx.skb.skb), Link::Ip, Role::Uplink);
    TC_ACT_UNSPEC
}
