//! *TLS* for what is served: a certificate and its key from files, and whose clients' certificates are believed.
//!
//! Files are looked at again while the agent runs, as cert-manager and kubelet replace them. What cannot be used is told
//! and the former stays: a certificate is often there a moment before its key.

use std::{
    fs,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use tokio_rustls::{
    TlsAcceptor,
    rustls::{
        self, RootCertStore, ServerConfig,
        crypto::ring,
        pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject as _},
        server::WebPkiClientVerifier,
    },
};
use x509_cert::der::Decode as _;

use crate::exit::{Exit, Failure};

/// No certificate, key or list of CAs is longer.
const LONGEST: u64 = 1 << 20;

/// Which files.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Files {
    /// The certificate, and those between it and its CA.
    pub cert: PathBuf,
    /// Its key.
    pub key: PathBuf,
    /// The CAs of clients that are believed.
    pub client_ca: Option<PathBuf>,
}

/// What the files held.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Contents {
    cert: Vec<u8>,
    key: Vec<u8>,
    client_ca: Option<Vec<u8>>,
}

struct Current {
    config: Arc<ServerConfig>,
    /// When the certificate ends.
    ends: SystemTime,
    /// What was looked at last, used or not.
    seen: Contents,
    told_of_end: bool,
}

/// TLS as the files have it now.
pub struct Tls {
    files: Files,
    current: Mutex<Current>,
}

impl Tls {
    /// Reads the files.
    ///
    /// # Errors
    /// When one cannot be read (exit code 66), or is not what it should be, or the certificate has expired (65).
    pub fn open(files: Files) -> Result<Self, Failure> {
        let seen = read(&files)?;
        let (config, ends) = build(&files, &seen)?;
        if ends < SystemTime::now() {
            return Err(unusable(
                "--tls-cert",
                &files.cert,
                &format!("has expired {}", ago(ends)),
                "renew it",
            ));
        }
        Ok(Self {
            files,
            current: Mutex::new(Current {
                config,
                ends,
                seen,
                told_of_end: false,
            }),
        })
    }

    fn current(&self) -> std::sync::MutexGuard<'_, Current> {
        // Fields are replaced whole.
        self.current.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// For a handshake.
    pub(super) fn acceptor(&self) -> TlsAcceptor {
        TlsAcceptor::from(self.current().config.clone())
    }

    /// Whether clients may show certificates.
    pub(super) fn knows_clients(&self) -> bool {
        self.files.client_ca.is_some()
    }

    /// Takes what the files hold now, if it is something else and good. True if it did.
    pub(super) fn look(&self) -> bool {
        let found = read(&self.files);
        let mut current = self.current();
        let found = match found {
            Ok(found) if found != current.seen => found,
            Ok(_) => {
                current.tell_of_end(&self.files);
                return false;
            }
            Err(failure) => {
                tracing::debug!("{failure}; the former goes on");
                return false;
            }
        };
        let built = build(&self.files, &found);
        current.seen = found;
        match built {
            Ok((config, ends)) => {
                current.config = config;
                current.ends = ends;
                current.told_of_end = false;
                tracing::info!("{} has changed, and is used", self.files.cert.display());
                current.tell_of_end(&self.files);
                true
            }
            Err(failure) => {
                tracing::warn!("{failure}; what was there before goes on");
                false
            }
        }
    }
}

impl Current {
    /// Says once that scrapes will fail.
    fn tell_of_end(&mut self, files: &Files) {
        if self.ends < SystemTime::now() && !self.told_of_end {
            self.told_of_end = true;
            let path = files.cert.display();
            tracing::warn!(
                "--tls-cert {path}: has expired {}; whoever checks it does not scrape. Renew it",
                ago(self.ends)
            );
        }
    }
}

fn ago(time: SystemTime) -> String {
    let days = time.elapsed().map_or(0, |e| e.as_secs() / 86_400);
    match days {
        0 => "today".to_owned(),
        1 => "1 day ago".to_owned(),
        days => format!("{days} days ago"),
    }
}

fn unusable(flag: &str, path: &Path, why: &str, todo: &str) -> Failure {
    let path = path.display();
    Failure::new(Exit::Data, format_args!("{flag} {path}: {why}; {todo}"))
}

fn read(files: &Files) -> Result<Contents, Failure> {
    let read = |flag: &str, path: &Path| {
        let what = fs::metadata(path).and_then(|meta| {
            if meta.len() > LONGEST {
                return Err(std::io::Error::other("longer than 1 MiB"));
            }
            fs::read(path)
        });
        what.map_err(|error| {
            Failure::new(
                Exit::NoInput,
                format_args!(
                    "{flag} {}: cannot be read: {error}; name a PEM file that can",
                    path.display()
                ),
            )
        })
    };
    Ok(Contents {
        cert: read("--tls-cert", &files.cert)?,
        key: read("--tls-key", &files.key)?,
        client_ca: match &files.client_ca {
            Some(path) => Some(read("--tls-client-ca", path)?),
            None => None,
        },
    })
}

/// All certificates of a PEM text.
fn certificates(
    flag: &str,
    path: &Path,
    pem: &[u8],
) -> Result<Vec<CertificateDer<'static>>, Failure> {
    const FIX: &str = "it takes `-----BEGIN CERTIFICATE-----`";
    let found: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(pem).collect();
    let found = found.map_err(|error| unusable(flag, path, &error.to_string(), FIX))?;
    if found.is_empty() {
        return Err(unusable(flag, path, "has no certificate in it", FIX));
    }
    Ok(found)
}

/// When a certificate ends.
fn ends(path: &Path, certificate: &CertificateDer<'_>) -> Result<SystemTime, Failure> {
    let parsed = x509_cert::Certificate::from_der(certificate).map_err(|error| {
        let why = format!("its first certificate cannot be read ({error})");
        unusable("--tls-cert", path, &why, "make it anew")
    })?;
    let since: Duration = parsed.tbs_certificate.validity.not_after.to_unix_duration();
    Ok(UNIX_EPOCH + since)
}

fn build(files: &Files, contents: &Contents) -> Result<(Arc<ServerConfig>, SystemTime), Failure> {
    let chain = certificates("--tls-cert", &files.cert, &contents.cert)?;
    let ends = ends(&files.cert, &chain[0])?;
    let key = PrivateKeyDer::from_pem_slice(&contents.key).map_err(|error| {
        let why = match error {
            rustls::pki_types::pem::Error::NoItemsFound => {
                "has no private key in it (an encrypted one is not read)".to_owned()
            }
            error => error.to_string(),
        };
        let todo = "it takes `-----BEGIN PRIVATE KEY-----`";
        unusable("--tls-key", &files.key, &why, todo)
    })?;
    let provider = Arc::new(ring::default_provider());
    let builder = ServerConfig::builder_with_provider(provider.clone())
        .with_safe_default_protocol_versions()
        .map_err(|error| Failure::new(Exit::Software, format_args!("TLS: {error}")))?;
    let builder = match (&files.client_ca, &contents.client_ca) {
        (Some(path), Some(pem)) => {
            let refused =
                |why: String| unusable("--tls-client-ca", path, &why, "it takes CAs' certificates");
            let mut roots = RootCertStore::empty();
            for ca in certificates("--tls-client-ca", path, pem)? {
                roots.add(ca).map_err(|error| refused(error.to_string()))?;
            }
            // Probes come without one; who needs one is decided when it is known what is asked for.
            let verifier = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider)
                .allow_unauthenticated()
                .build()
                .map_err(|error| refused(error.to_string()))?;
            builder.with_client_cert_verifier(verifier)
        }
        _ => builder.with_no_client_auth(),
    };
    let mut config = builder.with_single_cert(chain, key).map_err(|error| {
        let cert = files.cert.display();
        let why = match error {
            rustls::Error::InconsistentKeys(_) => format!("is not the key of --tls-cert {cert}"),
            error => format!("does not go with --tls-cert {cert}: {error}"),
        };
        let todo = "name the two files that were made together";
        unusable("--tls-key", &files.key, &why, todo)
    })?;
    config.alpn_protocols = vec![b"http/1.1".to_vec()];
    Ok((Arc::new(config), ends))
}
