//! What the tests share: a bare namespace, the agent's view from inside one, and a server that answers as told.

use std::{
    io::{Read as _, Write as _},
    net::{SocketAddr, TcpListener},
    path::{Path, PathBuf},
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use aksnet_agent::node::{
    Snapshot,
    found::{self, Found, Labels, Settings},
    netlink::Netlink,
};
use anyhow::{Context as _, Result};
use xtask::testbed::{Netns, Testbed, record::Record};

/// Two cores: one at a time.
static TURN: Mutex<()> = Mutex::new(());

/// The right to use the machine, or `None` where these tests cannot run, having said why.
pub fn turn() -> Option<MutexGuard<'static, ()>> {
    if !nix::unistd::geteuid().is_root() {
        println!("skipped: network namespaces and rules need root");
        return None;
    }
    Some(TURN.lock().unwrap_or_else(PoisonError::into_inner))
}

/// A namespace with nothing in it.
pub fn bare() -> Result<Netns> {
    Netns::create(&Arc::new(Record::create()?), "bare")
}

/// Runs a future on the calling thread, which may be inside a namespace.
pub fn block_on<T>(future: impl Future<Output = T>) -> Result<T> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?;
    Ok(runtime.block_on(future))
}

/// What the kernel says in the calling thread's namespace.
pub fn snapshot() -> Result<Snapshot> {
    block_on(async { Netlink::open()?.snapshot().await.context("a snapshot") })?
}

/// What is found in a namespace with this root directory.
pub fn detect(netns: &Netns, root: &Path, labels: Option<&Labels>) -> Result<Found> {
    let settings = Settings {
        host_root: root.to_owned(),
        compute: None,
    };
    netns.run(|| Ok(found::detect(&settings, &snapshot()?, labels)))
}

/// What is found on the node under test.
pub fn detect_node(bed: &Testbed) -> Result<Found> {
    detect(bed.node().netns(), bed.node().root(), None)
}

/// Makes paths that the testbed wrote into the node's configuration lead to the same place below its root.
pub fn mirror(root: &Path) -> Result<()> {
    let inside = root.join(root.strip_prefix("/")?);
    std::fs::create_dir_all(inside.parent().context("a root of its own")?)?;
    Ok(std::os::unix::fs::symlink(root, inside)?)
}

/// A directory with one file in it.
pub fn root_with(file: &str, text: &str) -> Result<tempfile::TempDir> {
    let root = tempfile::tempdir()?;
    let path: PathBuf = root.path().join(file);
    std::fs::create_dir_all(path.parent().context("below the root")?)?;
    std::fs::write(path, text)?;
    Ok(root)
}

/// How a stand-in answers.
#[derive(Clone)]
pub enum Manner {
    /// These bytes, then it hangs up.
    Says(Vec<u8>),
    /// Nothing, for longer than anybody waits.
    Slow,
    /// This byte for as long as somebody reads.
    Endless(u8),
}

impl Manner {
    /// An HTTP answer.
    pub fn http(status: &str, body: &str) -> Self {
        let head = format!(
            "HTTP/1.1 {status}\r\nContent-Type: application/json\r\nContent-Length: {}\r\nConnection: close\r\n\r\n",
            body.len()
        );
        Self::Says([head.as_bytes(), body.as_bytes()].concat())
    }
}

/// A server that answers every connection alike, until it is dropped.
pub struct StandIn {
    address: SocketAddr,
    netns: std::fs::File,
    asked: Arc<Asked>,
    thread: Option<std::thread::JoinHandle<()>>,
}

#[derive(Default)]
struct Asked {
    requests: Mutex<Vec<String>>,
    connections: AtomicUsize,
    ended: std::sync::atomic::AtomicBool,
}

impl StandIn {
    /// Listens in the namespace.
    pub fn start(netns: &Netns, address: &str, manner: Manner) -> Result<Self> {
        let listener = netns.run(|| Ok(TcpListener::bind(address)?))?;
        let asked = Arc::new(Asked::default());
        let thread = std::thread::spawn({
            let asked = Arc::clone(&asked);
            move || {
                for stream in listener.incoming() {
                    if asked.ended.load(Ordering::SeqCst) {
                        break;
                    }
                    asked.connections.fetch_add(1, Ordering::SeqCst);
                    let Ok(mut stream) = stream else { continue };
                    let _ = stream.set_read_timeout(Some(Duration::from_secs(2)));
                    let request = request(&mut stream);
                    asked.requests.lock().unwrap().push(request);
                    match &manner {
                        Manner::Says(bytes) => {
                            let _ = stream.write_all(bytes);
                        }
                        // Until the client hangs up.
                        Manner::Slow => {
                            let _ = stream.read(&mut [0]);
                        }
                        Manner::Endless(byte) => {
                            let head = b"HTTP/1.1 200 OK\r\n\r\n";
                            let mut open = stream.write_all(head).is_ok();
                            while open {
                                open = stream.write_all(&[*byte; 4096]).is_ok();
                            }
                        }
                    }
                }
            }
        });
        Ok(Self {
            address: address.parse()?,
            netns: std::fs::File::open(netns.path())?,
            asked,
            thread: Some(thread),
        })
    }

    /// How many connections it had.
    pub fn connections(&self) -> usize {
        self.asked.connections.load(Ordering::SeqCst)
    }

    /// What it was asked, headers and body.
    pub fn requests(&self) -> Vec<String> {
        self.asked.requests.lock().unwrap().clone()
    }
}

impl Drop for StandIn {
    fn drop(&mut self) {
        self.asked.ended.store(true, Ordering::SeqCst);
        // One more connection, from inside, so that it looks up.
        let (netns, address) = (&self.netns, self.address);
        std::thread::scope(|scope| {
            scope.spawn(move || {
                if nix::sched::setns(netns, nix::sched::CloneFlags::CLONE_NEWNET).is_ok() {
                    let _ = std::net::TcpStream::connect(address);
                }
            });
        });
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

/// A request up to the end of its body, as far as it has a length.
fn request(stream: &mut std::net::TcpStream) -> String {
    let mut text = String::new();
    let mut bytes = [0; 4096];
    while let Ok(length @ 1..) = stream.read(&mut bytes) {
        text += &String::from_utf8_lossy(&bytes[..length]);
        let Some((head, body)) = text.split_once("\r\n\r\n") else {
            continue;
        };
        let length = head
            .lines()
            .find_map(|l| {
                l.to_ascii_lowercase()
                    .strip_prefix("content-length: ")?
                    .parse()
                    .ok()
            })
            .unwrap_or(0);
        if body.len() >= length {
            break;
        }
    }
    text
}
