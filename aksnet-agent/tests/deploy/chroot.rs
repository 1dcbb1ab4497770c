//! The same without any runtime: the image's files as the root directory (chroot), and what the manifest grants given by
//! `setpriv`. What a runtime brings besides, its filter of system calls above all, is not there; nor is another user
//! than root, whom `setpriv` leaves no capabilities that a file's could be held against.

use std::{
    fs,
    net::SocketAddr,
    path::Path,
    process::{Child, Stdio},
};

use anyhow::{Context as _, Result, ensure};
use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use xtask::{
    image::{self, dockerfile, elf, machine::Machine},
    testbed::{Engine, Testbed},
};

use crate::{
    manifest::Manifest,
    node::{can_run, host_path, scrape, variables},
    shop::Shop,
    suffices::counts_are_right,
};

/// Where setpriv and its libraries are in the image's files meanwhile: it is the last that runs before the agent.
const SETPRIV: &str = "setpriv";

/// Mounts the volumes, makes all else read-only, and becomes setpriv, which becomes the agent.
const INIT: &str = r#"
set -e
root=$1; volumes=$2; shift 2
mount --bind "$root" "$root"
mount -t proc proc "$root/proc"
mount -t sysfs -o ro sysfs "$root/sys"
echo "$volumes" | while read -r from to how; do
    mount --bind "$from" "$root$to"
    mount -o "remount,bind,$how" "$root$to"
done
mount -o remount,bind,ro "$root"
exec chroot "$root" "$@"
"#;

/// The image's files, with setpriv beside them, and a directory for each mount that there can be one for.
fn lay(root: &Path, manifest: &Manifest) -> Result<String> {
    image::make(&image::Options {
        files: Some(root.to_owned()),
        ..image::Options::default()
    })?;
    let program = Path::new("/usr/bin/setpriv");
    let needs = elf::needs(program, Machine::this()?)?;
    let own = root.join(SETPRIV);
    fs::create_dir(&own)?;
    fs::copy(program, own.join("setpriv"))?;
    for (name, path) in &needs.libraries {
        fs::copy(path, own.join(name))?;
    }
    for mount in manifest.container().volume_mounts.iter().flatten() {
        if !mount.mount_path.starts_with("/sys/") {
            fs::create_dir_all(root.join(mount.mount_path.trim_start_matches('/')))?;
        }
    }
    fs::create_dir_all(root.join("run/test"))?;
    Ok(needs.loader)
}

/// Each volume's place on this machine, its place in the root, and `ro` or `rw`.
fn volumes(bed: &Testbed, manifest: &Manifest, shop: &Shop) -> Result<String> {
    let files = bed.node().root().join(shop.files());
    let mut lines = vec![format!("{} /run/test ro", files.display())];
    for mount in manifest.container().volume_mounts.iter().flatten() {
        let mut all = manifest.pod().volumes.iter().flatten();
        let volume = all.find(|volume| volume.name == mount.name);
        let from = host_path(bed, volume.context("a mount has a volume")?)?;
        let how = if mount.read_only == Some(true) {
            "ro"
        } else {
            "rw"
        };
        lines.push(format!("{} {} {how}", from.display(), mount.mount_path));
    }
    Ok(lines.join("\n"))
}

/// setpriv's words for what the manifest grants.
fn granted(manifest: &Manifest) -> Result<Vec<String>> {
    let security = manifest.security()?;
    let user = security.run_as_user.context("a user")?;
    let group = security.run_as_group.context("a group")?;
    let capabilities = manifest.capabilities()?;
    ensure!(capabilities.drop == Some(vec!["ALL".to_owned()]), "drops");
    let added = capabilities.add.iter().flatten();
    let bounding: Vec<String> = std::iter::once("-all".to_owned())
        .chain(added.map(|name| format!("+{}", name.to_lowercase())))
        .collect();
    let bounding = bounding.join(",");
    let mut words: Vec<String> = [
        format!("--reuid={user}"),
        format!("--regid={group}"),
        "--clear-groups".to_owned(),
        "--inh-caps=-all".to_owned(),
        "--ambient-caps=-all".to_owned(),
        format!("--bounding-set={bounding}"),
    ]
    .into();
    if security.allow_privilege_escalation == Some(false) {
        words.push("--no-new-privs".to_owned());
    }
    Ok(words)
}

/// The agent's process, which is killed when this is dropped.
struct Running(Child);

impl Drop for Running {
    fn drop(&mut self) {
        let _gone = self.0.kill();
        let _reaped = self.0.wait();
    }
}

#[test]
fn in_a_bare_chroot_what_the_manifest_grants_suffices() -> Result<()> {
    if !can_run()? {
        return Ok(());
    }
    let shop = Shop::open(Testbed::kind().engine(Engine::Kindnet))?;
    let manifest = Manifest::rendered("overlays/kind")?;
    let directory = tempfile::tempdir()?;
    let root = directory.path().join("root");
    let loader = lay(&root, &manifest)?;
    let container = manifest.container();
    ensure!(container.command.is_none(), "the image says what is run");
    let how = dockerfile::last_stage(include_str!("../../../deploy/Dockerfile"))?;
    let log = fs::File::create(directory.path().join("log"))?;

    let mut command = shop.bed.node().netns().command("unshare");
    command
        .args([
            "--mount",
            "--propagation",
            "private",
            "sh",
            "-c",
            INIT,
            "sh",
        ])
        .arg(&root)
        .arg(volumes(&shop.bed, &manifest, &shop)?)
        .args([&loader, "--library-path", &format!("/{SETPRIV}")])
        .arg(format!("/{SETPRIV}/setpriv"))
        .args(granted(&manifest)?)
        .args(&how.entrypoint)
        .args(container.args.iter().flatten());
    command.env_clear();
    // For what runs before; the image's own is not needed by the agent.
    command.env("PATH", "/usr/sbin:/usr/bin:/sbin:/bin");
    let mut address: Option<SocketAddr> = None;
    for variable in variables(&shop.bed, &manifest)? {
        if variable.key == "AKSNET_LISTEN" {
            address = Some(variable.value.parse()?);
        }
        command.env(variable.key, variable.value);
    }
    let address = address.context("it is told where to listen")?;
    command.envs(Shop::settings());
    command
        .stdin(Stdio::null())
        .stdout(log.try_clone()?)
        .stderr(log);
    let mut agent = Running(shop.bed.node().netns().spawn(&mut command)?);
    let said = || fs::read_to_string(directory.path().join("log")).unwrap_or_default();

    crate::suffices::eventually(|| scrape(&shop.bed, address).map(drop).with_context(said))?;
    let pid = agent.0.id();
    let status = fs::read_to_string(format!("/proc/{pid}/status"))?;
    for line in [
        "Name:\taksnet-agent",
        "CapEff:\t000000c400001000",
        "CapBnd:\t000000c400001000",
        "NoNewPrivs:\t1",
    ] {
        ensure!(
            status.lines().any(|found| found == line),
            "no {line}: {status}"
        );
    }
    shop.trade()?;
    counts_are_right(|| scrape(&shop.bed, address), &shop, "policy").with_context(said)?;
    kill(Pid::from_raw(pid.cast_signed()), Signal::SIGTERM)?;
    let ended = agent.0.wait()?;
    ensure!(ended.success(), "{ended}: {}", said());
    Ok(())
}
