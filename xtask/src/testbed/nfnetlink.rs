//! *nfnetlink* messages, as conntrack and queues take them (`linux/netfilter/nfnetlink.h`).

/// Octets of a netlink header and of the netfilter header behind it.
const HEADERS: usize = 20;

/// An attribute with its padding.
#[must_use]
pub fn attribute(kind: u16, value: &[u8]) -> Vec<u8> {
    let length = u16::try_from(value.len() + 4).unwrap_or(u16::MAX);
    let mut octets = [length.to_ne_bytes(), kind.to_ne_bytes()].concat();
    octets.extend(value);
    octets.resize(octets.len().next_multiple_of(4), 0);
    octets
}

/// A request. The sequence number and the port are 0: the kernel needs neither. `resource` is a queue's number, for
/// conntrack 0.
#[must_use]
pub fn request(kind: u16, flags: u16, family: u8, resource: u16, attributes: &[u8]) -> Vec<u8> {
    let length = u32::try_from(HEADERS + attributes.len()).unwrap_or(u32::MAX);
    let mut octets = length.to_ne_bytes().to_vec();
    octets.extend([kind.to_ne_bytes(), flags.to_ne_bytes()].concat());
    octets.extend([0; 8]);
    octets.extend([family, 0]);
    octets.extend(resource.to_be_bytes());
    octets.extend(attributes);
    octets
}
