//! The accounts of pod addresses on emulated nodes: what the real plugins wrote, and a stand-in for CNS.

use aksnet_agent::{
    config::Config,
    node::{
        Snapshot,
        pod_ips::{self, Accounts, Kubernetes, Living},
    },
};
use anyhow::Result;
use xtask::testbed::{Netns, Testbed};

use crate::rig::{Manner, StandIn, bare, block_on, mirror, root_with, snapshot, turn};

fn read(netns: &Netns, root: &std::path::Path) -> Result<Accounts> {
    let config = Config {
        host_root: root.to_owned(),
        ..Config::default()
    };
    netns.run(|| {
        block_on(pod_ips::read(
            &config,
            &snapshot()?,
            None,
            &Living::default(),
        ))
    })
}

#[test]
fn host_locals_account_is_what_the_plugins_handed_out() -> Result<()> {
    let Some(_turn) = turn() else { return Ok(()) };
    for builder in [Testbed::kubenet(), Testbed::kind()] {
        let bed = builder.pods(3).dual_stack(true).build()?;
        mirror(bed.node().root())?;
        let in_use = || -> Result<Vec<(&str, u64)>> {
            let accounts = read(bed.node().netns(), bed.node().root())?;
            assert_eq!(accounts.skipped, []);
            assert_eq!(accounts.accounts[0].limit, Some(253));
            Ok(accounts
                .accounts
                .iter()
                .map(|a| (a.source, a.in_use))
                .collect())
        };
        assert_eq!(in_use()?, [("host_local", 3), ("host_local_v6", 3)]);
        bed.add_pod("late")?;
        assert_eq!(in_use()?, [("host_local", 4), ("host_local_v6", 4)]);
        bed.delete_pod("late")?;
        bed.delete_pod("web")?;
        assert_eq!(in_use()?, [("host_local", 2), ("host_local_v6", 2)]);
    }
    Ok(())
}

const CNS_NODE: &str =
    r#"{"name": "azure", "plugins": [{"type": "azure-vnet", "ipam": {"type": "azure-cns"}}]}"#;

#[test]
fn cns_is_asked_for_every_state() -> Result<()> {
    let Some(_turn) = turn() else { return Ok(()) };
    let netns = bare()?;
    let root = root_with("etc/cni/net.d/10-azure.conflist", CNS_NODE)?;
    let body = r#"{"IPConfigurationStatus": [
        {"state": "Assigned", "IPAddress": "10.241.0.4"}, {"state": "Available", "IPAddress": "10.241.0.5"}],
        "Response": {"ReturnCode": 0, "Message": ""}}"#;
    let cns = StandIn::start(&netns, "127.0.0.1:10090", Manner::http("200 OK", body))?;
    let accounts = read(&netns, root.path())?;
    let [account] = &accounts.accounts[..] else {
        panic!("{accounts:?}")
    };
    assert_eq!(
        (account.source, account.in_use, account.limit),
        ("azure_cns", 1, Some(2))
    );
    let [request] = &cns.requests()[..] else {
        panic!("one request")
    };
    assert!(request.starts_with("POST /debug/ipaddresses HTTP/1.1\r\n"));
    assert!(request.ends_with(
        r#"{"IPConfigStateFilter":["Assigned","Available","PendingProgramming","PendingRelease"]}"#
    ));
    Ok(())
}

#[test]
fn a_cns_that_does_not_answer_well_is_skipped_with_the_reason() -> Result<()> {
    let Some(_turn) = turn() else { return Ok(()) };
    let netns = bare()?;
    let root = root_with("etc/cni/net.d/10-azure.conflist", CNS_NODE)?;
    let skipped = || -> Result<String> {
        let accounts = read(&netns, root.path())?;
        assert_eq!(accounts.accounts, [], "no account is not an account of 0");
        assert_eq!(accounts.skipped[0].0, "azure_cns");
        Ok(accounts.skipped[0].1.clone())
    };
    assert!(skipped()?.contains("cannot connect"));
    for (manner, says) in [
        (Manner::Slow, "has not answered"),
        (Manner::http("500 Internal Server Error", ""), "500"),
        (Manner::http("200 OK", "[1, 2"), "expected"),
        (Manner::Endless(b'['), "length limit exceeded"),
    ] {
        let _cns = StandIn::start(&netns, "127.0.0.1:10090", manner)?;
        let why = skipped()?;
        assert!(why.contains(says), "{why} does not say '{says}'");
    }
    Ok(())
}

#[test]
fn a_node_without_cns_does_not_ask_the_port() -> Result<()> {
    let Some(_turn) = turn() else { return Ok(()) };
    let netns = bare()?;
    let other = StandIn::start(&netns, "127.0.0.1:10090", Manner::Says(Vec::new()))?;
    let accounts = read(&netns, tempfile::tempdir()?.path())?;
    assert_eq!(accounts, Accounts::default());
    assert_eq!(other.connections(), 0);
    Ok(())
}

#[test]
fn a_state_file_that_is_damaged_is_skipped_and_not_zero() -> Result<()> {
    let root = root_with("var/run/azure-vnet-ipam.json", "{\"IPAM\": {\"Addr")?;
    let config = Config {
        host_root: root.path().to_owned(),
        ..Config::default()
    };
    let kubernetes = Kubernetes {
        pod_cidrs: vec!["10.244.0.0/24".parse()?],
        pods: 5,
    };
    let accounts = block_on(pod_ips::read(
        &config,
        &Snapshot::default(),
        Some(&kubernetes),
        &Living::default(),
    ))?;
    assert_eq!(accounts.skipped[0].0, "azure_vnet_ipam");
    // The other accounts are not touched by that.
    let [account] = &accounts.accounts[..] else {
        panic!("{accounts:?}")
    };
    assert_eq!((account.source, account.in_use), ("pod_cidr", 5));
    Ok(())
}
