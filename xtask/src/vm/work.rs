//! The *work* of a guest: programs of tests, built here, and which of their tests it runs. Translated instructions are
//! ten to thirty times slower, so that these are the tests whose result can differ from kernel to kernel.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::process::Stdio;

use anyhow::{Context as _, Result, ensure};
use serde_json::Value;

use crate::cargo::{self, PACKAGES};
use crate::say;

/// How many times longer a test waits for what must come in the end: `aksnet-agent/tests/agent/life.rs` reads it.
const PATIENCE: (&str, &str) = ("AKSNET_TEST_PATIENCE", "10");

/// Tests of one program.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Choice {
    /// Its name in a verdict.
    pub name: &'static str,
    /// The target of aksnet-agent.
    pub target: &'static str,
    /// What the names of tests have in them, or all.
    pub tests: &'static [&'static str],
    /// What the names of tests have in them that are left out.
    pub but: &'static [&'static str],
}

/// What a guest runs where nothing is asked for, as the suite does: a few minutes.
pub const USUAL: [&str; 2] = ["kernels", "packets"];

/// All that a guest can run, the most important first.
pub const ALL: [Choice; 4] = [
    Choice {
        name: "kernels",
        target: "agent",
        tests: &[
            "kernels::types::conntracks_types_are_known_where_it_is_a_module",
            "kernels::types::programs_are_attached_by_tcx_where_it_is_and_else_by_clsact",
            "kernels::delay::handshakes_take_what_the_other_end_adds",
            "kernels::delay::the_nat_path_takes_what_the_node_adds",
            "kernels::ipvs::a_service_by_ipvs_is_one_by_its_class_and_nat_and_the_node_says_its_mode",
            "kernels::drops::drops_have_their_causes_with_rules_in_legacy_iptables",
            "kernels::drops::drops_have_their_causes_with_rules_in_nftables",
        ],
        but: &[],
    },
    Choice {
        name: "packets",
        target: "programs",
        tests: &[
            "cost::no_program_is_much_larger_than_it_was",
            "counters::a_super_packet_counts_as_the_packets_and_bytes_it_stands_for",
            "headers::every_kind_of_header_is_one_flow_with_its_key_and_bytes",
            "passages::each_nat_is_seen_with_its_exact_translation",
        ],
        but: &[],
    },
    Choice {
        name: "programs",
        target: "programs",
        tests: &[],
        // Two processors race there for long: more than two minutes for one test where instructions are translated.
        but: &["concurrent::"],
    },
    Choice {
        name: "agent",
        target: "agent",
        tests: &[
            "counts::kubenet_counts_are_the_kernels",
            "counts::azure_node_subnet_counts_are_the_kernels_by_clsact_too",
            "mishaps::each_has_its_cause_with_rules_in_legacy_iptables_and_services_in_nftables",
            "denied::azure_npms_denials_are_counted_by_policy_as_its_own_rules_count_them",
            "denied::calicos_denials_are_counted_by_policy_as_its_own_rules_count_them",
        ],
        but: &[],
    },
];

/// A program as the guest runs it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Program {
    /// Its name in a verdict.
    pub name: String,
    /// Where it is.
    pub path: PathBuf,
    /// What it is told.
    pub arguments: Vec<String>,
    /// What is set for it.
    pub environment: Vec<(&'static str, String)>,
}

/// Builds the programs of these choices.
///
/// # Errors
/// When they do not build.
pub fn build(choices: &[Choice]) -> Result<Vec<Program>> {
    // Of all packages together, as the suite builds them: what it built is not built again.
    let mut command = cargo::command();
    command
        .args(["test", "--no-run"])
        .args(PACKAGES)
        .args(["--bin", "aksnet-agent"]);
    for target in choices.iter().map(|c| c.target).collect::<BTreeSet<_>>() {
        command.args(["--test", target]);
    }
    command
        .arg("--message-format=json-render-diagnostics")
        .stderr(Stdio::inherit());
    println!("{}", say::dim(&format!("$ {}", say::line(&command))));
    let output = command.output().context("cargo")?;
    ensure!(output.status.success(), "the tests do not build");
    let messages = String::from_utf8(output.stdout)?;
    choices
        .iter()
        .map(|choice| {
            let path = executable(&messages, choice.target)
                .with_context(|| format!("cargo names no program of {}", choice.target))?;
            Ok(choice.program(&path))
        })
        .collect()
}

impl Choice {
    fn program(self, path: &Path) -> Program {
        // One test at a time: they share two slow processors. What is printed by those that pass is shown, too, as
        // what is skipped is said there.
        let flags = [
            "--test-threads=1",
            "--show-output",
            // The serial line looks like a terminal.
            "--color=never",
            "--exact",
        ];
        let exact = if self.tests.is_empty() { 3 } else { 4 };
        Program {
            name: self.name.to_owned(),
            path: path.to_owned(),
            arguments: flags[..exact]
                .iter()
                .chain(self.tests)
                .copied()
                .chain(self.but.iter().flat_map(|&but| ["--skip", but]))
                .map(str::to_owned)
                .collect(),
            environment: vec![
                (PATIENCE.0, PATIENCE.1.to_owned()),
                ("PATH", "/usr/sbin:/usr/bin:/sbin:/bin".to_owned()),
                ("HOME", "/root".to_owned()),
            ],
        }
    }
}

/// The program of a target of tests, by cargo's messages.
fn executable(messages: &str, target: &str) -> Option<PathBuf> {
    messages.lines().find_map(|line| {
        let message: Value = serde_json::from_str(line).ok()?;
        let kinds = message["target"]["kind"].as_array()?;
        let is_it = message["target"]["name"] == target && kinds.iter().any(|k| k == "test");
        is_it
            .then(|| message["executable"].as_str().map(PathBuf::from))
            .flatten()
    })
}

/// Where compiled programs look for what they run and read: the repository and the target directory, which the guest
/// sees at the same places.
///
/// # Errors
/// When cargo does not say.
pub fn shares() -> Result<Vec<PathBuf>> {
    let workspace = cargo::workspace().to_owned();
    let target = cargo::target_directory()?;
    if target.starts_with(&workspace) {
        return Ok(vec![workspace]);
    }
    Ok(vec![workspace, target])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_targets_program_is_found_among_cargos_messages() {
        let messages = r#"{"reason":"compiler-artifact","target":{"kind":["lib"],"name":"agent"},"executable":null}
not json
{"reason":"compiler-artifact","target":{"kind":["bin"],"name":"agent"},"executable":"/t/agent"}
{"reason":"compiler-artifact","target":{"kind":["test"],"name":"agent"},"executable":"/t/deps/agent-1"}"#;
        assert_eq!(
            executable(messages, "agent"),
            Some(PathBuf::from("/t/deps/agent-1"))
        );
        assert_eq!(executable(messages, "programs"), None);
    }

    #[test]
    fn chosen_tests_are_run_by_their_exact_names() {
        let program = ALL[1].program(Path::new("/t"));
        assert!(program.arguments.contains(&"--exact".to_owned()));
        let whole = ALL[2].program(Path::new("/t"));
        assert!(!whole.arguments.contains(&"--exact".to_owned()));
        assert!(whole.arguments.contains(&"--color=never".to_owned()));
    }

    #[test]
    fn what_is_usual_is_among_all() {
        assert!(
            USUAL
                .iter()
                .all(|name| ALL.iter().any(|choice| choice.name == *name))
        );
    }

    #[test]
    fn every_chosen_test_is_there() {
        let tests = cargo::workspace().join("aksnet-agent/tests");
        for choice in ALL {
            for test in choice.tests {
                let (module, name) = test.rsplit_once("::").unwrap();
                let file = format!("{}.rs", module.replace("::", "/"));
                let path = tests.join(choice.target).join(file);
                let text = std::fs::read_to_string(&path).unwrap();
                assert!(text.contains(&format!("fn {name}()")), "{test}");
            }
        }
    }
}
