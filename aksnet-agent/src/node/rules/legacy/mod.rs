//! An `x_tables` table as the kernel hands it out: one block of entries, each a rule, with jumps as offsets
//! into the block. Pure and total on any bytes.
//!
//! A chain of the user's begins with an entry whose target is `ERROR` and carries the chain's name; the
//! chains of the hooks begin where the table's head says. Layouts: `x_tables.h` in
//! include/uapi/linux/netfilter, `ip_tables.h` in `netfilter_ipv4`, `ip6_tables.h` in
//! `netfilter_ipv6`.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use super::{
    Chain, Family, Hook, NotKnown, Reading, Rule, Verdict, Wanted,
    attribute::{u16_at, u32_at},
    extension, masked, text,
};

/// `sizeof(struct ipt_getinfo)`, the same for both families.
pub const HEAD: usize = 84;
/// The hooks in the order of their numbers, with their chains.
const HOOKS: [&str; 5] = ["PREROUTING", "INPUT", "FORWARD", "OUTPUT", "POSTROUTING"];
/// `sizeof(struct xt_entry_match)`, and of a target.
const EXTENSION: usize = 32;
/// `IPT_F_GOTO` and `IP6T_F_GOTO`.
const GOTO: [u8; 2] = [0x02, 0x04];

/// What a table says of itself (`struct ipt_getinfo`).
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Head {
    /// Where each hook's chain begins, and where its last entry, the policy, is.
    pub hooks: [Option<(u32, u32)>; 5],
    /// Bytes of all entries.
    pub size: u32,
}

impl Head {
    /// Reads it.
    #[must_use]
    pub fn parse(bytes: &[u8]) -> Option<Self> {
        let valid = u32_at(bytes, 32)?;
        let mut hooks = [None; 5];
        for (number, hook) in hooks.iter_mut().enumerate() {
            let entry = u32_at(bytes, 36 + 4 * number)?;
            let underflow = u32_at(bytes, 56 + 4 * number)?;
            *hook = (valid & (1 << number) != 0).then_some((entry, underflow));
        }
        Some(Self {
            hooks,
            size: u32_at(bytes, 80)?,
        })
    }
}

/// Where things are in an entry, which differs by family.
struct Layout {
    ipv6: bool,
    /// `target_offset`, with `next_offset` behind it.
    offsets: usize,
    /// `sizeof(struct ipt_entry)`.
    size: usize,
}

impl Layout {
    fn of(family: Family) -> Self {
        if family == Family::Ip6 {
            Self {
                ipv6: true,
                offsets: 140,
                size: 168,
            }
        } else {
            Self {
                ipv6: false,
                offsets: 88,
                size: 112,
            }
        }
    }
}

/// An entry, borrowed.
struct Entry<'a> {
    at: usize,
    bytes: &'a [u8],
    target: usize,
}

impl<'a> Entry<'a> {
    fn end(&self) -> usize {
        self.at + self.bytes.len()
    }

    fn target(&self) -> (&'a [u8], &'a [u8]) {
        let target = &self.bytes[self.target..];
        let name = &target[2..31];
        let end = name.iter().position(|b| *b == 0).unwrap_or(name.len());
        (&name[..end], &target[EXTENSION..])
    }
}

fn entry<'a>(block: &'a [u8], at: usize, layout: &Layout) -> Option<Entry<'a>> {
    let rest = block.get(at..)?;
    let target = usize::from(u16_at(rest, layout.offsets)?);
    let next = usize::from(u16_at(rest, layout.offsets + 2)?);
    let bytes = rest.get(..next)?;
    if target < layout.size || next < target.checked_add(EXTENSION)? {
        return None;
    }
    Some(Entry { at, bytes, target })
}

/// The wanted chains of one table; those that do not exist are left out.
///
/// # Errors
/// When the block is not what it should be.
pub fn chains(family: Family, head: &Head, block: &[u8], wanted: &[Wanted]) -> Reading<Vec<Chain>> {
    let layout = Layout::of(family);
    // Where the rules of each of the user's chains begin, in the block's order.
    let mut starts: Vec<(usize, &[u8])> = Vec::new();
    let mut at = 0;
    while at < block.len() {
        let entry = entry(block, at, &layout)
            .ok_or_else(|| NotKnown(format!("the entry at {at} of {} is damaged", block.len())))?;
        at = entry.end();
        if let (b"ERROR", name) = entry.target() {
            starts.push((at, name));
        }
    }
    let mut chains = Vec::new();
    for wanted in wanted {
        let hook = HOOKS.iter().position(|h| *h == wanted.chain);
        let base = hook.and_then(|n| Some((n, head.hooks[n]?)));
        let start = match base {
            Some((_, (entry, _))) => Some(to_usize(entry)),
            None => starts
                .iter()
                // The last one ends the block and is no chain.
                .find(|(at, name)| *at < block.len() && text(name) == wanted.chain)
                .map(|(at, _)| *at),
        };
        let Some(start) = start else { continue };
        let mut chain = Chain {
            name: wanted.chain.to_owned(),
            hook: None,
            rules: Vec::new(),
        };
        let end = base.map(|(_, (_, underflow))| to_usize(underflow));
        if wanted.rules {
            chain.rules = rules(block, start, end, &starts, &layout);
        }
        if let Some((number, (_, underflow))) = base {
            let policy = entry(block, to_usize(underflow), &layout)
                .map(|e| rule(&e, &starts, &layout).verdict);
            chain.hook = Some(Hook {
                number: u32::try_from(number).unwrap_or(0),
                priority: None,
                drops: policy == Some(Verdict::Drop),
            });
        }
        chains.push(chain);
    }
    Ok(chains)
}

fn to_usize(n: u32) -> usize {
    usize::try_from(n).unwrap_or(usize::MAX)
}

/// The rules from here to the policy, or to the next chain.
fn rules(
    block: &[u8],
    start: usize,
    end: Option<usize>,
    starts: &[(usize, &[u8])],
    layout: &Layout,
) -> Vec<Rule> {
    let mut rules = Vec::new();
    let mut at = start;
    while Some(at) != end
        && let Some(entry) = entry(block, at, layout)
    {
        if entry.target().0 == b"ERROR" {
            // A chain of the user's ends with a RETURN that nobody wrote.
            if end.is_none() {
                rules.pop();
            }
            break;
        }
        rules.push(rule(&entry, starts, layout));
        at = entry.end();
    }
    rules
}

fn rule(entry: &Entry, starts: &[(usize, &[u8])], layout: &Layout) -> Rule {
    let mut rule = Rule::default();
    header(&mut rule, entry.bytes, layout.ipv6);
    let mut at = layout.size;
    while at < entry.target {
        let size = usize::from(u16_at(entry.bytes, at).unwrap_or(0));
        let Some(bytes) = entry.bytes[at..entry.target]
            .get(..size)
            .filter(|b| b.len() >= EXTENSION)
        else {
            rule.narrowed = true;
            break;
        };
        let revision = u32::from(bytes[31]);
        extension::condition(
            &mut rule,
            &text(&bytes[2..31]),
            revision,
            &bytes[EXTENSION..],
        );
        at += size;
    }
    let (name, info) = entry.target();
    let flags = entry.bytes[if layout.ipv6 { 131 } else { 82 }];
    let goto = flags & GOTO[usize::from(layout.ipv6)] != 0;
    rule.verdict = if name.is_empty() {
        standard(u32_at(info, 0), entry.end(), goto, starts)
    } else {
        extension::verdict(&text(name), info, layout.ipv6)
    };
    rule
}

/// `struct ipt_ip` and `struct ip6t_ip6`: addresses, interfaces, protocol.
fn header(rule: &mut Rule, bytes: &[u8], ipv6: bool) {
    let width = if ipv6 { 16 } else { 4 };
    // Source, destination, their masks; then two interfaces and their masks, then the protocol.
    let part = |n: usize| &bytes[n * width..(n + 1) * width];
    let interfaces = &bytes[4 * width..4 * width + 64];
    let protocol = u16_at(bytes, 4 * width + 64).unwrap_or(0);
    let inverted = bytes[if ipv6 { 132 } else { 83 }];
    // IPT_INV_DSTIP is the same in both families.
    let (not_destination, other) = (inverted & 0x10 != 0, inverted & !0x10 != 0);
    let any = |bytes: &[u8]| bytes.iter().all(|b| *b == 0);
    rule.narrowed = other || protocol != 0 || !any(interfaces) || !any(part(2));
    if !any(part(3)) {
        match address(part(1)).and_then(|ip| masked(ip, address(part(3))?)) {
            Some(net) => rule.destination = Some((net, not_destination)),
            None => rule.narrowed = true,
        }
    }
}

fn address(bytes: &[u8]) -> Option<IpAddr> {
    if let Ok(v4) = <[u8; 4]>::try_from(bytes) {
        return Some(Ipv4Addr::from(v4).into());
    }
    Some(Ipv6Addr::from(<[u8; 16]>::try_from(bytes).ok()?).into())
}

/// The verdict of a standard target: a decision as its negative less one, or the offset of the next entry.
fn standard(verdict: Option<u32>, next: usize, goto: bool, starts: &[(usize, &[u8])]) -> Verdict {
    let Some(verdict) = verdict.map(u32::cast_signed) else {
        return Verdict::Continue;
    };
    match usize::try_from(verdict) {
        Ok(to) if to == next => Verdict::Continue,
        Ok(to) => match starts.binary_search_by_key(&to, |(at, _)| *at) {
            Ok(found) if goto => Verdict::Goto(text(starts[found].1)),
            Ok(found) => Verdict::Jump(text(starts[found].1)),
            Err(_) => Verdict::Other(format!("jump to {to}")),
        },
        Err(_) => match verdict {
            -1 => Verdict::Drop,
            -2 => Verdict::Accept,
            // XT_RETURN, by the number of NF_REPEAT.
            -5 => Verdict::Return,
            other => Verdict::Other(format!("verdict {other}")),
        },
    }
}

#[cfg(test)]
mod tests;
