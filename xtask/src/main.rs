//! `cargo xtask TASK`: setup, demo, test, fuzz, vm, bench, docs, dashboards, panels, image, sbom, clean.

use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::Result;
use clap::{Parser, Subcommand};
use xtask::{bench, dashboards, demo, fuzz, image, say, setup, suite, testbed, vm};

/// Development tasks of aksnet.
#[derive(Debug, Parser)]
#[command(name = "cargo xtask", bin_name = "cargo xtask")]
struct Cli {
    #[command(subcommand)]
    task: Task,
}

#[derive(Debug, Subcommand)]
enum Task {
    /// Find or install what building and testing needs
    Setup {
        /// Only what building needs
        #[arg(long)]
        build_only: bool,
    },
    /// Emulate an AKS node, run the agent on it, and show what it says
    Demo {
        /// Go on with traffic until Ctrl-C
        #[arg(long)]
        keep: bool,
        /// Run on this machine's own interfaces, with no emulation
        #[arg(long, conflicts_with = "keep")]
        live: bool,
        /// What the emulated node is like [default: kubenet; overlay for a scenario]
        #[arg(long, value_enum, value_name = "KIND", conflicts_with = "live")]
        node: Option<demo::NodeKind>,
        /// Show one thing in place of everything: network policies that are enforced, or that are not
        #[arg(long, value_enum, value_name = "NAME", conflicts_with = "live")]
        scenario: Option<demo::Scenario>,
        /// An agent that is built already
        #[arg(long, value_name = "PATH")]
        agent: Option<PathBuf>,
    },
    /// Formatting, lints and all tests
    Test,
    /// Give what the agent reads from others to a fuzzer; a nonzero exit code says that it found something
    Fuzz {
        /// Only these targets
        #[arg(value_name = "TARGET")]
        targets: Vec<String>,
        /// For how long each; as many run at a time as there are cores
        #[arg(long, value_name = "N", default_value_t = 60)]
        seconds: u64,
        /// Name the targets and what each is given
        #[arg(long)]
        list: bool,
        /// Give the target this input once, in place of fuzzing
        #[arg(long, value_name = "FILE")]
        input: Option<PathBuf>,
    },
    /// What the agent costs a node's traffic
    Bench {
        /// Fewer rounds, and docs/overhead.md stays as it is
        #[arg(long)]
        quick: bool,
        /// Only this benchmark (may be repeated), and docs/overhead.md stays as it is
        #[arg(long, value_name = "NAME", value_parser = clap::builder::PossibleValuesParser::new(bench::BENCHMARKS.into_iter().chain(bench::OF_THE_AGENT)))]
        only: Vec<String>,
        /// An agent that is built already
        #[arg(long, value_name = "PATH")]
        agent: Option<PathBuf>,
    },
    /// Write docs/cli.md from the command line and docs/unsafe.md from the sources, and follow the links between all pages
    Docs {
        /// Write nothing; fail where a page is not up to date
        #[arg(long)]
        check: bool,
    },
    /// Build the agent's container image, as an archive for `docker load` and `kind load image-archive`
    Image {
        /// The machine it is for: amd64 or arm64 [default: this one]
        #[arg(long, value_name = "ARCH")]
        arch: Option<image::machine::Machine>,
        /// An agent that is built already
        #[arg(long, value_name = "PATH")]
        agent: Option<PathBuf>,
        /// Only lay the image's files down in this directory
        #[arg(long, value_name = "DIR", conflicts_with = "output")]
        files: Option<PathBuf>,
        /// Where the archive goes [default: target/image/aksnet-ARCH.tar]
        #[arg(long, value_name = "FILE")]
        output: Option<PathBuf>,
    },
    /// Write what is linked into the agent as a bill of materials (JSON as `CycloneDX` has it), as it is in the image
    Sbom {
        /// The machine the agent is for: amd64 or arm64 [default: this one]
        #[arg(long, value_name = "ARCH")]
        arch: Option<image::machine::Machine>,
        /// Where it goes [default: standard output]
        #[arg(long, value_name = "FILE")]
        output: Option<PathBuf>,
    },
    /// Write deploy/grafana/*.json and deploy/prometheus/prometheusrule.yaml from their sources
    Dashboards {
        /// Write nothing, and fail when a file is not as its source says
        #[arg(long)]
        check: bool,
    },
    /// Draw the pictures of docs/dashboards.md from a real Prometheus that scrapes a real agent (root, a few minutes)
    Panels,
    /// Run the tests that depend on the kernel on others than this machine's, under QEMU (a few minutes each)
    ///
    /// Exit code 1: a test failed, or a guest hung. 3: nothing was tried, as a kernel or a tool cannot be had, or
    /// the tests do not build.
    Vm {
        /// Series of kernels, as Debian has packages of them [default: 6.1 6.12]
        #[arg(value_name = "SERIES")]
        kernels: Vec<vm::kernel::Series>,
        /// This program of tests: kernels, packets, programs or agent (may be repeated) [default: kernels and packets]
        #[arg(long, value_name = "NAME")]
        only: Vec<String>,
        /// How long a guest may take, in minutes
        #[arg(long, value_name = "MINUTES", default_value_t = vm::TIMEOUT.as_secs() / 60, value_parser = clap::value_parser!(u64).range(1..=240))]
        timeout: u64,
    },
    /// Remove what crashed runs of the emulated node left behind, by its recorded names
    Clean,
}

fn main() -> ExitCode {
    match run(Cli::parse().task) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("{} {error:#}", say::red("error:"));
            if error.is::<vm::NotTried>() {
                ExitCode::from(3)
            } else {
                ExitCode::FAILURE
            }
        }
    }
}

fn run(task: Task) -> Result<()> {
    match task {
        Task::Setup { build_only: false } => setup::ensure(true),
        Task::Setup { build_only: true } => setup::ensure_building(),
        Task::Demo {
            keep,
            live,
            node,
            scenario,
            agent,
        } => demo::run(demo::Options {
            agent,
            keep,
            live,
            node,
            scenario,
        }),
        Task::Test => suite::run(),
        Task::Fuzz {
            targets,
            seconds,
            list,
            input,
        } => fuzz::run(&fuzz::Options {
            targets,
            time: Duration::from_secs(seconds),
            list,
            input,
        }),
        Task::Bench { quick, only, agent } => bench::run(&bench::Options { quick, only, agent }),
        Task::Docs { check } => suite::docs(check),
        Task::Image {
            arch,
            agent,
            files,
            output,
        } => image::run(&image::Options {
            machine: arch,
            agent,
            files,
            output,
        }),
        Task::Sbom { arch, output } => image::sbom::run(arch, output.as_deref()),
        Task::Dashboards { check } => dashboards::run(check),
        Task::Panels => dashboards::draw(),
        Task::Vm {
            kernels,
            only,
            timeout,
        } => vm::run(&vm::Options {
            kernels: if kernels.is_empty() {
                vm::USUAL.to_vec()
            } else {
                kernels
            },
            only,
            timeout: Duration::from_mins(timeout),
        }),
        Task::Clean => {
            let removed = testbed::record::clean()?;
            for what in &removed {
                println!("removed {what}");
            }
            say::step(&format!("clean: {} things removed", removed.len()));
            Ok(())
        }
    }
}
