//! A *kernel* here is one that Debian builds: its image and the modules that the tests need, unpacked from its
//! package below the target directory. It is never installed.

use std::fmt;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::str::FromStr;

use anyhow::{Context as _, Result, bail, ensure};

use crate::say;

/// The modules that are kept, as patterns below `kernel/`: networking whole (netfilter, qdiscs, bridges, IPVS), the
/// devices that the emulated node is wired with, and what the guest reads the host's files by.
const MODULES: [&str; 13] = [
    "net/*",
    "lib/*",
    "crypto/crc32c*",
    "arch/x86/crypto/crc32c*",
    "fs/9p/*",
    "fs/netfs/*",
    "fs/fscache/*",
    "drivers/virtio/*",
    "drivers/net/veth.ko*",
    "drivers/net/dummy.ko*",
    "drivers/net/tun.ko*",
    "drivers/net/ifb.ko*",
    "drivers/net/vxlan*",
];

/// A series of kernels, such as 6.1.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Series {
    major: u16,
    minor: u16,
}

impl Series {
    /// Series `MAJOR.MINOR`.
    #[must_use]
    pub const fn new(major: u16, minor: u16) -> Self {
        Self { major, minor }
    }

    /// What the names of its packages begin with, the point included: 6.1 is not 6.12.
    fn prefix(self) -> String {
        format!("linux-image-{self}.")
    }

    /// The newest package of it that this machine knows of.
    fn package(self) -> Result<Option<String>> {
        let names = output(Command::new("apt-cache").args(["pkgnames", &self.prefix()]))?;
        Ok(self.newest(names.lines()).map(str::to_owned))
    }

    /// Of packages' names, the newest image of this series for common PCs: neither `cloud` (no IPVS, no netem), nor
    /// `rt`, nor unsigned, nor with symbols.
    #[must_use]
    pub fn newest<'a>(self, packages: impl IntoIterator<Item = &'a str>) -> Option<&'a str> {
        let prefix = self.prefix();
        let plain = |name: &&str| {
            name.strip_prefix(&prefix)
                .and_then(|rest| rest.strip_suffix("-amd64"))
                .is_some_and(|rest| !rest.ends_with("-cloud") && !rest.ends_with("-rt"))
        };
        packages
            .into_iter()
            .filter(plain)
            .max_by_key(|name| numbers(name))
    }
}

impl fmt::Display for Series {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "{}.{}", self.major, self.minor)
    }
}

impl FromStr for Series {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let parsed = text
            .split_once('.')
            .and_then(|(major, minor)| Some(Self::new(major.parse().ok()?, minor.parse().ok()?)));
        parsed.ok_or_else(|| format!("`{text}` is no series of kernels: give it as in 6.1"))
    }
}

/// The numbers in a name, in order: by them a newer build is told from an older one.
fn numbers(name: &str) -> Vec<u64> {
    name.split(|c: char| !c.is_ascii_digit())
        .filter_map(|digits| digits.parse().ok())
        .collect()
}

/// A kernel that is there.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Kernel {
    /// Its series.
    pub series: Series,
    /// Its whole release, as `uname -r` in it says.
    pub release: String,
    /// The image.
    pub image: PathBuf,
    /// The directory of its modules, `.../lib/modules/RELEASE`.
    pub modules: PathBuf,
}

impl Kernel {
    /// The kernel of this series in the cache, if it is whole.
    #[must_use]
    pub fn cached(series: Series, cache: &Path) -> Option<Self> {
        let root = cache.join(series.to_string());
        let modules = entry(&root.join("lib/modules"))?;
        Some(Self {
            series,
            release: modules.file_name()?.to_str()?.to_owned(),
            image: entry(&root.join("boot"))?,
            modules,
        })
    }

    /// The kernel of this series, downloaded where the cache does not have it.
    ///
    /// # Errors
    /// When no package has it, or the download or a tool fails.
    pub fn get(series: Series, cache: &Path) -> Result<Self> {
        if let Some(kernel) = Self::cached(series, cache) {
            return Ok(kernel);
        }
        let mut package = series.package()?;
        let mut updated = Ok(());
        if package.is_none() {
            // A machine that was made just now knows of no package.
            updated = run(Command::new("apt-get").args(["update", "-q"]));
            package = series.package()?;
        }
        let package = &package.with_context(|| {
            let offer = on_offer().unwrap_or_else(|_| "none".to_owned());
            let why = updated.err().map(|error| format!("; {error:#}"));
            let why = why.unwrap_or_default();
            format!("no package of Linux {series}: this machine's archive has {offer}{why}")
        })?;
        say::step(&format!("vm: downloading {package}"));
        fs::create_dir_all(cache)?;
        // What is unpacked half must never look like a kernel.
        let half = cache.join(format!("{series}.{}.part", std::process::id()));
        let unpacked = unpack(package, &half).and_then(|()| {
            fs::rename(&half, cache.join(series.to_string())).context("the cache of kernels")
        });
        if unpacked.is_err() && half.exists() {
            fs::remove_dir_all(&half)?;
        }
        unpacked?;
        Self::cached(series, cache)
            .with_context(|| format!("{package} has no image, or no modules"))
    }
}

/// The only entry of a directory.
fn entry(directory: &Path) -> Option<PathBuf> {
    let mut entries = fs::read_dir(directory).ok()?;
    Some(entries.next()?.ok()?.path())
}

/// The series that the archive has images of.
fn on_offer() -> Result<String> {
    let names = output(Command::new("apt-cache").args(["pkgnames", "linux-image-"]))?;
    Ok(series_of(names.lines())
        .iter()
        .map(ToString::to_string)
        .collect::<Vec<_>>()
        .join(", "))
}

/// The series of these packages, each once.
fn series_of<'a>(names: impl Iterator<Item = &'a str>) -> Vec<Series> {
    let mut all: Vec<Series> = names
        .filter_map(|name| {
            let rest = name.strip_prefix("linux-image-")?.strip_suffix("-amd64")?;
            let mut parts = rest.split('.');
            let series = Series::new(parts.next()?.parse().ok()?, parts.next()?.parse().ok()?);
            series.newest([name]).map(|_| series)
        })
        .collect();
    all.sort_unstable();
    all.dedup();
    all
}

/// Downloads a package into a directory, and leaves there its image and the modules of [`MODULES`], uncompressed and
/// indexed.
fn unpack(package: &str, directory: &Path) -> Result<()> {
    fs::create_dir_all(directory)?;
    run(Command::new("apt-get")
        .args(["download", "-q", package])
        .current_dir(directory))?;
    let archive = entry(directory).context("apt-get download left no file")?;
    let mut tar = Command::new("dpkg-deb")
        .arg("--fsys-tarfile")
        .arg(&archive)
        .stdout(Stdio::piped())
        .spawn()
        .context("dpkg-deb")?;
    let stream = tar.stdout.take().context("a pipe")?;
    let unpacked = Command::new("tar")
        .args(["--extract", "--wildcards", "--directory"])
        .arg(directory)
        .args(["./boot/vmlinuz-*", "./lib/modules/*/modules.*"])
        .args(MODULES.map(|pattern| format!("./lib/modules/*/kernel/{pattern}")))
        .stdin(stream)
        // A series lacks one or the other of the patterns; what is needed and not there, the guest says.
        .stderr(Stdio::null())
        .status()
        .context("tar")?;
    ensure!(
        tar.wait()?.success() && matches!(unpacked.code(), Some(0 | 2)),
        "cannot unpack {}",
        archive.display()
    );
    fs::remove_file(&archive)?;
    let modules = entry(&directory.join("lib/modules")).context("a package without modules")?;
    let mut packed = Vec::new();
    with_ending(&modules, "xz", &mut packed)?;
    if !packed.is_empty() {
        run(Command::new("xz").arg("--decompress").args(&packed))?;
    }
    let release = modules.file_name().context("a release")?.to_owned();
    run(Command::new("depmod")
        .arg("--basedir")
        .arg(directory)
        .arg(release))
}

/// Files below a directory whose names have this ending.
fn with_ending(directory: &Path, ending: &str, found: &mut Vec<PathBuf>) -> Result<()> {
    for entry in fs::read_dir(directory)? {
        let path = entry?.path();
        if path.is_dir() {
            with_ending(&path, ending, found)?;
        } else if path.extension().is_some_and(|e| e == ending) {
            found.push(path);
        }
    }
    Ok(())
}

fn output(command: &mut Command) -> Result<String> {
    let line = say::line(command);
    let output = command
        .output()
        .with_context(|| format!("cannot start `{line}` (kernels come from Debian's archive)"))?;
    ensure!(
        output.status.success(),
        "`{line}`: {}",
        String::from_utf8_lossy(&output.stderr).trim()
    );
    Ok(String::from_utf8(output.stdout)?)
}

/// Runs a tool quietly.
fn run(command: &mut Command) -> Result<()> {
    // Tools of the system's administrator are not on everyone's path.
    let path = std::env::var("PATH").unwrap_or_default();
    command.env("PATH", format!("{path}:/usr/sbin:/sbin"));
    let line = say::line(command);
    let short: String = line.chars().take(200).collect();
    match command.output() {
        Ok(output) if output.status.success() => Ok(()),
        Ok(output) => bail!(
            "`{short}`: {}",
            String::from_utf8_lossy(&output.stderr).trim()
        ),
        Err(error) => bail!("cannot start `{short}`: {error} (`cargo xtask setup` installs it)"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const NAMES: [&str; 9] = [
        "linux-image-6.1.0-50-amd64",
        "linux-image-6.1.0-56-amd64",
        "linux-image-6.1.0-9-amd64",
        "linux-image-6.1.0-57-cloud-amd64",
        "linux-image-6.1.0-57-rt-amd64",
        "linux-image-6.12.9+deb12-amd64",
        "linux-image-6.12.117+deb12-amd64",
        "linux-image-6.12-amd64",
        "linux-image-6.1.0-58-amd64-unsigned",
    ];

    #[test]
    fn the_newest_plain_image_of_a_series_is_chosen() {
        let chosen = |series: &str| series.parse::<Series>().unwrap().newest(NAMES);
        assert_eq!(chosen("6.1"), Some("linux-image-6.1.0-56-amd64"));
        assert_eq!(chosen("6.12"), Some("linux-image-6.12.117+deb12-amd64"));
        assert_eq!(chosen("5.10"), None);
    }

    #[test]
    fn what_the_archive_has_is_named_once_in_order() {
        assert_eq!(
            series_of(NAMES.into_iter()),
            [Series::new(6, 1), Series::new(6, 12)]
        );
    }

    #[test]
    fn a_series_has_two_numbers() {
        assert_eq!("6.12".parse(), Ok(Series::new(6, 12)));
        for bad in ["6", "6.1.0", "six.one", "", "6.", "-6.1"] {
            let error = bad.parse::<Series>().unwrap_err();
            assert!(error.contains("as in 6.1"), "{error}");
        }
    }

    #[test]
    fn what_is_unpacked_half_is_no_kernel() {
        let cache = tempfile::tempdir().unwrap();
        let series = Series::new(6, 1);
        assert_eq!(Kernel::cached(series, cache.path()), None);
        let root = cache.path().join("6.1");
        fs::create_dir_all(root.join("lib/modules/6.1.0-1-amd64")).unwrap();
        assert_eq!(Kernel::cached(series, cache.path()), None);
        fs::create_dir_all(root.join("boot")).unwrap();
        fs::write(root.join("boot/vmlinuz-6.1.0-1-amd64"), "").unwrap();
        let kernel = Kernel::cached(series, cache.path()).unwrap();
        assert_eq!(kernel.release, "6.1.0-1-amd64");
    }
}
