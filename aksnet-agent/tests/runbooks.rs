//! What operators read when packets are lost: each cause has its row and its runbook, and the page on drops has the
//! command, the records and the filters as they are.

use std::{
    collections::BTreeSet,
    fs,
    path::{Path, PathBuf},
};

use aksnet_agent::{
    bpf::kernel::NOISE,
    cli::Cli,
    collect::cause::Cause,
    droplog::{DropRecord, End},
    metrics::describe,
};
use clap::CommandFactory as _;

fn docs() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs")
}

fn read(page: &str) -> String {
    let path = docs().join(page);
    fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

/// The page on drops and every runbook.
fn pages() -> Vec<PathBuf> {
    let runbooks = fs::read_dir(docs().join("runbooks")).unwrap();
    let mut pages: Vec<PathBuf> = runbooks.map(|entry| entry.unwrap().path()).collect();
    pages.push(docs().join("drops.md"));
    pages
}

/// The queries of a page: each line of a `promql` block that does not go on from the one before.
fn queries(text: &str) -> Vec<String> {
    let blocks = text.split("```promql\n").skip(1);
    let mut queries: Vec<String> = Vec::new();
    for block in blocks {
        for line in block.split("```").next().unwrap_or_default().lines() {
            match queries.last_mut() {
                Some(query) if line.starts_with(' ') => query.push_str(line),
                _ => queries.push(line.to_owned()),
            }
        }
    }
    queries
}

/// The names in what stands between two marks, up to an operator: `by (a, b)` and `{a="x",b!~"y"}`.
fn names_between(query: &str, open: &str, close: char) -> Vec<String> {
    let parts = query.split(open).skip(1).flat_map(|rest| {
        let inside = rest.split(close).next().unwrap_or_default();
        inside.split(',').map(|part| {
            let name = part.split(['=', '!']).next().unwrap_or_default();
            name.trim().to_owned()
        })
    });
    parts.collect()
}

/// The pages that a text links to, in its own folder: `](nat.md)`.
fn linked(text: &str) -> Vec<String> {
    text.split("](")
        .skip(1)
        .filter_map(|rest| rest.split_once(')'))
        .map(|(target, _)| target.split('#').next().unwrap_or_default())
        .filter(|target| {
            Path::new(target)
                .extension()
                .is_some_and(|extension| extension == "md")
                && !target.contains('/')
        })
        .map(str::to_owned)
        .collect()
}

/// Signal and page of each row of the index: "| `cause=\"nat\"` | [SNAT clash](nat.md) |".
fn index() -> Vec<(String, String)> {
    let text = read("runbooks/README.md");
    let rows: Vec<_> = text
        .lines()
        .filter_map(|line| {
            let (signal, rest) = line.strip_prefix("| `")?.split_once("` |")?;
            Some((signal.to_owned(), linked(rest).pop()?))
        })
        .collect();
    assert!(rows.len() > Cause::ALL.len(), "{rows:?}");
    rows
}

#[test]
fn every_cause_has_a_row_and_a_runbook() {
    let page = read("drops.md");
    let rows = index();
    for cause in Cause::ALL {
        let name = cause.name();
        let row = page
            .lines()
            .filter(|line| line.starts_with(&format!("| `{name}` | ")));
        assert_eq!(row.count(), 1, "docs/drops.md: rows of cause {name}");
        let row = (
            format!("cause=\"{name}\""),
            format!("{}.md", name.replace('_', "-")),
        );
        assert!(
            rows.contains(&row),
            "docs/runbooks/README.md has no {row:?}"
        );
    }
}

#[test]
fn every_runbook_is_in_the_index_and_begins_with_its_signal() {
    let rows = index();
    let indexed: BTreeSet<_> = rows.iter().map(|(_, page)| page.clone()).collect();
    assert_eq!(indexed.len(), rows.len(), "a page is listed twice");
    let there: BTreeSet<_> = fs::read_dir(docs().join("runbooks"))
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .filter(|name| name != "README.md")
        .collect();
    assert_eq!(indexed, there);
    let families = describe();
    for (signal, page) in rows {
        let text = read(&format!("runbooks/{page}"));
        let heading = text.lines().next().unwrap_or_default();
        assert!(
            heading.starts_with("# ") && heading.ends_with(&format!("(`{signal}`)")),
            "{page} begins with {heading:?}, which is not '# ... (`{signal}`)'"
        );
        let label = signal.split_once('=').map(|(label, _)| label);
        assert!(
            families.iter().any(|family| match label {
                Some(label) => family.labels.contains(&label),
                None => family.name == signal,
            }),
            "{signal} is neither a label nor a metric"
        );
        for part in [
            "**What is felt:**",
            "## What it means",
            "## Confirm",
            "## Fix",
            "## Often mistaken for",
        ] {
            assert!(text.contains(part), "{page} lacks {part}");
        }
    }
}

#[test]
fn links_among_runbooks_lead_somewhere() {
    for entry in fs::read_dir(docs().join("runbooks")).unwrap() {
        let path = entry.unwrap().path();
        for target in linked(&fs::read_to_string(&path).unwrap()) {
            assert!(
                docs().join("runbooks").join(&target).exists(),
                "{} links to {target}",
                path.display()
            );
        }
    }
}

#[test]
fn causes_that_commands_and_queries_name_exist() {
    let mut named = 0;
    for path in pages() {
        let text = fs::read_to_string(&path).unwrap();
        for before in ["--cause ", "cause=\""] {
            for rest in text.split(before).skip(1) {
                let name: String = rest
                    .chars()
                    .take_while(|c| c.is_ascii_alphanumeric() || *c == '_')
                    .collect();
                // The flag's own description.
                if name == "CAUSE" {
                    continue;
                }
                named += 1;
                assert!(
                    Cause::by_name(&name).is_some(),
                    "{} names cause {name:?}",
                    path.display()
                );
            }
        }
    }
    assert!(named > 2 * Cause::ALL.len(), "{named}");
}

#[test]
fn queries_ask_for_families_and_labels_that_exist() {
    // What Prometheus adds, and the bounds of a histogram.
    const ADDED: [&str; 4] = ["instance", "job", "le", "quantile"];
    let families = describe();
    let mut asked = 0;
    for path in pages() {
        let page = path.display();
        for query in queries(&fs::read_to_string(&path).unwrap()) {
            let words = query.split(|c: char| !c.is_ascii_alphanumeric() && c != '_');
            let names: Vec<&str> = words.filter(|word| word.starts_with("aksnet_")).collect();
            assert!(!names.is_empty(), "{page}: {query} asks for nothing");
            let mut labels = names_between(&query, "{", '}');
            for by in ["by (", "without (", "on ("] {
                labels.extend(names_between(&query, by, ')'));
            }
            for name in names {
                let parts = ["_bucket", "_sum", "_count"];
                let histogram = parts.iter().find_map(|part| name.strip_suffix(part));
                let family = families
                    .iter()
                    .find(|family| family.name == name || Some(family.name) == histogram);
                let family = family
                    .unwrap_or_else(|| panic!("{page}: {query} asks for {name}, which is none"));
                for label in &labels {
                    let known = ADDED.contains(&label.as_str());
                    assert!(
                        known || family.labels.contains(&label.as_str()),
                        "{page}: {name} has no label {label}: {query}"
                    );
                }
                asked += 1;
            }
        }
    }
    assert!(asked > Cause::ALL.len(), "{asked}");
}

#[test]
fn the_page_has_every_flag_of_the_command_every_field_of_a_record_and_every_filter() {
    let page = read("drops.md");
    let command = Cli::command();
    let drops = command.find_subcommand("drops").unwrap();
    for flag in drops.get_arguments().filter_map(clap::Arg::get_long) {
        let documented = flag == "help" || page.contains(&format!("`--{flag}"));
        assert!(documented, "docs/drops.md lacks --{flag}");
    }
    let end = End {
        address: [10, 244, 0, 5].into(),
        port: 0,
        namespace: String::new(),
        workload: String::new(),
        pod: String::new(),
    };
    let record = DropRecord {
        unix_ms: 0,
        packets: 1,
        bytes: 60,
        connections: 1,
        cause: String::new(),
        reason: String::new(),
        location: String::new(),
        direction: String::new(),
        protocol: String::new(),
        src: end.clone(),
        dst: end.clone(),
        dialled: None,
        in_interface: String::new(),
        out_interface: String::new(),
        mark: 0,
        engine: String::new(),
        policies: Vec::new(),
        confidence: String::new(),
        why: String::new(),
    };
    let (_, fields) = page.split_once("| JSON field |").unwrap();
    for json in [
        serde_json::to_value(&record).unwrap(),
        serde_json::to_value(&end).unwrap(),
    ] {
        for field in json.as_object().unwrap().keys() {
            assert!(
                fields.contains(&format!("`{field}`")),
                "docs/drops.md lacks the field {field}"
            );
        }
    }
    for reason in NOISE {
        assert!(
            page.contains(&format!("`{reason}`")),
            "docs/drops.md lacks the filter {reason}"
        );
    }
}
