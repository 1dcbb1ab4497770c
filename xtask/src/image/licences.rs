//! The *licences* of what is linked into the agent: their texts as the crates ship them, each text once.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;
use std::fs;
use std::path::Path;

use anyhow::{Context as _, Result, ensure};
use serde_json::Value;

use super::machine::Machine;
use crate::cargo;

/// Crates whose code is in the binary: the agent, and the object that it carries.
pub(super) const ROOTS: [&str; 2] = ["aksnet-agent", "aksnet-ebpf"];

/// How files with a licence begin.
const NAMES: [&str; 5] = ["LICENSE", "LICENCE", "COPYING", "NOTICE", "COPYRIGHT"];

/// All texts, each after the crates that it is of. A crate that ships none is listed with what it declares.
///
/// # Errors
/// When cargo does not know the crates.
pub fn third_party(machine: Machine) -> Result<String> {
    let metadata = cargo::metadata(&["--filter-platform", machine.triple()])?;
    let linked = linked(&metadata)?;
    let mut of_text: BTreeMap<String, BTreeSet<String>> = BTreeMap::new();
    let mut list = String::new();
    for package in metadata["packages"].as_array().context("a list")? {
        let id = package["id"].as_str().context("an id")?;
        // Those with a source are others'.
        if !linked.contains(id) || package["source"].is_null() {
            continue;
        }
        let text = |key: &str| package[key].as_str().unwrap_or_default();
        let name = format!("{} {}", text("name"), text("version"));
        let declared = text("license");
        ensure!(!declared.is_empty(), "{name} declares no licence");
        writeln!(list, "{name}: {declared}")?;
        for found in texts(Path::new(text("manifest_path")))? {
            of_text.entry(found).or_default().insert(name.clone());
        }
    }
    let mut out = format!("Crates linked into aksnet-agent, and their licences\n\n{list}");
    for (text, names) in of_text {
        let names: Vec<String> = names.into_iter().collect();
        write!(
            out,
            "\n{}\n{}\n\n{text}\n",
            "-".repeat(80),
            names.join(", ")
        )?;
    }
    Ok(out)
}

/// Ids of the packages that [`ROOTS`] depend on, as they are built for others to run.
pub(super) fn linked(metadata: &Value) -> Result<BTreeSet<String>> {
    let nodes = metadata["resolve"]["nodes"].as_array().context("a graph")?;
    let by_id: BTreeMap<&str, &Value> = nodes
        .iter()
        .filter_map(|node| Some((node["id"].as_str()?, node)))
        .collect();
    let packages = metadata["packages"].as_array().context("a list")?;
    let mut open: Vec<&str> = packages
        .iter()
        .filter(|package| ROOTS.iter().any(|root| package["name"] == *root))
        .filter_map(|package| package["id"].as_str())
        .collect();
    ensure!(open.len() == ROOTS.len(), "the workspace has not {ROOTS:?}");
    let mut linked = BTreeSet::new();
    while let Some(id) = open.pop() {
        if !linked.insert(id.to_owned()) {
            continue;
        }
        let node = by_id
            .get(id)
            .with_context(|| format!("{id} is not in the graph"))?;
        for dependency in node["deps"].as_array().context("a list")? {
            if is_linked(dependency) {
                open.push(dependency["pkg"].as_str().context("an id")?);
            }
        }
    }
    Ok(linked)
}

/// Whether code of a dependency is in what depends on it: `null` is a normal one, the others are of builds and tests.
pub(super) fn is_linked(dependency: &Value) -> bool {
    let kinds = dependency["dep_kinds"].as_array().into_iter().flatten();
    kinds.into_iter().any(|kind| kind["kind"].is_null())
}

/// The texts that lie beside a crate's manifest.
fn texts(manifest: &Path) -> Result<Vec<String>> {
    let directory = manifest
        .parent()
        .context("a manifest lies in a directory")?;
    let mut files: Vec<_> = fs::read_dir(directory)
        .with_context(|| directory.display().to_string())?
        .filter_map(|entry| Some(entry.ok()?.path()))
        .filter(|path| {
            let name = path
                .file_name()
                .unwrap_or_default()
                .to_string_lossy()
                .to_uppercase();
            path.is_file() && NAMES.iter().any(|begin| name.starts_with(begin))
        })
        .collect();
    files.sort();
    Ok(files
        .iter()
        .filter_map(|path| fs::read(path).ok())
        .map(|bytes| String::from_utf8_lossy(&bytes).trim().replace("\r\n", "\n"))
        .collect())
}
