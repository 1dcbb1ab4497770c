//! What programs notice, over real sockets from one end of a route to the other: one slice of each.
//!
//! Both ends run on one processor, so that every nanosecond of the way between them shows. The ends of a TCP connection
//! are two threads, as programs are; datagrams are sent and received by one, so that none is lost on the way.

use std::{
    io::{Read as _, Write as _},
    net::{Shutdown, SocketAddr, TcpListener, TcpStream, UdpSocket},
    sync::atomic::{AtomicBool, Ordering},
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, ensure};

use crate::{bed::Route, cpu};

/// How long one slice lasts.
const SLICE: Duration = Duration::from_millis(250);

/// Longer than anything here takes unless it hangs.
const PATIENCE: Duration = Duration::from_secs(5);

/// A listener at the far end.
fn listen(route: &Route) -> Result<(TcpListener, SocketAddr)> {
    let listener = route
        .to
        .netns
        .run(|| Ok(TcpListener::bind((route.to.address, 0))?))?;
    let address = listener.local_addr()?;
    Ok((listener, address))
}

/// A connection: the near end, the far end.
fn connection(route: &Route) -> Result<[TcpStream; 2]> {
    let (listener, address) = listen(route)?;
    let near = route
        .from
        .netns
        .run(|| Ok(TcpStream::connect_timeout(&address, PATIENCE)?))?;
    let (far, _) = listener.accept()?;
    for stream in [&near, &far] {
        stream.set_nodelay(true)?;
        stream.set_read_timeout(Some(PATIENCE))?;
    }
    Ok([near, far])
}

/// Gbit/s of one TCP stream.
pub fn throughput(route: &Route) -> Result<f64> {
    let [mut near, mut far] = connection(route)?;
    std::thread::scope(|scope| {
        scope.spawn(move || -> Result<()> {
            cpu::pin(cpu::TRAFFIC)?;
            let mut buffer = vec![0_u8; 128 * 1024];
            while far.read(&mut buffer)? > 0 {}
            Ok(())
        });
        let sender = scope.spawn(move || -> Result<f64> {
            cpu::pin(cpu::TRAFFIC)?;
            near.set_write_timeout(Some(PATIENCE))?;
            let chunk = vec![0_u8; 128 * 1024];
            let mut send = |during: Duration| -> Result<f64> {
                let (start, mut chunks) = (Instant::now(), 0_u32);
                while start.elapsed() < during {
                    near.write_all(&chunk)?;
                    chunks += 1;
                }
                Ok(8e-9 * f64::from(chunks) * 131_072.0 / start.elapsed().as_secs_f64())
            };
            // The windows open first.
            send(SLICE / 10)?;
            send(SLICE)
        });
        sender
            .join()
            .unwrap_or_else(|panic| std::panic::resume_unwind(panic))
    })
}

/// Datagrams of 64 bytes per second, each sent and received.
pub fn small_packets(route: &Route) -> Result<f64> {
    cpu::pin(cpu::TRAFFIC)?;
    let bind = |pod: &crate::bed::Pod| pod.netns.run(|| Ok(UdpSocket::bind((pod.address, 0))?));
    let (near, far) = (bind(&route.from)?, bind(&route.to)?);
    near.connect(far.local_addr()?)?;
    far.set_read_timeout(Some(PATIENCE))?;
    let (data, mut buffer) = ([0_u8; 64], [0_u8; 128]);
    let mut count = 0_u32;
    let start = Instant::now();
    while start.elapsed() < SLICE {
        for _ in 0..128 {
            near.send(&data)?;
            far.recv(&mut buffer).context("a datagram was lost")?;
        }
        count += 128;
    }
    Ok(f64::from(count) / start.elapsed().as_secs_f64())
}

/// Microseconds for one byte there and back.
pub fn request(route: &Route) -> Result<f64> {
    let [mut near, mut far] = connection(route)?;
    std::thread::scope(|scope| {
        scope.spawn(move || -> Result<()> {
            cpu::pin(cpu::TRAFFIC)?;
            let mut byte = [0];
            while far.read(&mut byte)? == 1 {
                far.write_all(&byte)?;
            }
            Ok(())
        });
        let client = scope.spawn(move || -> Result<f64> {
            cpu::pin(cpu::TRAFFIC)?;
            let (mut byte, mut count) = ([1], 0_u32);
            let start = Instant::now();
            while start.elapsed() < SLICE {
                for _ in 0..16 {
                    near.write_all(&byte)?;
                    near.read_exact(&mut byte)?;
                }
                count += 16;
            }
            Ok(1e6 * start.elapsed().as_secs_f64() / f64::from(count))
        });
        client
            .join()
            .unwrap_or_else(|panic| std::panic::resume_unwind(panic))
    })
}

/// Connections per second, opened and closed one after the other.
pub fn connections(route: &Route) -> Result<f64> {
    Ok(1e6 / connect(route, false)?)
}

/// Microseconds for a connection with one byte there and back.
pub fn connect_request(route: &Route) -> Result<f64> {
    connect(route, true)
}

fn connect(route: &Route, with_request: bool) -> Result<f64> {
    let (listener, address) = listen(route)?;
    let stop = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let server = scope.spawn(|| -> Result<()> {
            cpu::pin(cpu::TRAFFIC)?;
            let mut byte = [0];
            loop {
                let (mut stream, _) = listener.accept()?;
                if stop.load(Ordering::Relaxed) {
                    return Ok(());
                }
                stream.set_read_timeout(Some(PATIENCE))?;
                while stream.read(&mut byte)? == 1 {
                    stream.write_all(&byte)?;
                }
            }
        });
        let client = route.from.netns.run(|| {
            cpu::pin(cpu::TRAFFIC)?;
            let (mut byte, mut count) = ([1], 0_u32);
            let start = Instant::now();
            let result = (|| -> Result<()> {
                while start.elapsed() < SLICE {
                    let mut stream = TcpStream::connect(address)?;
                    if with_request {
                        stream.write_all(&byte)?;
                        stream.read_exact(&mut byte)?;
                    }
                    // Both ends have closed before the next: else the client runs ahead until the queue is full.
                    stream.shutdown(Shutdown::Write)?;
                    ensure!(stream.read(&mut byte)? == 0, "the server says more");
                    count += 1;
                }
                Ok(())
            })();
            let elapsed = start.elapsed();
            // One more connection ends the server, whatever happened.
            stop.store(true, Ordering::Relaxed);
            let _last = TcpStream::connect(address)?;
            result?;
            Ok(1e6 * elapsed.as_secs_f64() / f64::from(count))
        });
        server
            .join()
            .unwrap_or_else(|panic| std::panic::resume_unwind(panic))?;
        client
    })
}
