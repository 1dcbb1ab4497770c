//! The Dockerfile's *last stage*: how the image is run. The files are another matter ([`super::files`]).

use std::collections::BTreeMap;

use anyhow::{Context as _, Result, bail, ensure};
use serde::Serialize;

/// The part of an image's configuration that a Dockerfile tells, in the words of the image specification.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "PascalCase")]
pub struct Run {
    /// User, and group: `0:0`.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub user: String,
    /// `NAME=VALUE`.
    pub env: Vec<String>,
    /// The program and its first arguments.
    pub entrypoint: Vec<String>,
    /// Arguments where none are given.
    pub cmd: Vec<String>,
    /// Names and values.
    pub labels: BTreeMap<String, String>,
}

/// The one way in which files come into the last stage.
const COPY: &str = "--from=build /image/ /";

/// Reads the last stage.
///
/// # Errors
/// When it does something that an archive made without Docker would not have.
pub fn last_stage(text: &str) -> Result<Run> {
    let lines = logical_lines(text);
    let from = lines
        .iter()
        .rposition(|line| word(line).0 == "FROM")
        .context("deploy/Dockerfile has no FROM")?;
    ensure!(
        word(&lines[from]).1 == "scratch",
        "the last stage of deploy/Dockerfile is not FROM scratch"
    );
    let mut run = Run::default();
    let mut copies = 0;
    for line in &lines[from + 1..] {
        let (instruction, rest) = word(line);
        match instruction {
            "COPY" if rest == COPY => copies += 1,
            "ENV" => run.env.push(rest.to_owned()),
            "USER" => rest.clone_into(&mut run.user),
            "ENTRYPOINT" => run.entrypoint = list(rest)?,
            "CMD" => run.cmd = list(rest)?,
            "LABEL" => {
                let (name, value) = rest
                    .split_once('=')
                    .with_context(|| format!("no '=' in {line}"))?;
                run.labels
                    .insert(name.to_owned(), value.trim_matches('"').to_owned());
            }
            _ => bail!("deploy/Dockerfile: cargo xtask image does not do `{line}`"),
        }
    }
    ensure!(
        copies == 1,
        "the last stage of deploy/Dockerfile copies other than `COPY {COPY}`"
    );
    Ok(run)
}

/// Lines without comments, with those joined that end in a backslash.
fn logical_lines(text: &str) -> Vec<String> {
    let mut lines: Vec<String> = Vec::new();
    let mut goes_on = false;
    for line in text.lines().map(str::trim) {
        if line.is_empty() || line.starts_with('#') {
            continue;
        }
        let (part, more) = match line.strip_suffix('\\') {
            Some(part) => (part.trim_end(), true),
            None => (line, false),
        };
        match lines.last_mut() {
            Some(last) if goes_on => {
                last.push(' ');
                last.push_str(part);
            }
            _ => lines.push(part.to_owned()),
        }
        goes_on = more;
    }
    lines
}

fn word(line: &str) -> (&str, &str) {
    line.split_once(' ')
        .map_or((line, ""), |(first, rest)| (first, rest.trim()))
}

/// The JSON form; the other one is for a shell, which the image does not have.
fn list(text: &str) -> Result<Vec<String>> {
    serde_json::from_str(text).with_context(|| format!("not a list in JSON: {text}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    const FILE: &str = r#"
FROM rust AS build
RUN true && \
    # in between
    false
FROM scratch
COPY --from=build /image/ /
ENV PATH=/usr/local/bin
LABEL org.opencontainers.image.title="aksnet"
USER 0:0
ENTRYPOINT ["/usr/local/bin/aksnet-agent"]
CMD ["run"]
"#;

    #[test]
    fn the_last_stage_says_how_it_is_run() {
        let run = last_stage(FILE).unwrap();
        assert_eq!(run.env, ["PATH=/usr/local/bin"]);
        assert_eq!(run.entrypoint, ["/usr/local/bin/aksnet-agent"]);
        assert_eq!(
            (run.cmd, run.user.as_str()),
            (vec!["run".to_owned()], "0:0")
        );
        assert_eq!(run.labels["org.opencontainers.image.title"], "aksnet");
    }

    #[test]
    fn what_the_archive_would_not_have_is_refused() {
        for (from, to, why) in [
            ("USER 0:0", "RUN true", "does not do `RUN true`"),
            ("FROM scratch", "FROM debian", "not FROM scratch"),
            (
                "COPY --from=build /image/ /",
                "COPY x /",
                "does not do `COPY x /`",
            ),
            ("COPY --from=build /image/ /", "", "copies other than"),
            ("CMD [\"run\"]", "CMD run", "not a list in JSON"),
        ] {
            let error = last_stage(&FILE.replace(from, to)).unwrap_err().to_string();
            assert!(error.contains(why), "{error}");
        }
    }

    #[test]
    fn the_projects_own_is_understood() {
        let run = last_stage(include_str!("../../../deploy/Dockerfile")).unwrap();
        assert_eq!(run.cmd, ["run"]);
    }
}
