//! The image's *archive*: an OCI image layout with Docker's manifest beside it, as `docker save` has written since 25.
//! The same files give the same bytes.

use std::fmt::Write as _;
use std::fs::{self, File};
use std::io;
use std::path::Path;
use std::process::Command;

use anyhow::{Context as _, Result, ensure};
use serde_json::{Value, json};
use sha2::{Digest as _, Sha256};

use super::dockerfile::Run;
use super::machine::Machine;

/// Packs a directory as an image of one layer.
///
/// # Errors
/// When files cannot be written or tar fails.
pub fn pack(
    files: &Path,
    run: &Run,
    machine: Machine,
    reference: &str,
    work: &Path,
    output: &Path,
) -> Result<()> {
    let layout = work.join("layout");
    let blobs = layout.join("blobs/sha256");
    fs::create_dir_all(&blobs)?;
    let layer = work.join("layer.tar");
    tar(files, &layer)?;
    let layer = keep(&blobs, &layer)?;
    let config = json!({
        "architecture": machine.oci(),
        "os": "linux",
        "config": run,
        "rootfs": { "type": "layers", "diff_ids": [format!("sha256:{}", layer.digest)] },
        "history": [{ "created_by": "cargo xtask image" }],
    });
    let config = keep_json(work, &blobs, &config)?;
    let manifest = json!({
        "schemaVersion": 2,
        "mediaType": "application/vnd.oci.image.manifest.v1+json",
        "config": config.descriptor("application/vnd.oci.image.config.v1+json"),
        "layers": [layer.descriptor("application/vnd.oci.image.layer.v1.tar")],
    });
    let manifest = keep_json(work, &blobs, &manifest)?;
    let mut entry = manifest.descriptor("application/vnd.oci.image.manifest.v1+json");
    let tag = reference.split_once(':').map_or("", |(_, tag)| tag);
    entry["annotations"] = json!({
        // What containerd calls it: a short name is Docker Hub's.
        "io.containerd.image.name": format!("docker.io/library/{reference}"),
        "org.opencontainers.image.ref.name": tag,
    });
    let index = json!({
        "schemaVersion": 2,
        "mediaType": "application/vnd.oci.image.index.v1+json",
        "manifests": [entry],
    });
    let docker = json!([{
        "Config": format!("blobs/sha256/{}", config.digest),
        "RepoTags": [reference],
        "Layers": [format!("blobs/sha256/{}", layer.digest)],
    }]);
    fs::write(layout.join("index.json"), index.to_string())?;
    fs::write(layout.join("manifest.json"), docker.to_string())?;
    fs::write(
        layout.join("oci-layout"),
        r#"{"imageLayoutVersion":"1.0.0"}"#,
    )?;
    tar(&layout, output)
}

/// A blob of the layout.
struct Blob {
    digest: String,
    size: u64,
}

impl Blob {
    fn descriptor(&self, media_type: &str) -> Value {
        json!({ "mediaType": media_type, "digest": format!("sha256:{}", self.digest), "size": self.size })
    }
}

/// Moves a file to where it is named by its digest.
fn keep(blobs: &Path, file: &Path) -> Result<Blob> {
    let mut hash = Sha256::new();
    let size = io::copy(&mut File::open(file)?, &mut hash)?;
    let mut digest = String::new();
    for byte in hash.finalize() {
        write!(digest, "{byte:02x}")?;
    }
    fs::rename(file, blobs.join(&digest))?;
    Ok(Blob { digest, size })
}

fn keep_json(work: &Path, blobs: &Path, value: &Value) -> Result<Blob> {
    let file = work.join("blob.json");
    fs::write(&file, value.to_string())?;
    keep(blobs, &file)
}

/// Everything in a directory, root's, of no date and in order.
fn tar(directory: &Path, to: &Path) -> Result<()> {
    let mut names: Vec<_> = fs::read_dir(directory)?
        .map(|entry| Ok(entry?.file_name()))
        .collect::<Result<_>>()?;
    names.sort();
    let status = Command::new("tar")
        // With capabilities of files, in the form that image layers have them.
        .args(["--create", "--format=posix", "--sort=name", "--mtime=@0"])
        .args(["--xattrs", "--xattrs-include=security.capability"])
        .arg("--pax-option=exthdr.name=%d/PaxHeaders/%f,delete=atime,delete=ctime")
        .args(["--owner=0", "--group=0", "--numeric-owner", "--mode=go-w"])
        .arg("--file")
        .arg(to)
        .arg("--directory")
        .arg(directory)
        .args(names)
        .status()
        .context("tar")?;
    ensure!(status.success(), "tar cannot pack {}", directory.display());
    Ok(())
}
