//! Bad input: each kind has its exit code, one line that names the thing and what to do, and nothing stays
//! attached.

use std::{
    fs,
    process::{Command, Stdio},
    sync::atomic::{AtomicBool, Ordering::SeqCst},
    time::Duration,
};

use anyhow::{Context as _, Result, ensure};
use nix::sys::signal::Signal;
use xtask::testbed::Testbed;

use crate::life::{Agent, BINARY, Home, LISTEN, attached, turn, wait};

/// A refusal comes fast.
const SOON: Duration = Duration::from_secs(10);

/// What a refused start said last, and all of it.
struct Refusal {
    line: String,
    all: String,
}

/// Runs a command that must fail with this code, with one line that has all of these words, and leave nothing.
fn refused(
    bed: &Testbed,
    home: &Home,
    command: &mut Command,
    code: i32,
    words: &[&str],
) -> Result<Refusal> {
    let before = attached(bed)?;
    let (path, file) = home.log("refusal.log")?;
    command
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(file);
    let shown = format!("{command:?}");
    let mut child = bed.node().netns().spawn(command)?;
    let status = wait(&mut child, SOON).context(shown.clone())?;
    let all = fs::read_to_string(path)?;
    ensure!(
        status.code() == Some(code),
        "{shown}: {status}, not {code}:\n{all}"
    );
    let lines: Vec<&str> = all.lines().filter(|l| !l.contains(" INFO ")).collect();
    let [line] = lines.as_slice() else {
        anyhow::bail!("{shown}: more than one line:\n{all}")
    };
    ensure!(line.starts_with("aksnet-agent: "), "{shown}: {line}");
    for word in words {
        ensure!(line.contains(word), "{shown}: no {word:?} in: {line}");
    }
    ensure!(
        attached(bed)? == before,
        "{shown}: something stays attached"
    );
    Ok(Refusal {
        line: (*line).to_owned(),
        all,
    })
}

fn run(bed: &Testbed, home: &Home, args: &[&str]) -> Command {
    let mut command = home.command(bed, "run");
    command.args(["--listen", LISTEN]).args(args);
    command
}

#[test]
fn bad_flags_and_variables_are_named() -> Result<()> {
    let Some(_turn) = turn() else { return Ok(()) };
    let bed = Testbed::kind().pods(1).build()?;
    let home = Home::new()?;
    let flags: &[(&[&str], &[&str])] = &[
        (
            &["--pod-cidr", "10.244.0.0/99"],
            &["--pod-cidr", "'10.244.0.0/99' is not a CIDR"],
        ),
        (
            &["--service-cidr", "10.0.0.0"],
            &["--service-cidr", "'10.0.0.0'", "/32"],
        ),
        (
            &["--named-cidr", "10.0.0.0/8"],
            &["--named-cidr", "NAME=CIDR"],
        ),
        (&["--sample", "10"], &["--sample", "10", "power of two"]),
        (
            &["--flow-cells", "1000"],
            &["--flow-cells", "1000", "power of two"],
        ),
        (&["--flow-cells", "many"], &["--flow-cells", "many"]),
        (
            &["--attach", "xdp"],
            &["--attach", "xdp", "none of auto, tcx, clsact"],
        ),
        (&["--interval", "soon"], &["--interval", "soon", "1s"]),
        (&["--log", "loud"], &["--log", "loud"]),
        (&["--bpf-log", "loud"], &["--bpf-log", "loud", "debug"]),
        (&["--log-format", "xml"], &["--log-format", "xml", "json"]),
        (&["--socket", ""], &["--socket"]),
        (&["--upling", "eth0"], &["--upling", "--uplink", "--help"]),
    ];
    for (args, words) in flags {
        // A flag given twice is another mistake.
        let mut command = bed.node().netns().command_with_sysfs(BINARY);
        command.arg("run").args(*args);
        refused(&bed, &home, &mut command, 64, words)?;
    }
    let listen = ["run", "--listen", "localhost"];
    let mut command = bed.node().netns().command_with_sysfs(BINARY);
    refused(
        &bed,
        &home,
        command.args(listen),
        64,
        &["--listen", "localhost"],
    )?;

    let variables = [
        (
            "AKSNET_SAMPLE",
            "3",
            &["AKSNET_SAMPLE", "3", "power of two"][..],
        ),
        ("AKSNET_POD_CIDR", "pods", &["AKSNET_POD_CIDR", "'pods'"]),
        (
            "AKSNET_BPF_STATS",
            "perhaps",
            &["AKSNET_BPF_STATS", "perhaps"],
        ),
    ];
    for (name, value, words) in variables {
        refused(
            &bed,
            &home,
            run(&bed, &home, &[]).env(name, value),
            64,
            words,
        )?;
    }
    Ok(())
}

#[test]
fn bad_config_files_are_named_with_the_line() -> Result<()> {
    let Some(_turn) = turn() else { return Ok(()) };
    let bed = Testbed::kind().pods(1).build()?;
    let home = Home::new()?;
    let config = home.path().join("agent.toml");
    let path = config.to_str().context("text")?;
    let files: &[(&str, &[&str])] = &[
        (
            "# mine\nlog = \"info\"\nflow_cell = 4\n",
            &[":3: ", "'flow_cell'", "did you mean 'flow_cells'?"],
        ),
        (
            "sample = 64\n\npod_cidr = [\"10.0.0.0/8\", \"x\"]\n",
            &[":3: ", "pod_cidr", "'x'"],
        ),
        ("sample = 63\n", &[":1: ", "sample", "63", "power of two"]),
        ("\nsample = \"often\"\n", &[":2: ", "sample", "often"]),
        ("sample = 64\nsample = 32\n", &[":2: ", "sample"]),
        ("sample 64\n", &[":1:"]),
    ];
    for (text, words) in files {
        fs::write(&config, text)?;
        let command = &mut run(&bed, &home, &["--config", path]);
        let refusal =
            refused(&bed, &home, command, 78, words).with_context(|| (*text).to_owned())?;
        ensure!(refusal.line.contains(path), "{}", refusal.line);
        ensure!(
            refusal.all.lines().count() == 1,
            "nothing else: {}",
            refusal.all
        );
    }
    let missing = home.path().join("agnet.toml");
    let missing = missing.to_str().context("text")?;
    let command = &mut run(&bed, &home, &["--config", missing]);
    refused(&bed, &home, command, 66, &[missing, "No such file"])?;
    Ok(())
}

#[test]
fn interfaces_that_do_not_exist_are_refused_with_the_nearest_name() -> Result<()> {
    let Some(_turn) = turn() else { return Ok(()) };
    let bed = Testbed::kubenet().pods(1).build()?;
    let home = Home::new()?;
    let veth = bed.pod(0).veth().to_owned();
    let nearly = format!("{}x", &veth[..veth.len() - 1]);
    for (flag, name, suggestion) in [
        ("--uplink", "eht0", "eth0"),
        ("--uplink", "eth1", "eth0"),
        ("--pod-interface", &nearly, &veth),
    ] {
        let command = &mut run(&bed, &home, &[flag, name]);
        refused(&bed, &home, command, 66, &[flag, name, suggestion])?;
    }
    Ok(())
}

#[test]
fn missing_rights_and_types_are_named_with_how_to_get_them() -> Result<()> {
    let Some(_turn) = turn() else { return Ok(()) };
    let bed = Testbed::kind().pods(1).build()?;
    let home = Home::new()?;
    // Where nobody may read, too.
    let binary = home.path().join("aksnet-agent");
    fs::copy(BINARY, &binary)?;
    let open = std::os::unix::fs::PermissionsExt::from_mode(0o755);
    fs::set_permissions(home.path(), open)?;
    let binary = binary.to_str().context("text")?;
    let with = |program: &str, args: &[&str]| {
        let mut command = bed.node().netns().command_with_sysfs(program);
        command.args(args);
        command
    };
    let nobody = [
        "--reuid=65534",
        "--regid=65534",
        "--clear-groups",
        binary,
        "run",
    ];
    let all = ["CAP_NET_ADMIN", "CAP_BPF", "CAP_PERFMON", "root", "setcap"];
    refused(&bed, &home, &mut with("setpriv", &nobody), 77, &all)?;
    for (bounding, missing, present) in [
        (
            "--bounding-set=-bpf,-sys_admin",
            "CAP_BPF missing: ",
            "CAP_NET_ADMIN",
        ),
        (
            "--bounding-set=-perfmon,-sys_admin",
            "CAP_PERFMON missing: ",
            "CAP_BPF",
        ),
        (
            "--bounding-set=-net_admin",
            "CAP_NET_ADMIN missing: ",
            "CAP_BPF",
        ),
    ] {
        let command = &mut with("setpriv", &[bounding, binary, "run"]);
        let refusal = refused(&bed, &home, command, 77, &[missing, "securityContext"])?;
        ensure!(!refusal.line.contains(present), "{}", refusal.line);
    }
    let hidden = "mount -t tmpfs none /sys/kernel/btf && exec \"$0\" \"$@\"";
    for name in ["run", "top"] {
        // A namespace of mounts of its own comes with the command.
        let command = &mut with("sh", &["-c", hidden, binary, name]);
        command.arg("--socket").arg(home.socket());
        if name == "top" {
            command.arg("--raw");
        }
        refused(
            &bed,
            &home,
            command,
            72,
            &["BTF", "/sys/kernel/btf/vmlinux", "CONFIG_DEBUG_INFO_BTF=y"],
        )?;
    }
    Ok(())
}

#[test]
fn a_second_agent_is_refused_and_the_first_goes_on() -> Result<()> {
    let Some(_turn) = turn() else { return Ok(()) };
    let bed = Testbed::kind().pods(1).build()?;
    let (home, other) = (Home::new()?, Home::new()?);
    let mut agent = Agent::start(&bed, &home, [""; 0])?;
    let before = attached(&bed)?;
    // The port, first of all; then the socket.
    let command = &mut run(&bed, &other, &[]);
    refused(&bed, &other, command, 73, &[LISTEN, "in use", "--listen"])?;
    assert!(!other.socket().exists());
    let socket = home.socket();
    let socket = socket.to_str().context("text")?;
    let mut command = home.command(&bed, "run");
    command.args(["--listen", "127.0.0.1:9446"]);
    refused(
        &bed,
        &home,
        &mut command,
        73,
        &[socket, "another agent", "--socket"],
    )?;
    let command = &mut run(&bed, &other, &[]);
    let command = command
        .args(["--interval", "1s"])
        .env("AKSNET_LISTEN", "127.0.0.1:9446");
    refused(&bed, &other, command, 73, &[LISTEN])?;
    let mut elsewhere = other.command(&bed, "run");
    elsewhere.args(["--listen", "192.0.2.7:9435"]);
    refused(
        &bed,
        &other,
        &mut elsewhere,
        73,
        &["192.0.2.7:9435", "no such address"],
    )?;
    assert!(agent.is_alive()?);
    assert_eq!(attached(&bed)?, before);
    assert_eq!(agent.get("/ready", "")?.status, 200);

    // What is there and is no socket is not touched.
    fs::write(other.socket(), "mine")?;
    let mut command = other.command(&bed, "run");
    command.args(["--listen", "127.0.0.1:9446"]);
    refused(&bed, &other, &mut command, 73, &["is no socket"])?;
    assert_eq!(fs::read_to_string(other.socket())?, "mine");
    agent.stop(Signal::SIGTERM)?;
    Ok(())
}

#[test]
fn a_dead_agents_socket_is_replaced() -> Result<()> {
    let Some(_turn) = turn() else { return Ok(()) };
    let bed = Testbed::kind().pods(1).build()?;
    let home = Home::new()?;
    Agent::start(&bed, &home, [""; 0])?.kill()?;
    assert!(home.socket().exists());
    let agent = Agent::start(&bed, &home, [""; 0])?;
    let looks = ["--raw", "--count", "1", "--interval", "0.1"];
    assert!(
        home.command(&bed, "top")
            .args(looks)
            .output()?
            .status
            .success()
    );
    agent.stop(Signal::SIGINT)?;
    Ok(())
}

/// Makes and deletes an interface again and again, as fast as goes, while `work` is done.
fn flickering(bed: &Testbed, work: impl FnOnce() -> Result<()>) -> Result<()> {
    let done = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let flicker = scope.spawn(|| {
            let mut rounds = 0;
            while !done.load(SeqCst) {
                let made = "link add flicker type veth peer name flicked";
                bed.node()
                    .netns()
                    .ip([made, "link set flicker up", "link set flicked up"])?;
                std::thread::sleep(Duration::from_millis(rounds % 7));
                bed.node().netns().ip(["link del flicker"])?;
                rounds += 1;
            }
            anyhow::Ok(rounds)
        });
        let worked = work();
        done.store(true, SeqCst);
        let rounds = flicker.join().expect("the flicker does not panic")?;
        ensure!(rounds > 10, "it flickered {rounds} times");
        worked
    })
}

#[test]
fn an_interface_that_disappears_while_attaching_is_no_error() -> Result<()> {
    let Some(_turn) = turn() else { return Ok(()) };
    let bed = Testbed::kind().build()?;
    flickering(&bed, || {
        for attach in ["auto", "clsact"] {
            let home = Home::new()?;
            let pattern = ["--pod-interface", "veth*,flick*", "--attach", attach];
            let agent = Agent::start(&bed, &home, pattern)?;
            std::thread::sleep(Duration::from_secs(2));
            let pods = bed.node().pods();
            let attached = agent.attached()?;
            ensure!(
                pods.iter().all(|p| attached.iter().any(|a| a == p.veth())),
                "{attached:?}"
            );
            let complaints = agent.complaints();
            ensure!(complaints.is_empty(), "{complaints:?}");
            agent.stop(Signal::SIGTERM)?;
        }
        Ok(())
    })
}

#[test]
fn a_named_interface_that_comes_and_goes_either_is_there_or_is_refused() -> Result<()> {
    let Some(_turn) = turn() else { return Ok(()) };
    let bed = Testbed::kind().pods(1).build()?;
    let (mut lived, mut refusals) = (0, 0);
    flickering(&bed, || {
        for _ in 0..8 {
            let home = Home::new()?;
            let mut command = run(&bed, &home, &["--uplink", "flicker"]);
            let mut agent = Agent::spawn(&bed, &home, &mut command)?;
            if agent.await_ready().is_ok() {
                lived += 1;
                agent.stop(Signal::SIGTERM)?;
            } else {
                refusals += 1;
                let said = agent.said();
                let last = said.lines().last().unwrap_or_default();
                ensure!(
                    last.starts_with("aksnet-agent: ") && last.contains("flicker"),
                    "{said}"
                );
                ensure!(agent.code()? == Some(66), "{said}");
            }
            let left = attached(&bed)?;
            ensure!(left.is_empty(), "{left:?}");
        }
        Ok(())
    })?;
    println!("{lived} lived, {refusals} were refused");
    Ok(())
}
