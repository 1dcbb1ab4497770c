//! Commands of the agent's that need no privilege run without any, whoever runs the tests.

use std::process::Command;

/// The agent, to be run with no capability at all: as root it would have all of them, so `setpriv` takes them away
/// (`bounding & file`: capabilities(7), "Transformation of capabilities during execve").
pub(crate) fn unprivileged() -> Command {
    let agent = env!("CARGO_BIN_EXE_aksnet-agent");
    if !nix::unistd::geteuid().is_root() {
        return Command::new(agent);
    }
    let mut command = Command::new("setpriv");
    command
        .args(["--bounding-set=-all", "--inh-caps=-all", "--no-new-privs"])
        .arg(agent);
    command
}

#[test]
fn it_has_no_capability() {
    // What loads programs says so by the first that it lacks.
    let output = unprivileged()
        .arg("run")
        .env("AKSNET_LOG", "error")
        .output()
        .unwrap();
    let error = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(77), "{error}");
    assert!(error.contains("CAP_"), "{error}");
}
