//! `aksnet-agent top` on a real terminal (tmux's), on a node with traffic and a policy that drops.

use std::{
    path::{Path, PathBuf},
    time::Duration,
};

use anyhow::{Context as _, Result, ensure};
use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use xtask::testbed::{
    Engine, Service, Testbed,
    enforce::{Allow, Isolation, Side},
    traffic::{Connect, TcpServer, connect},
};

use crate::{
    cluster,
    denied::web_policy,
    life::{Agent, BINARY, Home, attached, eventually, plan_flags, turn},
    line::Line,
};

/// A terminal of its own: a tmux server that nobody else has, with a shell in it. Dropping it ends all that.
struct Tmux<'a> {
    bed: &'a Testbed,
    socket: PathBuf,
}

impl<'a> Tmux<'a> {
    fn start(bed: &'a Testbed, home: &Home, size: (u16, u16)) -> Result<Self> {
        let tmux = Self {
            bed,
            socket: home.path().join("tmux.sock"),
        };
        let (width, height) = (size.0.to_string(), size.1.to_string());
        let size = ["-x", &width, "-y", &height];
        let mut args = vec!["-f", "/dev/null", "new-session", "-d", "-s", "top"];
        args.extend(size);
        args.push("env -u NO_COLOR TERM=screen-256color PS1='sh$ ' sh");
        tmux.ask(&args)?;
        tmux.ask(&["set-option", "-g", "status", "off"])?;
        Ok(tmux)
    }

    fn ask(&self, args: &[&str]) -> Result<String> {
        let mut command = self.bed.node().netns().command_with_sysfs("tmux");
        // UTF-8 whatever the locale of whoever runs the tests.
        command.arg("-u").arg("-S").arg(&self.socket).args(args);
        let output = command.output().context("tmux (cargo xtask setup)")?;
        let said = String::from_utf8_lossy(&output.stderr);
        ensure!(output.status.success(), "tmux {args:?}: {said}");
        Ok(String::from_utf8(output.stdout)?)
    }

    /// Presses keys, by tmux's names of them.
    fn press(&self, keys: &[&str]) -> Result<()> {
        self.ask(&[&["send-keys", "-t", "top"], keys].concat())?;
        Ok(())
    }

    /// Types a line.
    fn type_in(&self, line: &str) -> Result<()> {
        self.ask(&["send-keys", "-t", "top", "-l", line])?;
        self.press(&["Enter"])
    }

    fn resize(&self, width: u16, height: u16) -> Result<()> {
        let (width, height) = (width.to_string(), height.to_string());
        self.ask(&["resize-window", "-t", "top", "-x", &width, "-y", &height])?;
        Ok(())
    }

    /// What is on the screen.
    fn screen(&self) -> Result<String> {
        self.ask(&["capture-pane", "-p", "-t", "top"])
    }

    /// Waits until all of these words are on the screen, and none of those.
    fn shows(&self, words: &[&str], gone: &[&str]) -> Result<String> {
        let mut screen = String::new();
        eventually("the screen shows it", || {
            screen = self.screen()?;
            Ok(words.iter().all(|word| screen.contains(word))
                && !gone.iter().any(|word| screen.contains(word)))
        })
        .with_context(|| format!("{words:?}, not {gone:?}:\n{screen}"))?;
        Ok(screen)
    }

    /// The terminal's settings, by `stty -a` in the shell.
    fn settings(&self) -> Result<String> {
        let file = self.socket.with_extension("stty");
        let _old = std::fs::remove_file(&file);
        let (shown, whole) = (file.display(), file.with_extension("whole"));
        let _old = std::fs::remove_file(&whole);
        let done = whole.display();
        self.type_in(&format!("stty -a >{shown}; : >{done}"))?;
        eventually("stty has told", || Ok(whole.exists()))?;
        Ok(std::fs::read_to_string(file)?)
    }
}

impl Drop for Tmux<'_> {
    fn drop(&mut self) {
        if std::thread::panicking() {
            println!("{}", self.screen().unwrap_or_default());
        }
        let _gone = self.ask(&["kill-server"]);
    }
}

/// A node with pods, a service, an egress, and a policy that denies `batch` what it dials.
struct Stage {
    home: Home,
    flags: Vec<String>,
    _api: xtask::testbed::api::ApiServer,
    _servers: Vec<TcpServer>,
    _lines: Vec<Line>,
}

impl Stage {
    fn set(bed: &Testbed) -> Result<Self> {
        let [frontend, web, db, batch] = [0, 1, 2, 3].map(|n| bed.pod(n));
        let home = Home::new()?;
        let api = cluster::start(bed)?;
        api.apply(web_policy());
        bed.enforce(&[Isolation::new("shop", "web-policy", Side::Ingress)
            .select(&web)
            .allow(Allow::all().pod(&frontend))])?;
        let near = TcpServer::echo(web.netns(), (web.ip(), 8080))?;
        let data = TcpServer::echo(db.netns(), (db.ip(), 5432))?;
        let far = TcpServer::echo(bed.outside(), (bed.outside_ip(), 443))?;
        let service = Service::cluster_ip("shop", "web", 80).endpoints([near.address()]);
        let service = bed.add_service(service)?;
        cluster::tell_service(&api, bed, "web", &service, &[&web]);
        let gap = Duration::from_millis(5);
        let lines = vec![
            Line::open(frontend.netns(), service.address(), gap)?,
            Line::open(frontend.netns(), data.address(), gap * 4)?,
            Line::open(batch.netns(), far.address(), gap * 2)?,
            Line::open(db.netns(), far.address(), gap * 10)?,
        ];
        let mut flags = cluster::flags(bed, &home)?;
        flags.extend(plan_flags(bed));
        Ok(Self {
            home,
            flags,
            _api: api,
            _servers: vec![near, data, far],
            _lines: lines,
        })
    }

    /// The command line of `top` on this node.
    fn top(&self, args: &str) -> String {
        format!(
            "{BINARY} top --socket {} {args}",
            self.home.socket().display()
        )
    }
}

/// What `batch` dials and the policy denies.
fn denied(bed: &Testbed) -> Result<()> {
    let to = (bed.pod(1).ip(), 8080).into();
    let ended = connect(bed.pod(3).netns(), to, Duration::from_millis(300))?;
    ensure!(ended == Connect::TimedOut, "{ended:?}");
    Ok(())
}

fn bed() -> Result<Testbed> {
    Testbed::azure_overlay()
        .engine(Engine::AzureNpm)
        .pods(4)
        .build()
}

/// Keeps a screen where `AKSNET_SCREENS` says, for whoever wants to look at it, or put it into docs/top.md.
fn keep(tmux: &Tmux, name: &str) -> Result<()> {
    if let Some(directory) = std::env::var_os("AKSNET_SCREENS") {
        std::fs::create_dir_all(&directory)?;
        std::fs::write(Path::new(&directory).join(name), tmux.screen()?)?;
    }
    Ok(())
}

/// The one `top` that runs in the terminal: the process whose command line it is.
fn pid_of_top(socket: &Path) -> Result<Pid> {
    let shown = socket.display().to_string();
    for entry in std::fs::read_dir("/proc")? {
        let path = entry?.path();
        let Some(pid) = path.file_name().and_then(|n| n.to_str()?.parse().ok()) else {
            continue;
        };
        let line = std::fs::read(path.join("cmdline")).unwrap_or_default();
        let line = String::from_utf8_lossy(&line).replace('\0', " ");
        if line.starts_with(&format!("{BINARY} top")) && line.contains(&shown) {
            return Ok(Pid::from_raw(pid));
        }
    }
    anyhow::bail!("no top runs")
}

#[test]
fn every_view_shows_what_happens_on_the_node() -> Result<()> {
    let Some(_turn) = turn() else { return Ok(()) };
    let bed = bed()?;
    let stage = Stage::set(&bed)?;
    let agent = Agent::start(&bed, &stage.home, &stage.flags)?;
    denied(&bed)?;
    let tmux = Tmux::start(&bed, &stage.home, (120, 36))?;
    let before = tmux.settings()?;
    tmux.type_in(&stage.top("--interval 0.5"))?;
    let node = bed.node().name();

    tmux.shows(
        &[
            node,
            "agent live",
            "[1 Flows]",
            "shop/frontend",
            "shop/web",
            "dnat",
            "LATER50/99",
        ],
        &[],
    )?;
    flows_are_sorted_chosen_and_opened(&tmux)?;
    other_views(&bed, &tmux)?;
    other_sizes(&tmux)?;

    // Quit by key: the terminal is as it was.
    tmux.press(&["q"])?;
    tmux.shows(&["sh$"], &["[1 Flows]"])?;
    assert_eq!(tmux.settings()?, resized(&before, 80, 24));
    agent.stop(Signal::SIGTERM)?;
    Ok(())
}

/// The view of flows: order, filter, details.
fn flows_are_sorted_chosen_and_opened(tmux: &Tmux) -> Result<()> {
    // The denied connection has no flow; by drops it comes first.
    tmux.press(&["s", "s", "s", "s", "s", "s"])?;
    tmux.shows(&["by drops▼", "✗", "policy"], &[])?;
    tmux.press(&["r"])?;
    tmux.shows(&["by drops▲"], &[])?;
    tmux.press(&["r", "S", "S", "S", "S", "S", "S"])?;
    tmux.shows(&["by rate▼"], &[])?;
    keep(tmux, "flows-120x36")?;

    // A filter by words, then the details of what it leaves.
    tmux.press(&["/"])?;
    tmux.shows(&["filter: _"], &[])?;
    tmux.type_in("dnat frontend")?;
    tmux.shows(&["/dnat frontend", "shop/frontend"], &["shop/db:", "snat"])?;
    tmux.press(&["Enter"])?;
    let service = "10.0.";
    tmux.shows(
        &[
            "flow (Enter or Esc closes)",
            "from",
            "half took at most",
            service,
            "looks; top",
        ],
        &[],
    )?;
    keep(tmux, "detail-120x36")?;
    tmux.press(&["Escape"])?;
    // Two at once would be one key to a terminal.
    tmux.shows(&["/dnat frontend"], &["flow (Enter"])?;
    tmux.press(&["Escape"])?;
    tmux.shows(&["snat"], &["/dnat frontend"])?;
    tmux.press(&["x"])?;
    tmux.shows(&["nat=translated", "snat", "dnat"], &["shop/db:5432"])?;
    tmux.press(&["Escape"])?;
    Ok(())
}

/// Each other view's content, and the help.
fn other_views(bed: &Testbed, tmux: &Tmux) -> Result<()> {
    tmux.press(&["2"])?;
    tmux.shows(
        &[
            "[2 Workloads]",
            "shop/frontend",
            "shop/db",
            "shop/batch",
            "internet",
            "100%",
        ],
        &[],
    )?;
    keep(tmux, "workloads-120x36")?;

    tmux.press(&["3"])?;
    let outside = bed.outside_ip().to_string();
    tmux.shows(
        &[
            "[3 NAT]",
            "+NONE",
            "SNAT PORTS TOWARDS",
            &outside,
            "64,512",
            "BEFORE → AFTER",
            "dst 10.0.",
        ],
        &[],
    )?;
    keep(tmux, "nat-120x36")?;

    tmux.press(&["4"])?;
    denied(bed)?;
    tmux.shows(
        &[
            "[4 Drops]",
            "last minute: policy shop/web-policy",
            "shop/batch",
            "app=frontend did not match app=batch",
        ],
        &[],
    )?;
    keep(tmux, "drops-120x36")?;
    tmux.press(&["Enter"])?;
    tmux.shows(&["drop (Enter or Esc closes)", "azure_npm", "exact"], &[])?;
    tmux.press(&["Escape"])?;

    tmux.press(&["Tab"])?;
    tmux.shows(
        &[
            "[5 Node]",
            "conntrack entries",
            "SNAT ports tcp/ipv4",
            "azure_npm",
            "enter",
            "up (tc",
            "ready",
        ],
        &["DOWN"],
    )?;
    keep(tmux, "node-120x36")?;

    tmux.press(&["?"])?;
    tmux.shows(&["q Ctrl-C", "show or hide this help"], &[])?;
    keep(tmux, "help-120x36")?;
    tmux.press(&["?", "1"])?;
    Ok(())
}

/// Other sizes, while it runs.
fn other_sizes(tmux: &Tmux) -> Result<()> {
    for (width, height) in [(200, 60), (80, 24), (30, 8), (10, 3), (80, 24)] {
        tmux.resize(width, height)?;
        let words: &[&str] = match width {
            10 => &["aksnet"],
            30 => &["Flows"],
            80 => &["[1 Flows]", "q quit", "FROM", "RATE", "LATER50/99"],
            _ => &["[1 Flows]", "REWRITTEN", "q quit", "SEEN"],
        };
        tmux.shows(words, &[])?;
        if width >= 80 {
            for key in ["1", "2", "3", "4", "5"] {
                tmux.press(&[key])?;
                tmux.shows(&[&format!("[{key} ")], &[])?;
                keep(tmux, &format!("view{key}-{width}x{height}"))?;
            }
            tmux.press(&["1"])?;
        }
    }
    Ok(())
}

/// The settings with another size.
fn resized(settings: &str, columns: u16, rows: u16) -> String {
    let (_, rest) = settings.split_once(" columns ").unwrap_or(("", settings));
    let (_, rest) = rest.split_once(';').unwrap_or(("", rest));
    format!("speed 38400 baud; rows {rows}; columns {columns};{rest}")
}

#[test]
fn an_agent_that_is_killed_is_missed_and_found_again_and_signals_leave_the_terminal_as_it_was()
-> Result<()> {
    let Some(_turn) = turn() else { return Ok(()) };
    let bed = bed()?;
    let stage = Stage::set(&bed)?;
    let agent = Agent::start(&bed, &stage.home, &stage.flags)?;
    let tmux = Tmux::start(&bed, &stage.home, (100, 30))?;
    let before = tmux.settings()?;
    // Without colours, the same.
    tmux.type_in(&format!(
        "NO_COLOR=1 {}; echo it was $?",
        stage.top("--interval 0.5")
    ))?;
    tmux.shows(&["agent live", "shop/frontend"], &[])?;
    let coloured = tmux.ask(&["capture-pane", "-p", "-e", "-t", "top"])?;
    for colour in ["\x1b[3", "\x1b[9", "\x1b[4"] {
        // 39 and 49 are the terminal's own; 4 alone is underlined.
        let others = coloured.split(colour).skip(1).filter(|rest| {
            rest.starts_with(|c: char| c.is_ascii_digit()) && !rest.starts_with('9')
        });
        assert_eq!(others.count(), 0, "{coloured:?}");
    }

    agent.kill()?;
    tmux.shows(
        &["! NO AGENT: data", "s old, retry in", "shop/frontend"],
        &["agent live"],
    )?;
    keep(&tmux, "gone-100x30")?;
    let agent = Agent::start(&bed, &stage.home, &stage.flags)?;
    tmux.shows(&["agent live", "shop/frontend"], &["NO AGENT"])?;

    // Paused it stays as it is; the agent is asked on.
    tmux.press(&["p"])?;
    tmux.shows(&["PAUSED at"], &[])?;
    tmux.press(&["p"])?;
    tmux.shows(&["agent live"], &["PAUSED"])?;

    for signal in [Signal::SIGTERM, Signal::SIGINT, Signal::SIGHUP] {
        kill(pid_of_top(&stage.home.socket())?, signal)?;
        tmux.shows(&["it was 0"], &["[1 Flows]"])?;
        assert_eq!(tmux.settings()?, before, "{signal}");
        tmux.type_in(&format!(
            "clear; {}; echo it was $?",
            stage.top("--interval 0.5")
        ))?;
        tmux.shows(&["agent live"], &[])?;
    }
    tmux.press(&["C-c"])?;
    tmux.shows(&["it was 0"], &["[1 Flows]"])?;
    assert_eq!(tmux.settings()?, before);

    // So many looks, and where there is no terminal rows.
    tmux.type_in(&format!(
        "clear; {}; echo two looks, then $?",
        stage.top("--count 2 --interval 0.2")
    ))?;
    // Other words than before: those are on the screen until it is cleared.
    tmux.shows(&["two looks, then 0"], &["[1 Flows]"])?;
    tmux.type_in(&format!(
        "clear; {} | head -2",
        stage.top("--count 1 --interval 0.2")
    ))?;
    tmux.shows(&["TIME", "CLASS", "BEFORE → AFTER"], &["[1 Flows]"])?;
    agent.stop(Signal::SIGTERM)?;
    Ok(())
}

#[test]
fn a_terminal_that_goes_away_ends_it_with_or_without_a_signal() -> Result<()> {
    let Some(_turn) = turn() else { return Ok(()) };
    let bed = bed()?;
    let stage = Stage::set(&bed)?;
    let agent = Agent::start(&bed, &stage.home, &stage.flags)?;
    // In a session of its own there is no SIGHUP, as in a container whose `kubectl exec` has lost its connection.
    for session in ["", "setsid -w "] {
        let tmux = Tmux::start(&bed, &stage.home, (100, 30))?;
        tmux.type_in(&format!("{session}{}", stage.top("--interval 0.5")))?;
        tmux.shows(&["agent live"], &[])?;
        let top = pid_of_top(&stage.home.socket())?;
        tmux.ask(&["kill-server"])?;
        let there = PathBuf::from(format!("/proc/{top}"));
        let ended = eventually("it ends by itself", || Ok(!there.exists()));
        if ended.is_err() {
            kill(top, Signal::SIGKILL)?;
        }
        ended.with_context(|| format!("started by {session:?}"))?;
    }
    agent.stop(Signal::SIGTERM)?;
    Ok(())
}

#[test]
fn without_an_agent_the_screen_has_programs_of_its_own_and_leaves_nothing() -> Result<()> {
    let Some(_turn) = turn() else { return Ok(()) };
    let bed = bed()?;
    let stage = Stage::set(&bed)?;
    let tmux = Tmux::start(&bed, &stage.home, (100, 30))?;
    let before = tmux.settings()?;
    let config = stage.home.path().join("agent.toml");
    let service = bed.plan().services.v4;
    std::fs::write(
        &config,
        format!("service_cidr = \"{service}\"\nkubernetes = \"off\"\ncri_socket = \"off\"\n"),
    )?;
    let top = stage.top(&format!("--interval 0.5 --config {}", config.display()));
    for end in ["q", "SIGTERM"] {
        tmux.type_in(&format!("clear; {top}; echo it was $?"))?;
        tmux.shows(&["own programs live", "[1 Flows]", "dnat", "snat"], &[])?;
        ensure!(!attached(&bed)?.is_empty(), "its programs are attached");
        if end == "q" {
            tmux.press(&["q"])?;
        } else {
            kill(pid_of_top(&stage.home.socket())?, Signal::SIGTERM)?;
        }
        tmux.shows(&["it was 0"], &["[1 Flows]"])?;
        assert_eq!(attached(&bed)?, [""; 0]);
        assert!(!stage.home.socket().exists());
        assert_eq!(tmux.settings()?, before);
    }
    Ok(())
}

/// What the next test runs in the terminal: this very program, told to break while it has the screen.
#[test]
#[ignore = "run by the test below, in a terminal"]
fn breaks_while_it_has_the_screen() {
    let _screen = aksnet_agent::top::screen::terminal::Screen::take().expect("a terminal");
    panic!("on purpose");
}

#[test]
fn a_panic_gives_the_terminal_back_and_its_words_are_seen() -> Result<()> {
    let Some(_turn) = turn() else { return Ok(()) };
    let bed = Testbed::kind().build()?;
    let home = Home::new()?;
    let tmux = Tmux::start(&bed, &home, (100, 30))?;
    let before = tmux.settings()?;
    let this = std::env::current_exe()?;
    let name = "screen::breaks_while_it_has_the_screen";
    tmux.type_in(&format!(
        "clear; RUST_BACKTRACE=0 {} --exact {name} --ignored --nocapture",
        this.display()
    ))?;
    tmux.shows(&["on purpose", "test result: FAILED"], &[])?;
    assert_eq!(tmux.settings()?, before);
    // The cursor is seen, and the screen is the one from before.
    let modes = tmux.ask(&[
        "display-message",
        "-p",
        "-t",
        "top",
        "#{cursor_flag} #{alternate_on}",
    ])?;
    assert_eq!(modes.trim(), "1 0");
    Ok(())
}
