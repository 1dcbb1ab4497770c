//! An *extension* of iptables (a match or a target) as its own bytes in a rule. Both backends hold the same
//! bytes: `nf_tables` wraps them in the expressions `match` and `target`.
//!
//! Layouts: `xt_comment.h`, `xt_addrtype.h`, `nf_nat.h` in include/uapi/linux/netfilter.

use super::{Rule, Verdict, attribute::u16_at, attribute::u32_at, text};

/// `sizeof(struct xt_comment_info)`.
const COMMENT: usize = 256;
/// `XT_ADDRTYPE_LOCAL`, one bit of a set.
const LOCAL: u16 = 1 << 2;
/// `XT_ADDRTYPE_INVERT_DEST` of revision 1.
const INVERT_DESTINATION: u32 = 2;
/// `NF_NAT_RANGE_PROTO_RANDOM_FULLY`.
const RANDOM_FULLY: u32 = 1 << 4;

/// Adds what a match says to the rule.
pub fn condition(rule: &mut Rule, name: &str, revision: u32, info: &[u8]) {
    match name {
        "comment" => rule.comment = Some(text(&info[..info.len().min(COMMENT)])),
        "addrtype" => match local(revision, info) {
            Some(inverted) => rule.to_local = Some(!inverted),
            None => rule.narrowed = true,
        },
        _ => rule.narrowed = true,
    }
}

/// Whether the condition on the destination's being local is inverted; `None` if it is another condition.
fn local(revision: u32, info: &[u8]) -> Option<bool> {
    let (source, destination) = (u16_at(info, 0)?, u16_at(info, 2)?);
    if source != 0 || destination != LOCAL {
        return None;
    }
    match revision {
        0 => Some(u32_at(info, 8)? != 0),
        1 => match u32_at(info, 4)? {
            0 => Some(false),
            INVERT_DESTINATION => Some(true),
            // Limited to an interface.
            _ => None,
        },
        _ => None,
    }
}

/// What a target does.
#[must_use]
pub fn verdict(name: &str, info: &[u8], ipv6: bool) -> Verdict {
    match name {
        // IPv4 has the number of ranges before the first range's flags.
        "MASQUERADE" => Verdict::Masquerade {
            random_fully: masquerade(u32_at(info, if ipv6 { 0 } else { 4 }).unwrap_or(0)),
        },
        other => Verdict::Other(other.to_owned()),
    }
}

/// Whether the flags of a NAT range ask for random ports.
#[must_use]
pub const fn masquerade(flags: u32) -> bool {
    flags & RANDOM_FULLY != 0
}

#[cfg(test)]
mod tests {
    use super::*;

    fn addrtype(destination: u16, flags: u32) -> Rule {
        let mut info = vec![0, 0];
        info.extend(destination.to_ne_bytes());
        info.extend(flags.to_ne_bytes());
        let mut rule = Rule::default();
        condition(&mut rule, "addrtype", 1, &info);
        rule
    }

    #[test]
    fn local_destinations_are_told_from_others() {
        assert_eq!(addrtype(4, 0).to_local, Some(true));
        assert_eq!(addrtype(4, 2).to_local, Some(false));
        assert!(addrtype(4, 8).narrowed, "limited to an interface");
        assert!(addrtype(2, 0).narrowed, "unicast");
    }

    #[test]
    fn an_unknown_match_narrows_the_rule() {
        let mut rule = Rule::default();
        condition(&mut rule, "set", 4, &[]);
        assert!(rule.narrowed);
    }

    #[test]
    fn random_ports_are_seen_in_both_families() {
        let fully = Verdict::Masquerade { random_fully: true };
        let mut v4 = 1u32.to_ne_bytes().to_vec();
        v4.extend(16u32.to_ne_bytes());
        assert_eq!(verdict("MASQUERADE", &v4, false), fully);
        assert_eq!(verdict("MASQUERADE", &v4[4..], true), fully);
        let plain = Verdict::Masquerade {
            random_fully: false,
        };
        assert_eq!(verdict("MASQUERADE", &[], false), plain);
    }
}
