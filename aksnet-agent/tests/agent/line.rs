//! A *line*: one TCP connection that goes on for as long as a test lasts, while agents come and go.

use std::{
    io::{Read as _, Write as _},
    net::{Shutdown, SocketAddr, TcpStream},
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering::SeqCst},
    },
    thread::JoinHandle,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, ensure};
use xtask::testbed::Netns;

const MESSAGE: usize = 1000;

#[derive(Default)]
struct Shared {
    stop: AtomicBool,
    pause: AtomicBool,
    paused: AtomicBool,
    messages: AtomicU64,
}

/// Sends messages to an echo server and reads each back.
pub struct Line {
    shared: Arc<Shared>,
    local: SocketAddr,
    thread: Option<JoinHandle<Result<()>>>,
}

impl Line {
    /// Connects and begins, with this time between messages.
    pub fn open(netns: &Netns, to: SocketAddr, gap: Duration) -> Result<Self> {
        let stream = netns.run(|| Ok(TcpStream::connect(to)?))?;
        stream.set_nodelay(true)?;
        stream.set_read_timeout(Some(Duration::from_secs(5)))?;
        let local = stream.local_addr()?;
        let shared = Arc::new(Shared::default());
        let thread = std::thread::spawn({
            let shared = shared.clone();
            move || talk(stream, &shared, gap)
        });
        Ok(Self {
            shared,
            local,
            thread: Some(thread),
        })
    }

    pub fn local(&self) -> SocketAddr {
        self.local
    }

    /// Stops between two messages; the connection stays open.
    pub fn pause(&self, pause: bool) -> Result<()> {
        self.shared.pause.store(pause, SeqCst);
        let deadline = Instant::now() + Duration::from_secs(5);
        while self.shared.paused.load(SeqCst) != pause {
            ensure!(Instant::now() < deadline, "the line hangs");
            std::thread::sleep(Duration::from_millis(2));
        }
        Ok(())
    }

    /// Waits until so many more messages went there and back.
    pub fn go_on(&self, messages: u64) -> Result<()> {
        let goal = self.shared.messages.load(SeqCst) + messages;
        let deadline = Instant::now() + Duration::from_secs(10);
        while self.shared.messages.load(SeqCst) < goal {
            ensure!(Instant::now() < deadline, "the line hangs");
            std::thread::sleep(Duration::from_millis(2));
        }
        Ok(())
    }

    /// Closes it; the bytes that went each way, all of which came back.
    pub fn close(mut self) -> Result<u64> {
        self.shared.stop.store(true, SeqCst);
        let thread = self.thread.take().context("once")?;
        thread.join().expect("the line does not panic")?;
        Ok(self.shared.messages.load(SeqCst) * MESSAGE as u64)
    }
}

impl Drop for Line {
    fn drop(&mut self) {
        self.shared.stop.store(true, SeqCst);
        if let Some(thread) = self.thread.take() {
            let _failed = thread.join();
        }
    }
}

fn talk(mut stream: TcpStream, shared: &Shared, gap: Duration) -> Result<()> {
    let sent = [0x6c; MESSAGE];
    let mut back = [0; MESSAGE];
    while !shared.stop.load(SeqCst) {
        let pause = shared.pause.load(SeqCst);
        shared.paused.store(pause, SeqCst);
        if !pause {
            stream.write_all(&sent).context("the line broke")?;
            stream.read_exact(&mut back).context("the line broke")?;
            ensure!(sent == back, "the echo differs");
            shared.messages.fetch_add(1, SeqCst);
        }
        std::thread::sleep(gap);
    }
    stream.shutdown(Shutdown::Write)?;
    ensure!(stream.read(&mut back)? == 0, "bytes that nobody sent");
    Ok(())
}
