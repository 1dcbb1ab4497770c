//! TLS, and clients that show certificates: real handshakes with certificates of the tests' own.

use std::{fs, time::Duration};

use aksnet_agent::{
    admin::{Files, Limits, Tls},
    exit::{Exit, Failure},
};
use rcgen::ExtendedKeyUsagePurpose;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

use crate::bed::{Ca, Pair, Server, code, code_tls, dial_tls, door, eventually, files, metrics};

#[tokio::test]
async fn over_tls_everything_is_as_without_and_nothing_is_said_in_clear() {
    let directory = tempfile::tempdir().unwrap();
    let ca = Ca::new("servers");
    let door = door(directory.path(), &ca.server(), None);
    assert_eq!(door.scheme(), "https");
    let server = Server::with(metrics("up 1\n"), door, Limits::default()).await;
    for path in ["/metrics", "/live", "/status", "/"] {
        assert_eq!(
            code_tls(&server, &ca, None, path, "").await.unwrap(),
            200,
            "{path}"
        );
    }
    assert_eq!(
        code_tls(&server, &ca, None, "/ready", "").await.unwrap(),
        503
    );
    let stream = dial_tls(&server, &ca, None).await.unwrap();
    assert_eq!(
        stream.get_ref().1.alpn_protocol(),
        None,
        "none was asked for"
    );

    let stranger = Ca::new("strangers");
    let error = dial_tls(&server, &stranger, None).await.unwrap_err();
    assert!(error.to_string().contains("UnknownIssuer"), "{error}");

    // Whoever speaks plain HTTP hears an alert of TLS's and no more.
    let mut plain = server.dial().await;
    plain
        .write_all(b"GET /metrics HTTP/1.1\r\nHost: x\r\n\r\n")
        .await
        .unwrap();
    let mut heard = Vec::new();
    let _reset = plain.read_to_end(&mut heard).await;
    assert!(heard.len() < 16 && !heard.starts_with(b"HTTP"), "{heard:?}");
}

#[tokio::test]
async fn with_a_client_ca_only_its_clients_see_more_than_the_probes() {
    let directory = tempfile::tempdir().unwrap();
    let (ca, clients, strangers) = (Ca::new("servers"), Ca::new("clients"), Ca::new("others"));
    let door = door(directory.path(), &ca.server(), Some(&clients));
    let server = Server::with(metrics("up 1\n"), door, Limits::default()).await;
    let known = clients.client();
    for path in ["/metrics", "/status", "/", "/nothing"] {
        let without = code_tls(&server, &ca, None, path, "").await.unwrap();
        assert_eq!(without, 403, "{path}");
        let with = code_tls(&server, &ca, Some(&known), path, "")
            .await
            .unwrap();
        assert_eq!(with, if path == "/nothing" { 404 } else { 200 }, "{path}");
    }
    assert_eq!(
        code_tls(&server, &ca, None, "/live", "").await.unwrap(),
        200
    );
    assert_eq!(
        code_tls(&server, &ca, None, "/ready", "").await.unwrap(),
        503
    );
    // A token means nothing where none is reviewed.
    let token = "Authorization: Bearer x\r\n";
    assert_eq!(
        code_tls(&server, &ca, None, "/metrics", token)
            .await
            .unwrap(),
        403
    );

    // Of another CA, of the server's own, past its end, or not for clients: no handshake.
    for wrong in [
        strangers.client(),
        ca.client(),
        clients.signs(ExtendedKeyUsagePurpose::ClientAuth, 2021),
        clients.server(),
    ] {
        let said = code_tls(&server, &ca, Some(&wrong), "/metrics", "").await;
        assert!(said.is_err(), "{said:?}");
        let said = code_tls(&server, &ca, Some(&wrong), "/live", "").await;
        assert!(said.is_err(), "{said:?}");
    }
}

#[tokio::test]
async fn files_that_change_are_used_and_bad_ones_are_not() {
    let directory = tempfile::tempdir().unwrap();
    let (first, second) = (Ca::new("first"), Ca::new("second"));
    let (old_clients, new_clients) = (Ca::new("old"), Ca::new("new"));
    let door = door(directory.path(), &first.server(), Some(&old_clients));
    let limits = Limits {
        look: Duration::from_millis(20),
        ..Limits::default()
    };
    let server = Server::with(metrics("up 1\n"), door, limits).await;
    let (old, new) = (old_clients.client(), new_clients.client());
    assert_eq!(
        code_tls(&server, &first, Some(&old), "/metrics", "")
            .await
            .unwrap(),
        200
    );

    // The certificate comes before its key, and then rubbish: what was there goes on.
    let next = second.server();
    for text in [next.cert.as_str(), "rubbish", ""] {
        fs::write(directory.path().join("tls.crt"), text).unwrap();
        tokio::time::sleep(limits.look * 5).await;
        assert_eq!(
            code_tls(&server, &first, Some(&old), "/metrics", "")
                .await
                .unwrap(),
            200
        );
    }
    fs::remove_file(directory.path().join("tls.crt")).unwrap();
    tokio::time::sleep(limits.look * 5).await;
    assert_eq!(
        code_tls(&server, &first, None, "/live", "").await.unwrap(),
        200
    );

    next.write(directory.path());
    eventually("the new certificate is shown", async || {
        code_tls(&server, &second, None, "/live", "").await.is_ok()
    })
    .await;
    assert!(code_tls(&server, &first, None, "/live", "").await.is_err());

    fs::write(directory.path().join("ca.crt"), new_clients.pem()).unwrap();
    eventually("new clients are believed", async || {
        code_tls(&server, &second, Some(&new), "/metrics", "")
            .await
            .is_ok()
    })
    .await;
    assert!(
        code_tls(&server, &second, Some(&old), "/metrics", "")
            .await
            .is_err()
    );
}

fn refusal(files: Files) -> Failure {
    Tls::open(files).err().unwrap()
}

#[test]
fn files_that_cannot_be_used_are_named_with_what_to_do() {
    let directory = tempfile::tempdir().unwrap();
    let ca = Ca::new("servers");
    let good = ca.server();
    let none = refusal(files(directory.path(), false));
    assert_eq!(none.exit, Exit::NoInput);
    let text = none.to_string();
    assert!(
        text.contains("--tls-cert") && text.contains("tls.crt: cannot be read"),
        "{text}"
    );

    let put = |name: &str, text: &str| fs::write(directory.path().join(name), text).unwrap();
    let said = |pair: &Pair, clients: Option<&str>, file: &str, why: &str| {
        pair.write(directory.path());
        if let Some(clients) = clients {
            put("ca.crt", clients);
        }
        let failure = refusal(files(directory.path(), clients.is_some()));
        assert_eq!(failure.exit, Exit::Data, "{failure}");
        let text = failure.to_string();
        assert!(
            text.contains(why) && text.contains(file),
            "'{text}' does not say '{why}'"
        );
        assert!(!text.contains('\n'), "{text}");
    };
    let of = |cert: &str, key: &str| Pair {
        cert: cert.to_owned(),
        key: key.to_owned(),
    };
    let (cert, key) = (good.cert.as_str(), good.key.as_str());
    said(&of("", key), None, "--tls-cert", "has no certificate in it");
    said(
        &of(key, key),
        None,
        "--tls-cert",
        "has no certificate in it",
    );
    let cut = "-----BEGIN CERTIFICATE-----\nTUlJ\n-----END CERTIFICATE-----\n";
    said(&of(cut, key), None, "--tls-cert", "cannot be read");
    said(&of(cert, ""), None, "--tls-key", "has no private key in it");
    said(
        &of(cert, cert),
        None,
        "--tls-key",
        "has no private key in it",
    );
    let other = ca.server();
    said(
        &of(cert, &other.key),
        None,
        "--tls-key",
        "is not the key of --tls-cert",
    );
    let expired = ca.signs(ExtendedKeyUsagePurpose::ServerAuth, 2021);
    said(&expired, None, "--tls-cert", "has expired");
    said(
        &good,
        Some(""),
        "--tls-client-ca",
        "has no certificate in it",
    );
    said(
        &good,
        Some(cut),
        "--tls-client-ca",
        "it takes CAs' certificates",
    );

    good.write(directory.path());
    put("ca.crt", &ca.pem());
    assert!(Tls::open(files(directory.path(), true)).is_ok());
}

#[tokio::test]
async fn without_tls_nothing_is_asked_of_anybody() {
    let server = Server::start(metrics("up 1\n")).await;
    for headers in [
        "",
        "Authorization: Bearer rubbish\r\n",
        "Authorization: Basic eA==\r\n",
    ] {
        for path in ["/metrics", "/status", "/"] {
            assert_eq!(
                code(&server.get(path, headers).await.0),
                200,
                "{path} {headers}"
            );
        }
    }
}
