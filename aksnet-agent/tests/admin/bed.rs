//! A server with a board of its own, and clients.

use std::{net::SocketAddr, path::Path, sync::Arc, time::Duration};

use aksnet_agent::{
    admin::{self, Door, Files, Limits, Metrics, Tls},
    board::Board,
    config::{Effective, merge},
};
use rcgen::{
    BasicConstraints, CertificateParams, CertifiedIssuer, DnType, ExtendedKeyUsagePurpose, IsCa,
    KeyPair, date_time_ymd,
};
use tokio::{
    io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt},
    net::TcpStream,
    sync::oneshot,
};
use tokio_rustls::{
    TlsConnector,
    client::TlsStream,
    rustls::{
        ClientConfig, RootCertStore,
        crypto::ring,
        pki_types::{CertificateDer, PrivateKeyDer, ServerName, pem::PemObject as _},
    },
};

pub struct Server {
    pub board: Arc<Board>,
    pub address: SocketAddr,
    pub stop: oneshot::Sender<()>,
    pub task: tokio::task::JoinHandle<std::io::Result<()>>,
}

impl Server {
    pub async fn start(metrics: Metrics) -> Self {
        Self::with(metrics, Door::default(), Limits::default()).await
    }

    pub async fn with(metrics: Metrics, door: Door, limits: Limits) -> Self {
        Self::of(&merge::merge(vec![]).unwrap(), metrics, door, limits).await
    }

    pub async fn of(effective: &Effective, metrics: Metrics, door: Door, limits: Limits) -> Self {
        let board = Arc::new(Board::new(effective));
        let listener = admin::bind(([127, 0, 0, 1], 0).into()).await.unwrap();
        let address = listener.local_addr().unwrap();
        let (stop, stopped) = oneshot::channel::<()>();
        let stopped = async {
            let _either_way = stopped.await;
        };
        let task = tokio::spawn(admin::serve(
            listener,
            board.clone(),
            metrics,
            admin::index("The page is elsewhere.\n"),
            (door, limits),
            stopped,
        ));
        Self {
            board,
            address,
            stop,
            task,
        }
    }

    pub async fn dial(&self) -> TcpStream {
        TcpStream::connect(self.address).await.unwrap()
    }

    /// Head and body.
    pub async fn get(&self, path: &str, headers: &str) -> (String, Vec<u8>) {
        ask(self.dial().await, path, headers).await.unwrap()
    }

    /// The status of an answer.
    pub async fn code(&self, path: &str) -> u16 {
        code(&self.get(path, "").await.0)
    }
}

pub fn code(head: &str) -> u16 {
    head.split(' ').nth(1).unwrap().parse().unwrap()
}

/// Head in lower case and body, of an answer over any connection.
pub async fn ask(
    mut stream: impl AsyncRead + AsyncWrite + Unpin,
    path: &str,
    headers: &str,
) -> std::io::Result<(String, Vec<u8>)> {
    let request = format!("GET {path} HTTP/1.1\r\nHost: x\r\n{headers}Connection: close\r\n\r\n");
    stream.write_all(request.as_bytes()).await?;
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer).await?;
    let end = answer.windows(4).position(|w| w == b"\r\n\r\n");
    let Some(end) = end else {
        return Err(std::io::ErrorKind::UnexpectedEof.into());
    };
    let body = answer.split_off(end + 4);
    Ok((String::from_utf8(answer).unwrap().to_lowercase(), body))
}

pub fn metrics(text: &str) -> Metrics {
    let text = text.to_owned();
    Arc::new(move || Ok(text.clone()))
}

/// Waits until something holds.
pub async fn eventually(what: &str, mut holds: impl AsyncFnMut() -> bool) {
    for _ in 0..600 {
        if holds().await {
            return;
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    panic!("not within 30 s: {what}");
}

/// A CA, and what it signs.
pub struct Ca(CertifiedIssuer<'static, KeyPair>);

/// A certificate with its key, in PEM.
#[derive(Clone)]
pub struct Pair {
    pub cert: String,
    pub key: String,
}

impl Ca {
    pub fn new(name: &str) -> Self {
        let mut params = CertificateParams::new(vec![]).unwrap();
        params.distinguished_name.push(DnType::CommonName, name);
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let key = KeyPair::generate().unwrap();
        Self(CertifiedIssuer::self_signed(params, key).unwrap())
    }

    pub fn pem(&self) -> String {
        self.0.pem()
    }

    /// For a server at 127.0.0.1, or for a client, until the first day of a year.
    pub fn signs(&self, usage: ExtendedKeyUsagePurpose, until: i32) -> Pair {
        let mut params = CertificateParams::new(vec!["127.0.0.1".to_owned()]).unwrap();
        params.distinguished_name.push(DnType::CommonName, "x");
        params.extended_key_usages.push(usage);
        params.not_before = date_time_ymd(2020, 1, 1);
        params.not_after = date_time_ymd(until, 1, 1);
        let key = KeyPair::generate().unwrap();
        let cert = params.signed_by(&key, &self.0).unwrap();
        Pair {
            cert: cert.pem(),
            key: key.serialize_pem(),
        }
    }

    pub fn server(&self) -> Pair {
        self.signs(ExtendedKeyUsagePurpose::ServerAuth, 2100)
    }

    pub fn client(&self) -> Pair {
        self.signs(ExtendedKeyUsagePurpose::ClientAuth, 2100)
    }
}

/// The files of a directory.
pub fn files(directory: &Path, with_clients: bool) -> Files {
    Files {
        cert: directory.join("tls.crt"),
        key: directory.join("tls.key"),
        client_ca: with_clients.then(|| directory.join("ca.crt")),
    }
}

impl Pair {
    pub fn write(&self, directory: &Path) {
        std::fs::write(directory.join("tls.crt"), &self.cert).unwrap();
        std::fs::write(directory.join("tls.key"), &self.key).unwrap();
    }
}

/// A door with this certificate, and these clients' CA.
pub fn door(directory: &Path, server: &Pair, clients: Option<&Ca>) -> Door {
    server.write(directory);
    if let Some(clients) = clients {
        std::fs::write(directory.join("ca.crt"), clients.pem()).unwrap();
    }
    let tls = Tls::open(files(directory, clients.is_some())).unwrap();
    Door::new(Some(tls), None)
}

/// A connection over TLS; the server is believed by this CA alone.
pub async fn dial_tls(
    server: &Server,
    ca: &Ca,
    client: Option<&Pair>,
) -> std::io::Result<TlsStream<TcpStream>> {
    let mut roots = RootCertStore::empty();
    roots
        .add(CertificateDer::from_pem_slice(ca.pem().as_bytes()).unwrap())
        .unwrap();
    let builder = ClientConfig::builder_with_provider(Arc::new(ring::default_provider()))
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_root_certificates(roots);
    let config = match client {
        None => builder.with_no_client_auth(),
        Some(pair) => {
            let cert = CertificateDer::from_pem_slice(pair.cert.as_bytes()).unwrap();
            let key = PrivateKeyDer::from_pem_slice(pair.key.as_bytes()).unwrap();
            builder.with_client_auth_cert(vec![cert], key).unwrap()
        }
    };
    let name = ServerName::try_from("127.0.0.1").unwrap();
    let connector = TlsConnector::from(Arc::new(config));
    connector.connect(name, server.dial().await).await
}

/// The status of an answer over TLS.
pub async fn code_tls(
    server: &Server,
    ca: &Ca,
    client: Option<&Pair>,
    path: &str,
    headers: &str,
) -> std::io::Result<u16> {
    let stream = dial_tls(server, ca, client).await?;
    Ok(code(&ask(stream, path, headers).await?.0))
}
