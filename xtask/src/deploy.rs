//! What is *deployed*: the manifests of `deploy/`, rendered by the programs that users render them with.

use std::fmt::Write as _;
use std::fs;
use std::path::PathBuf;
use std::process::Command;
use std::sync::atomic::{AtomicU32, Ordering};

use anyhow::{Context as _, Result, ensure};

use crate::cargo::workspace;
use crate::setup::kubernetes;

/// The namespace that all of it is in.
pub const NAMESPACE: &str = "aksnet";

/// Where the manifests are.
#[must_use]
pub fn directory() -> PathBuf {
    workspace().join("deploy")
}

/// `kubectl kustomize` of a directory below `deploy/`, or of an absolute one: YAML of many documents.
///
/// # Errors
/// When kubectl is not here, or refuses.
pub fn kustomize(path: &str) -> Result<String> {
    let kubectl = kubernetes::kubectl().context("no kubectl here: run `cargo xtask setup`")?;
    let mut command = Command::new(kubectl);
    command.arg("kustomize").arg(directory().join(path));
    output(&mut command)
}

/// The same of an overlay that a user would write: a directory below `deploy/`, with components of these names.
///
/// # Errors
/// When kubectl is not here, or refuses.
pub fn kustomize_with(base: &str, components: &[&str]) -> Result<String> {
    static SERIAL: AtomicU32 = AtomicU32::new(0);
    let name = format!(
        "aksnet-overlay-{}-{}",
        std::process::id(),
        SERIAL.fetch_add(1, Ordering::Relaxed)
    );
    let own = std::env::temp_dir().canonicalize()?.join(name);
    // kustomize takes no absolute paths: up to the root, and down from there.
    let up = "../".repeat(own.components().count() - 1);
    let deploy = directory().canonicalize()?;
    let deploy = format!(
        "{up}{}",
        deploy.display().to_string().trim_start_matches('/')
    );
    let mut text = format!("resources: [{deploy}/{base}]\ncomponents:\n");
    for component in components {
        writeln!(text, "  - {deploy}/components/{component}")?;
    }
    fs::create_dir(&own)?;
    let rendered = fs::write(own.join("kustomization.yaml"), text)
        .map_err(Into::into)
        .and_then(|()| kustomize(&own.display().to_string()));
    let _leftover = fs::remove_dir_all(&own);
    rendered
}

/// `helm template` of the chart, with further arguments such as `--set`.
///
/// # Errors
/// When helm is not here, or refuses.
pub fn helm_template(arguments: &[&str]) -> Result<String> {
    let mut command = helm("template")?;
    command.args(["--namespace", NAMESPACE]).args(arguments);
    output(&mut command)
}

/// `helm lint` of the chart, as strict as it goes.
///
/// # Errors
/// When helm is not here, or finds something.
pub fn helm_lint(arguments: &[&str]) -> Result<String> {
    let helm = kubernetes::helm().context("no helm here: run `cargo xtask setup`")?;
    let mut command = Command::new(helm);
    command
        .args(["lint", "--strict"])
        .arg(directory().join("helm/aksnet"))
        .args(arguments);
    output(&mut command)
}

/// What the chart's NOTES.txt says to who installs it. No cluster is asked.
///
/// # Errors
/// When helm is not here, or refuses.
pub fn helm_notes(arguments: &[&str]) -> Result<String> {
    let mut command = helm("install")?;
    command
        .args(["--namespace", NAMESPACE, "--dry-run=client"])
        .args(arguments);
    output(&mut command)
}

fn helm(what: &str) -> Result<Command> {
    let helm = kubernetes::helm().context("no helm here: run `cargo xtask setup`")?;
    let mut command = Command::new(helm);
    command
        .args([what, "aksnet"])
        .arg(directory().join("helm/aksnet"));
    Ok(command)
}

fn output(command: &mut Command) -> Result<String> {
    // No cluster of the developer's is to be asked or told.
    let output = command
        .env("KUBECONFIG", "/dev/null")
        .output()
        .with_context(|| crate::say::line(command))?;
    ensure!(
        output.status.success(),
        "{}: {}",
        crate::say::line(command),
        String::from_utf8_lossy(&output.stderr).trim()
    );
    Ok(String::from_utf8(output.stdout)?)
}
