//! Metrics over TLS for those whom the API server lets read them: the real agent as `components/secure-metrics` sets it up,
//! and a real Prometheus as the monitors of that component have it scrape.

use std::fs;

use anyhow::{Result, ensure};
use nix::sys::signal::Signal;
use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, IsCa, KeyPair};

use super::server::Prometheus;
use crate::{
    cluster,
    life::{Agent, Home, LISTEN, eventually, plan_flags, turn},
    quiet::Quiet,
};
use xtask::testbed::traffic::Tcp;

/// What the certificate is for.
const NAME: &str = "aksnet.aksnet.svc";

/// As Prometheus says what the agent answered.
const REFUSED: [(&str, &str); 4] = [
    ("without-token", "401 Unauthorized"),
    ("unknown-token", "401 Unauthorized"),
    ("may-not", "403 Forbidden"),
    ("without-tls", "malformed HTTP response"),
];

/// A certificate, its key and the CA that signed it, as files of a home.
fn certify(home: &Home) -> Result<()> {
    let mut params = CertificateParams::new(vec![])?;
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    let ca = CertifiedIssuer::self_signed(params, KeyPair::generate()?)?;
    let key = KeyPair::generate()?;
    let cert = CertificateParams::new(vec![NAME.to_owned()])?.signed_by(&key, &ca)?;
    for (name, text) in [
        ("ca.crt", ca.pem()),
        ("tls.crt", cert.pem()),
        ("tls.key", key.serialize_pem()),
    ] {
        fs::write(home.path().join(name), text)?;
    }
    Ok(())
}

#[test]
fn a_prometheus_whose_token_may_reads_over_tls_and_others_are_told_why_not() -> Result<()> {
    let Some(_turn) = turn() else { return Ok(()) };
    let quiet = Quiet::build()?;
    let bed = &quiet.bed;
    let home = Home::new()?;
    certify(&home)?;
    let api = cluster::start(bed)?;
    api.grant(
        "one-that-may",
        "system:serviceaccount:aksnet:aksnet-scraper",
        &["/metrics"],
    );
    api.grant(
        "another",
        "system:serviceaccount:default:default",
        &["/version"],
    );
    let path = |name: &str| home.path().join(name).display().to_string();
    let mut command = home.command(bed, "run");
    command
        .args(["--listen", LISTEN, "--interval", "100ms"])
        .args(["--metrics-auth", "token"])
        .args([
            "--tls-cert",
            &path("tls.crt"),
            "--tls-key",
            &path("tls.key"),
        ])
        .args(cluster::flags(bed, &home)?)
        .args(plan_flags(bed));
    let agent = Agent::spawn(bed, &home, &mut command)?;

    let tls = format!(
        "scheme: https\ntls_config: {{ca_file: '{}', server_name: {NAME}}}\n",
        path("ca.crt")
    );
    let with = |token: &str| format!("{tls}authorization: {{credentials: {token}}}\n");
    let prometheus = Prometheus::with_jobs(
        bed,
        &home,
        &[
            ("aksnet", &with("one-that-may")),
            ("without-token", &tls),
            ("unknown-token", &with("of-nobody")),
            ("may-not", &with("another")),
            ("without-tls", ""),
        ],
    )?;
    let value = |expr: &str| {
        let series = prometheus.query(expr).unwrap_or_default();
        let last = series.first().and_then(|one| one.values.last().copied());
        last.map(|(_, value)| value)
    };
    let scraped = eventually("it is scraped", || {
        Ok(value("up{job=\"aksnet\"}") == Some(1.0))
    });
    scraped.map_err(|error| error.context(agent.said()))?;
    let made = Tcp::to(quiet.server.address())
        .connections(30)
        .run(bed.pod(0).netns())?;
    eventually("its connections are all there", || {
        let sum = "sum(aksnet_flow_connections_total{job=\"aksnet\",protocol=\"tcp\",class=\"pod_to_pod\"})";
        Ok(value(sum) == Some(f64::from(u32::try_from(made.connections)?)))
    })?;

    for (job, why) in REFUSED {
        eventually("each of the others was refused", || {
            Ok(value(&format!("up{{job=\"{job}\"}}")) == Some(0.0))
        })?;
        let error = prometheus.scrape_error(job)?;
        ensure!(error.contains(why), "{job}: {error:?} and not {why:?}");
    }
    assert_eq!(value("count(aksnet_build_info)"), Some(1.0));
    agent.stop(Signal::SIGTERM)?;
    Ok(())
}
