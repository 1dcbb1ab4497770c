//! *Evidence*: everything that conclusions are drawn from, read once and not interpreted yet.

use std::{
    fs,
    io::{self, Read as _},
    path::Path,
};

use super::{Labels, Settings, conflist::Conflist};
use crate::node::{
    Snapshot,
    link::Link,
    metadata::Compute,
    rules::{Chain, Family, NotKnown, Reading, Rules, Wanted},
};

/// Where container runtimes look for CNI configurations.
pub const CNI_DIRECTORY: &str = "etc/cni/net.d";
/// No configuration is longer.
const MAX_FILE: u64 = 1 << 20;
/// No directory of configurations has more files.
const MAX_FILES: usize = 1000;

const fn wanted(table: &'static str, chain: &'static str, rules: bool) -> Wanted {
    Wanted {
        table,
        chain,
        rules,
    }
}

/// The chains that tell something, with their rules where these do. Never those that grow with the number of
/// services.
pub const WANTED: &[Wanted] = &[
    wanted("nat", "POSTROUTING", true),
    wanted("nat", "IP-MASQ-AGENT", true),
    wanted("nat", "KIND-MASQ-AGENT", true),
    wanted("nat", "SWIFT-POSTROUTING", true),
    wanted("nat", "SWIFT", true),
    wanted("nat", "FLANNEL-POSTRTG", true),
    wanted("nat", "cali-nat-outgoing", true),
    wanted("nat", "CILIUM_POST_nat", true),
    wanted("nat", "KUBE-SERVICES", false),
    wanted("nat", "KUBE-POSTROUTING", false),
    wanted("filter", "FORWARD", true),
    wanted("filter", "AZURE-NPM", true),
    wanted("filter", "cali-FORWARD", false),
    wanted("filter", "CILIUM_FORWARD", false),
    wanted("mangle", "KUBE-IPTABLES-HINT", false),
    wanted("mangle", "KUBE-KUBELET-CANARY", false),
];

/// The evidence.
#[derive(Clone, Debug)]
pub struct Evidence<'a> {
    /// The first CNI configuration; `None` if there is none.
    pub conflist: Reading<Option<Conflist>>,
    /// Links, addresses, routes.
    pub snapshot: &'a Snapshot,
    /// The packet filter.
    pub rules: Rules,
    /// The Kubernetes node's labels.
    pub labels: Option<&'a Labels>,
    /// What the instance metadata service said.
    pub compute: Option<Compute>,
    /// The kernel's release.
    pub kernel: String,
}

impl<'a> Evidence<'a> {
    /// Reads it.
    #[must_use]
    pub fn gather(settings: &Settings, snapshot: &'a Snapshot, labels: Option<&'a Labels>) -> Self {
        let kernel = nix::sys::utsname::uname().map_or(String::new(), |u| {
            u.release().to_string_lossy().into_owned()
        });
        Self {
            conflist: conflist(&settings.host_root),
            snapshot,
            rules: Rules::read(WANTED),
            labels,
            compute: settings.compute.clone(),
            kernel,
        }
    }

    /// A label of the Kubernetes node.
    #[must_use]
    pub fn label(&self, name: &str) -> Option<&str> {
        self.labels?.get(name).map(String::as_str)
    }

    /// The link of this name.
    #[must_use]
    pub fn link(&self, name: &str) -> Option<&Link> {
        self.snapshot.links.iter().find(|l| l.name == name)
    }

    /// The first link whose name begins so and has more.
    #[must_use]
    pub fn link_like(&self, prefix: &str) -> Option<&Link> {
        self.snapshot
            .links
            .iter()
            .find(|l| l.name.len() > prefix.len() && l.name.starts_with(prefix))
    }

    /// Every chain of this name in the iptables table of this name. Where one of them is in the backend that
    /// kubelet uses, those in the other one are left over, and left out.
    #[must_use]
    pub fn chains<'e>(
        &'e self,
        table: &'e str,
        chain: &'e str,
    ) -> Vec<(&'static str, Family, &'e Chain)> {
        let all = || self.rules.chains(table, chain);
        let current = all().any(|(source, ..)| self.is_current(source));
        all()
            .filter(|(source, ..)| !current || self.is_current(source))
            .collect()
    }

    /// Where a chain was found, in words: `nat chain IP-MASQ-AGENT (ip, nf_tables)`.
    #[must_use]
    pub fn chain(&self, table: &str, chain: &str) -> Option<String> {
        let (source, family, _) = self.chains(table, chain).into_iter().next()?;
        let left_over = self
            .rules
            .chains(table, chain)
            .find(|(source, ..)| !self.is_current(source));
        let note = match left_over {
            Some((other, ..)) if other == source => ", which kubelet does not use".to_owned(),
            Some((other, ..)) => format!("; left over in {other}, which kubelet does not use"),
            None => String::new(),
        };
        Some(format!("{table} chain {chain} ({family}, {source}{note})"))
    }

    /// Where a table of nft's own was found.
    #[must_use]
    pub fn table(&self, name: &str) -> Option<String> {
        let (_, table) = self.rules.tables().find(|(_, t)| t.name == name)?;
        let sets: Vec<&str> = table.sets.iter().take(8).map(String::as_str).collect();
        let sets = if sets.is_empty() {
            String::new()
        } else {
            format!(" with {}", sets.join(", "))
        };
        Some(format!("nft table {} {name}{sets}", table.family))
    }

    /// Kubelet leaves a chain of its own in the backend that it uses. Where it left one in the other backend
    /// only, rules in this one may be left over.
    fn is_current(&self, source: &str) -> bool {
        let in_use: Vec<&str> = ["KUBE-IPTABLES-HINT", "KUBE-KUBELET-CANARY"]
            .into_iter()
            .flat_map(|hint| self.rules.chains("mangle", hint).map(|(source, ..)| source))
            .collect();
        in_use.is_empty() || in_use.iter().any(|used| backend(used) == backend(source))
    }
}

/// The backend of a source: `x_tables` has one source for each family.
fn backend(source: &str) -> &str {
    source.split(' ').next().unwrap_or_default()
}

/// The first configuration by name.
///
/// # Errors
/// When the directory or the file cannot be read.
pub fn conflist(root: &Path) -> Reading<Option<Conflist>> {
    let directory = root.join(CNI_DIRECTORY);
    let not_known =
        |path: &Path, e: &dyn std::fmt::Display| NotKnown(format!("{}: {e}", path.display()));
    let entries = match fs::read_dir(&directory) {
        Ok(entries) => entries,
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(e) => return Err(not_known(&directory, &e)),
    };
    let first = entries
        .take(MAX_FILES)
        .filter_map(|entry| entry.ok()?.file_name().into_string().ok())
        .filter(|name| Conflist::is_file(name))
        .min();
    let Some(name) = first else { return Ok(None) };
    let path = directory.join(&name);
    let text = read(&path).map_err(|e| not_known(&path, &e))?;
    Conflist::parse(&name, &text)
        .map(Some)
        .map_err(|e| not_known(&path, &e))
}

/// A file of the host's, up to a bound. Only plain files: a pipe would block.
///
/// # Errors
/// When it cannot be read, or is longer.
pub(in crate::node) fn read(path: &Path) -> io::Result<Vec<u8>> {
    read_up_to(path, MAX_FILE)
}

/// See [`read`].
///
/// # Errors
/// When it cannot be read, or is longer.
pub(in crate::node) fn read_up_to(path: &Path, most: u64) -> io::Result<Vec<u8>> {
    if !fs::metadata(path)?.is_file() {
        return Err(io::Error::other("it is no plain file"));
    }
    let mut bytes = Vec::new();
    let length = fs::File::open(path)?
        .take(most + 1)
        .read_to_end(&mut bytes)?;
    if u64::try_from(length).unwrap_or(u64::MAX) > most {
        return Err(io::Error::other(format!("it is longer than {most} bytes")));
    }
    Ok(bytes)
}
