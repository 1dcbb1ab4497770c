//! The local socket, from both ends.

use std::{
    fs,
    io::{BufRead, BufReader, Write},
    os::unix::{
        fs::PermissionsExt,
        net::{UnixListener, UnixStream},
    },
    path::Path,
    sync::Arc,
    time::{Duration, Instant},
};

use aksnet_agent::{
    board::Board,
    cli::Sort,
    config::merge,
    droplog::{DropLog, DropRecord, End, News},
    exit::Exit,
    flowlog::{Filter, FlowLog, FlowRecord},
    live::{LiveQuery, Snapshot},
    socket::{
        client::Client,
        protocol::{DropsQuery, LiveSource, TopQuery, TopReader},
        server::Claim,
    },
};
use serde_json::{Value, json};

/// Counts its looks, each client for itself.
#[derive(Default)]
struct Looks {
    looks: u64,
    drops: Arc<DropLog>,
}

impl LiveSource for Looks {
    fn drop_log(&self) -> Arc<DropLog> {
        self.drops.clone()
    }

    fn flow_log(&self) -> Arc<FlowLog> {
        Arc::default()
    }

    fn live_flows(&self, _filter: &Filter, _limit: usize) -> Vec<FlowRecord> {
        Vec::new()
    }

    fn session(&self) -> Value {
        json!({"names": []})
    }

    fn open(&self) -> Box<dyn TopReader> {
        Box::new(Self::default())
    }
}

impl TopReader for Looks {
    fn rows(&mut self, query: &TopQuery) -> Vec<Value> {
        self.looks += 1;
        vec![json!({"look": self.looks, "limit": query.limit})]
    }

    fn live(&mut self, query: &LiveQuery) -> Result<Snapshot, String> {
        if query.limit == 13 {
            return Err("no such luck".to_owned());
        }
        self.looks += 1;
        Ok(Snapshot {
            pairs: self.looks,
            matching: query.limit as u64,
            ..Snapshot::default()
        })
    }
}

fn query() -> TopQuery {
    TopQuery {
        interval: 0.1,
        limit: 5,
        sort: Sort::Packets,
    }
}

/// Serves at `path` while `client` runs.
fn with_server(path: &Path, client: impl FnOnce() + Send + 'static) {
    with_log(path, Arc::default(), client);
}

/// The same with this drop log.
fn with_log(path: &Path, drops: Arc<DropLog>, client: impl FnOnce() + Send + 'static) {
    let runtime = tokio::runtime::Runtime::new().unwrap();
    runtime.block_on(async {
        let claim = Claim::take(path).unwrap();
        let board = Arc::new(Board::new(&merge::merge(vec![]).unwrap()));
        let client = tokio::task::spawn_blocking(client);
        tokio::select! {
            () = claim.serve(board, Arc::new(Looks { looks: 0, drops })) => unreachable!("it serves for ever"),
            done = client => done.unwrap(),
        }
    });
    assert!(!path.exists(), "the socket is removed in the end");
}

#[test]
fn another_question_is_answered_at_once_and_what_is_not_understood_ends_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("agent.sock");
    let there = path.clone();
    with_server(&path, move || {
        let client = Client::connect(&there).unwrap().unwrap();
        let query = |limit| LiveQuery {
            interval: 3600.0,
            limit,
            ..LiveQuery::default()
        };
        let (mut asker, mut answers) = client.live(&query(5)).unwrap();
        let mut hear = || answers.hear().unwrap();
        let first = hear().unwrap();
        assert_eq!((first.pairs, first.matching), (1, 5));
        let health = first.health.clone().unwrap();
        assert_eq!(health.not_ready_because, "starting");
        asker.ask(&query(13)).unwrap();
        assert_eq!(hear().unwrap_err(), "no such luck");
        for n in 0..300 {
            asker.ask(&query(100 + n)).unwrap();
            assert_eq!(hear().unwrap().matching, 100 + n as u64);
        }
        // Hanging up wakes whoever hears.
        drop(asker);
        assert_eq!(answers.hear().unwrap_err().exit, Exit::Unavailable);
    });
}

#[test]
fn an_agent_that_hangs_does_not_hold_up_whoever_asks() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("agent.sock");
    let _listens = UnixListener::bind(&path).unwrap();
    let client = Client::connect(&path).unwrap().unwrap();
    let query = LiveQuery::default();
    let (mut asker, _answers) = client.live(&query).unwrap();
    // What it does not read has room only so far.
    let failed = (0..1_000_000).find_map(|_| asker.ask(&query).err());
    assert_eq!(failed.unwrap().exit, Exit::Unavailable);
}

#[test]
fn whoever_prints_ends_when_nobody_reads_though_there_is_nothing_to_print() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("agent.sock");
    let there = path.clone();
    with_server(&path, move || {
        for command in [
            &["drops"][..],
            &["flows", "--follow"],
            &["top", "--raw", "--interval", "3600"],
        ] {
            let mut child = std::process::Command::new(env!("CARGO_BIN_EXE_aksnet-agent"))
                .args(command)
                .arg("--socket")
                .arg(&there)
                .stdout(std::process::Stdio::piped())
                .spawn()
                .unwrap();
            drop(child.stdout.take());
            let deadline = Instant::now() + Duration::from_secs(30);
            let status = loop {
                if let Some(status) = child.try_wait().unwrap() {
                    break status;
                }
                if Instant::now() > deadline {
                    child.kill().unwrap();
                    child.wait().unwrap();
                    panic!("{command:?} goes on");
                }
                std::thread::sleep(Duration::from_millis(20));
            };
            assert_eq!(status.code(), Some(0), "{command:?}");
        }
    });
}

#[test]
fn rows_come_every_interval_and_each_client_has_its_own() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("sub/agent.sock");
    let socket = path.clone();
    with_server(&path, move || {
        for _client in 0..2 {
            let client = Client::connect(&socket).unwrap().unwrap();
            let looks: Vec<_> = client
                .top(query())
                .unwrap()
                .take(3)
                .map(Result::unwrap)
                .collect();
            // The first look has nothing to compare with and is not shown.
            for (n, rows) in looks.iter().enumerate() {
                assert_eq!(rows, &[json!({"look": n + 2, "limit": 5})]);
            }
        }
        let status = Client::connect(&socket).unwrap().unwrap().status().unwrap();
        assert_eq!(status["ready"], false);
    });
}

fn dropped(packets: u64) -> DropRecord {
    let end = |last| End {
        address: [10, 244, 0, last].into(),
        port: 8080,
        namespace: "shop".to_owned(),
        workload: "web".to_owned(),
        pod: String::new(),
    };
    DropRecord {
        unix_ms: 1,
        packets,
        bytes: 60 * packets,
        connections: 1,
        cause: "firewall".to_owned(),
        reason: "netfilter_drop".to_owned(),
        location: "nft_do_chain".to_owned(),
        direction: String::new(),
        protocol: "tcp".to_owned(),
        src: end(1),
        dst: end(2),
        dialled: None,
        in_interface: String::new(),
        out_interface: String::new(),
        mark: 0,
        engine: String::new(),
        policies: Vec::new(),
        confidence: String::new(),
        why: String::new(),
    }
}

#[test]
fn drops_are_heard_as_they_happen_and_the_recent_ones_if_asked_for() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("agent.sock");
    let (socket, log) = (path.clone(), Arc::<DropLog>::default());
    log.publish([dropped(1), dropped(2)]);
    with_log(&path, log.clone(), move || {
        let follow = |recent| {
            let client = Client::connect(&socket).unwrap().unwrap();
            client.drops(DropsQuery { recent }).unwrap()
        };
        let packets = |news: Option<Result<News, _>>| match news {
            Some(Ok(News::Record(record))) => record.packets,
            other => panic!("{:?}", other.is_some()),
        };
        let mut recent = follow(true);
        assert_eq!(
            (packets(recent.next()), packets(recent.next())),
            (1, 2),
            "what is in memory"
        );
        log.publish([dropped(3)]);
        assert_eq!(packets(recent.next()), 3);
        let mut live = follow(false);
        // Its request may still be on the way: what is published before it is heard is not for it.
        let publisher = std::thread::spawn({
            let log = log.clone();
            move || {
                for n in 4..200 {
                    log.publish([dropped(n)]);
                    std::thread::sleep(Duration::from_millis(5));
                }
            }
        });
        let first = packets(live.next());
        assert!(first > 3, "{first}");
        assert_eq!(packets(live.next()), first + 1);
        publisher.join().unwrap();
    });
}

#[test]
fn nonsense_is_answered_and_does_not_end_the_conversation() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("agent.sock");
    let socket = path.clone();
    with_server(&path, move || {
        let mut stream = UnixStream::connect(&socket).unwrap();
        stream.write_all(b"hello\n\"status\"\n").unwrap();
        let mut lines = BufReader::new(stream).lines();
        let first = lines.next().unwrap().unwrap();
        assert!(first.starts_with("{\"error\":\"not a request"), "{first}");
        assert!(lines.next().unwrap().unwrap().starts_with("{\"status\":{"));
    });
}

#[test]
fn only_the_owner_may_open_it() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("agent.sock");
    let socket = path.clone();
    with_server(&path, move || {
        let mode = fs::metadata(&socket).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
        let others: Vec<_> = fs::read_dir(socket.parent().unwrap()).unwrap().collect();
        assert_eq!(others.len(), 1, "nothing else is left beside it");
    });
}

#[test]
fn whoever_is_not_the_owner_is_told_so() {
    if !nix::unistd::geteuid().is_root() {
        println!("skipped: becoming somebody else needs root");
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    fs::set_permissions(dir.path(), fs::Permissions::from_mode(0o755)).unwrap();
    let binary = dir.path().join("aksnet-agent");
    fs::copy(env!("CARGO_BIN_EXE_aksnet-agent"), &binary).unwrap();
    let path = dir.path().join("agent.sock");
    let socket = path.clone();
    with_server(&path, move || {
        let asks = |command: &[&str]| {
            std::process::Command::new("setpriv")
                .args(["--reuid=65534", "--regid=65534", "--clear-groups"])
                .arg(&binary)
                .args(command)
                .arg("--socket")
                .arg(&socket)
                .output()
                .unwrap()
        };
        for command in [
            &["top", "--raw", "--count", "1"][..],
            &["drops", "--recent"],
            &["flows"],
            &["doctor"],
        ] {
            let output = asks(command);
            let said = String::from_utf8_lossy(&output.stderr);
            assert_eq!(output.status.code(), Some(77), "{command:?}: {said}");
            let line = format!("cannot open the agent's socket {}", socket.display());
            assert!(said.contains(&line), "{command:?}: {said}");
            assert!(said.contains("run as root"), "{command:?}: {said}");
            assert!(output.stdout.is_empty(), "{command:?}");
        }
    });
}

/// Asks again and again, or once for what does not end, and does not read.
fn deaf(path: &Path, request: &str, again: bool) -> UnixStream {
    let mut stream = UnixStream::connect(path).unwrap();
    stream.write_all(request.as_bytes()).unwrap();
    stream.set_nonblocking(true).unwrap();
    // Until the agent takes no more of it, as it waits for us to read.
    let mut refused = 0;
    while again && refused < 20 {
        // A part of a request is no less for the agent to take.
        let taken = stream.write(request.as_bytes()).unwrap_or(0);
        if taken > 0 {
            refused = 0;
        } else {
            refused += 1;
            std::thread::sleep(Duration::from_millis(1));
        }
    }
    stream
}

#[test]
fn clients_that_never_read_hold_up_nobody_and_are_so_many_and_no_more() {
    const MOST: usize = 64;
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("agent.sock");
    let (socket, log) = (path.clone(), Arc::<DropLog>::default());
    with_log(&path, log.clone(), move || {
        // One request is a few bytes and its answer is kilobytes, so what is said stays below what a client may say.
        let requests = [
            ("\"status\"\n", true),
            ("\"session\"\n", true),
            ("{\"drops\":{\"recent\":true}}\n", false),
        ];
        let mut deafs: Vec<UnixStream> = (0..MOST - 1)
            .map(|n| requests[n % requests.len()])
            .map(|(request, again)| deaf(&socket, request, again))
            .collect();
        // What happens meanwhile is published without waiting for them.
        for n in 0..20_000 {
            log.publish([dropped(n)]);
        }
        let status = Client::connect(&socket).unwrap().unwrap().status().unwrap();
        assert_eq!(status["ready"], false);
        // The one before may not be noticed to have gone yet.
        let mut looks = (0..500)
            .find_map(|_| {
                std::thread::sleep(Duration::from_millis(20));
                let client = Client::connect(&socket).unwrap().unwrap();
                let mut looks = client.top(query()).ok()?;
                looks.next().unwrap().is_ok().then_some(looks)
            })
            .expect("a place is left");

        // That was the last place.
        let mut refused = String::new();
        let one_more = UnixStream::connect(&socket).unwrap();
        let patience = Some(Duration::from_secs(30));
        one_more.set_read_timeout(patience).unwrap();
        BufReader::new(&one_more).read_line(&mut refused).unwrap();
        assert!(
            refused.contains("64 clients are being answered"),
            "{refused}"
        );
        let failure = Client::connect(&socket)
            .unwrap()
            .unwrap()
            .status()
            .unwrap_err();
        assert!(failure.to_string().contains("64 clients"), "{failure}");

        deafs.truncate(1);
        let served = (0..500).any(|_| {
            std::thread::sleep(Duration::from_millis(20));
            Client::connect(&socket).unwrap().unwrap().status().is_ok()
        });
        assert!(served, "those who have gone make room");
        assert!(looks.next().unwrap().is_ok());
    });
}

#[test]
fn silence_garbage_and_endless_lines_are_bounded() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("agent.sock");
    let socket = path.clone();
    with_server(&path, move || {
        let silent = UnixStream::connect(&socket).unwrap();
        let mut endless = UnixStream::connect(&socket).unwrap();
        let line = vec![b'x'; 1 << 16];
        let mut sent = 0usize;
        while sent < 256 << 20 && endless.write_all(&line).is_ok() {
            sent += line.len();
        }
        assert!(sent < 256 << 20, "{sent} bytes were taken");
        let mut garbage = UnixStream::connect(&socket).unwrap();
        let _closed = garbage.write_all(&[0xff; 1000]);
        let _closed = garbage.write_all(b"\n");
        let status = Client::connect(&socket).unwrap().unwrap().status().unwrap();
        assert_eq!(status["ready"], false);
        drop(silent);
    });
}

#[tokio::test]
async fn a_living_agents_socket_is_respected_and_a_dead_ones_replaced() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("agent.sock");
    let first = Claim::take(&path).unwrap();
    let failure = Claim::take(&path).err().unwrap();
    assert_eq!(failure.exit, Exit::CantCreate);
    assert!(
        failure.to_string().contains("another agent is running"),
        "{failure}"
    );
    drop(first);

    // As after SIGKILL: the file is there, nobody listens.
    drop(UnixListener::bind(&path).unwrap());
    assert!(path.exists());
    assert!(Client::connect(&path).unwrap().is_none());
    drop(Claim::take(&path).unwrap());
    assert!(!path.exists());
}

#[tokio::test]
async fn what_is_no_socket_is_not_removed() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("notes.txt");
    fs::write(&path, "dear").unwrap();
    let failure = Claim::take(&path).err().unwrap();
    assert!(failure.to_string().contains("is no socket"), "{failure}");
    assert_eq!(fs::read_to_string(&path).unwrap(), "dear");
}

#[test]
fn without_an_agent_there_is_nobody_to_ask() {
    let dir = tempfile::tempdir().unwrap();
    assert!(
        Client::connect(&dir.path().join("none.sock"))
            .unwrap()
            .is_none()
    );
}

#[test]
fn an_agent_that_ends_meanwhile_is_said_to_have_gone() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("agent.sock");
    let listener = UnixListener::bind(&path).unwrap();
    let client = Client::connect(&path).unwrap().unwrap();
    let hangs_up = std::thread::spawn(move || drop(listener.accept().unwrap()));
    let failure = match client.top(query()) {
        Ok(mut looks) => looks.next().unwrap().unwrap_err(),
        Err(failure) => failure,
    };
    hangs_up.join().unwrap();
    assert_eq!(failure.exit, Exit::Unavailable);
}
