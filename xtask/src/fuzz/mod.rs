//! `cargo xtask fuzz`: gives what the agent reads from others to libFuzzer, for a bounded time.
//!
//! The targets are in `aksnet-common/fuzz` and `aksnet-agent/fuzz`, laid out as cargo-fuzz has it, and their inputs begin with
//! the `seeds/` there. They are built with the flags that cargo-fuzz would pass, which a stable compiler takes too. There is
//! no `AddressSanitizer`: what is fuzzed has no unsafe code, and without it there are more executions.

// What libFuzzer says.
mod output;

use std::collections::VecDeque;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::Mutex;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail, ensure};

use self::output::Figures;
use crate::{cargo, say, setup};

/// Coverage by counters and comparisons, checks of debug builds: what cargo-fuzz passes with `--sanitizer none`.
const FLAGS: [&str; 9] = [
    "--cfg",
    "fuzzing",
    "-Cpasses=sancov-module",
    "-Cllvm-args=-sanitizer-coverage-level=4",
    "-Cllvm-args=-sanitizer-coverage-inline-8bit-counters",
    "-Cllvm-args=-sanitizer-coverage-pc-table",
    "-Cllvm-args=-sanitizer-coverage-trace-compares",
    "-Cdebug-assertions=y",
    "-Coverflow-checks=y",
];

/// An input takes no longer; the slowest takes milliseconds.
const SLOWEST_SECONDS: u64 = 10;
/// No target may take more memory, in MiB.
const LARGEST_MB: u64 = 1_024;
/// Inputs are at most so long: the longest seeds have some thousand bytes.
const LONGEST: u64 = 16_384;

/// What to fuzz, and for how long.
#[derive(Clone, Debug)]
pub struct Options {
    /// Targets by name; empty: all.
    pub targets: Vec<String>,
    /// For how long each.
    pub time: Duration,
    /// Only name the targets.
    pub list: bool,
    /// Give the one target this input in place of fuzzing.
    pub input: Option<PathBuf>,
}

/// A crate of targets. They are two, as those for packets build in seconds, and the agent in minutes.
struct Crate {
    /// Where it is, in the repository.
    source: &'static str,
    /// Where it is built, in cargo's directory.
    build: &'static str,
}

const CRATES: [Crate; 2] = [
    Crate {
        source: "aksnet-common/fuzz",
        build: "fuzz/packets",
    },
    Crate {
        source: "aksnet-agent/fuzz",
        build: "fuzz",
    },
];

/// A target.
struct Target {
    name: String,
    /// What it is given.
    about: String,
    /// Its crate.
    of: &'static Crate,
}

/// Where things are.
struct Places {
    host: String,
    /// Cargo's directory.
    build: PathBuf,
    /// Inputs that reached something new, kept from run to run.
    corpus: PathBuf,
    /// Inputs that a target did not survive.
    findings: PathBuf,
}

impl Places {
    fn new() -> Result<Self> {
        let build = cargo::target_directory()?;
        Ok(Self {
            host: host()?,
            corpus: build.join("fuzz/corpus"),
            findings: build.join("fuzz/findings"),
            build,
        })
    }

    fn binary(&self, target: &Target) -> PathBuf {
        let build = self.build.join(target.of.build).join(&self.host);
        build.join("release").join(&target.name)
    }
}

/// The compiler's own target. It is named to cargo, so that build scripts are not instrumented.
fn host() -> Result<String> {
    let rustc = Command::new("rustc").arg("-vV").output().context("rustc")?;
    let text = String::from_utf8_lossy(&rustc.stdout);
    let host = text.lines().find_map(|line| line.strip_prefix("host: "));
    host.map(str::to_owned).context("rustc names its host")
}

/// Fuzzes, prints a row for each target, and leaves what was found where it says.
///
/// # Errors
/// When a target does not build or is not there, or when one did not survive an input.
pub fn run(options: &Options) -> Result<()> {
    let mut chosen = targets()?;
    if options.list {
        for target in &chosen {
            println!("{:<12} {}", target.name, target.about);
        }
        return Ok(());
    }
    if !options.targets.is_empty() {
        for name in &options.targets {
            let names: Vec<&str> = chosen.iter().map(|one| one.name.as_str()).collect();
            ensure!(
                names.contains(&name.as_str()),
                "there is no target {name}: it is one of {}",
                names.join(", ")
            );
        }
        chosen.retain(|one| options.targets.contains(&one.name));
    }
    let places = Places::new()?;
    say::catch_interrupts()?;
    build(&places, &chosen)?;
    if let Some(input) = &options.input {
        let [target] = &chosen[..] else {
            bail!("name one target for the input");
        };
        return say::run(Command::new(places.binary(target)).arg(input));
    }
    let rows = fuzz(&places, &chosen, options.time)?;
    tell(&rows)
}

/// The targets for packets, which build in seconds, for some seconds.
///
/// # Errors
/// As [`run`].
pub fn packets() -> Result<()> {
    run(&Options {
        targets: ["parse", "fingerprint"].map(str::to_owned).to_vec(),
        time: Duration::from_secs(5),
        list: false,
        input: None,
    })
}

/// All targets, with what each is given as the header of its module says.
fn targets() -> Result<Vec<Target>> {
    let mut all = Vec::new();
    for of in &CRATES {
        let fuzz = cargo::workspace().join(of.source);
        let binaries = fuzz.join("fuzz_targets");
        for entry in fs::read_dir(&binaries).with_context(|| binaries.display().to_string())? {
            let path = entry?.path();
            let Some(name) = path.file_stem().and_then(|name| name.to_str()) else {
                continue;
            };
            let source = fs::read_to_string(fuzz.join(format!("src/{name}.rs")))?;
            let header = source.lines().map_while(|line| line.strip_prefix("//!"));
            let header: Vec<&str> = header.map(str::trim).collect();
            let first = header.split(|line| line.is_empty()).next();
            all.push(Target {
                name: name.to_owned(),
                about: first.unwrap_or_default().join(" "),
                of,
            });
        }
    }
    all.sort_by(|a, b| a.name.cmp(&b.name));
    Ok(all)
}

fn build(places: &Places, targets: &[Target]) -> Result<()> {
    setup::ensure_building()?;
    for of in &CRATES {
        let own: Vec<&Target> = targets
            .iter()
            .filter(|one| one.of.source == of.source)
            .collect();
        if own.is_empty() {
            continue;
        }
        say::step(&format!("building {} targets of {}", own.len(), of.source));
        let mut cargo = cargo::command();
        cargo
            .args(["build", "--release", "--target", &places.host])
            .arg("--manifest-path")
            .arg(cargo::workspace().join(of.source).join("Cargo.toml"))
            .arg("--target-dir")
            .arg(places.build.join(of.build))
            .env("CARGO_ENCODED_RUSTFLAGS", FLAGS.join("\x1f"));
        for target in own {
            cargo.args(["--bin", &target.name]);
        }
        say::run(&mut cargo)?;
    }
    Ok(())
}

/// What a target did.
struct Row {
    name: String,
    figures: Figures,
    /// How long it ran: less than was allowed if it did not survive.
    seconds: u64,
    /// Its inputs, its output and how it is repeated, if it did not survive.
    found: Option<String>,
}

/// Runs them, as many at a time as there are cores.
fn fuzz(places: &Places, targets: &[Target], time: Duration) -> Result<Vec<Row>> {
    let cores = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
    let seconds = time.as_secs().max(1);
    let minutes = (seconds * targets.len().div_ceil(cores) as u64).div_ceil(60);
    say::step(&format!(
        "{} targets, {seconds} s each, {cores} at a time: {minutes} minutes",
        targets.len()
    ));
    let waiting: Mutex<VecDeque<&Target>> = Mutex::new(targets.iter().collect());
    let worker = || {
        let mut rows = Vec::new();
        while let Some(target) = waiting.lock().ok().and_then(|mut all| all.pop_front()) {
            if say::is_interrupted() {
                break;
            }
            rows.push(one(places, target, seconds));
        }
        rows
    };
    let rows: Vec<Result<Row>> = std::thread::scope(|scope| {
        let workers: Vec<_> = (0..cores.min(targets.len()))
            .map(|_| scope.spawn(worker))
            .collect();
        let done = workers
            .into_iter()
            .filter_map(|worker| worker.join().ok())
            .flatten();
        done.collect()
    });
    let mut rows = rows.into_iter().collect::<Result<Vec<Row>>>()?;
    say::check()?;
    rows.sort_by_key(|row| targets.iter().position(|one| one.name == row.name));
    ensure!(rows.len() == targets.len(), "a worker has panicked");
    Ok(rows)
}

fn one(places: &Places, target: &Target, seconds: u64) -> Result<Row> {
    let name = target.name.as_str();
    let corpus = places.corpus.join(name);
    let findings = places.findings.join(name);
    for directory in [&corpus, &findings] {
        fs::create_dir_all(directory).with_context(|| directory.display().to_string())?;
    }
    let before = inputs(&findings)?;
    let mut command = Command::new(places.binary(target));
    let seeds = cargo::workspace().join(target.of.source).join("seeds");
    command
        .arg(&corpus)
        .arg(seeds.join(name))
        .arg(format!("-max_total_time={seconds}"))
        .arg(format!("-timeout={SLOWEST_SECONDS}"))
        .arg(format!("-rss_limit_mb={LARGEST_MB}"))
        .arg(format!("-max_len={LONGEST}"))
        .arg(format!("-artifact_prefix={}/", findings.display()))
        .args(["-print_final_stats=1", "-use_value_profile=1"])
        .stdin(Stdio::null());
    let started = Instant::now();
    let output = command
        .output()
        .with_context(|| format!("cannot start the target {name}"))?;
    let seconds = started.elapsed().as_secs();
    let text = String::from_utf8_lossy(&output.stderr);
    let found = (!output.status.success()).then(|| {
        let log = places.findings.join(format!("{name}.log"));
        let mut new = inputs(&findings).unwrap_or_default();
        new.retain(|path| !before.contains(path));
        let repeat = new.iter().map(|path| {
            let path = path.display();
            format!("\n  cargo xtask fuzz {name} --input {path}")
        });
        let kept = match fs::write(&log, &*output.stderr) {
            Ok(()) => format!(", all of its output in {}", log.display()),
            Err(_) => String::new(),
        };
        let why = output::why(&text);
        format!(
            "{why} ({}{kept}){}",
            output.status,
            repeat.collect::<String>()
        )
    });
    let figures = Figures::read(&text);
    let end = if found.is_some() {
        ", and did not survive"
    } else {
        ""
    };
    println!("  {}{end}", figures.line(name, seconds));
    Ok(Row {
        name: name.to_owned(),
        figures,
        seconds,
        found,
    })
}

fn inputs(directory: &Path) -> Result<Vec<PathBuf>> {
    let entries = fs::read_dir(directory)?.map(|entry| Ok(entry?.path()));
    entries.collect()
}

/// The table, and what was found.
fn tell(rows: &[Row]) -> Result<()> {
    say::heading(Figures::HEADING);
    for row in rows {
        println!("{}", row.figures.row(&row.name, row.seconds));
    }
    let executions: u64 = rows.iter().map(|row| row.figures.executions).sum();
    println!("\n{executions} executions");
    let found: Vec<&Row> = rows.iter().filter(|row| row.found.is_some()).collect();
    for row in &found {
        let what = row.found.as_deref().unwrap_or_default();
        println!("{} {what}", say::red(&format!("{}:", row.name)));
    }
    ensure!(
        found.is_empty(),
        "{} of {} targets did not survive",
        found.len(),
        rows.len()
    );
    Ok(())
}
