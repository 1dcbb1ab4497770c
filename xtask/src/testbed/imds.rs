//! A stand-in for Azure's *instance metadata service*: plain HTTP at 169.254.169.254 that answers only requests with
//! the header `Metadata: true`, as the real one does against requests that a pod was tricked into.

use std::io::{Read as _, Write as _};
use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

use anyhow::{Context as _, Result};

use super::netns::Netns;
use super::plan::IMDS;

/// The longest request that it reads.
const LONGEST: usize = 8 * 1024;

/// A running service. Dropping it stops it.
#[derive(Debug)]
pub struct Imds {
    address: SocketAddr,
    stop: Arc<AtomicBool>,
    answered: Arc<AtomicU64>,
    refused: Arc<AtomicU64>,
    thread: Option<JoinHandle<()>>,
}

impl Imds {
    /// Starts it where 169.254.169.254 is an own address. `zone` is the instance's, such as `2`; empty for none. The
    /// instance is behind a standard load balancer.
    ///
    /// # Errors
    /// When the address cannot be had.
    pub fn start(netns: &Netns, zone: &str) -> Result<Self> {
        let address = SocketAddr::new(IMDS.into(), 80);
        Self::start_at(netns, address, zone)
    }

    /// The same for an instance in no zone, behind a basic load balancer or none: the service does not tell these apart.
    ///
    /// # Errors
    /// When the address cannot be had.
    pub fn start_without_balancer(netns: &Netns) -> Result<Self> {
        let address = SocketAddr::new(IMDS.into(), 80);
        Self::listen(netns, address, "", false)
    }

    /// The same at another address.
    ///
    /// # Errors
    /// When the address cannot be had.
    pub fn start_at(netns: &Netns, address: SocketAddr, zone: &str) -> Result<Self> {
        Self::listen(netns, address, zone, true)
    }

    fn listen(netns: &Netns, address: SocketAddr, zone: &str, balanced: bool) -> Result<Self> {
        let listener = netns
            .run(|| TcpListener::bind(address).with_context(|| format!("cannot bind {address}")))?;
        let address = listener.local_addr()?;
        listener.set_nonblocking(true)?;
        let (stop, answered, refused) = (
            Arc::new(AtomicBool::new(false)),
            Arc::new(AtomicU64::new(0)),
            Arc::new(AtomicU64::new(0)),
        );
        let thread = std::thread::spawn({
            let (stop, answered, refused) = (
                Arc::clone(&stop),
                Arc::clone(&answered),
                Arc::clone(&refused),
            );
            let zone = zone.to_owned();
            move || {
                while !stop.load(Ordering::SeqCst) {
                    let Ok((stream, _)) = listener.accept() else {
                        std::thread::sleep(Duration::from_millis(5));
                        continue;
                    };
                    // A client that goes away is its own affair.
                    if let Ok(good) = serve(stream, &zone, balanced) {
                        let counter = if good { &answered } else { &refused };
                        counter.fetch_add(1, Ordering::SeqCst);
                    }
                }
            }
        });
        Ok(Self {
            address,
            stop,
            answered,
            refused,
            thread: Some(thread),
        })
    }

    /// Where it listens.
    #[must_use]
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Requests that it answered with what was asked for.
    #[must_use]
    pub fn answered(&self) -> u64 {
        self.answered.load(Ordering::SeqCst)
    }

    /// Requests that it refused.
    #[must_use]
    pub fn refused(&self) -> u64 {
        self.refused.load(Ordering::SeqCst)
    }
}

impl Drop for Imds {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::SeqCst);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

/// Asks for a path as a client in a namespace, with further header lines (each with its line end); the status and
/// the body.
///
/// # Errors
/// When there is no answer.
pub fn ask(netns: &Netns, to: SocketAddr, path: &str, headers: &str) -> Result<(u16, String)> {
    netns.run(|| {
        let mut stream = TcpStream::connect_timeout(&to, Duration::from_secs(2))?;
        stream.set_read_timeout(Some(Duration::from_secs(5)))?;
        write!(
            stream,
            "GET {path} HTTP/1.1\r\nHost: {}\r\nConnection: close\r\n{headers}\r\n",
            IpAddr::from(IMDS)
        )?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer)?;
        let (head, body) = answer.split_once("\r\n\r\n").context("no HTTP answer")?;
        let status = head.split(' ').nth(1).context("no status")?.parse()?;
        Ok((status, body.to_owned()))
    })
}

fn serve(mut stream: TcpStream, zone: &str, balanced: bool) -> Result<bool> {
    stream.set_nonblocking(false)?;
    stream.set_read_timeout(Some(Duration::from_secs(2)))?;
    let mut request = Vec::new();
    let mut part = [0; 1024];
    while !request.windows(4).any(|w| w == b"\r\n\r\n") && request.len() < LONGEST {
        match stream.read(&mut part)? {
            0 => break,
            read => request.extend_from_slice(&part[..read]),
        }
    }
    let (status, kind, body) = answer(&String::from_utf8_lossy(&request), zone, balanced);
    write!(
        stream,
        "HTTP/1.1 {status}\r\nContent-Type: {kind}\r\nContent-Length: {}\r\nConnection: close\r\n\r\n{body}",
        body.len()
    )?;
    Ok(status.starts_with("200"))
}

/// What it answers: status line, content type, body.
fn answer(request: &str, zone: &str, balanced: bool) -> (&'static str, &'static str, String) {
    const JSON: &str = "application/json; charset=utf-8";
    const TEXT: &str = "text/plain; charset=utf-8";
    let mut lines = request.lines();
    let target = lines
        .next()
        .and_then(|l| l.split(' ').nth(1))
        .unwrap_or_default();
    let headers: Vec<(String, &str)> = lines
        .filter_map(|l| l.split_once(':'))
        .map(|(name, value)| (name.trim().to_ascii_lowercase(), value.trim()))
        .collect();
    let header = |name: &str| headers.iter().find(|(n, _)| n == name).map(|(_, v)| *v);
    if !header("metadata").is_some_and(|v| v.eq_ignore_ascii_case("true")) {
        let body = r#"{"error":"Bad request. Required metadata header not specified"}"#;
        return ("400 Bad Request", JSON, body.to_owned());
    }
    if header("x-forwarded-for").is_some() {
        let body = r#"{"error":"Bad request. Header X-Forwarded-For is not allowed"}"#;
        return ("400 Bad Request", JSON, body.to_owned());
    }
    let (path, query) = target.split_once('?').unwrap_or((target, ""));
    if !query
        .split('&')
        .any(|p| p.starts_with("api-version=") && p.len() > 12)
    {
        let body = r#"{"error":"Bad request. api-version was not specified in the request"}"#;
        return ("400 Bad Request", JSON, body.to_owned());
    }
    let compute = serde_json::json!({
        "location": "westeurope", "name": "aks-nodepool1-12345678-vmss_0", "zone": zone,
        "vmScaleSetName": "aks-nodepool1-12345678-vmss", "azEnvironment": "AzurePublicCloud",
    });
    match path.trim_end_matches('/') {
        "/metadata/instance" => (
            "200 OK",
            JSON,
            serde_json::json!({ "compute": compute }).to_string(),
        ),
        "/metadata/instance/compute" => ("200 OK", JSON, compute.to_string()),
        "/metadata/instance/compute/zone" => ("200 OK", TEXT, zone.to_owned()),
        "/metadata/instance/compute/location" => ("200 OK", TEXT, "westeurope".to_owned()),
        "/metadata/loadbalancer" if balanced => {
            let rules = serde_json::json!({"loadbalancer": {
                "publicIpAddresses": [], "inboundRules": [], "outboundRules": [],
            }});
            ("200 OK", JSON, rules.to_string())
        }
        "/metadata/loadbalancer" => {
            let body = r#"{"error":"No load balancer metadata is found. Please check if your VM is using any non-basic SKU load balancer and retry later."}"#;
            ("404 Not Found", JSON, body.to_owned())
        }
        _ => ("404 Not Found", JSON, r#"{"error":"Not found"}"#.to_owned()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_request_with_the_header_is_answered() {
        let path = "/metadata/instance/compute/zone?api-version=2021-02-01&format=text";
        let bare = answer(
            &format!("GET {path} HTTP/1.1\r\nHost: x\r\n\r\n"),
            "2",
            true,
        );
        assert_eq!(bare.0, "400 Bad Request");
        let good = answer(
            &format!("GET {path} HTTP/1.1\r\nmetadata: True\r\n\r\n"),
            "2",
            true,
        );
        assert_eq!((good.0, good.2.as_str()), ("200 OK", "2"));
        let through_a_proxy =
            format!("GET {path} HTTP/1.1\r\nMetadata: true\r\nX-Forwarded-For: y\r\n\r\n");
        assert_eq!(answer(&through_a_proxy, "2", true).0, "400 Bad Request");
        let no_version = "GET /metadata/instance HTTP/1.1\r\nMetadata: true\r\n\r\n";
        assert_eq!(answer(no_version, "2", true).0, "400 Bad Request");
    }
}
