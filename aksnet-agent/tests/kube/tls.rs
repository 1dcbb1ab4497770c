//! The same over TLS, with a CA of the test's own.

use std::{net::SocketAddr, path::Path, process::Command, sync::Arc};

use aksnet_agent::identify::object::Kind;
use tokio::{
    io::copy_bidirectional,
    net::{TcpListener, TcpStream},
};
use tokio_rustls::{
    TlsAcceptor,
    rustls::{
        ServerConfig,
        pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject as _},
    },
};
use xtask::testbed::api::{ApiServer, kubeconfig, objects::namespace};

use crate::watcher::{FAST, Watcher};

/// Makes `NAME.pem` and `NAME.key` for 127.0.0.1 in a directory. False if there is no openssl.
fn certificate(directory: &Path, name: &str) -> bool {
    let made = Command::new("openssl")
        .current_dir(directory)
        .args([
            "req",
            "-x509",
            "-newkey",
            "ec",
            "-pkeyopt",
            "ec_paramgen_curve:P-256",
        ])
        .args(["-nodes", "-days", "1", "-subj", "/CN=stand-in"])
        .args(["-addext", "subjectAltName=IP:127.0.0.1"])
        // A server's, not a CA's; its own signature makes it a CA of one.
        .args(["-addext", "basicConstraints=critical,CA:FALSE"])
        .args([
            "-keyout",
            &format!("{name}.key"),
            "-out",
            &format!("{name}.pem"),
        ])
        .output();
    match made {
        Ok(output) => {
            assert!(output.status.success(), "{output:?}");
            true
        }
        Err(_) => false,
    }
}

/// Ends TLS before a server; gives the address to dial.
async fn terminate(directory: &Path, server: SocketAddr) -> SocketAddr {
    let certificate = CertificateDer::from_pem_file(directory.join("good.pem")).unwrap();
    let key = PrivateKeyDer::from_pem_file(directory.join("good.key")).unwrap();
    let config = ServerConfig::builder()
        .with_no_client_auth()
        .with_single_cert(vec![certificate], key)
        .unwrap();
    let acceptor = TlsAcceptor::from(Arc::new(config));
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            let acceptor = acceptor.clone();
            tokio::spawn(async move {
                let mut inner = TcpStream::connect(server).await?;
                let mut outer = acceptor.accept(stream).await?;
                copy_bidirectional(&mut outer, &mut inner).await
            });
        }
    });
    address
}

#[test]
fn a_server_is_believed_by_its_ca_alone() {
    let directory = tempfile::tempdir().unwrap();
    if !certificate(directory.path(), "good") || !certificate(directory.path(), "other") {
        println!("skipped: openssl is not installed, which makes the certificates");
        return;
    }
    let server = ApiServer::start().unwrap();
    server.apply(namespace("first"));
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let address = runtime.block_on(terminate(directory.path(), server.address()));
    let config = |ca: &str| {
        let ca = directory.path().join(ca);
        let line = format!("    certificate-authority: {}\n    server: ", ca.display());
        kubeconfig(&format!("https://{address}")).replace("    server: ", &line)
    };
    let watcher = Watcher::with(&config("good.pem"), FAST, false);
    watcher.wait("all watches", |w| w.status(Kind::Namespace).connected);
    assert!(watcher.knows("first"));

    let watcher = Watcher::with(&config("other.pem"), FAST, false);
    watcher.wait("failures", |w| w.status(Kind::Namespace).retries >= 2);
    let error = watcher.status(Kind::Namespace).last_error.unwrap();
    assert!(error.contains("certificate"), "{error}");
    assert!(!watcher.knows("first"));
}
