//! The bill of materials is in its format's form, and has what the list of licences has.
//!
//! The types are the part of `CycloneDX` 1.5's schema (`bom-1.5.schema.json`) that is used, as strict as it: nothing that
//! they do not know is taken, and what it asks for has to be there.

use std::collections::BTreeSet;

use anyhow::{Context as _, Result, ensure};
use serde::Deserialize;
use xtask::image::{licences, machine::Machine, sbom};

#[derive(Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct Bom {
    #[serde(rename = "$schema")]
    schema: String,
    #[serde(rename = "bomFormat")]
    format: Format,
    spec_version: String,
    version: u32,
    metadata: Metadata,
    components: Vec<Component>,
    dependencies: Vec<Dependency>,
}

#[derive(Deserialize)]
enum Format {
    #[serde(rename = "CycloneDX")]
    CycloneDx,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Metadata {
    component: Component,
    properties: Vec<Property>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Property {
    name: String,
    value: String,
}

#[derive(Deserialize, PartialEq, Eq, Debug)]
#[serde(rename_all = "lowercase")]
enum Type {
    Application,
    Library,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct Component {
    #[serde(rename = "type")]
    kind: Type,
    #[serde(rename = "bom-ref")]
    reference: String,
    name: String,
    version: String,
    licenses: Vec<Licence>,
    purl: Option<String>,
    #[serde(default)]
    hashes: Vec<Hash>,
    #[serde(default)]
    external_references: Vec<Reference>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Licence {
    expression: String,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Hash {
    alg: Algorithm,
    content: String,
}

#[derive(Deserialize)]
enum Algorithm {
    #[serde(rename = "SHA-256")]
    Sha256,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Reference {
    #[serde(rename = "type")]
    kind: Kind,
    url: String,
}

#[derive(Deserialize)]
#[serde(rename_all = "lowercase")]
enum Kind {
    Vcs,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct Dependency {
    #[serde(rename = "ref")]
    of: String,
    depends_on: Vec<String>,
}

fn checked(text: &str) -> Result<Bom> {
    let bom: Bom = serde_json::from_str(text)?;
    let Format::CycloneDx = bom.format;
    ensure!(
        bom.schema.ends_with("/bom-1.5.schema.json"),
        "{}",
        bom.schema
    );
    ensure!(bom.spec_version == "1.5" && bom.version == 1);
    let mut known = BTreeSet::new();
    for component in bom.components.iter().chain([&bom.metadata.component]) {
        let of = &component.reference;
        ensure!(known.insert(of.as_str()), "{of} is there twice");
        let licence = component.licenses.first().context("a licence")?;
        // An expression stands alone.
        ensure!(
            component.licenses.len() == 1 && !licence.expression.contains('/'),
            "{of}"
        );
        for hash in &component.hashes {
            let Algorithm::Sha256 = hash.alg;
            let is_hex = hash.content.bytes().all(|b| b.is_ascii_hexdigit());
            ensure!(hash.content.len() == 64 && is_hex, "{of}: {}", hash.content);
        }
        for reference in &component.external_references {
            let Kind::Vcs = reference.kind;
            ensure!(
                reference.url.starts_with("https://"),
                "{of}: {}",
                reference.url
            );
        }
        let purl = format!("pkg:cargo/{}@{}", component.name, component.version);
        ensure!(
            component.purl.as_ref().is_none_or(|own| *own == purl),
            "{of}"
        );
    }
    let all: Vec<&str> = bom.dependencies.iter().map(|d| d.of.as_str()).collect();
    ensure!(all.iter().copied().collect::<BTreeSet<_>>() == known && all.len() == known.len());
    for dependency in &bom.dependencies {
        let mut once = BTreeSet::new();
        for on in &dependency.depends_on {
            ensure!(
                known.contains(on.as_str()) && once.insert(on),
                "{}: {on}",
                dependency.of
            );
        }
    }
    Ok(bom)
}

#[test]
fn it_has_what_is_linked_and_nothing_else_in_the_formats_form() -> Result<()> {
    let machine = Machine::this()?;
    let text = sbom::text(machine)?;
    ensure!(text == sbom::text(machine)?, "it is the same each time");
    let bom = checked(&text)?;
    let agent = &bom.metadata.component;
    assert_eq!(
        (agent.name.as_str(), &agent.kind),
        ("aksnet-agent", &Type::Application)
    );
    assert_eq!(agent.version, env!("CARGO_PKG_VERSION"));
    let properties = &bom.metadata.properties;
    ensure!(
        properties
            .iter()
            .any(|p| p.name == "aksnet:target" && p.value == machine.triple())
    );
    ensure!(bom.components.iter().all(|c| c.kind == Type::Library));

    let (others, own): (Vec<_>, Vec<_>) = bom.components.iter().partition(|c| c.purl.is_some());
    ensure!(
        others.iter().all(|c| c.hashes.len() == 1),
        "each has a checksum"
    );
    let own: BTreeSet<&str> = own.iter().map(|c| c.name.as_str()).collect();
    assert_eq!(own, BTreeSet::from(["aksnet-common", "aksnet-ebpf"]));
    let listed = licences::third_party(machine)?;
    let listed: BTreeSet<String> = listed
        .lines()
        .skip(2)
        .take_while(|line| !line.is_empty())
        .filter_map(|line| Some(line.split_once(": ")?.0.replace(' ', "@")))
        .collect();
    let others: BTreeSet<String> = others.iter().map(|c| c.reference.clone()).collect();
    ensure!(others.len() > 100, "{} crates", others.len());
    assert_eq!(others, listed);
    Ok(())
}

#[test]
fn what_is_not_in_the_form_is_found() -> Result<()> {
    let good = sbom::text(Machine::this()?)?;
    for (from, to) in [
        ("\"specVersion\": \"1.5\"", "\"specVersion\": \"9\""),
        ("\"bomFormat\"", "\"format\""),
        ("\"dependsOn\": [\n", "\"dependsOn\": [\"nobody@1\",\n"),
        ("\"SHA-256\"", "\"SHA256\""),
        ("\"type\": \"library\"", "\"type\": \"crate\""),
        ("\"expression\"", "\"license\""),
    ] {
        let bad = good.replacen(from, to, 1);
        ensure!(bad != good, "{from} is not there");
        ensure!(checked(&bad).is_err(), "{to} is taken");
    }
    Ok(())
}
