//! `cargo xtask docs`: the pages that are made from the agent's command line and from its unsafe code, and whether every
//! link between pages leads somewhere.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt::Write as _,
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context as _, Result, bail, ensure};

use crate::{inventory, say};

/// The command line's page.
const PAGE: &str = "docs/cli.md";

/// Writes the pages, or with `check` only compares it; then follows the links of all pages.
///
/// # Errors
/// When a page is not up to date, or a link leads nowhere. All of them are named.
pub fn run(root: &Path, agent: &Path, check: bool) -> Result<()> {
    put(root, PAGE, &cli_page(agent)?, check)?;
    put(root, inventory::PAGE, &inventory::page(root)?, check)?;
    let pages = pages(root)?;
    let broken = broken_links(root, &pages)?;
    ensure!(
        broken.is_empty(),
        "links that lead nowhere:\n  {}",
        broken.join("\n  ")
    );
    say::step(&format!(
        "docs: the links of {} pages lead somewhere",
        pages.len()
    ));
    Ok(())
}

/// Writes a page, or with `check` only compares it.
fn put(root: &Path, name: &str, page: &str, check: bool) -> Result<()> {
    let path = root.join(name);
    let is = fs::read_to_string(&path).unwrap_or_default();
    if is == page {
        say::step(&format!("docs: {name} is up to date"));
    } else if check {
        bail!("{name} is not up to date; write it with `cargo xtask docs`");
    } else {
        fs::write(&path, page).with_context(|| format!("cannot write {name}"))?;
        say::step(&format!("docs: {name} written"));
    }
    Ok(())
}

/// What each command says of itself with `--help`.
fn cli_page(agent: &Path) -> Result<String> {
    let help = |words: &[&str]| -> Result<String> {
        let output = Command::new(agent).args(words).arg("--help").output();
        let output = output.with_context(|| format!("cannot run {}", agent.display()))?;
        ensure!(output.status.success(), "`{words:?} --help`: {output:?}");
        let text = String::from_utf8(output.stdout).context("help that is text")?;
        let lines: Vec<&str> = text.lines().map(str::trim_end).collect();
        Ok(lines.join("\n").trim_end().to_owned())
    };
    let whole = help(&[])?;
    let commands = commands(&whole);
    ensure!(!commands.is_empty(), "no commands in:\n{whole}");
    let mut page = format!(
        "# The command line\n\n\
         Written by `cargo xtask docs`, from what the agent says with `--help`. `aksnet-agent completions SHELL` and\n\
         `aksnet-agent man [DIR]` make completions and manual pages of the same.\n\n```\n{whole}\n```\n"
    );
    for command in commands {
        let text = help(&[&command])?;
        write!(page, "\n## aksnet-agent {command}\n\n```\n{text}\n```\n")?;
    }
    Ok(page)
}

/// The names below `Commands:`.
fn commands(help: &str) -> Vec<String> {
    let list = help.lines().skip_while(|line| *line != "Commands:").skip(1);
    let names = list.take_while(|line| !line.is_empty()).filter_map(|line| {
        // What goes on from the line before is indented further.
        let name = line.strip_prefix("  ")?;
        let name = name.split(' ').next()?;
        (!name.is_empty() && name != "help").then(|| name.to_owned())
    });
    names.collect()
}

/// Every page of the project, by its path from the root.
fn pages(root: &Path) -> Result<Vec<PathBuf>> {
    let output = Command::new("git")
        .args([
            "ls-files",
            "--cached",
            "--others",
            "--exclude-standard",
            "*.md",
        ])
        .current_dir(root)
        .output()
        .context("cannot run git")?;
    ensure!(output.status.success(), "git ls-files: {output:?}");
    let text = String::from_utf8(output.stdout).context("paths that are text")?;
    let pages: Vec<PathBuf> = text
        .lines()
        .map(PathBuf::from)
        .filter(|page| root.join(page).exists())
        .collect();
    ensure!(!pages.is_empty(), "no pages below {}", root.display());
    Ok(pages)
}

/// Links to files or headings that are not there, each with the page it stands on.
fn broken_links(root: &Path, pages: &[PathBuf]) -> Result<Vec<String>> {
    let mut texts = BTreeMap::new();
    for page in pages {
        let text = fs::read_to_string(root.join(page));
        let text = text.with_context(|| format!("cannot read {}", page.display()))?;
        texts.insert(page.clone(), text);
    }
    let mut broken = Vec::new();
    for (page, text) in &texts {
        for link in links(text) {
            if let Some(why) = nowhere(root, &texts, page, &link) {
                broken.push(format!("{}: ({link}): {why}", page.display()));
            }
        }
    }
    Ok(broken)
}

/// Why a link leads nowhere.
fn nowhere(
    root: &Path,
    texts: &BTreeMap<PathBuf, String>,
    page: &Path,
    link: &str,
) -> Option<&'static str> {
    if link.contains("://") || link.starts_with("mailto:") {
        return None;
    }
    let (path, heading) = link.split_once('#').unwrap_or((link, ""));
    let target = if path.is_empty() {
        page.to_path_buf()
    } else {
        normal(&page.parent().unwrap_or(Path::new("")).join(path))
    };
    if !root.join(&target).exists() {
        return Some("no such file");
    }
    if heading.is_empty() {
        return None;
    }
    let text = texts.get(&target)?;
    (!anchors(text).contains(heading)).then_some("no such heading")
}

/// A path without `..`, as far as it stays below where it began.
fn normal(path: &Path) -> PathBuf {
    let mut normal = PathBuf::new();
    for part in path.components() {
        if part.as_os_str() != ".." || !normal.pop() {
            normal.push(part);
        }
    }
    normal
}

/// The lines that are not within fences.
fn prose(text: &str) -> impl Iterator<Item = &str> {
    let mut fenced = false;
    text.lines().filter(move |line| {
        let fence = line.trim_start().starts_with("```");
        fenced ^= fence;
        !fenced && !fence
    })
}

/// Where the links of a page lead, images included.
fn links(text: &str) -> Vec<String> {
    let mut links = Vec::new();
    // A link may be broken over two lines, but not within its target.
    for line in prose(text) {
        // What is quoted as code is no link.
        let plain: String = line.split('`').step_by(2).collect::<Vec<_>>().join("`");
        for rest in plain.split("](").skip(1) {
            if let Some((target, _)) = rest.split_once(')') {
                links.push(target.to_owned());
            }
        }
    }
    links
}

/// The anchors of a page's headings, as GitHub makes them: lower case, spaces to hyphens, all else but letters, digits,
/// hyphens and underscores left out; one that is there already has `-1` and so on behind it.
fn anchors(text: &str) -> BTreeSet<String> {
    let mut anchors = BTreeSet::new();
    let headings = prose(text).filter(|line| line.starts_with('#'));
    for heading in headings {
        let heading = heading.trim_start_matches('#').trim();
        let name: String = heading
            .to_lowercase()
            .chars()
            .filter_map(|c| match c {
                ' ' => Some('-'),
                '-' | '_' => Some(c),
                c if c.is_alphanumeric() => Some(c),
                _ => None,
            })
            .collect();
        let mut unique = name.clone();
        let mut number = 0;
        while !anchors.insert(unique.clone()) {
            number += 1;
            unique = format!("{name}-{number}");
        }
    }
    anchors
}

#[cfg(test)]
mod tests {
    use super::*;

    const TEXT: &str = "# One: a `name`\nsee [a](two.md#b) and ![p](images/p.png) not `[x](y)`\n\
        ```\n[no](link)\n# no heading\n```\n## b\n## b\n[c](#b-1) [out](https://example.org/x)\n";

    #[test]
    fn links_are_those_of_the_prose() {
        let links = links(TEXT);
        assert_eq!(
            links,
            ["two.md#b", "images/p.png", "#b-1", "https://example.org/x"]
        );
    }

    #[test]
    fn anchors_are_as_github_makes_them() {
        let anchors: Vec<String> = anchors(TEXT).into_iter().collect();
        assert_eq!(anchors, ["b", "b-1", "one-a-name"]);
    }

    #[test]
    fn links_that_lead_nowhere_are_named() {
        let dir = std::env::temp_dir().join(format!("xtask-docs-{}", std::process::id()));
        fs::create_dir_all(dir.join("docs")).unwrap();
        let write = |name: &str, text: &str| fs::write(dir.join(name), text).unwrap();
        write(
            "README.md",
            "[a](docs/a.md#there) [b](docs/a.md#gone) [c](docs/c.md)\n",
        );
        write(
            "docs/a.md",
            "# There\n[up](../README.md) [self](#there) [no](#nope)\n",
        );
        let pages = ["README.md", "docs/a.md"].map(PathBuf::from);
        let broken = broken_links(&dir, &pages);
        fs::remove_dir_all(&dir).unwrap();
        assert_eq!(
            broken.unwrap(),
            [
                "README.md: (docs/a.md#gone): no such heading",
                "README.md: (docs/c.md): no such file",
                "docs/a.md: (#nope): no such heading",
            ]
        );
    }

    #[test]
    fn commands_are_read_from_the_help() {
        let help = "Usage: x\n\nCommands:\n  run   Watch\n        on and on\n  man   Print\n  help  Print this\n\nOptions:\n  -h\n";
        assert_eq!(commands(help), ["run", "man"]);
    }
}
