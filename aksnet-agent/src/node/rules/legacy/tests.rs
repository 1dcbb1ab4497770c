//! Tables as the kernel would hand them out, built by hand, and damaged.

use super::*;
use proptest::prelude::*;

/// An entry for IPv4 with its matches and its target's bytes.
fn bytes(destination: Option<&str>, matches: &[Vec<u8>], target: &[u8]) -> Vec<u8> {
    let mut entry = vec![0; 112];
    if let Some(net) = destination {
        let net: ipnet::Ipv4Net = net.parse().unwrap();
        entry[4..8].copy_from_slice(&net.addr().octets());
        entry[12..16].copy_from_slice(&net.netmask().octets());
    }
    entry.extend(matches.concat());
    let at = u16::try_from(entry.len()).unwrap();
    entry[88..90].copy_from_slice(&at.to_ne_bytes());
    entry.extend(target);
    let end = u16::try_from(entry.len()).unwrap();
    entry[90..92].copy_from_slice(&end.to_ne_bytes());
    entry
}

/// A match or target.
fn extension(name: &str, revision: u8, info: &[u8]) -> Vec<u8> {
    let mut bytes = vec![0; EXTENSION];
    bytes[2..2 + name.len()].copy_from_slice(name.as_bytes());
    bytes[31] = revision;
    bytes.extend(info);
    bytes.resize(bytes.len().next_multiple_of(8), 0);
    let size = u16::try_from(bytes.len()).unwrap();
    bytes[..2].copy_from_slice(&size.to_ne_bytes());
    bytes
}

fn decide(verdict: i32) -> Vec<u8> {
    extension("", 0, &verdict.to_ne_bytes())
}

fn begin(name: &str) -> Vec<u8> {
    let mut info = name.as_bytes().to_vec();
    info.resize(30, 0);
    bytes(None, &[], &extension("ERROR", 0, &info))
}

/// A nat table: POSTROUTING jumps to IP-MASQ-AGENT.
fn nat() -> (Head, Vec<u8>) {
    let local = extension("addrtype", 1, &[0, 0, 4, 0, 2, 0, 0, 0]);
    let jump = |to: i32| bytes(None, std::slice::from_ref(&local), &decide(to));
    let policy = bytes(None, &[], &decide(-2));
    let name = begin("IP-MASQ-AGENT");
    let start = jump(0).len() + policy.len() + name.len();
    let comment = extension("comment", 0, b"local traffic\0");
    let mut masquerade = 1u32.to_ne_bytes().to_vec();
    masquerade.extend(16u32.to_ne_bytes());
    masquerade.extend([0; 12]);
    let block = [
        jump(i32::try_from(start).unwrap()),
        policy,
        name,
        bytes(Some("10.244.0.0/16"), &[comment], &decide(-5)),
        bytes(None, &[], &extension("MASQUERADE", 0, &masquerade)),
        bytes(None, &[], &decide(-5)),
        begin("ERROR"),
    ];
    let underflow = u32::try_from(block[0].len()).unwrap();
    let block = block.concat();
    let mut head = Head {
        size: u32::try_from(block.len()).unwrap(),
        ..Head::default()
    };
    head.hooks[4] = Some((0, underflow));
    (head, block)
}

const WANTED: [Wanted; 3] = [
    Wanted {
        table: "nat",
        chain: "POSTROUTING",
        rules: true,
    },
    Wanted {
        table: "nat",
        chain: "IP-MASQ-AGENT",
        rules: true,
    },
    Wanted {
        table: "nat",
        chain: "KIND-MASQ-AGENT",
        rules: true,
    },
];

#[test]
fn a_jump_leads_to_the_chain_that_begins_there() {
    let (head, block) = nat();
    let chains = chains(Family::Ip, &head, &block, &WANTED).unwrap();
    assert_eq!(chains.len(), 2, "{chains:?}");
    let [rule] = &chains[0].rules[..] else {
        panic!("{chains:?}")
    };
    assert_eq!(rule.verdict, Verdict::Jump("IP-MASQ-AGENT".into()));
    assert_eq!(rule.to_local, Some(false));
    let hook = chains[0].hook.unwrap();
    assert_eq!((hook.number, hook.drops), (4, false));
}

#[test]
fn a_chain_has_its_own_rules_and_no_more() {
    let (head, block) = nat();
    let chains = chains(Family::Ip, &head, &block, &WANTED).unwrap();
    let [spare, masquerade] = &chains[1].rules[..] else {
        panic!("{chains:?}")
    };
    assert_eq!(
        spare.only_destination(),
        Some("10.244.0.0/16".parse().unwrap())
    );
    assert_eq!(spare.comment.as_deref(), Some("local traffic"));
    assert_eq!(spare.verdict, Verdict::Return);
    assert_eq!(
        masquerade.verdict,
        Verdict::Masquerade { random_fully: true }
    );
}

#[test]
fn a_damaged_table_is_not_known() {
    let (head, block) = nat();
    let short = &block[..block.len() - 1];
    assert!(chains(Family::Ip, &head, short, &WANTED).is_err());
    // An entry that ends before its target does.
    let mut odd = block;
    odd[90..92].copy_from_slice(&100u16.to_ne_bytes());
    assert!(chains(Family::Ip, &head, &odd, &WANTED).is_err());
}

proptest! {
    #[test]
    fn any_block_is_read_or_refused(
        block in prop::collection::vec(any::<u8>(), 0..1024),
        head in prop::collection::vec(any::<u8>(), 0..100),
        v6: bool,
    ) {
        let family = if v6 { Family::Ip6 } else { Family::Ip };
        let head = Head::parse(&head).unwrap_or_default();
        let _ = chains(family, &head, &block, &WANTED);
    }

    #[test]
    fn any_damage_is_survived(at: usize, byte: u8, entry: u32, underflow: u32, v6: bool) {
        let (mut head, mut block) = nat();
        let at = at % block.len();
        block[at] = byte;
        head.hooks[4] = Some((entry % 2048, underflow % 2048));
        let family = if v6 { Family::Ip6 } else { Family::Ip };
        let _ = chains(family, &head, &block, &WANTED);
    }
}
