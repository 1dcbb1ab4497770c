//! Asks `nf_tables` over nfnetlink.
//!
//! Chains are asked for one by one, by name, and rules chain by chain: both are found by a hash in the
//! kernel, so the answer takes as long on a node with ten thousand services as on an empty one.
//! Needs `CAP_NET_ADMIN` (`netlink_net_capable` in net/netfilter/nfnetlink.c).

use std::{io, sync::OnceLock, time::Duration};

use netlink_sys::{Socket, SocketAddr, protocols::NETLINK_NETFILTER};
use nix::{
    errno::Errno,
    sys::{
        socket::{setsockopt, sockopt},
        time::TimeVal,
    },
};

use super::{
    Chain, Family, NotKnown, Reading, Rule, Table, Wanted,
    attribute::{self, Message},
    nft,
};

/// `NLM_F_REQUEST`.
const REQUEST: u16 = 1;
/// `NLM_F_DUMP`.
const DUMP: u16 = 0x300;
/// One datagram of a dump: the kernel makes them up to 32 KiB.
const BUFFER: usize = 1 << 16;
/// The kernel answers at once; this is for the day it does not.
const PATIENCE: Duration = Duration::from_secs(2);
/// A dump during which the tables change is begun anew so often.
const ATTEMPTS: usize = 3;
/// No chain that matters has more rules, nor a node more tables.
const MAX_ITEMS: usize = 4096;
/// iptables-nft has at most these; all others are somebody's own.
const IPTABLES: [&str; 5] = ["filter", "nat", "mangle", "raw", "security"];

/// Reads the tables, the wanted chains of those that are iptables', and the sets of the others.
pub(super) fn read(wanted: &[Wanted]) -> Reading<Vec<Table>> {
    if !is_present() {
        // What is not in the kernel holds no rules, and asking would load it.
        return Ok(Vec::new());
    }
    let mut asker = Asker::new().map_err(|e| not_known("open a netfilter socket", &e))?;
    asker.tables(wanted).map_err(|e| not_known("read it", &e))
}

fn not_known(what: &str, error: &io::Error) -> NotKnown {
    match Errno::from_raw(error.raw_os_error().unwrap_or(0)) {
        Errno::EPERM => NotKnown("not permitted; it takes CAP_NET_ADMIN".to_owned()),
        _ => NotKnown(format!("cannot {what}: {error}")),
    }
}

/// Whether `nf_tables` is in the kernel, without loading it.
fn is_present() -> bool {
    static BUILT_IN: OnceLock<bool> = OnceLock::new();
    match std::fs::read_to_string("/proc/modules") {
        Ok(modules) => {
            modules.lines().any(|m| m.starts_with("nf_tables "))
                || *BUILT_IN.get_or_init(|| is_built_in().unwrap_or(true))
        }
        // A kernel without modules loads none.
        Err(_) => true,
    }
}

/// Whether a function of `nf_tables` stands among the kernel's own, which names no module behind it.
fn is_built_in() -> io::Result<bool> {
    use io::BufRead as _;
    let symbols = io::BufReader::new(std::fs::File::open("/proc/kallsyms")?);
    for line in symbols.lines() {
        if line?.ends_with(" nft_do_chain") {
            return Ok(true);
        }
    }
    Ok(false)
}

struct Asker {
    socket: Socket,
    sequence: u32,
    buffer: Vec<u8>,
}

impl Asker {
    fn new() -> io::Result<Self> {
        let socket = Socket::new(NETLINK_NETFILTER)?;
        socket.connect(&SocketAddr::new(0, 0))?;
        let seconds = i64::try_from(PATIENCE.as_secs()).unwrap_or(1);
        setsockopt(&socket, sockopt::ReceiveTimeout, &TimeVal::new(seconds, 0))?;
        Ok(Self {
            socket,
            sequence: 0,
            buffer: Vec::with_capacity(BUFFER),
        })
    }

    fn tables(&mut self, wanted: &[Wanted]) -> io::Result<Vec<Table>> {
        let names = self.ask(nft::GET_TABLE, DUMP, 0, &[], nft::table)?;
        let mut tables = Vec::new();
        for (family, name) in names {
            let iptables =
                matches!(family, Family::Ip | Family::Ip6) && IPTABLES.contains(&name.as_str());
            let mut table = Table {
                family,
                name,
                chains: Vec::new(),
                sets: Vec::new(),
            };
            if iptables {
                for w in wanted.iter().filter(|w| w.table == table.name) {
                    table.chains.extend(self.chain(family, w)?);
                }
            } else {
                let names = [(nft::TABLE, table.name.as_str())];
                table.sets = self.ask(nft::GET_SET, DUMP, family.number(), &names, nft::set)?;
            }
            tables.push(table);
        }
        Ok(tables)
    }

    fn chain(&mut self, family: Family, wanted: &Wanted) -> io::Result<Option<Chain>> {
        let family = family.number();
        let names = [(nft::TABLE, wanted.table), (nft::CHAIN_NAME, wanted.chain)];
        let Some(mut chain) = self
            .ask(nft::GET_CHAIN, 0, family, &names, nft::chain)?
            .pop()
        else {
            return Ok(None);
        };
        if wanted.rules {
            let names = [(nft::TABLE, wanted.table), (nft::RULE_CHAIN, wanted.chain)];
            let rules: Vec<Rule> = self.ask(nft::GET_RULE, DUMP, family, &names, nft::rule)?;
            chain.rules = rules;
        }
        Ok(Some(chain))
    }

    /// The answers to a request. What does not exist gives none.
    fn ask<T>(
        &mut self,
        kind: u16,
        flags: u16,
        family: u8,
        names: &[(u16, &str)],
        read: fn(&[u8]) -> Option<T>,
    ) -> io::Result<Vec<T>> {
        let mut payload = vec![family, 0, 0, 0];
        for (kind, name) in names {
            let mut name = name.as_bytes().to_vec();
            name.push(0);
            attribute::push(&mut payload, *kind, &name);
        }
        for _ in 0..ATTEMPTS {
            self.sequence += 1;
            let request = attribute::request(kind, REQUEST | flags, self.sequence, &payload);
            self.socket.send(&request, 0)?;
            let mut answers = Vec::new();
            if self.receive(flags == DUMP, read, &mut answers)? {
                return Ok(answers);
            }
        }
        Err(io::Error::other("it changes all the time"))
    }

    /// True unless what was dumped changed meanwhile.
    fn receive<T>(
        &mut self,
        dump: bool,
        read: fn(&[u8]) -> Option<T>,
        answers: &mut Vec<T>,
    ) -> io::Result<bool> {
        let mut whole = true;
        loop {
            self.buffer.clear();
            let length = self.socket.recv(&mut self.buffer, libc::MSG_TRUNC)?;
            if length > self.buffer.len() {
                return Err(io::Error::other("an answer is too long"));
            }
            for message in attribute::messages(&self.buffer) {
                if message.sequence != self.sequence {
                    continue;
                }
                whole &= message.flags & attribute::INTERRUPTED == 0;
                match outcome(&message)? {
                    Some(()) => return Ok(whole),
                    None => answers.extend(read(message.payload)),
                }
                if answers.len() > MAX_ITEMS {
                    return Err(io::Error::other(format!(
                        "more than {MAX_ITEMS} tables, sets or rules in one place"
                    )));
                }
                if !dump {
                    return Ok(whole);
                }
            }
        }
    }
}

/// `Some` if the message ends the answer.
fn outcome(message: &Message) -> io::Result<Option<()>> {
    match message.kind {
        attribute::DONE | attribute::ERROR => {
            let error = attribute::u32_at(message.payload, 0).unwrap_or(0);
            match error.cast_signed().saturating_neg() {
                // The chain, or the whole table, is not there (any more).
                0 | libc::ENOENT => Ok(Some(())),
                errno => Err(io::Error::from_raw_os_error(errno)),
            }
        }
        _ => Ok(None),
    }
}
