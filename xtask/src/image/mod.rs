//! `cargo xtask image`: the agent's container *image*, as an archive that `docker load`, `ctr images import` and
//! `kind load image-archive` take.
//!
//! It is made without a container engine, by the same code that `deploy/Dockerfile` runs in its builder: [`files`] puts
//! together what is in the image, and the Dockerfile's last stage copies that and nothing else. How it is run (command,
//! user, environment) is read from that last stage ([`dockerfile`]), so the two cannot differ.

pub mod archive;
pub mod dockerfile;
pub mod elf;
pub mod files;
pub mod licences;
pub mod machine;
pub mod sbom;

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, ensure};

use crate::{cargo, say};
use machine::Machine;

/// What the image may take on a node's disk, unpacked.
pub const LARGEST: u64 = 40_000_000;

/// Its name. The tag is the version.
pub const NAME: &str = "aksnet-agent";

/// What is asked for.
#[derive(Debug, Clone, Default)]
pub struct Options {
    /// The machine that it is for; this one's if `None`.
    pub machine: Option<Machine>,
    /// An agent that is built already.
    pub agent: Option<PathBuf>,
    /// Only the image's files, into this directory, and no archive.
    pub files: Option<PathBuf>,
    /// Where the archive goes.
    pub output: Option<PathBuf>,
}

/// What was made.
#[derive(Debug, Clone)]
pub struct Image {
    /// Where: the archive, or the directory of files.
    pub path: PathBuf,
    /// All of its files together, in bytes.
    pub size: u64,
    /// `NAME:TAG`.
    pub reference: String,
}

/// Builds the agent, if it has to, and the image of it; says where it is and how large.
///
/// # Errors
/// When a build fails, a library is not found, or the image is larger than [`LARGEST`].
pub fn run(options: &Options) -> Result<()> {
    let image = make(options)?;
    say::step(&format!(
        "{}: {} unpacks to {:.1} MB (at most {} are allowed)",
        image.path.display(),
        image.reference,
        megabytes(image.size),
        LARGEST / 1_000_000,
    ));
    if options.files.is_none() {
        println!(
            "  docker load -i {0}\n  kind load image-archive {0}",
            image.path.display()
        );
    }
    Ok(())
}

/// The same, without saying.
///
/// # Errors
/// As [`run`].
pub fn make(options: &Options) -> Result<Image> {
    let root = cargo::workspace();
    let this = Machine::this()?;
    let machine = options.machine.unwrap_or(this);
    let agent = match &options.agent {
        Some(path) => path.clone(),
        None => cargo::release_agent((machine != this).then_some(machine))?,
    };
    let reference = format!("{NAME}:{}", env!("CARGO_PKG_VERSION"));
    if let Some(directory) = &options.files {
        files::lay(directory, &agent, machine, root)?;
        let size = within_limit(directory)?;
        return Ok(Image {
            path: directory.clone(),
            size,
            reference,
        });
    }
    let output = options
        .output
        .clone()
        .unwrap_or_else(|| root.join(format!("target/image/aksnet-{}.tar", machine.oci())));
    let parent = output.parent().context("the archive lies in a directory")?;
    fs::create_dir_all(parent).with_context(|| parent.display().to_string())?;
    let work = parent.join(format!(".aksnet-image-{}", std::process::id()));
    let made: Result<u64> = (|| {
        let directory = work.join("files");
        files::lay(&directory, &agent, machine, root)?;
        let size = within_limit(&directory)?;
        let how = dockerfile::last_stage(&fs::read_to_string(root.join("deploy/Dockerfile"))?)?;
        archive::pack(&directory, &how, machine, &reference, &work, &output)?;
        Ok(size)
    })();
    let _leftover = fs::remove_dir_all(&work);
    Ok(Image {
        path: output,
        size: made?,
        reference,
    })
}

/// The size of all files below a directory, in bytes.
fn within_limit(directory: &Path) -> Result<u64> {
    let size = size(directory)?;
    ensure!(
        size < LARGEST,
        "the image is too large: {:.1} MB, at most {} are allowed",
        megabytes(size),
        LARGEST / 1_000_000
    );
    Ok(size)
}

fn size(directory: &Path) -> Result<u64> {
    let mut sum = 0;
    for entry in fs::read_dir(directory)? {
        let entry = entry?;
        let meta = entry.metadata()?;
        sum += if meta.is_dir() {
            size(&entry.path())?
        } else {
            meta.len()
        };
    }
    Ok(sum)
}

#[expect(clippy::cast_precision_loss, reason = "one digit is shown")]
fn megabytes(bytes: u64) -> f64 {
    bytes as f64 / 1e6
}
