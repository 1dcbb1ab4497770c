//! The binary: what it prints and how it ends. Nothing here needs root.

use std::{
    os::unix::process::CommandExt,
    process::{Command, Output},
};

/// Arguments, environment, exit code, what the message says.
type Case<'a> = (&'a [&'a str], &'a [(&'a str, &'a str)], i32, &'a str);

fn agent(args: &[&str], env: &[(&str, &str)]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_aksnet-agent"))
        .args(args)
        .env_clear()
        .envs(env.iter().copied())
        .output()
        .unwrap()
}

fn fails(args: &[&str], env: &[(&str, &str)]) -> (i32, String) {
    let output = agent(args, env);
    assert!(output.stdout.is_empty(), "{output:?}");
    let error = String::from_utf8(output.stderr).unwrap();
    (output.status.code().unwrap(), error)
}

#[test]
fn version_has_a_revision() {
    let output = agent(&["--version"], &[]);
    let text = String::from_utf8(output.stdout).unwrap();
    assert!(output.status.success());
    assert!(
        text.starts_with(concat!("aksnet-agent ", env!("CARGO_PKG_VERSION"), " (")),
        "{text}"
    );
}

#[test]
fn help_is_no_failure() {
    assert!(agent(&["run", "--help"], &[]).status.success());
    assert_eq!(agent(&[], &[]).status.code(), Some(64));
}

#[test]
fn config_prints_each_value_with_its_origin() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("agent.toml");
    std::fs::write(&file, "sample = 16\nfirst_packets = 2\n").unwrap();
    let file = file.to_str().unwrap();
    let output = agent(
        &["config", "--sample", "8"],
        &[
            ("AKSNET_CONFIG", file),
            ("AKSNET_POD_CIDR", "10.244.0.0/16,fd00::/56"),
        ],
    );
    assert!(output.status.success(), "{output:?}");
    let text = String::from_utf8(output.stdout).unwrap();
    for line in [
        "sample = 8  # flag".to_owned(),
        format!("first_packets = 2  # {file}:2"),
        "pod_cidr = [\"10.244.0.0/16\", \"fd00::/56\"]  # environment".to_owned(),
        "interval = \"1s\"  # default".to_owned(),
    ] {
        assert!(text.lines().any(|l| l == line), "{line}\n{text}");
    }
}

#[test]
fn bad_input_is_one_line_and_a_code_by_kind() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("agent.toml");
    std::fs::write(&file, "# mine\nlog = \"info\"\nflow_cell = 4\n").unwrap();
    let file = file.to_str().unwrap();
    let twice = dir.path().join("twice.toml");
    let text = "vnet_cidr = ['10.9.0.0/16']\nnamed_cidr = ['lab=10.9.0.0/16']\n";
    std::fs::write(&twice, text).unwrap();
    let twice = twice.to_str().unwrap();
    let cases: &[Case<'_>] = &[
        (
            &["run", "--pod-cidr", "10.244.0.0/99"],
            &[],
            64,
            "--pod-cidr: '10.244.0.0/99' is not a CIDR",
        ),
        (
            &[
                "config",
                "--pod-cidr",
                "10.0.0.0/16",
                "--service-cidr",
                "10.0.0.0/16",
            ],
            &[],
            64,
            "--service-cidr: 10.0.0.0/16 is service_cidr here and pod_cidr at flag",
        ),
        (
            &["config", "--config", twice],
            &[],
            78,
            "twice.toml:2: named_cidr: 10.9.0.0/16 is 'lab' of named_cidr here and vnet_cidr at",
        ),
        (
            &["run", "--no-such-flag"],
            &[],
            64,
            "unexpected argument '--no-such-flag' found",
        ),
        (
            &["config"],
            &[("AKSNET_SAMPLE", "3")],
            64,
            "AKSNET_SAMPLE: 3 is not a power of two",
        ),
        (
            &["config", "--config", file],
            &[],
            78,
            "agent.toml:3: unknown key 'flow_cell'; did you mean 'flow_cells'?",
        ),
        (
            &["config", "--config", "/nonexistent.toml"],
            &[],
            66,
            "/nonexistent.toml",
        ),
    ];
    for (args, env, code, text) in cases {
        let (status, error) = fails(args, env);
        assert_eq!(status, *code, "{error}");
        assert!(
            error.starts_with("aksnet-agent: ") && error.contains(text),
            "{error}"
        );
        assert_eq!(error.lines().count(), 1, "{error}");
    }
}

#[test]
fn without_capabilities_it_says_which_and_how_to_get_them() {
    let mut command = Command::new(env!("CARGO_BIN_EXE_aksnet-agent"));
    command.arg("run").env("AKSNET_LOG", "error");
    if nix::unistd::geteuid().is_root() {
        // nobody
        command.uid(65_534).gid(65_534);
    }
    let output = match command.output() {
        Ok(output) => output,
        Err(error) => {
            eprintln!("skipped: the binary lies where nobody else may run it: {error}");
            return;
        }
    };
    let error = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(77), "{error}");
    assert!(error.contains("CAP_NET_ADMIN"), "{error}");
    assert_eq!(error.lines().count(), 1, "{error}");
}

#[test]
fn the_doctor_lists_its_checks_and_suggests_the_one_that_was_meant() {
    let output = agent(&["doctor", "--list"], &[]);
    assert!(output.status.success(), "{output:?}");
    let text = String::from_utf8(output.stdout).unwrap();
    assert!(text.contains("\nsnat-clash "), "{text}");
    assert!(text.lines().count() > 12, "{text}");
    let (code, error) = fails(&["doctor", "--check", "contrack"], &[]);
    assert_eq!(code, 64);
    assert!(error.contains("did you mean 'conntrack'?"), "{error}");
}

#[test]
fn evidence_is_judged_by_whoever_has_it_and_anything_else_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("evidence.json");
    let path = file.to_str().unwrap();
    let judge = ["doctor", "--evidence", path];
    let (code, error) = fails(&judge, &[]);
    assert_eq!(code, 66);
    assert!(error.contains("cannot read the evidence file"), "{error}");
    for (text, says) in [
        ("", "no evidence as `doctor --record` writes it"),
        ("[]", "no evidence as `doctor --record` writes it"),
        (r#"{"findings": []}"#, "it has no schema"),
        (r#"{"schema": 99}"#, "schema 99 is of a newer agent"),
        (r#"{"schema": 1, "drops": 3}"#, "no evidence as"),
    ] {
        std::fs::write(&file, text).unwrap();
        let (code, error) = fails(&judge, &[]);
        assert_eq!(code, 65, "{text}");
        assert!(error.contains(says) && error.contains(path), "{error}");
        assert_eq!(error.lines().count(), 1, "{error}");
    }
    // Full: two of every hundred entries are left.
    let conntrack = r#"{"entries": 98, "limit": 100, "statistics_known": true}"#;
    let evidence =
        format!(r#"{{"schema": 1, "node": {{"name": "aks-1"}}, "conntrack": {conntrack}}}"#);
    std::fs::write(&file, evidence).unwrap();
    let output = agent(&[&judge[..], &["--check", "conntrack"]].concat(), &[]);
    assert_eq!(output.status.code(), Some(2));
    let text = String::from_utf8(output.stdout).unwrap();
    for part in [
        "Node aks-1: ",
        "CRITICAL  the conntrack table",
        "98 of 100 entries in use (98 %)",
    ] {
        assert!(text.contains(part), "{part} in\n{text}");
    }
    assert!(!text.contains('\x1b'), "{text:?}");
}

#[test]
fn a_reader_who_went_away_is_no_failure() {
    for args in [
        &["--version"][..],
        &["config"],
        &["man"],
        &["completions", "bash"],
        &["doctor", "--list"],
    ] {
        let (reader, writer) = std::io::pipe().unwrap();
        drop(reader);
        let mut command = Command::new(env!("CARGO_BIN_EXE_aksnet-agent"));
        let output = command.args(args).stdout(writer).output().unwrap();
        let error = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(0), "{args:?}: {error}");
    }
}

#[test]
fn evidence_without_an_end_is_refused() {
    let (code, error) = fails(&["doctor", "--evidence", "/dev/zero"], &[]);
    assert_eq!(code, 65);
    assert!(error.contains("longer than"), "{error}");
}
