//! The page's *files*, as they are in the binary.

/// One file.
pub(super) struct File {
    /// Its path.
    pub(super) path: &'static str,
    /// Its media type.
    pub(super) kind: &'static str,
    /// What is in it.
    pub(super) text: &'static str,
}

const HTML: &str = "text/html; charset=utf-8";
const STYLE: &str = "text/css; charset=utf-8";
const SCRIPT: &str = "text/javascript; charset=utf-8";
const IMAGE: &str = "image/svg+xml";

macro_rules! file {
    ($name:literal, $kind:expr) => {
        File {
            path: concat!("/page/", $name),
            kind: $kind,
            text: include_str!(concat!("web/", $name)),
        }
    };
}

/// All of them; the first is the page itself.
pub(super) const FILES: [File; 11] = [
    File {
        path: "/",
        kind: HTML,
        text: include_str!("web/index.html"),
    },
    file!("style.css", STYLE),
    file!("icon.svg", IMAGE),
    file!("app.js", SCRIPT),
    file!("source.js", SCRIPT),
    file!("node.js", SCRIPT),
    file!("passage.js", SCRIPT),
    file!("columns.js", SCRIPT),
    file!("table.js", SCRIPT),
    file!("dom.js", SCRIPT),
    file!("format.js", SCRIPT),
];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_file_that_is_named_is_there_and_none_is_elsewhere() {
        let there = |path: &str| FILES.iter().any(|file| file.path == path);
        for file in &FILES {
            assert!(
                !file.text.contains("https://"),
                "{}: nothing comes from elsewhere",
                file.path
            );
            for line in file.text.lines() {
                if let Some((_, from)) = line.split_once(" from \"./") {
                    let name = from.split('"').next().unwrap();
                    assert!(there(&format!("/page/{name}")), "{}: {name}", file.path);
                }
            }
        }
        let page = FILES[0].text;
        let named = page.split(['"']).filter(|text| text.starts_with("page/"));
        let named: Vec<&str> = named.collect();
        assert_eq!(named.len(), 3, "{named:?}");
        assert!(named.iter().all(|path| there(&format!("/{path}"))));
    }

    #[test]
    fn no_script_makes_markup_of_text() {
        for file in FILES.iter().filter(|file| file.kind == SCRIPT) {
            for way in [
                "innerHTML",
                "outerHTML",
                "insertAdjacentHTML",
                "document.write",
                "eval(",
            ] {
                assert!(!file.text.contains(way), "{}: {way}", file.path);
            }
        }
    }
}
