//! Any message of route netlink: a link, an address or a route, as far as the agent reads it.

use aksnet_agent::node::{address::Address, link::Link, route::Route};
use rtnetlink::{
    packet_core::{NetlinkBuffer, NetlinkMessage, NetlinkPayload},
    packet_route::RouteNetlinkMessage,
};

pub(crate) fn run(bytes: &[u8]) {
    let mut rest = bytes;
    while let Some(length) = NetlinkBuffer::new_checked(&rest)
        .ok()
        .map(|buffer| buffer.length() as usize)
    {
        if let Ok(message) = NetlinkMessage::<RouteNetlinkMessage>::deserialize(rest)
            && let NetlinkPayload::InnerMessage(message) = message.payload
        {
            read(&message);
        }
        rest = rest.get(length.next_multiple_of(4)..).unwrap_or_default();
    }
}

fn read(message: &RouteNetlinkMessage) {
    match message {
        RouteNetlinkMessage::NewLink(link) | RouteNetlinkMessage::DelLink(link) => {
            let link = Link::from_message(link);
            assert!(!(link.is_bridge() && link.is_pair()));
        }
        RouteNetlinkMessage::NewAddress(address) | RouteNetlinkMessage::DelAddress(address) => {
            if let Some(address) = Address::from_message(address) {
                let _ = (address.ip(), address.subnet());
            }
        }
        RouteNetlinkMessage::NewRoute(route) | RouteNetlinkMessage::DelRoute(route) => {
            if let Some(route) = Route::from_message(route) {
                let _ = (route.is_default(), route.is_host());
            }
        }
        _ => {}
    }
}
