//! The *SBOM*, a bill of materials: each crate whose code is in the agent, with its version, licence, checksum and what it
//! depends on, for programs that look for known faults. `CycloneDX` 1.5 in JSON
//! (<https://cyclonedx.org/docs/1.5/json/>), the same for the same `Cargo.lock`: it has no date and no serial number.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use anyhow::{Context as _, Result, ensure};
use serde_json::{Map, Value, json};

use super::licences::{self, ROOTS};
use super::machine::Machine;
use crate::{cargo, say};

/// What it is called in the image, beside the licences.
pub const FILE: &str = "sbom.cdx.json";

/// Writes it into a file, or to standard output.
///
/// # Errors
/// When cargo does not know the crates, or the file cannot be written.
pub fn run(machine: Option<Machine>, output: Option<&Path>) -> Result<()> {
    let machine = machine.map_or_else(Machine::this, Ok)?;
    let text = text(machine)?;
    let Some(output) = output else {
        print!("{text}");
        return Ok(());
    };
    fs::write(output, text).with_context(|| format!("cannot write {}", output.display()))?;
    say::step(&format!("sbom: {}", output.display()));
    Ok(())
}

/// The whole text.
///
/// # Errors
/// When cargo does not know the crates, or `Cargo.lock` is not as they are.
pub fn text(machine: Machine) -> Result<String> {
    let metadata = cargo::metadata(&["--filter-platform", machine.triple()])?;
    let lock = cargo::workspace().join("Cargo.lock");
    let lock = fs::read_to_string(&lock).with_context(|| lock.display().to_string())?;
    let bom = bom(&metadata, &checksums(&lock), machine)?;
    Ok(format!("{bom:#}\n"))
}

/// Checksums of crates by name and version: what crates.io has, and cargo checks when it gets them.
fn checksums(lock: &str) -> BTreeMap<(String, String), String> {
    let mut checksums = BTreeMap::new();
    for package in lock.split("[[package]]") {
        let of = |key: &str| {
            let mut lines = package.lines();
            let value = lines.find_map(|line| line.strip_prefix(key)?.strip_prefix(" = \""));
            value.map(|value| value.trim_end_matches('"').to_owned())
        };
        if let (Some(name), Some(version), Some(sum)) = (of("name"), of("version"), of("checksum"))
        {
            checksums.insert((name, version), sum);
        }
    }
    checksums
}

fn bom(
    metadata: &Value,
    checksums: &BTreeMap<(String, String), String>,
    machine: Machine,
) -> Result<Value> {
    let linked = licences::linked(metadata)?;
    let packages = metadata["packages"].as_array().context("a list")?;
    let mut components = BTreeMap::new();
    let mut references = BTreeMap::new();
    for package in packages {
        let id = package["id"].as_str().context("an id")?;
        if linked.contains(id) {
            let (reference, component) = component(package, checksums)?;
            references.insert(id, reference.clone());
            ensure!(
                components.insert(reference.clone(), component).is_none(),
                "{reference} is there twice"
            );
        }
    }
    let mut dependencies = BTreeMap::new();
    for node in metadata["resolve"]["nodes"].as_array().context("a graph")? {
        let Some(reference) = references.get(node["id"].as_str().context("an id")?) else {
            continue;
        };
        let mut on: Vec<&String> = node["deps"]
            .as_array()
            .context("a list")?
            .iter()
            .filter(|dependency| licences::is_linked(dependency))
            .filter_map(|dependency| references.get(dependency["pkg"].as_str()?))
            .collect();
        on.sort();
        on.dedup();
        dependencies.insert(reference, json!({"ref": reference, "dependsOn": on}));
    }
    let agent = references
        .values()
        .find(|reference| reference.starts_with(&format!("{}@", ROOTS[0])))
        .and_then(|reference| components.remove(reference));
    let mut agent = agent.context("the agent is among the crates")?;
    agent["type"] = json!("application");
    Ok(json!({
        "$schema": "http://cyclonedx.org/schema/bom-1.5.schema.json",
        "bomFormat": "CycloneDX",
        "specVersion": "1.5",
        "version": 1,
        "metadata": {
            "component": agent,
            "properties": [{"name": "aksnet:target", "value": machine.triple()}],
        },
        "components": components.into_values().collect::<Vec<_>>(),
        "dependencies": dependencies.into_values().collect::<Vec<_>>(),
    }))
}

/// A crate, by the name that the list has for it.
fn component(
    package: &Value,
    checksums: &BTreeMap<(String, String), String>,
) -> Result<(String, Value)> {
    let text = |key: &str| package[key].as_str().unwrap_or_default();
    let (name, version) = (text("name"), text("version"));
    let reference = format!("{name}@{version}");
    let licence = text("license");
    ensure!(!licence.is_empty(), "{reference} declares no licence");
    let mut component = Map::new();
    let mut put = |key: &str, value: Value| component.insert(key.to_owned(), value);
    put("type", json!("library"));
    put("bom-ref", json!(reference));
    put("name", json!(name));
    put("version", json!(version));
    // Older manifests write `MIT/Apache-2.0`, which is no SPDX expression.
    let licence = licence.replace(" / ", "/").replace('/', " OR ");
    put("licenses", json!([{"expression": licence}]));
    // The workspace's own are nowhere else.
    if !package["source"].is_null() {
        let key = (name.to_owned(), version.to_owned());
        let sum = checksums.get(&key);
        let sum = sum.with_context(|| format!("Cargo.lock has no checksum of {reference}"))?;
        put("purl", json!(format!("pkg:cargo/{name}@{version}")));
        put("hashes", json!([{"alg": "SHA-256", "content": sum}]));
    }
    let repository = text("repository");
    if repository.starts_with("https://") {
        let reference = json!([{"type": "vcs", "url": repository}]);
        put("externalReferences", reference);
    }
    Ok((reference, Value::Object(component)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn checksums_are_read_from_the_lock_and_own_crates_have_none() {
        let lock = "version = 4\n\n[[package]]\nname = \"a\"\nversion = \"1.0.0\"\nsource = \"registry\"\n\
                    checksum = \"ab12\"\ndependencies = [\n \"b\",\n]\n\n[[package]]\nname = \"b\"\nversion = \"0.1.0\"\n";
        let checksums = checksums(lock);
        assert_eq!(checksums.len(), 1);
        assert_eq!(checksums[&("a".to_owned(), "1.0.0".to_owned())], "ab12");
    }
}
