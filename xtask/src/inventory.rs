//! The *inventory* of unsafe code: every place in the project's sources where the compiler is told to trust, and the
//! argument that stands there. `docs/unsafe.md` is made of it, so that a new one shows in a review twice; it names no
//! lines, so that it changes only when they do.

use std::fmt::Write as _;
use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, ensure};

/// The page.
pub const PAGE: &str = "docs/unsafe.md";

/// The crates, in the order of the page, and what unsafe is for there.
const CRATES: [(&str, &str); 4] = [
    (
        "aksnet-ebpf",
        "Runs in the kernel, where the verifier checks each access again and refuses the program if it cannot be shown to \
         be within bounds. What is left to argue is who else touches the same memory.",
    ),
    (
        "aksnet-common",
        "Layouts that both sides share: promises that any bytes are a value of the type, and that it has no padding.",
    ),
    (
        "aksnet-agent",
        "Memory that is mapped from the kernel, and system calls that no crate has in a safe form.",
    ),
    (
        "xtask",
        "The emulated node: namespaces, raw sockets, signals. Nothing of it is in the agent.",
    ),
];

/// A place.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Place {
    /// What it is: a block, a function, an implementation, an attribute.
    kind: &'static str,
    /// In which function; or which type, function or attribute it is.
    of: String,
    /// The argument; empty if there is none.
    why: String,
    /// Its line, from 1; for messages.
    line: usize,
}

/// The page's text.
///
/// # Errors
/// When a source cannot be read, or a place has no argument; all of those are named.
pub fn page(root: &Path) -> Result<String> {
    let mut page = String::from(
        "# Unsafe code\n\n\
         Written by `cargo xtask docs` from the sources: each place, and the argument that stands beside it there. A place \
         without one is an error of the build (`clippy::undocumented_unsafe_blocks`), and of the test that holds this page \
         against the sources. Where unsafe code may be: [CONTRIBUTING.md](../CONTRIBUTING.md#rules).\n",
    );
    let mut bare = Vec::new();
    for (name, about) in CRATES {
        let mut rows = String::new();
        let mut count = 0;
        for file in sources(&root.join(name))? {
            let text = fs::read_to_string(&file).with_context(|| file.display().to_string())?;
            let short = file.strip_prefix(root)?.display();
            for place in places(&text) {
                if place.why.is_empty() {
                    bare.push(format!("{short}:{}", place.line));
                }
                let cell = |text: &str| text.replace('|', "\\|");
                let (kind, of, why) = (place.kind, cell(&place.of), cell(&place.why));
                writeln!(rows, "| `{short}` | {kind} `{of}` | {why} |")?;
                count += 1;
            }
        }
        write!(page, "\n## {name}: {count}\n\n{about}\n")?;
        if count > 0 {
            write!(
                page,
                "\n| file | where | why it is sound |\n|---|---|---|\n{rows}"
            )?;
        }
    }
    ensure!(
        bare.is_empty(),
        "unsafe without an argument (`// SAFETY:`, or `# Safety` of a function):\n  {}",
        bare.join("\n  ")
    );
    Ok(page)
}

/// All sources below a directory, in order.
fn sources(directory: &Path) -> Result<Vec<PathBuf>> {
    let mut found = Vec::new();
    let mut open = vec![directory.to_owned()];
    while let Some(path) = open.pop() {
        if path.is_dir() {
            for entry in fs::read_dir(&path).with_context(|| path.display().to_string())? {
                open.push(entry?.path());
            }
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            found.push(path);
        }
    }
    found.sort();
    Ok(found)
}

/// The places in a source. By lines, as rustfmt lays them out: no `unsafe` begins in the middle of a comment or a text
/// that goes over lines, but in those of this file's own tests.
fn places(text: &str) -> Vec<Place> {
    let lines: Vec<&str> = text.lines().collect();
    let mut places = Vec::new();
    for (at, line) in lines.iter().enumerate() {
        let code = code(line);
        for (before, after) in words(&code) {
            let after = after.trim_start();
            let (kind, of, why) = if before.ends_with("#[") && after.starts_with('(') {
                // What it promises is in the comments above, of whatever kind.
                let of = after.trim_start_matches('(').split([')', ' ']).next();
                (
                    "attribute",
                    of.unwrap_or_default().to_owned(),
                    comment(&lines, at),
                )
            } else if let Some(rest) = after.strip_prefix("impl") {
                let of = rest.trim().split('{').next().unwrap_or_default();
                ("implementation", of.trim().to_owned(), argument(&lines, at))
            } else if after.starts_with("fn ") || after.starts_with("extern ") {
                ("function", name(after), contract(&lines, at))
            } else if after.starts_with('{') || after.is_empty() {
                ("in", enclosing(&lines, at), argument(&lines, at))
            } else {
                continue;
            };
            places.push(Place {
                kind,
                of,
                why,
                line: at + 1,
            });
        }
    }
    places
}

/// A line without its comment, and without what is in quotes.
fn code(line: &str) -> String {
    let mut code = String::new();
    let mut quoted = false;
    let mut chars = line.chars().peekable();
    while let Some(c) = chars.next() {
        match c {
            '\\' if quoted => {
                let _escaped = chars.next();
            }
            '"' => quoted = !quoted,
            '/' if !quoted && chars.peek() == Some(&'/') => break,
            c if !quoted => code.push(c),
            _ => {}
        }
    }
    code
}

/// What stands before and after each word `unsafe`.
fn words(code: &str) -> Vec<(&str, &str)> {
    let is_part = |c: char| c.is_alphanumeric() || c == '_';
    let found = code.match_indices("unsafe").filter_map(|(at, word)| {
        let (before, after) = (&code[..at], &code[at + word.len()..]);
        let whole = !before.ends_with(is_part) && !after.starts_with(is_part);
        whole.then_some((before, after))
    });
    found.collect()
}

/// The name behind `fn`.
fn name(code: &str) -> String {
    let rest = code.split_once("fn ").map_or("", |(_, rest)| rest);
    let end = rest.find(['(', '<']).unwrap_or(rest.len());
    rest[..end].trim().to_owned()
}

fn indent(line: &str) -> usize {
    line.len() - line.trim_start().len()
}

/// The function that a line is in.
fn enclosing(lines: &[&str], at: usize) -> String {
    let depth = indent(lines[at]);
    let above = lines[..=at].iter().enumerate().rev();
    let mut functions = above.filter(|(n, line)| {
        let code = code(line);
        let is_outer = *n == at || indent(line) < depth;
        is_outer && code.split([' ', '(']).any(|word| word == "fn")
    });
    let found = functions.next().map(|(_, line)| name(&code(line)));
    found.unwrap_or_else(|| "a constant".to_owned())
}

/// Comment lines that end right above a line, without their slashes; attributes between are passed over.
fn block_above<'a>(lines: &[&'a str], at: usize) -> Vec<&'a str> {
    let mut block = Vec::new();
    for line in lines[..at].iter().rev() {
        let line = line.trim();
        if let Some(text) = line.strip_prefix("//") {
            block.push(text.trim_start_matches(['/', '!']).trim());
        } else if !(block.is_empty() && line.starts_with("#[")) {
            break;
        }
    }
    block.reverse();
    block
}

fn joined(lines: &[&str]) -> String {
    lines.join(" ").trim().to_owned()
}

/// The comment above.
fn comment(lines: &[&str], at: usize) -> String {
    let block = block_above(lines, at);
    match block.iter().position(|line| line.starts_with("SAFETY:")) {
        Some(from) => joined(&block[from..]).replacen("SAFETY: ", "", 1),
        None => joined(&block),
    }
}

/// What `// SAFETY:` says above the statement that a line is in; also where one speaks for several.
fn argument(lines: &[&str], at: usize) -> String {
    for above in (0..=at).rev() {
        let line = lines[above];
        let is_outside =
            code(line).contains("fn ") || (line.trim().is_empty() && !shares(lines, above));
        if above != at && is_outside {
            break;
        }
        let block = block_above(lines, above);
        if let Some(from) = block.iter().position(|line| line.starts_with("SAFETY:")) {
            let said = joined(&block[from..]);
            return said.replacen("SAFETY:", "", 1).trim().to_owned();
        }
    }
    String::new()
}

/// Whether an empty line only parts implementations that one argument is for.
fn shares(lines: &[&str], at: usize) -> bool {
    at > 0 && code(lines[at - 1]).trim().starts_with("unsafe impl")
}

/// What `# Safety` says in a function's documentation, or else `// SAFETY:` above it.
fn contract(lines: &[&str], at: usize) -> String {
    let block = block_above(lines, at);
    match block.iter().position(|line| *line == "# Safety") {
        Some(from) => {
            let rest = &block[from + 1..];
            let end = rest.iter().position(|line| line.starts_with("# "));
            joined(&rest[..end.unwrap_or(rest.len())])
        }
        None => argument(lines, at),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn found(text: &str) -> Vec<(&'static str, String, String)> {
        let places = places(text).into_iter();
        places.map(|p| (p.kind, p.of, p.why)).collect()
    }

    #[test]
    fn each_kind_of_place_is_found_with_its_argument() {
        let text = "\
impl X {
    fn read(&self) -> u8 {
        // SAFETY: it lives
        // as long as we do.
        let x = unsafe { *self.at };
        // SAFETY: the same.
        call(
            unsafe { *self.at },
        )
    }
}

/// Adds.
///
/// # Safety
/// `at` is ours.
#[inline]
pub unsafe fn add(at: *mut u8) {}

// SAFETY: any bytes | are one.
unsafe impl Pod for A {}

unsafe impl Pod for B {}

// The kernel looks for it by name.
#[unsafe(no_mangle)]
static LICENCE: u8 = 0;
";
        let s = |text: &str| text.to_owned();
        assert_eq!(
            found(text),
            [
                ("in", s("read"), s("it lives as long as we do.")),
                ("in", s("read"), s("the same.")),
                ("function", s("add"), s("`at` is ours.")),
                ("implementation", s("Pod for A"), s("any bytes | are one.")),
                ("implementation", s("Pod for B"), s("any bytes | are one.")),
                (
                    "attribute",
                    s("no_mangle"),
                    s("The kernel looks for it by name.")
                ),
            ]
        );
    }

    #[test]
    fn a_place_without_an_argument_shows() {
        let text = "// SAFETY: of another.\nfn a() {\n    unsafe { b() }\n}\n\nfn b() {\n    unsafe { c() }\n}\n";
        for (_, of, why) in found(text) {
            assert_eq!(why, "", "{of}");
        }
        assert_eq!(found(text).len(), 2);
    }

    #[test]
    fn what_only_looks_like_one_is_none() {
        let text = "// unsafe { }\nlet a = \"unsafe { }\";\n#![deny(unsafe_op_in_unsafe_fn)]\nlet unsafely = 1; // unsafe\n";
        assert_eq!(found(text), []);
    }
}
