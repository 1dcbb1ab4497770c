//! Any answer of `nf_tables`, and any table of `x_tables`, as the agent asks for them.
//!
//! The first byte says which of them it is.

use aksnet_agent::node::{
    found::evidence::WANTED,
    rules::{
        Family,
        attribute::{attributes, messages},
        legacy::{self, HEAD, Head},
        nft,
    },
};

pub(crate) fn run(bytes: &[u8]) {
    let Some((first, rest)) = bytes.split_first() else {
        return;
    };
    match first % 4 {
        0 => datagram(rest),
        1 => answer(rest),
        2 => table(Family::Ip, rest),
        _ => table(Family::Ip6, rest),
    }
}

fn datagram(bytes: &[u8]) {
    let mut count = 0;
    for message in messages(bytes) {
        count += 1;
        answer(message.payload);
    }
    assert!(count <= bytes.len() / 16);
}

fn answer(payload: &[u8]) {
    assert!(attributes(payload).count() <= payload.len() / 4);
    let _ = (nft::table(payload), nft::set(payload), nft::chain(payload));
    if let Some(rule) = nft::rule(payload) {
        let _ = rule.only_destination();
    }
}

fn table(family: Family, bytes: &[u8]) {
    let Some((head, block)) = bytes.split_at_checked(HEAD) else {
        return;
    };
    let head = Head::parse(head).expect("as long as a head is");
    if let Ok(chains) = legacy::chains(family, &head, block, WANTED) {
        assert!(chains.len() <= WANTED.len());
        let rules: usize = chains.iter().map(|chain| chain.rules.len()).sum();
        assert!(rules <= WANTED.len() * (block.len() / 112 + 1));
    }
}
