//! Any bytes as a packet: the fast and the slow way agree, nothing is read from beyond the packet, and what belongs to
//! the link layer changes nothing.

use aksnet_common::{
    flow::KEY_FRAGMENT,
    packet::{DCCP, Link, SCTP, TCP, UDP, UDPLITE, parse, parse_any, parse_common},
    stats::Skip,
};

use super::packet::Scattered;

pub(crate) fn run(bytes: &[u8]) {
    for link in [Link::Ethernet, Link::Ip] {
        sound(bytes, link);
    }
    if let Some(common) = parse_common(&bytes) {
        assert_eq!(Ok(common), parse_any(&bytes, Link::Ethernet));
    }
}

fn sound(bytes: &[u8], link: Link) {
    let seen = parse(&bytes, link);
    assert_eq!(seen, parse_any(&bytes, link), "the fast way differs");
    assert_eq!(seen, parse(&Scattered(bytes), link), "the slow way differs");
    let Ok(p) = seen else { return };
    let end = p.l3_offset + p.l3_len;
    assert!(p.l3_offset < p.l4_offset, "{p:?}");
    assert!(end as usize <= bytes.len(), "{p:?}");
    assert!(p.l4_offset + p.payload_len <= end, "{p:?}");
    assert_eq!((p.key.ifindex, p.key.origin, p.key.padding), (0, 0, 0));
    if p.key.flags & KEY_FRAGMENT == 0 {
        let header = match p.key.protocol {
            TCP => 20,
            UDP | UDPLITE => 8,
            SCTP | DCCP => 12,
            _ => 0,
        };
        assert!(p.l4_offset + header <= end, "ports from beyond: {p:?}");
    } else {
        let nothing = (p.key.src_port, p.key.dst_port, p.tcp_flags, p.tcp_seq);
        assert_eq!(nothing, (0, 0, 0, 0), "{p:?}");
    }
    let (from, to) = (p.l3_offset as usize, end as usize);
    // A packet beyond 64 KiB takes its length from the frame's.
    if p.l3_len > 0xffff {
        return;
    }
    let bare = parse(&&bytes[from..], Link::Ip).expect("the same without its link layer");
    assert_eq!((bare.key, bare.l3_len), (p.key, p.l3_len));
    assert_eq!(bare.payload_len, p.payload_len);
    assert_eq!(parse(&&bytes[..to], link), Ok(p), "its padding counts");
    assert!(
        matches!(parse(&&bytes[..to - 1], link), Err(Skip::TruncatedIp)),
        "one byte less, and all there: {p:?}"
    );
}
