//! The instance metadata service, by a stand-in at its address in the emulated cloud.

use std::path::{Path, PathBuf};

use aksnet_agent::{
    config::Imds,
    node::metadata::{self, ASSET_TAG, AZURE, Compute},
};
use anyhow::Result;
use xtask::testbed::Testbed;

use crate::rig::{Manner, StandIn, block_on, turn};

const SERVICE: &str = "169.254.169.254:80";

/// A machine that says it is Azure's.
fn azure_machine() -> Result<(tempfile::TempDir, PathBuf)> {
    let directory = tempfile::tempdir()?;
    let tag = directory.path().join("chassis_asset_tag");
    std::fs::write(&tag, format!("{AZURE}\n"))?;
    Ok((directory, tag))
}

fn ask(bed: &Testbed, setting: Imds, tag: &Path) -> Result<Result<Compute, String>> {
    bed.node()
        .netns()
        .run(|| block_on(metadata::ask(setting, tag)))
}

#[test]
fn the_zone_is_asked_for_with_the_header() -> Result<()> {
    let Some(_turn) = turn() else { return Ok(()) };
    let bed = Testbed::kubenet().build()?;
    let (_directory, tag) = azure_machine()?;
    let body = r#"{"location": "eastus2", "vmId": "x", "zone": "1"}"#;
    let service = StandIn::start(bed.azure(), SERVICE, Manner::http("200 OK", body))?;
    let compute = ask(&bed, Imds::Auto, &tag)?.expect("an answer");
    assert_eq!(compute.zone(), "eastus2-1");
    let [request] = &service.requests()[..] else {
        panic!("one request")
    };
    assert!(request.starts_with("GET /metadata/instance/compute?api-version="));
    assert!(
        request
            .to_ascii_lowercase()
            .contains("\r\nmetadata: true\r\n")
    );
    Ok(())
}

#[test]
fn nobody_asks_who_is_not_on_azure_or_was_told_not_to() -> Result<()> {
    let Some(_turn) = turn() else { return Ok(()) };
    let bed = Testbed::kubenet().build()?;
    let (directory, tag) = azure_machine()?;
    let body = r#"{"location": "eastus2", "zone": "1"}"#;
    let service = StandIn::start(bed.azure(), SERVICE, Manner::http("200 OK", body))?;
    let off = ask(&bed, Imds::Off, &tag)?.unwrap_err();
    assert!(off.contains("as configured"), "{off}");
    let absent = directory.path().join("absent");
    let other = ask(&bed, Imds::Auto, &absent)?.unwrap_err();
    assert!(other.contains("not asked"), "{other}");
    std::fs::write(&absent, "Default string\n")?;
    assert!(ask(&bed, Imds::Auto, &absent)?.is_err());
    assert_eq!(service.connections(), 0);
    Ok(())
}

#[test]
fn this_machine_is_not_asked_about_unless_it_is_azures() -> Result<()> {
    let tag = Path::new(ASSET_TAG);
    if metadata::is_azure(tag) {
        println!("skipped: this machine says that it is on Azure");
        return Ok(());
    }
    let why = block_on(metadata::ask(Imds::Auto, tag))?.unwrap_err();
    assert!(why.contains("not asked"), "{why}");
    Ok(())
}

#[test]
fn a_service_that_does_not_answer_well_gives_no_zone() -> Result<()> {
    let Some(_turn) = turn() else { return Ok(()) };
    let bed = Testbed::kubenet().build()?;
    let (_directory, tag) = azure_machine()?;
    // Nobody listens.
    let refused = ask(&bed, Imds::Auto, &tag)?.unwrap_err();
    assert!(refused.contains("cannot connect"), "{refused}");
    for (manner, says) in [
        (Manner::Slow, "has not answered"),
        (Manner::Says(b"\0\xff not http\r\n\r\n".to_vec()), "invalid"),
        (Manner::Says(Vec::new()), "connection closed"),
        (Manner::http("403 Forbidden", "{}"), "403"),
        (Manner::http("200 OK", "<html>"), "not as documented"),
        (Manner::http("200 OK", "{}"), "no region"),
        (Manner::Endless(b' '), "length limit exceeded"),
    ] {
        let _service = StandIn::start(bed.azure(), SERVICE, manner)?;
        let why = ask(&bed, Imds::Auto, &tag)?.unwrap_err();
        assert!(why.contains(says), "{why} does not say '{says}'");
    }
    Ok(())
}
