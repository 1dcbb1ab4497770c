//! *Dashboards* for Grafana, from one compact source: what each panel asks, how to read it, and whether the emulated
//! node of the tests has an answer. `cargo xtask dashboards` writes `deploy/grafana/*.json` from it, and the rules of
//! `deploy/prometheus/rules.yaml` as a `PrometheusRule` object; `--check` compares and writes nothing.

use std::path::PathBuf;

use anyhow::{Context as _, Result, bail};

use crate::cargo::{self, workspace};

// What a dashboard consists of, and its JSON.
pub mod panel;

pub mod query;

mod grafana;

pub mod rules;

// The dashboards.
mod overview;

mod nat;

mod drops;

mod snat;

mod agent;

pub use panel::{Dashboard, Expect, Kind, Panel, Query, Row, Unit};

/// Where pages of the documentation are read.
pub const DOCS: &str = "https://github.com/aksnet/aksnet/blob/main/docs";

/// All dashboards, in the order in which their links stand.
#[must_use]
pub fn all() -> Vec<Dashboard> {
    vec![
        overview::dashboard(),
        nat::dashboard(),
        drops::dashboard(),
        snat::dashboard(),
        agent::dashboard(),
    ]
}

/// Every file that is made from the source, by its path in the repository.
///
/// # Errors
/// When the rules cannot be read.
pub fn files() -> Result<Vec<(PathBuf, String)>> {
    let mut files = Vec::new();
    for dashboard in all() {
        let path = format!("deploy/grafana/{}.json", dashboard.uid);
        files.push((path.into(), grafana::json(&dashboard)?));
    }
    let rules = workspace().join(rules::PLAIN);
    let plain = std::fs::read_to_string(&rules)
        .with_context(|| format!("cannot read {}", rules.display()))?;
    files.push((rules::OBJECT.into(), rules::object(&plain)?));
    Ok(files)
}

/// Writes the files, or says which of them differ.
///
/// # Errors
/// When a file cannot be written; with `check`, when one differs from its source.
pub fn run(check: bool) -> Result<()> {
    let mut differ = Vec::new();
    for (path, content) in files()? {
        let file = workspace().join(&path);
        if std::fs::read_to_string(&file).is_ok_and(|there| there == content) {
            continue;
        }
        if !check {
            std::fs::write(&file, content)
                .with_context(|| format!("cannot write {}", file.display()))?;
        }
        differ.push(path.display().to_string());
    }
    match (check, differ.is_empty()) {
        (_, true) => println!("dashboards and rules are as their sources say"),
        (false, false) => println!("written: {}", differ.join(", ")),
        (true, false) => bail!(
            "{}: not as the source says; run `cargo xtask dashboards`",
            differ.join(", ")
        ),
    }
    Ok(())
}

/// The variable that tells the end-to-end test where to leave pictures of panels.
pub const PICTURES: &str = "AKSNET_PICTURES";

/// Has the end-to-end test draw the pictures of the documentation, in `docs/images`.
///
/// # Errors
/// When the test fails, as it does without root.
pub fn draw() -> Result<()> {
    let mut command = cargo::command();
    command
        .arg("test")
        .args(cargo::PACKAGES)
        .args(["--test", "agent", "prometheus::", "--", "--nocapture"])
        .env(PICTURES, workspace().join("docs/images"));
    crate::say::run(&mut command)
}
