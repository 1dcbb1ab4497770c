//! As much of HTTP/1.1 as a client of the API needs.

use std::collections::BTreeMap;
use std::io::{self, BufRead, BufReader, Read as _, Write as _};
use std::net::TcpStream;
use std::time::Duration;

/// No body of a request is longer.
const LONGEST: usize = 1 << 20;

/// A request.
#[derive(Debug)]
pub(super) struct Request {
    /// A POST; everything else is a GET.
    pub(super) is_post: bool,
    pub(super) body: Vec<u8>,
    pub(super) path: String,
    pub(super) query: BTreeMap<String, String>,
    pub(super) authorization: String,
}

/// Reads the next request; none when the client has closed the connection.
pub(super) fn read(stream: &mut BufReader<&TcpStream>) -> io::Result<Option<Request>> {
    let mut line = String::new();
    if stream.read_line(&mut line)? == 0 {
        return Ok(None);
    }
    let is_post = line.starts_with("POST ");
    let target = line.split(' ').nth(1).unwrap_or_default().to_owned();
    let mut authorization = String::new();
    let mut length = 0;
    loop {
        let mut header = String::new();
        if stream.read_line(&mut header)? == 0 {
            return Ok(None);
        }
        let Some((name, value)) = header.trim_end().split_once(':') else {
            break;
        };
        if name.eq_ignore_ascii_case("authorization") {
            value.trim().clone_into(&mut authorization);
        }
        if name.eq_ignore_ascii_case("content-length") {
            length = value.trim().parse().unwrap_or(0);
        }
    }
    let mut body = vec![0; LONGEST.min(length)];
    stream.read_exact(&mut body)?;
    let (path, query) = target.split_once('?').unwrap_or((&target, ""));
    let pairs = query.split('&').filter_map(|pair| pair.split_once('='));
    Ok(Some(Request {
        is_post,
        body,
        path: path.to_owned(),
        query: pairs.map(|(k, v)| (decode(k), decode(v))).collect(),
        authorization,
    }))
}

fn decode(text: &str) -> String {
    let mut bytes = Vec::new();
    let mut rest = text.bytes();
    while let Some(byte) = rest.next() {
        match byte {
            b'%' => {
                let digits: Vec<u8> = rest.by_ref().take(2).collect();
                let digits = String::from_utf8_lossy(&digits);
                bytes.extend(u8::from_str_radix(&digits, 16));
            }
            b'+' => bytes.push(b' '),
            byte => bytes.push(byte),
        }
    }
    String::from_utf8_lossy(&bytes).into_owned()
}

/// An answer that is being written, in chunks.
pub(super) struct Answer<'a> {
    stream: &'a TcpStream,
    /// The connection is to break after so many bytes more.
    pub(super) left: Option<usize>,
    /// Bytes at a time, and the pause after each.
    pub(super) dribble: Option<(usize, Duration)>,
    /// Bytes written.
    pub(super) bytes: u64,
}

impl<'a> Answer<'a> {
    pub(super) fn begin(stream: &'a TcpStream, status: u16, headers: &str) -> io::Result<Self> {
        let mut out = stream;
        write!(
            out,
            "HTTP/1.1 {status} X\r\nContent-Type: application/json\r\nTransfer-Encoding: chunked\r\n{headers}\r\n"
        )?;
        Ok(Self {
            stream,
            left: None,
            dribble: None,
            bytes: 0,
        })
    }

    pub(super) fn write(&mut self, data: &[u8]) -> io::Result<()> {
        let size = self.dribble.map_or(usize::MAX, |(size, _)| size.max(1));
        for part in data.chunks(size.min(1 << 20)) {
            let fits = self.left.map_or(part.len(), |left| left.min(part.len()));
            if fits > 0 {
                let mut chunk = format!("{fits:x}\r\n").into_bytes();
                chunk.extend_from_slice(&part[..fits]);
                chunk.extend_from_slice(b"\r\n");
                let mut out = self.stream;
                out.write_all(&chunk)?;
                self.bytes += fits as u64;
            }
            if let Some(left) = &mut self.left {
                *left -= fits;
                if *left == 0 {
                    return Err(io::ErrorKind::ConnectionAborted.into());
                }
            }
            if let Some((_, pause)) = self.dribble {
                std::thread::sleep(pause);
            }
        }
        Ok(())
    }

    pub(super) fn end(self) -> io::Result<()> {
        let mut out = self.stream;
        out.write_all(b"0\r\n\r\n")
    }
}
