//! `nf_tables` as netlink messages: a table, a chain, a set, a rule. Pure and total: what is not understood
//! narrows a rule, and what is damaged is left out.
//!
//! Numbers and layouts: `nf_tables.h` in include/uapi/linux/netfilter. Rules of iptables-nft are a mixture of
//! native expressions (addresses, verdicts) and extensions of `x_tables` (comments, most targets).

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ipnet::IpNet;

use super::{
    Chain, Family, Hook, Rule, Verdict,
    attribute::{attribute, attributes, be32},
    extension, masked, text,
};

/// Messages of the subsystem `NFNL_SUBSYS_NFTABLES`.
pub const GET_TABLE: u16 = 0xa01;
/// See [`GET_TABLE`].
pub const GET_CHAIN: u16 = 0xa04;
/// See [`GET_TABLE`].
pub const GET_RULE: u16 = 0xa07;
/// See [`GET_TABLE`].
pub const GET_SET: u16 = 0xa0a;

/// `NFTA_CHAIN_TABLE`, `NFTA_RULE_TABLE`, `NFTA_SET_TABLE`.
pub const TABLE: u16 = 1;
/// `NFTA_CHAIN_NAME`.
pub const CHAIN_NAME: u16 = 3;
/// `NFTA_RULE_CHAIN`.
pub const RULE_CHAIN: u16 = 2;

/// `sizeof(struct nfgenmsg)`.
const HEADER: usize = 4;
/// Beyond this, a rule's expressions are taken for more conditions.
const MAX_EXPRESSIONS: usize = 64;

/// A table's family and name.
#[must_use]
pub fn table(payload: &[u8]) -> Option<(Family, String)> {
    let family = Family::of(*payload.first()?);
    let name = attribute(payload.get(HEADER..)?, 1)?;
    Some((family, text(name)))
}

/// A set's or map's name.
#[must_use]
pub fn set(payload: &[u8]) -> Option<String> {
    Some(text(attribute(payload.get(HEADER..)?, 2)?))
}

/// A chain, without its rules.
#[must_use]
pub fn chain(payload: &[u8]) -> Option<Chain> {
    let attributes = payload.get(HEADER..)?;
    let name = text(attribute(attributes, CHAIN_NAME)?);
    let hook = attribute(attributes, 4).and_then(|hook| {
        let priority = be32(attribute(hook, 2)?)?;
        Some(Hook {
            number: be32(attribute(hook, 1)?)?,
            priority: Some(priority.cast_signed()),
            // NF_DROP is 0.
            drops: attribute(attributes, 5).and_then(be32) == Some(0),
        })
    });
    Some(Chain {
        name,
        hook,
        rules: Vec::new(),
    })
}

/// A rule.
#[must_use]
pub fn rule(payload: &[u8]) -> Option<Rule> {
    let ipv6 = Family::of(*payload.first()?) == Family::Ip6;
    let attributes_ = payload.get(HEADER..)?;
    let mut rule = Rule::default();
    let mut address = Load::default();
    let expressions = attribute(attributes_, 4).unwrap_or_default();
    for (at, (_, expression)) in attributes(expressions).enumerate() {
        if at >= MAX_EXPRESSIONS {
            rule.narrowed = true;
            break;
        }
        let name = text(attribute(expression, 1)?);
        let data = attribute(expression, 2).unwrap_or_default();
        express(&mut rule, &mut address, &name, data, ipv6);
    }
    // A loaded field that nothing was compared with.
    rule.narrowed |= address.pending;
    if let Some(comment) = attribute(attributes_, 7).and_then(user_comment) {
        rule.comment = Some(comment);
    }
    Some(rule)
}

/// What was loaded from the packet, to be compared.
#[derive(Default)]
struct Load {
    pending: bool,
    /// How many bytes of the destination; `None` for any other field.
    destination: Option<usize>,
    mask: Option<Vec<u8>>,
}

fn express(rule: &mut Rule, load: &mut Load, name: &str, data: &[u8], ipv6: bool) {
    let number = |kind| attribute(data, kind).and_then(be32);
    match name {
        "counter" | "last" => {}
        "payload" => {
            rule.narrowed |= load.pending;
            let network = number(2) == Some(1);
            let offset = number(3);
            let length = number(4).and_then(|n| usize::try_from(n).ok());
            // The destination in struct iphdr and struct ipv6hdr.
            let destination = if ipv6 { 24 } else { 16 };
            *load = Load {
                pending: true,
                destination: length.filter(|_| network && offset == Some(destination)),
                mask: None,
            };
        }
        "bitwise" if load.pending => {
            load.mask = attribute(data, 4).and_then(|m| Some(attribute(m, 1)?.to_vec()));
        }
        "cmp" => {
            let value = attribute(data, 3).and_then(|v| attribute(v, 1));
            let compared = value.and_then(|value| destination(load, value, ipv6));
            match (compared, number(2)) {
                (Some(net), Some(op @ (0 | 1))) if rule.destination.is_none() => {
                    rule.destination = Some((net, op == 1));
                }
                _ => rule.narrowed = true,
            }
            *load = Load::default();
        }
        "match" => {
            let info = attribute(data, 3).unwrap_or_default();
            let name = text(attribute(data, 1).unwrap_or_default());
            extension::condition(rule, &name, number(2).unwrap_or(0), info);
        }
        "target" => {
            let info = attribute(data, 3).unwrap_or_default();
            let name = text(attribute(data, 1).unwrap_or_default());
            rule.verdict = extension::verdict(&name, info, ipv6);
        }
        "immediate" => {
            if let Some(verdict) = attribute(data, 2).and_then(|d| verdict(attribute(d, 2)?)) {
                rule.verdict = verdict;
            }
        }
        "masq" => {
            let random_fully = extension::masquerade(number(1).unwrap_or(0));
            rule.verdict = Verdict::Masquerade { random_fully };
        }
        // Statements that decide about the packet, and no conditions.
        "queue" | "reject" | "redir" | "nat" | "tproxy" | "notrack" => {
            rule.verdict = Verdict::Other(name.to_owned());
        }
        _ => rule.narrowed = true,
    }
}

/// The range that a comparison of a part of the destination means.
fn destination(load: &Load, value: &[u8], ipv6: bool) -> Option<IpNet> {
    let length = load.destination?;
    let whole = if ipv6 { 16 } else { 4 };
    if length == 0 || length > whole || value.len() != length {
        return None;
    }
    // iptables compares only the leading bytes where the prefix ends with one.
    let mask = match &load.mask {
        Some(mask) if mask.len() == length => mask.clone(),
        Some(_) => return None,
        None => vec![0xff; length],
    };
    masked(ip(value, ipv6)?, ip(&mask, ipv6)?)
}

fn ip(bytes: &[u8], ipv6: bool) -> Option<IpAddr> {
    let mut whole = [0u8; 16];
    whole.get_mut(..bytes.len())?.copy_from_slice(bytes);
    if ipv6 {
        Some(Ipv6Addr::from(whole).into())
    } else {
        let [a, b, c, d, ..] = whole;
        Some(Ipv4Addr::new(a, b, c, d).into())
    }
}

fn verdict(data: &[u8]) -> Option<Verdict> {
    let chain = || Some(text(attribute(data, 2)?));
    Some(match be32(attribute(data, 1)?)?.cast_signed() {
        0 => Verdict::Drop,
        1 => Verdict::Accept,
        -3 => Verdict::Jump(chain()?),
        -4 => Verdict::Goto(chain()?),
        -5 => Verdict::Return,
        // NFT_CONTINUE and NFT_BREAK.
        -1 | -2 => Verdict::Continue,
        other => Verdict::Other(format!("verdict {other}")),
    })
}

/// `nft` keeps comments as user data: type, length, text, the type 0 being the comment's (libnftnl's udata.h).
fn user_comment(mut data: &[u8]) -> Option<String> {
    while let [kind, length, rest @ ..] = data {
        let value = rest.get(..usize::from(*length))?;
        if *kind == 0 {
            return Some(text(value));
        }
        data = &rest[value.len()..];
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::node::rules::attribute::push;
    use proptest::prelude::*;

    fn nested(parts: &[(u16, Vec<u8>)]) -> Vec<u8> {
        let mut bytes = Vec::new();
        for (kind, value) in parts {
            push(&mut bytes, *kind, value);
        }
        bytes
    }

    fn be(n: i32) -> Vec<u8> {
        n.to_be_bytes().to_vec()
    }

    fn expression(name: &str, data: &[(u16, Vec<u8>)]) -> (u16, Vec<u8>) {
        let mut name = name.as_bytes().to_vec();
        name.push(0);
        (1, nested(&[(1, name), (2, nested(data))]))
    }

    fn of(family: u8, expressions: &[(u16, Vec<u8>)]) -> Rule {
        let mut payload = vec![family, 0, 0, 0];
        payload.extend(nested(&[(4, nested(expressions))]));
        rule(&payload).unwrap()
    }

    fn daddr(offset: i32, length: i32) -> (u16, Vec<u8>) {
        expression(
            "payload",
            &[(1, be(8)), (2, be(1)), (3, be(offset)), (4, be(length))],
        )
    }

    fn cmp(op: i32, value: &[u8]) -> (u16, Vec<u8>) {
        let value = nested(&[(1, value.to_vec())]);
        expression("cmp", &[(1, be(8)), (2, be(op)), (3, value)])
    }

    fn immediate(code: i32) -> (u16, Vec<u8>) {
        let verdict = nested(&[(1, be(code)), (2, b"THERE\0".to_vec())]);
        expression("immediate", &[(1, be(0)), (2, nested(&[(2, verdict)]))])
    }

    #[test]
    fn a_prefix_of_whole_bytes_is_compared_without_a_mask() {
        let rule = of(2, &[daddr(16, 2), cmp(0, &[10, 244]), immediate(-5)]);
        assert_eq!(
            rule.only_destination(),
            Some("10.244.0.0/16".parse().unwrap())
        );
        assert_eq!(rule.verdict, Verdict::Return);
    }

    #[test]
    fn other_prefixes_are_masked_first() {
        let mask = nested(&[(1, vec![255, 240, 0, 0])]);
        let bitwise = expression("bitwise", &[(4, mask)]);
        let rule = of(2, &[daddr(16, 4), bitwise, cmp(1, &[172, 16, 0, 0])]);
        let net = "172.16.0.0/12".parse().unwrap();
        assert_eq!(rule.destination, Some((net, true)));
        assert_eq!(rule.only_destination(), None, "inverted");
    }

    #[test]
    fn ipv6_destinations_are_elsewhere_in_the_packet() {
        let rule = of(
            10,
            &[daddr(24, 8), cmp(0, &[0xfd, 0, 0, 0x10, 2, 0x44, 0, 1])],
        );
        let net = "fd00:10:244:1::/64".parse().unwrap();
        assert_eq!(rule.only_destination(), Some(net));
        // The source.
        let rule = of(10, &[daddr(8, 1), cmp(0, &[0xfd])]);
        assert!(rule.narrowed && rule.destination.is_none());
    }

    #[test]
    fn verdicts_have_their_numbers() {
        assert_eq!(of(2, &[immediate(0)]).verdict, Verdict::Drop);
        assert_eq!(of(2, &[immediate(1)]).verdict, Verdict::Accept);
        assert_eq!(
            of(2, &[immediate(-3)]).verdict,
            Verdict::Jump("THERE".into())
        );
        assert_eq!(
            of(2, &[immediate(-4)]).verdict,
            Verdict::Goto("THERE".into())
        );
    }

    #[test]
    fn a_native_masquerade_is_one() {
        let rule = of(2, &[expression("masq", &[(1, be(16))])]);
        assert_eq!(rule.verdict, Verdict::Masquerade { random_fully: true });
    }

    #[test]
    fn any_other_condition_narrows() {
        assert!(of(2, &[expression("meta", &[])]).narrowed);
        assert!(of(2, &[daddr(16, 4)]).narrowed, "loaded and not compared");
    }

    #[test]
    fn a_comment_of_nft_is_user_data() {
        let mut payload = vec![2, 0, 0, 0];
        payload.extend(nested(&[(7, vec![1, 1, 9, 0, 3, b'h', b'i', 0])]));
        assert_eq!(rule(&payload).unwrap().comment.as_deref(), Some("hi"));
    }

    proptest! {
        #[test]
        fn any_bytes_are_read_or_left_out(bytes in prop::collection::vec(any::<u8>(), 0..512)) {
            let _ = table(&bytes);
            let _ = set(&bytes);
            let _ = chain(&bytes);
            let _ = rule(&bytes);
        }

        #[test]
        fn any_damage_to_a_rule_is_survived(at in 0usize..200, byte: u8, cut in 0usize..200) {
            let mut payload = vec![2, 0, 0, 0];
            let info = nested(&[(1, b"comment\0".to_vec()), (3, vec![b'x'; 256])]);
            let parts = [
                daddr(16, 4), cmp(0, &[10, 0, 0, 1]),
                (1, nested(&[(1, b"match\0".to_vec()), (2, info)])), immediate(-3),
            ];
            payload.extend(nested(&[(4, nested(&parts))]));
            let at = at % payload.len();
            payload[at] = byte;
            payload.truncate(payload.len() - cut % payload.len());
            let _ = rule(&payload);
        }
    }
}
