//! Asks `x_tables` by socket options, as `iptables-legacy` does.
//!
//! Only tables that are listed in `/proc/net/ip_tables_names` are asked for: a request for any other would
//! load its module and hook an empty table into every packet's way. Needs `CAP_NET_ADMIN`
//! (`do_ipt_get_ctl` in `net/ipv4/netfilter/ip_tables.c`).

use std::{
    fs, io,
    net::UdpSocket,
    os::fd::{AsRawFd as _, RawFd},
};

use super::{
    Family, NotKnown, Reading, Table, Wanted,
    legacy::{self, Head},
};

/// The largest table that is read. The kernel hands out a table only as a whole: one with 10,000 services of
/// one endpoint each has some 20 MB, and that takes it about 100 ms.
pub const MAX_TABLE: u32 = 64 << 20;

/// `IPT_SO_GET_INFO` and `IP6T_SO_GET_INFO`.
const GET_INFO: libc::c_int = 64;
/// `IPT_SO_GET_ENTRIES` and `IP6T_SO_GET_ENTRIES`.
const GET_ENTRIES: libc::c_int = 65;
/// `sizeof(struct ipt_get_entries)`: name, size, and padding to eight bytes.
const ENTRIES_HEAD: usize = 40;
/// A table that changes between the two questions is asked for again.
const ATTEMPTS: usize = 3;

/// Reads the wanted chains of the tables that there are.
pub(super) fn read(family: Family, wanted: &[Wanted]) -> Reading<Vec<Table>> {
    let (file, local) = match family {
        Family::Ip6 => ("/proc/thread-self/net/ip6_tables_names", "[::1]:0"),
        _ => ("/proc/thread-self/net/ip_tables_names", "127.0.0.1:0"),
    };
    let names = match fs::read_to_string(file) {
        Ok(names) => names,
        // The module is not loaded.
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(e) => return Err(NotKnown(format!("cannot read {file}: {e}"))),
    };
    let names: Vec<&str> = names
        .lines()
        .filter(|name| wanted.iter().any(|w| w.table == *name))
        .collect();
    if names.is_empty() {
        return Ok(Vec::new());
    }
    // Any socket of the family will do; this one is bound to the loopback and sends nothing.
    let socket = UdpSocket::bind(local).map_err(|e| NotKnown(format!("no socket: {e}")))?;
    let level = match family {
        Family::Ip6 => libc::IPPROTO_IPV6,
        _ => libc::IPPROTO_IP,
    };
    let mut tables = Vec::new();
    for name in names {
        let asked: Vec<Wanted> = wanted.iter().filter(|w| w.table == name).copied().collect();
        let chains = table(socket.as_raw_fd(), level, name, family, &asked)?;
        tables.push(Table {
            family,
            name: name.to_owned(),
            chains,
            sets: Vec::new(),
        });
    }
    Ok(tables)
}

fn table(
    socket: RawFd,
    level: libc::c_int,
    name: &str,
    family: Family,
    wanted: &[Wanted],
) -> Reading<Vec<super::Chain>> {
    let failed = |e: io::Error| match e.raw_os_error() {
        Some(libc::EPERM) => NotKnown("not permitted; it takes CAP_NET_ADMIN".to_owned()),
        _ => NotKnown(format!("table {name}: {e}")),
    };
    for _ in 0..ATTEMPTS {
        let mut bytes = named(name, legacy::HEAD);
        get(socket, level, GET_INFO, &mut bytes).map_err(failed)?;
        let head =
            Head::parse(&bytes).ok_or_else(|| NotKnown(format!("table {name} is damaged")))?;
        if head.size > MAX_TABLE {
            return Err(NotKnown(format!(
                "table {name} has {} bytes, and no more than {MAX_TABLE} are read",
                head.size
            )));
        }
        let size = usize::try_from(head.size).unwrap_or(usize::MAX);
        let mut bytes = named(name, ENTRIES_HEAD + size);
        bytes[32..36].copy_from_slice(&head.size.to_ne_bytes());
        match get(socket, level, GET_ENTRIES, &mut bytes) {
            Ok(()) => return legacy::chains(family, &head, &bytes[ENTRIES_HEAD..], wanted),
            Err(e) if e.raw_os_error() == Some(libc::EAGAIN) => {}
            Err(e) => return Err(failed(e)),
        }
    }
    Err(NotKnown(format!("table {name} changes all the time")))
}

/// Room for an answer, with the table's name at its beginning (`char name[XT_TABLE_MAXNAMELEN]`).
fn named(name: &str, size: usize) -> Vec<u8> {
    let mut bytes = vec![0; size];
    let name = &name.as_bytes()[..name.len().min(31)];
    bytes[..name.len()].copy_from_slice(name);
    bytes
}

fn get(socket: RawFd, level: libc::c_int, option: libc::c_int, bytes: &mut [u8]) -> io::Result<()> {
    let mut length = libc::socklen_t::try_from(bytes.len()).map_err(io::Error::other)?;
    // SAFETY: the pointer is to `length` bytes that are ours alone until the call returns, and the kernel
    // reads and writes no more than `length` of them. The descriptor is open: its socket lives in `read`.
    let result = unsafe {
        libc::getsockopt(
            socket,
            level,
            option,
            bytes.as_mut_ptr().cast(),
            &raw mut length,
        )
    };
    if result == 0 {
        Ok(())
    } else {
        Err(io::Error::last_os_error())
    }
}
