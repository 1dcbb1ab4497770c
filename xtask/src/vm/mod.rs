//! `cargo xtask vm`: the tests whose result can differ from kernel to kernel, on kernels that this machine does not run.
//! Each boots in a *machine* (QEMU) of its own; what is told at the end is the verdict of all of them.

pub mod guest;
pub mod initramfs;
pub mod kernel;
pub mod machine;
pub mod verdict;
pub mod work;

use std::fmt;
use std::fs::{self, File};
use std::io::BufWriter;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};

use crate::{cargo, say};
use kernel::{Kernel, Series};
use machine::{End, Machine, Patience};
use verdict::Verdict;

/// What is tried where nothing is asked for: what Debian has of the kernels that AKS runs.
pub const USUAL: [Series; 2] = [Series::new(6, 1), Series::new(6, 12)];

/// The longest that a guest says nothing: no test takes so long.
const SILENCE: Duration = Duration::from_mins(5);

/// How long a guest may take with what is usual, which takes half of that on two processors that do nothing else.
pub const TIMEOUT: Duration = Duration::from_mins(15);

/// How many lines of a kernel's log are told with what went wrong.
const LOG: usize = 40;

/// What is asked for.
#[derive(Debug)]
pub struct Options {
    /// The kernels, or [`USUAL`].
    pub kernels: Vec<Series>,
    /// Programs of [`work::ALL`] by name, or [`work::USUAL`].
    pub only: Vec<String>,
    /// How long each guest may take.
    pub timeout: Duration,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            kernels: USUAL.to_vec(),
            only: Vec::new(),
            timeout: TIMEOUT,
        }
    }
}

/// Nothing was tried, and why: no kernel, no QEMU, tests that do not build. Exit code 3.
#[derive(Debug)]
pub struct NotTried(pub anyhow::Error);

impl fmt::Display for NotTried {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "no kernel was tried: {:#}", self.0)
    }
}

impl std::error::Error for NotTried {}

/// What a run of one guest came to.
struct Outcome {
    kernel: Kernel,
    verdict: Verdict,
    end: End,
    took: Duration,
    log: Vec<String>,
}

/// Boots each kernel, runs the tests in it, and tells of all failures together.
///
/// # Errors
/// [`NotTried`] before anything boots; then when a test fails, or a guest hangs or ends early.
pub fn run(options: &Options) -> Result<()> {
    let (kernels, programs, shares) = prepare(options).map_err(NotTried)?;
    say::catch_interrupts()?;
    let patience = Patience {
        whole: options.timeout,
        silence: SILENCE.min(options.timeout),
    };
    let script = guest::script(&shares, &programs);
    // All at once: each has as many processors as there are kernels to try, and waits much.
    let outcomes: Vec<Result<Outcome>> = std::thread::scope(|scope| {
        let runs: Vec<_> = kernels
            .into_iter()
            .map(|kernel| {
                let (script, shares) = (&script, &shares);
                scope.spawn(move || boot(kernel, script, shares, patience))
            })
            .collect();
        runs.into_iter()
            .map(|run| {
                run.join()
                    .unwrap_or_else(|_| bail!("the thread of a guest panicked"))
            })
            .collect()
    });
    let mut wrong = Vec::new();
    for outcome in outcomes {
        match outcome {
            Ok(outcome) => wrong.extend(outcome.tell(programs.len())),
            Err(error) => wrong.push(format!("{error:#}")),
        }
    }
    if wrong.is_empty() {
        return Ok(());
    }
    bail!(
        "{} failures on other kernels:\n  {}",
        wrong.len(),
        wrong.join("\n  ")
    )
}

/// All that is needed before anything boots.
fn prepare(options: &Options) -> Result<(Vec<Kernel>, Vec<work::Program>, Vec<PathBuf>)> {
    if !cfg!(target_arch = "x86_64") {
        bail!("kernels for x86-64 run this machine's own tests: they need x86-64");
    }
    let wanted: Vec<&str> = if options.only.is_empty() {
        work::USUAL.to_vec()
    } else {
        options.only.iter().map(String::as_str).collect()
    };
    let chosen: Vec<work::Choice> = work::ALL
        .into_iter()
        .filter(|choice| wanted.contains(&choice.name))
        .collect();
    if let Some(name) = options
        .only
        .iter()
        .find(|name| !work::ALL.iter().any(|choice| choice.name == **name))
    {
        let names = work::ALL.map(|choice| choice.name).join(", ");
        bail!("no program of tests is called `{name}`: there are {names}");
    }
    let cache = cache()?;
    let mut series = options.kernels.clone();
    series.sort_unstable();
    series.dedup();
    let kernels = series
        .into_iter()
        .map(|series| Kernel::get(series, &cache))
        .collect::<Result<Vec<_>>>()?;
    Ok((kernels, work::build(&chosen)?, work::shares()?))
}

/// Where kernels are kept.
///
/// # Errors
/// When cargo does not say where its target directory is.
pub fn cache() -> Result<PathBuf> {
    Ok(cargo::target_directory()?.join("vm"))
}

/// Runs one guest.
fn boot(kernel: Kernel, script: &str, shares: &[PathBuf], patience: Patience) -> Result<Outcome> {
    let series = kernel.series;
    let place = Place::new(&kernel)?;
    let (initramfs, log) = (place.0.join("initramfs"), place.0.join("kernel.log"));
    write_initramfs(&initramfs, &kernel, script)?;
    say::step(&format!("vm {series}: booting {}", kernel.release));
    let began = Instant::now();
    let mut verdict = Verdict::default();
    let machine = Machine {
        kernel: &kernel.image,
        initramfs: &initramfs,
        log: &log,
        shares,
    };
    let end = machine
        .run(patience, |line| {
            verdict.hear(line);
            if verdict::is_news(line) {
                println!(
                    "{} {}",
                    say::dim(&format!("{series:>5} │")),
                    line.trim_end()
                );
            }
        })
        .with_context(|| format!("Linux {series}"))?;
    Ok(Outcome {
        verdict,
        end,
        took: began.elapsed(),
        log: machine::last_lines(&log, LOG).unwrap_or_default(),
        kernel,
    })
}

/// A directory of a guest's own beside its kernel, which goes with it.
struct Place(PathBuf);

impl Place {
    fn new(kernel: &Kernel) -> Result<Self> {
        let name = format!("run-{}-{}", kernel.series, std::process::id());
        let path = cache()?.join(name);
        fs::create_dir_all(&path)?;
        Ok(Self(path))
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let _gone = fs::remove_dir_all(&self.0);
    }
}

fn write_initramfs(path: &Path, kernel: &Kernel, script: &str) -> Result<()> {
    let file = File::create(path).with_context(|| path.display().to_string())?;
    guest::write(BufWriter::new(file), kernel, script)?;
    Ok(())
}

impl Outcome {
    /// Prints what it came to, and returns what is wrong, each with the kernel's name.
    fn tell(&self, programs: usize) -> Vec<String> {
        let Self {
            kernel,
            verdict,
            end,
            took,
            log,
        } = self;
        say::heading(&format!("Linux {} in {} s", kernel.release, took.as_secs()));
        for program in &verdict.programs {
            let seconds = program.ended.map_or_else(
                || "did not end".to_owned(),
                |(_, t)| format!("{} s", t.as_secs()),
            );
            println!(
                "  {:10} {:3} passed, {} failed, {} skipped; {seconds}",
                program.name,
                program.passed.len(),
                program.failed.len(),
                program.skipped.len()
            );
            for what in &program.skipped {
                println!("    skipped: {what}");
            }
        }
        let mut wrong = verdict.failures(programs);
        match end {
            End::Off => {}
            End::Silent(time) => wrong.insert(0, format!("silent for {} s: ended", time.as_secs())),
            End::Late(time) => {
                wrong.insert(0, format!("not done in {} s: ended", time.as_secs()));
            }
        }
        if verdict
            .release
            .as_ref()
            .is_some_and(|r| *r != kernel.release)
        {
            wrong.push(format!("another kernel ran: {:?}", verdict.release));
        }
        if wrong.is_empty() {
            return wrong;
        }
        for program in &verdict.programs {
            if program.ended.is_none_or(|(code, _)| code != 0) {
                println!("  {} said:", program.name);
                for line in program.failure_output() {
                    println!("    {line}");
                }
            }
        }
        println!("  the kernel's log, its last lines:");
        for line in log {
            println!("    {line}");
        }
        let name = |what: String| format!("Linux {}: {what}", kernel.series);
        wrong.into_iter().map(name).collect()
    }
}
