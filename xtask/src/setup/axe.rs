//! *axe-core*, a checker for accessibility, which the test of the agent's page runs in the browser. It is MPL-2.0, and so
//! fetched for the test and no part of the project.

use std::path::{Path, PathBuf};

use anyhow::Result;

use super::npm;

/// The package, and its version.
const PACKAGE: &str = "axe-core@4.14.1";

/// Where it is kept below the user's cache.
const DIRECTORY: &str = "aksnet/axe-core-4.14.1";

/// The script, if it is here.
#[must_use]
pub fn script() -> Option<PathBuf> {
    let path = npm::cached(DIRECTORY)?.join("axe.min.js");
    path.exists().then_some(path)
}

/// Fetches it by npm.
///
/// # Errors
/// When npm cannot fetch it.
pub fn install() -> Result<()> {
    let files = ["package/axe.min.js", "package/LICENSE"];
    npm::install(PACKAGE, &files, DIRECTORY, |work: &Path| {
        Ok(work.join("package"))
    })
}
