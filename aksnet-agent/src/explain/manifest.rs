//! Reads *manifests*: YAML with any number of documents, or JSON, from files, directories and standard input.

use std::{
    fs,
    io::{self, Read as _},
    path::{Path, PathBuf},
};

use serde_json::Value;

use crate::exit::{Exit, Failure};

/// No more than so much is read of one file: `kubectl get --all-namespaces -o json` of 10,000 pods is a tenth of it.
const LARGEST: u64 = 1 << 30;

/// One document of a file.
#[derive(Debug)]
pub struct Document {
    /// Where it stands: `shop.yaml: document 2 (line 14)`.
    pub place: String,
    /// What it says.
    pub value: Value,
}

/// Reads what `-f` names: a file, the manifests of a directory (not of those in it), or `-` for standard input.
///
/// # Errors
/// When it cannot be read, or is neither YAML nor JSON.
pub fn read(path: &Path) -> Result<Vec<Document>, Failure> {
    if path.as_os_str() == "-" {
        let text = text_of(&mut io::stdin().lock());
        return documents("-", &text.map_err(|error| unreadable(path, &error))?);
    }
    let mut all = Vec::new();
    for file in files(path)? {
        let text = fs::File::open(&file).and_then(|mut file| text_of(&mut file));
        let text = text.map_err(|error| unreadable(&file, &error))?;
        all.extend(documents(&file.display().to_string(), &text)?);
    }
    Ok(all)
}

fn unreadable(path: &Path, error: &io::Error) -> Failure {
    let path = path.display();
    Failure::new(
        Exit::NoInput,
        format_args!("-f {path}: cannot be read: {error}"),
    )
}

fn text_of(file: &mut dyn io::Read) -> io::Result<String> {
    let mut bytes = Vec::new();
    file.take(LARGEST).read_to_end(&mut bytes)?;
    if bytes.len() as u64 == LARGEST {
        return Err(io::Error::other("it is larger than 1 GiB"));
    }
    // What is no UTF-8 is found where it stands by whoever reads it.
    Ok(String::from_utf8_lossy(&bytes).into_owned())
}

fn files(path: &Path) -> Result<Vec<PathBuf>, Failure> {
    let about = fs::metadata(path).map_err(|error| unreadable(path, &error))?;
    if !about.is_dir() {
        return Ok(vec![path.to_owned()]);
    }
    let entries = fs::read_dir(path).map_err(|error| unreadable(path, &error))?;
    let is_manifest = |file: &PathBuf| {
        let extension = file.extension().and_then(|one| one.to_str());
        matches!(extension, Some("yaml" | "yml" | "json")) && !file.is_dir()
    };
    let mut files: Vec<PathBuf> = entries
        .filter_map(|entry| Some(entry.ok()?.path()))
        .filter(is_manifest)
        .collect();
    files.sort();
    if files.is_empty() {
        let path = path.display();
        return Err(Failure::new(
            Exit::NoInput,
            format_args!("-f {path}: has no .yaml, .yml or .json file; name the files"),
        ));
    }
    Ok(files)
}

/// Reads a file's text. Pure.
///
/// # Errors
/// When it is neither YAML nor JSON; the message says where.
pub fn documents(file: &str, text: &str) -> Result<Vec<Document>, Failure> {
    let text = text.strip_prefix('\u{feff}').unwrap_or(text);
    // JSON may use tabs where YAML may not.
    if text.trim_start().starts_with(['{', '['])
        && let Some(values) = json(text)
    {
        let numbered = values.into_iter().zip(1..);
        let document = |(value, n)| Document {
            place: format!("{file}: document {n}"),
            value,
        };
        return Ok(numbered.map(document).collect());
    }
    let mut all = Vec::new();
    for (part, n) in parts(text).into_iter().zip(1..) {
        match yaml(&part.text) {
            Ok(Value::Null) => {}
            Ok(value) => all.push(Document {
                place: format!("{file}: document {n} (line {})", part.line),
                value,
            }),
            Err((line, why)) => {
                let line = part.line + line;
                return Err(Failure::new(
                    Exit::Data,
                    format_args!("{file}:{line}: document {n} is no YAML: {why}"),
                ));
            }
        }
    }
    Ok(all)
}

fn json(text: &str) -> Option<Vec<Value>> {
    let values = serde_json::Deserializer::from_str(text).into_iter();
    values.collect::<Result<Vec<Value>, _>>().ok()
}

/// Reads one document. An error says how many lines into it, and why.
fn yaml(text: &str) -> Result<Value, (usize, String)> {
    // A dump of a large cluster has more than the parser takes by default. What aliases may blow up stays bounded.
    let options = serde_saphyr::options! {
        budget: serde_saphyr::budget! {
            max_events: 200_000_000,
            max_nodes: 100_000_000,
            max_total_scalar_bytes: 1 << 30,
        },
        with_snippet: false,
    };
    serde_saphyr::from_str_with_options(text, options).map_err(|error| {
        let line = error.location().map_or(1, |location| location.line());
        let why = error.to_string();
        let why = why.lines().next().unwrap_or_default().trim().to_owned();
        let line = usize::try_from(line.saturating_sub(1)).unwrap_or_default();
        (line, why)
    })
}

struct Part {
    /// The line that it begins with, from 1.
    line: usize,
    text: String,
}

/// Cuts a stream into its documents: a line that begins with `---` starts one, wherever it stands (YAML 1.2, 9.1.2).
fn parts(text: &str) -> Vec<Part> {
    let mut parts = vec![Part {
        line: 1,
        text: String::new(),
    }];
    for (line, number) in text.split_inclusive('\n').zip(1..) {
        let marked = line
            .strip_prefix("---")
            .filter(|rest| rest.is_empty() || rest.starts_with([' ', '\t', '\r', '\n']));
        let part = match marked {
            None => line.to_owned(),
            // What stands behind the marker belongs to the document; columns stay as they are.
            Some(rest) => {
                parts.push(Part {
                    line: number,
                    text: String::new(),
                });
                format!("   {rest}")
            }
        };
        if let Some(last) = parts.last_mut() {
            last.text.push_str(&part);
        }
    }
    let says_something = |part: &Part| {
        let mut lines = part.text.lines().map(str::trim);
        lines.any(|line| !line.is_empty() && !line.starts_with(['#', '%']))
    };
    parts.retain(says_something);
    parts
}

#[cfg(test)]
mod tests {
    use super::*;

    fn kinds(text: &str) -> Vec<String> {
        let documents = documents("f.yaml", text).unwrap();
        let kinds = documents.iter().map(|one| one.value["kind"].as_str());
        kinds.map(|kind| kind.unwrap_or("-").to_owned()).collect()
    }

    fn error(text: &str) -> String {
        let failure = documents("f.yaml", text).unwrap_err();
        assert_eq!(failure.exit, Exit::Data);
        failure.to_string()
    }

    #[test]
    fn a_file_has_as_many_documents_as_it_says() {
        assert_eq!(kinds("kind: A\n---\nkind: B\n"), ["A", "B"]);
        assert_eq!(
            kinds("# c\n---\n---\nkind: A\r\n--- # d\r\nkind: B\n---\n"),
            ["A", "B"]
        );
        assert_eq!(
            kinds("--- {kind: A}\n---\nkind: B\ntext: |\n  ---\n  x\n"),
            ["A", "B"]
        );
        assert_eq!(kinds("%YAML 1.2\n---\nkind: A\n...\n"), ["A"]);
        assert_eq!(kinds(""), [""; 0]);
    }

    #[test]
    fn json_is_read_with_its_tabs_and_one_after_the_other() {
        assert_eq!(
            kinds("{\n\t\"kind\": \"A\"\n}\n{\"kind\": \"B\"}"),
            ["A", "B"]
        );
        assert_eq!(kinds("{kind: A}"), ["A"]);
    }

    #[test]
    fn what_is_no_yaml_is_named_by_file_line_and_document() {
        let text = error("kind: A\n---\nkind: B\nspec: [1, 2\nmore: x\n");
        assert!(text.starts_with("f.yaml:"), "{text}");
        assert!(text.contains(": document 2 is no YAML: "), "{text}");
        let line: usize = text.split(':').nth(1).unwrap().parse().unwrap();
        assert!((4..=6).contains(&line), "{text}");
        assert_eq!(text.lines().count(), 1);
        error("a: 1\na: 2\n");
        error("a: \"x\n");
    }

    #[test]
    fn places_name_the_line_that_a_document_begins_with() {
        let documents = documents("f.yaml", "kind: A\n---\nkind: B\n").unwrap();
        assert_eq!(documents[1].place, "f.yaml: document 2 (line 2)");
    }
}
