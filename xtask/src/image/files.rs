//! The image's *files*: the agent under both of its names, the libraries that it needs, users, certificates, licences,
//! and empty directories for what is mounted. No shell, no package manager, nothing else.

use std::fs;
use std::os::unix::fs::{PermissionsExt as _, symlink};
use std::path::Path;

use anyhow::{Context as _, Result, ensure};

use super::elf;
use super::licences;
use super::machine::Machine;
use super::sbom;
use crate::say;

/// Where programs are. The image's PATH is this.
const PROGRAMS: &str = "usr/local/bin";

/// Roots that the machine trusts; what the agent may be told to send to by TLS is checked against them.
const CERTIFICATES: &str = "etc/ssl/certs/ca-certificates.crt";

/// Of whom names are needed: the one that it runs as.
const PASSWD: &str =
    "root:x:0:0:root:/:/sbin/nologin\nnonroot:x:65532:65532:nonroot:/:/sbin/nologin\n";
const GROUP: &str = "root:x:0:\nnonroot:x:65532:\n";

/// For glibc: names by files and DNS, without asking for modules that are not here.
const NSSWITCH: &str = "passwd: files\ngroup: files\nhosts: files dns\n";

/// The name under which the kernel keeps a file's capabilities.
const CAPABILITY: &str = "security.capability";

/// What the agent's file is permitted: what the manifests grant, with which it can run as another user than root
/// (docs/permissions.md). By their numbers in `linux/capability.h`: `NET_ADMIN`, `SYSLOG`, `PERFMON`, `BPF`.
pub const GRANTED: [u32; 4] = [12, 34, 38, 39];

/// What is mounted over, or must be there for the runtime.
const DIRECTORIES: [&str; 6] = ["dev", "etc", "host", "proc", "run/aksnet", "sys"];

/// Lays the files down in a directory that is not there yet, or is empty.
///
/// # Errors
/// When it is not empty, or something that belongs into it is not on this machine.
pub fn lay(directory: &Path, agent: &Path, machine: Machine, workspace: &Path) -> Result<()> {
    let is_empty = fs::read_dir(directory).map_or(true, |mut entries| entries.next().is_none());
    ensure!(is_empty, "{} is not empty", directory.display());
    for name in DIRECTORIES {
        fs::create_dir_all(directory.join(name))?;
    }
    put(directory, agent, &format!("{PROGRAMS}/aksnet-agent"), 0o755)?;
    permit(&directory.join(PROGRAMS).join("aksnet-agent"))?;
    // As it is called by hand: `kubectl exec ds/aksnet -- agent top`.
    symlink("aksnet-agent", directory.join(PROGRAMS).join("agent"))?;

    let needs = elf::needs(agent, machine)?;
    let loader = needs.loader.trim_start_matches('/');
    let name = Path::new(loader)
        .file_name()
        .and_then(|name| name.to_str())
        .context("a loader has a name")?;
    put(directory, &elf::find(name, machine)?, loader, 0o755)?;
    for (name, path) in needs
        .libraries
        .iter()
        .filter(|(library, _)| *library != name)
    {
        // The loader looks there without being told: Debian's is built with it.
        put(
            directory,
            path,
            &format!("lib/{}/{name}", machine.multiarch()),
            0o755,
        )?;
    }

    for (name, text) in [
        ("passwd", PASSWD),
        ("group", GROUP),
        ("nsswitch.conf", NSSWITCH),
    ] {
        write(directory, &format!("etc/{name}"), text)?;
    }
    put(
        directory,
        &Path::new("/").join(CERTIFICATES),
        CERTIFICATES,
        0o644,
    )
    .context("Debian: ca-certificates")?;

    let doc = "usr/share/doc";
    put(
        directory,
        &workspace.join("LICENSE-APACHE"),
        &format!("{doc}/aksnet/LICENSE-APACHE"),
        0o644,
    )?;
    for name in ["LICENSE-MIT", "LICENSE-GPL2"] {
        put(
            directory,
            &workspace.join("aksnet-ebpf").join(name),
            &format!("{doc}/aksnet/ebpf/{name}"),
            0o644,
        )?;
    }
    write(
        directory,
        &format!("{doc}/aksnet/THIRD-PARTY"),
        &licences::third_party(machine)?,
    )?;
    write(
        directory,
        &format!("{doc}/aksnet/{}", sbom::FILE),
        &sbom::text(machine)?,
    )?;
    // Of the libraries. Those of Debian's cross packages are the same sources under another name.
    for package in ["libc6", "libgcc-s1"] {
        let cross = format!("/usr/share/doc/{package}-{}-cross/copyright", machine.oci());
        let own = format!("/usr/share/doc/{package}/copyright");
        let from = [own, cross]
            .into_iter()
            .find(|path| Path::new(path).exists());
        let from = from.with_context(|| format!("no licence of {package} in /usr/share/doc"))?;
        put(
            directory,
            Path::new(&from),
            &format!("{doc}/{package}/copyright"),
            0o644,
        )?;
    }
    Ok(())
}

/// Gives a file capabilities, as `setcap ...=p` does. That takes root; without, the image's agent is for root only.
fn permit(file: &Path) -> Result<()> {
    if !nix::unistd::geteuid().is_root() {
        say::step(
            "not root: the image's agent has no capabilities of its own, and will run as user 0 only",
        );
        return Ok(());
    }
    xattr::set(file, CAPABILITY, &capability_data())
        .with_context(|| format!("{}: this file system keeps no {CAPABILITY}", file.display()))
}

/// `struct vfs_cap_data` of revision 2 (`linux/capability.h`): permitted and inheritable, low and high words in turn. Without
/// the effective bit: see `preflight::raise` of the agent.
fn capability_data() -> [u8; 20] {
    const REVISION_2: u32 = 0x0200_0000;
    let permitted = GRANTED.iter().fold(0u64, |set, number| set | 1 << number);
    let bytes = permitted.to_le_bytes();
    let mut data = [0; 20];
    data[..4].copy_from_slice(&REVISION_2.to_le_bytes());
    data[4..8].copy_from_slice(&bytes[..4]);
    data[12..16].copy_from_slice(&bytes[4..]);
    data
}

fn put(directory: &Path, from: &Path, to: &str, mode: u32) -> Result<()> {
    let to = directory.join(to);
    fs::create_dir_all(to.parent().context("a file lies in a directory")?)?;
    // Follows links: what is copied is the file.
    fs::copy(from, &to).with_context(|| from.display().to_string())?;
    fs::set_permissions(&to, fs::Permissions::from_mode(mode))?;
    Ok(())
}

fn write(directory: &Path, to: &str, text: &str) -> Result<()> {
    let to = directory.join(to);
    fs::create_dir_all(to.parent().context("a file lies in a directory")?)?;
    fs::write(&to, text).with_context(|| to.display().to_string())?;
    fs::set_permissions(&to, fs::Permissions::from_mode(0o644))?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_files_capabilities_are_in_the_kernels_form() {
        // What `setcap cap_bpf,cap_perfmon,cap_net_admin,cap_syslog=p` writes.
        let mut expected = [0; 20];
        expected[3] = 2;
        expected[5] = 0x10;
        expected[12] = 0xc4;
        assert_eq!(capability_data(), expected);
    }
}
