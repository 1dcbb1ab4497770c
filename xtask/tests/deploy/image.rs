//! The image: what is in it, how large it is, and that it starts with nothing else around it.

use std::collections::BTreeSet;
use std::fs;
use std::os::unix::fs::{PermissionsExt as _, symlink};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;

use anyhow::{Context as _, Result, ensure};
use serde_json::{Value, json};
use xtask::image::{self, LARGEST, Options, machine::Machine};

/// The archive of the agent's release build, made once, and unpacked.
struct Unpacked {
    archive: PathBuf,
    layout: tempfile::TempDir,
    files: PathBuf,
    config: Value,
    size: u64,
}

fn unpacked() -> Result<&'static Unpacked> {
    static UNPACKED: OnceLock<Result<Unpacked, String>> = OnceLock::new();
    let made = UNPACKED.get_or_init(|| unpack().map_err(|error| format!("{error:#}")));
    made.as_ref().map_err(|error| anyhow::anyhow!("{error}"))
}

fn tar(arguments: &[&str], file: &Path, directory: &Path) -> Result<()> {
    let mut command = Command::new("tar");
    command
        .args(arguments)
        .arg("--file")
        .arg(file)
        .arg("--directory")
        .arg(directory);
    let status = command.status()?;
    ensure!(status.success(), "{command:?}");
    Ok(())
}

fn json_of(path: &Path) -> Result<Value> {
    let text = fs::read_to_string(path).with_context(|| path.display().to_string())?;
    Ok(serde_json::from_str(&text)?)
}

fn unpack() -> Result<Unpacked> {
    let layout = tempfile::tempdir()?;
    let archive = layout.path().join("image.tar");
    let image = image::make(&Options {
        output: Some(archive.clone()),
        ..Options::default()
    })?;
    tar(&["--extract"], &archive, layout.path())?;
    let docker = json_of(&layout.path().join("manifest.json"))?;
    let name = |at: &str| docker.pointer(at).and_then(Value::as_str).context("a name");
    assert_eq!(name("/0/RepoTags/0")?, image.reference);
    let config = json_of(&layout.path().join(name("/0/Config")?))?;
    let files = layout.path().join("files");
    fs::create_dir(&files)?;
    tar(
        &["--extract"],
        &layout.path().join(name("/0/Layers/0")?),
        &files,
    )?;
    Ok(Unpacked {
        archive,
        layout,
        files,
        config,
        size: image.size,
    })
}

/// Everything that is no directory.
fn names(directory: &Path, root: &Path, found: &mut BTreeSet<String>) -> Result<()> {
    for entry in fs::read_dir(directory)? {
        let path = entry?.path();
        if path.is_dir() && !path.is_symlink() {
            names(&path, root, found)?;
        } else {
            found.insert(path.strip_prefix(root)?.display().to_string());
        }
    }
    Ok(())
}

#[test]
fn it_is_small_and_holds_the_agent_and_what_it_needs() -> Result<()> {
    let image = unpacked()?;
    ensure!(image.size < LARGEST, "{} bytes", image.size);
    let packed = fs::metadata(&image.archive)?.len();
    ensure!(packed < LARGEST, "{packed} bytes");
    println!("unpacked {} bytes, archive {packed}", image.size);
    let mut found = BTreeSet::new();
    names(&image.files, &image.files, &mut found)?;
    let mut others = found.clone();
    for name in [
        "etc/group",
        "etc/nsswitch.conf",
        "etc/passwd",
        "etc/ssl/certs/ca-certificates.crt",
        "usr/local/bin/agent",
        "usr/local/bin/aksnet-agent",
        "usr/share/doc/aksnet/LICENSE-APACHE",
        "usr/share/doc/aksnet/THIRD-PARTY",
        "usr/share/doc/aksnet/sbom.cdx.json",
        "usr/share/doc/aksnet/ebpf/LICENSE-GPL2",
        "usr/share/doc/aksnet/ebpf/LICENSE-MIT",
        "usr/share/doc/libc6/copyright",
        "usr/share/doc/libgcc-s1/copyright",
    ] {
        ensure!(others.remove(name), "no {name}: {found:?}");
    }
    // What is left is the C library's: nothing that could be run by whoever got in.
    for name in others {
        let file = name.rsplit('/').next().unwrap_or_default();
        ensure!(
            file.starts_with("lib") && file.contains(".so.") || file.starts_with("ld-linux"),
            "{name}"
        );
    }
    let mode = fs::metadata(image.files.join("usr/local/bin/aksnet-agent"))?
        .permissions()
        .mode();
    assert_eq!(mode & 0o7777, 0o755);
    Ok(())
}

#[test]
fn it_is_run_as_the_dockerfile_says() -> Result<()> {
    let image = unpacked()?;
    assert_eq!(image.config["os"], "linux");
    assert_eq!(image.config["architecture"], Machine::this()?.oci());
    let how = &image.config["config"];
    assert_eq!(how["Entrypoint"], json!(["/usr/local/bin/aksnet-agent"]));
    assert_eq!(how["Cmd"], json!(["run"]));
    assert_eq!(how["Env"], json!(["PATH=/usr/local/bin"]));
    assert_eq!(
        how["Labels"]["org.opencontainers.image.licenses"],
        "Apache-2.0"
    );
    let index = json_of(&image.layout.path().join("index.json"))?;
    let digest = index["manifests"][0]["digest"]
        .as_str()
        .context("a digest")?;
    let path = format!("blobs/{}", digest.replace(':', "/"));
    let manifest = json_of(&image.layout.path().join(path))?;
    for blob in [&manifest["config"], &manifest["layers"][0]] {
        let digest = blob["digest"].as_str().context("a digest")?;
        let path = image
            .layout
            .path()
            .join(format!("blobs/{}", digest.replace(':', "/")));
        let sum = Command::new("sha256sum").arg(&path).output()?;
        let sum = String::from_utf8(sum.stdout)?;
        assert_eq!(sum.split(' ').next(), digest.strip_prefix("sha256:"));
        assert_eq!(blob["size"], fs::metadata(&path)?.len());
    }
    Ok(())
}

#[test]
fn it_starts_with_nothing_else_around_it() -> Result<()> {
    if !xtask::testbed::bed::is_root() {
        println!("skipped: chroot needs root");
        return Ok(());
    }
    let image = unpacked()?;
    for name in ["aksnet-agent", "agent"] {
        let output = Command::new("chroot")
            .arg(&image.files)
            .args([format!("/usr/local/bin/{name}"), "--version".to_owned()])
            .env_clear()
            .env("PATH", "/usr/sbin:/usr/bin:/sbin:/bin")
            .output()?;
        let said = String::from_utf8_lossy(&output.stdout);
        let expected = format!("aksnet-agent {} ", env!("CARGO_PKG_VERSION"));
        ensure!(said.starts_with(&expected), "{name}: {output:?}");
    }
    Ok(())
}

#[test]
fn licences_are_those_of_what_is_linked() -> Result<()> {
    let text = fs::read_to_string(unpacked()?.files.join("usr/share/doc/aksnet/THIRD-PARTY"))?;
    for crate_ in ["aya 0.14.0: ", "tokio 1.", "aya-ebpf 0.2.1: "] {
        ensure!(text.contains(&format!("\n{crate_}")), "{crate_}");
    }
    // Of builds and tests only.
    for crate_ in ["criterion ", "proptest ", "tempfile "] {
        ensure!(!text.contains(&format!("\n{crate_}")), "{crate_}");
    }
    ensure!(text.contains("Permission is hereby granted, free of charge"));
    Ok(())
}

#[test]
fn the_same_files_give_the_same_archive() -> Result<()> {
    // The agent's place is taken by another program: the archive is of files, whatever they are.
    let agent = std::env::current_exe()?;
    let small = tempfile::tempdir()?;
    let stripped = small.path().join("agent");
    let status = Command::new("strip")
        .arg("-o")
        .arg(&stripped)
        .arg(&agent)
        .status()?;
    ensure!(status.success(), "strip");
    let mut archives = Vec::new();
    for name in ["a.tar", "b.tar"] {
        let output = small.path().join(name);
        image::make(&Options {
            agent: Some(stripped.clone()),
            output: Some(output.clone()),
            ..Options::default()
        })?;
        archives.push(fs::read(output)?);
    }
    ensure!(
        archives[0] == archives[1],
        "two archives of the same files differ"
    );
    Ok(())
}

#[test]
fn a_directory_with_something_in_it_and_a_large_agent_are_refused() -> Result<()> {
    let directory = tempfile::tempdir()?;
    fs::write(directory.path().join("mine"), "")?;
    let agent = std::env::current_exe()?;
    let options = |files: PathBuf, agent: PathBuf| Options {
        agent: Some(agent),
        files: Some(files),
        ..Options::default()
    };
    let error = image::make(&options(directory.path().to_owned(), agent.clone()));
    let error = error.err().context("it is not empty")?.to_string();
    ensure!(error.contains("is not empty"), "{error}");

    let large = directory.path().join("large");
    fs::copy(&agent, &large)?;
    fs::OpenOptions::new()
        .write(true)
        .open(&large)?
        .set_len(LARGEST)?;
    let error = image::make(&options(directory.path().join("files"), large));
    let error = error.err().context("it is too large")?.to_string();
    ensure!(
        error.contains("too large") && error.contains("at most 40"),
        "{error}"
    );

    // Nor is what is no program.
    let script = directory.path().join("script");
    symlink("/dev/null", &script)?;
    let error = image::make(&options(directory.path().join("others"), script));
    ensure!(error.is_err(), "it has no loader");
    Ok(())
}
