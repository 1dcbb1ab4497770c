//! What is said of it: docs name what is there.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, ensure};
use xtask::{cargo::workspace, deploy};

use super::objects::{of_kustomize, one};

fn pages() -> Result<Vec<PathBuf>> {
    let root = workspace();
    let mut pages = vec![root.join("README.md"), root.join("deploy/README.md")];
    for folder in ["docs", "docs/runbooks"] {
        for entry in fs::read_dir(root.join(folder))? {
            let path = entry?.path();
            if path.extension().is_some_and(|extension| extension == "md") {
                pages.push(path);
            }
        }
    }
    Ok(pages)
}

/// Commands of a page that begin with a word, in its blocks of shell, with lines joined that a backslash continues.
fn commands(text: &str, word: &str) -> Vec<String> {
    let blocks = text
        .split("```sh\n")
        .skip(1)
        .map(|rest| rest.split("```").next().unwrap_or_default());
    blocks
        .flat_map(|block| {
            block
                .replace("\\\n", " ")
                .lines()
                .map(str::to_owned)
                .collect::<Vec<_>>()
        })
        .filter(|line| line.trim_start().starts_with(word))
        .collect()
}

#[test]
fn each_capability_of_the_manifest_has_its_row_and_no_other_has() -> Result<()> {
    let base = of_kustomize("base")?;
    let security =
        &one(&base, "DaemonSet")?["spec"]["template"]["spec"]["containers"][0]["securityContext"];
    let added: BTreeSet<&str> = security["capabilities"]["add"]
        .as_array()
        .context("capabilities")?
        .iter()
        .filter_map(|name| name.as_str())
        .collect();
    let page = fs::read_to_string(workspace().join("docs/permissions.md"))?;
    let (_, table) = page
        .split_once("\n## Capabilities\n")
        .context("a section")?;
    let table = table.split("\n## ").next().unwrap_or_default();
    let rows: BTreeSet<&str> = table
        .lines()
        .filter_map(|line| line.strip_prefix("| `")?.split('`').next())
        .collect();
    assert_eq!(rows, added);
    Ok(())
}

#[test]
fn commands_name_the_daemonset_and_the_program_as_they_are() -> Result<()> {
    let mut named = 0;
    for page in pages()? {
        let text = fs::read_to_string(&page)?;
        for former in ["ds/", "app.kubernetes.io/name=", "serviceaccount:aksnet:"] {
            let former = format!("{former}aksnet-agent");
            ensure!(!text.contains(&former), "{}: {former}", page.display());
        }
        for command in commands(&text, "kubectl -n aksnet exec ") {
            let of = format!("{}: {command}", page.display());
            ensure!(
                command.contains(" ds/aksnet ") || command.contains("$AGENT "),
                "{of}"
            );
            let (_, inside) = command.split_once(" -- ").with_context(|| of.clone())?;
            ensure!(inside.starts_with("agent "), "{of}");
            named += 1;
        }
    }
    ensure!(named > 3, "{named} commands");
    Ok(())
}

#[test]
fn what_is_applied_and_installed_is_there() -> Result<()> {
    let root = workspace();
    let mut found = 0;
    for page in pages()? {
        let text = fs::read_to_string(&page)?;
        for word in text.split_whitespace() {
            let word = word.trim_matches(['`', '(', ')', ',', '.', ';', ':']);
            if word.starts_with("deploy/") && !word.contains(['*', '<', '…', '{']) {
                ensure!(root.join(word).exists(), "{}: no {word}", page.display());
                found += 1;
            }
        }
    }
    ensure!(found > 10, "{found} places");
    Ok(())
}

#[test]
fn install_has_each_overlay_and_each_component() -> Result<()> {
    let page = fs::read_to_string(workspace().join("docs/install.md"))?;
    for folder in ["overlays", "components"] {
        for entry in fs::read_dir(deploy::directory().join(folder))? {
            let name = entry?.file_name().to_string_lossy().into_owned();
            ensure!(
                page.contains(&format!("{folder}/{name}")),
                "docs/install.md: no {folder}/{name}"
            );
        }
    }
    Ok(())
}

#[test]
fn the_manifests_notes_point_to_pages_that_are_there() -> Result<()> {
    let root = workspace();
    let mut open: Vec<PathBuf> = vec![deploy::directory()];
    let mut found = 0;
    while let Some(path) = open.pop() {
        if path.is_dir() {
            for entry in fs::read_dir(&path)? {
                open.push(entry?.path());
            }
            continue;
        }
        let text = fs::read_to_string(&path)?;
        for word in text.split(|c: char| c.is_whitespace() || "(),:;\"".contains(c)) {
            let word = word.trim_end_matches('.');
            if word.starts_with("docs/") && Path::new(word).extension().is_some_and(|e| e == "md") {
                ensure!(root.join(word).exists(), "{}: no {word}", path.display());
                found += 1;
            }
        }
    }
    ensure!(found > 5, "{found} pages");
    Ok(())
}
