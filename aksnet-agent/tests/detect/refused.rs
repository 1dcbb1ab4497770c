//! What may not be read is not known.

use aksnet_agent::node::found::{self, Settings};
use anyhow::{Result, ensure};
use xtask::testbed::{Backend, Testbed};

use crate::rig::{detect, root_with, snapshot, turn};

/// Gives up root on this thread alone.
fn become_nobody() -> Result<()> {
    // SAFETY: the system call takes numbers only. Called past the C library, it changes the calling thread's
    // ids and no other's, and that thread ends with its test.
    let result = unsafe { libc::syscall(libc::SYS_setresuid, 65_534, 65_534, 65_534) };
    ensure!(result == 0, "{}", std::io::Error::last_os_error());
    Ok(())
}

#[test]
fn an_agent_without_rights_knows_nothing_of_the_rules() -> Result<()> {
    let Some(_turn) = turn() else { return Ok(()) };
    for backend in [Backend::Nft, Backend::Legacy] {
        let bed = Testbed::kubenet().backend(backend).build()?;
        let settings = Settings {
            host_root: tempfile::tempdir()?.path().to_owned(),
            compute: None,
        };
        let found = bed.node().netns().run(|| {
            let snapshot = snapshot()?;
            become_nobody()?;
            Ok(found::detect(&settings, &snapshot, None))
        })?;
        assert_eq!(found.proxy_mode.value, None, "{found:?}");
        assert_eq!(found.policy_engine.value, None);
        assert_eq!(found.masquerade.value, None);
        let why = found.policy_engine.evidence.join("; ");
        assert!(
            why.contains("nf_tables cannot be read: not permitted"),
            "{why}"
        );
        // That it has no tables can be seen without rights; what is in them cannot.
        let legacy = why.contains("x_tables for IPv4 cannot be read: not permitted");
        assert_eq!(legacy, backend == Backend::Legacy, "{why}");
        // What needs no rights is known.
        assert_eq!(found.cni.value, Some("kubenet"));
    }
    Ok(())
}

#[test]
fn a_configuration_that_is_damaged_is_not_known() -> Result<()> {
    let Some(_turn) = turn() else { return Ok(()) };
    let bare = crate::rig::bare()?;
    let root = root_with("etc/cni/net.d/10-x.conflist", "{\"plugins\": [")?;
    let cni = detect(&bare, root.path(), None)?.cni;
    assert_eq!(cni.value, None);
    assert!(cni.evidence[0].contains("10-x.conflist"), "{cni:?}");
    Ok(())
}

#[test]
fn the_first_configuration_by_name_counts() -> Result<()> {
    let Some(_turn) = turn() else { return Ok(()) };
    let bare = crate::rig::bare()?;
    let root = root_with(
        "etc/cni/net.d/10-calico.conflist",
        "{\"plugins\": [{\"type\": \"calico\"}]}",
    )?;
    let directory = root.path().join("etc/cni/net.d");
    let azure = "{\"plugins\": [{\"type\": \"azure-vnet\"}]}";
    std::fs::write(directory.join("15-azure.conflist"), azure)?;
    std::fs::write(directory.join("05-cilium.conflist.bak"), azure)?;
    let cni = detect(&bare, root.path(), None)?.cni;
    assert_eq!(cni.value, Some("calico"), "{cni:?}");
    Ok(())
}
