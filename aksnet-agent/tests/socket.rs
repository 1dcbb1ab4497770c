//! The local socket, from both ends.

use std::{
    fs,
    io::{BufRead, BufReader, Write},
    os::unix::{fs::PermissionsExt, net::UnixStream},
    path::Path,
    sync::Arc,
};

use aksnet_agent::{
    board::Board,
    cli::Sort,
    config::merge,
    exit::Exit,
    socket::{
        client::Client,
        protocol::{TopQuery, TopReader, TopSource},
        server::Claim,
    },
};
use serde_json::{Value, json};

/// Counts its looks, each client for itself.
struct Looks(u64);

impl TopSource for Looks {
    fn open(&self) -> Box<dyn TopReader> {
        Box::new(Self(0))
    }
}

impl TopReader for Looks {
    fn rows(&mut self, query: &TopQuery) -> Vec<Value> {
        self.0 += 1;
        vec![json!({"look": self.0, "limit": query.limit})]
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
    let runtime = tokio::runtime::Runtime::new().unwrap();
    runtime.block_on(async {
        let claim = Claim::take(path).unwrap();
        let board = Arc::new(Board::new(&merge::merge(vec![]).unwrap()));
        let client = tokio::task::spawn_blocking(client);
        tokio::select! {
            () = claim.serve(board, Arc::new(Looks(0))) => unreachable!("it serves for ever"),
            done = client => done.unwrap(),
        }
    });
    assert!(!path.exists(), "the socket is removed in the end");
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
    drop(std::os::unix::net::UnixListener::bind(&path).unwrap());
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
    let listener = std::os::unix::net::UnixListener::bind(&path).unwrap();
    let client = Client::connect(&path).unwrap().unwrap();
    let hangs_up = std::thread::spawn(move || drop(listener.accept().unwrap()));
    let failure = match client.top(query()) {
        Ok(mut looks) => looks.next().unwrap().unwrap_err(),
        Err(failure) => failure,
    };
    hangs_up.join().unwrap();
    assert_eq!(failure.exit, Exit::Unavailable);
}
