//! A *bed* for a real containerd: namespaces of its own (mount, network, process), its files in one directory, the
//! conflist that AKS writes for kubenet, and an image that the test builds, so that nothing is pulled.
//!
//! All of it runs below one process that is the first of its process namespace: when that ends, the kernel ends
//! everything in there, and it ends when the test does, however that ends, as it reads from a pipe. A shell that
//! waits outside then removes the control groups. The directory is on record, for `cargo xtask clean`.

use std::{
    collections::BTreeMap,
    fs,
    io::{BufRead as _, BufReader, Write as _},
    net::IpAddr,
    path::{Path, PathBuf},
    process::{Child, ChildStdin, ChildStdout, Command, Stdio},
    sync::Arc,
    time::Duration,
};

use anyhow::{Context as _, Result, ensure};
use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use serde_json::json;
use xtask::testbed::{
    Flavour, Hairpin, Node, Plan,
    cni::{conflist, plugin_directory},
    record::Record,
};

/// The image of every sandbox, under its full name: runtimes resolve `pause:1` to a registry's.
pub const IMAGE: &str = "localhost/aksnet/pause:1";

/// What containerd, its shims and the plugins write outside their directory is in `/run` (sockets, namespaces, locks)
/// and `/var/lib` (the plugins' results), so those are the bed's own. Its directory lies in `/run` as well, and is
/// kept by the working directory.
const INIT: &str = r#"
set -e
if [ -n "$NODE" ]; then mkdir node; mount --bind "$NODE" node; fi
mount -t tmpfs lib /var/lib
mount -t tmpfs run /run
mkdir -p "$BED"
mount --no-canonicalize --rbind . "$BED"
mount -t proc proc /proc
ip link set lo up
echo ready
while read -r word; do
    case "$word" in
        start) containerd --config "$BED/config.toml" >>"$BED/log" 2>&1 & pid=$!; echo started;;
        stop) kill "$pid"; wait "$pid" || true; echo stopped;;
    esac
done
"#;

/// Waits for the above to end, and removes the control groups: there is one hierarchy, or one per controller.
const KEEPER: &str = r#"
unshare --mount $NET --pid --ipc --uts --fork --propagation private sh -c "$INIT"
for hierarchy in /sys/fs/cgroup /sys/fs/cgroup/*; do
    if [ -d "$hierarchy/$GROUP" ]; then
        find "$hierarchy/$GROUP" -depth -type d -exec rmdir {} \;
    fi
done
"#;

/// What is missing for these tests, if anything.
pub fn lacking() -> Option<String> {
    if !nix::unistd::geteuid().is_root() {
        return Some("namespaces and sandboxes need root".to_owned());
    }
    for program in ["containerd", "ctr", "runc", "unshare", "cc"] {
        let found = std::env::split_paths(&std::env::var_os("PATH").unwrap_or_default())
            .chain(["/usr/sbin".into(), "/sbin".into()])
            .any(|directory: PathBuf| directory.join(program).exists());
        if !found {
            return Some(format!("no {program} here: run `cargo xtask setup`"));
        }
    }
    plugin_directory().err().map(|error| error.to_string())
}

/// The bed. Dropping it ends everything in it and removes what it made.
pub struct Bed {
    keeper: Child,
    /// Taken when all is to end.
    words: Option<ChildStdin>,
    answers: BufReader<ChildStdout>,
    home: PathBuf,
    /// The parent of the sandboxes' control groups.
    pub group: String,
    _record: Arc<Record>,
}

impl Drop for Bed {
    fn drop(&mut self) {
        if std::thread::panicking() {
            let log = fs::read_to_string(self.home.join("log")).unwrap_or_default();
            let lines: Vec<&str> = log.lines().collect();
            println!(
                "containerd's last words:\n{}",
                lines[lines.len().saturating_sub(40)..].join("\n")
            );
        }
        let first = self.first();
        drop(self.words.take());
        for _ in 0..100 {
            if !matches!(self.keeper.try_wait(), Ok(None)) {
                return;
            }
            std::thread::sleep(Duration::from_millis(50));
        }
        // It is stuck in `wait`.
        if let Ok(first) = first {
            let _ended = kill(Pid::from_raw(first), Signal::SIGKILL);
        }
        let _ended = self.keeper.wait();
        // The record removes the directory.
    }
}

impl Bed {
    /// Makes the files and the namespaces; containerd does not run yet.
    pub fn new() -> Result<Self> {
        Self::made_by(Command::new("sh").env("NET", "--net").env("NODE", ""))
    }

    /// The same in the network of an emulated node, whose files are then at [`Self::node`].
    pub fn on(node: &Node) -> Result<Self> {
        let mut command = node.netns().command("sh");
        Self::made_by(command.env("NET", "").env("NODE", node.root()))
    }

    /// Where containerd sees the files of the emulated node.
    pub fn node(&self) -> PathBuf {
        self.home.join("node")
    }

    fn made_by(keeper: &mut Command) -> Result<Self> {
        let record = Arc::new(Record::create()?);
        let home = record.make_directory("cri")?;
        for directory in ["cni", "root", "state", "addresses"] {
            fs::create_dir(home.join(directory))?;
        }
        let pods = Plan::new(Flavour::Kubenet, true).nodes[0].pods;
        let (file, list) = conflist(
            Flavour::Kubenet,
            Hairpin::Promiscuous,
            pods,
            &home.join("addresses"),
        );
        fs::write(home.join("cni").join(file), list.to_string())?;
        fs::write(home.join("config.toml"), config(&home)?)?;
        image(&home)?;
        let group = format!("{}-cri", record.prefix());
        let mut keeper = keeper
            .args(["-c", KEEPER])
            .env("INIT", INIT)
            .env("BED", &home)
            .env("GROUP", &group)
            .env("TMPDIR", home.join("state"))
            .current_dir(&home)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .context("sh")?;
        let answers = BufReader::new(keeper.stdout.take().context("its output is a pipe")?);
        let mut bed = Self {
            words: keeper.stdin.take(),
            keeper,
            answers,
            group,
            home,
            _record: record,
        };
        bed.expect("ready")?;
        Ok(bed)
    }

    /// Where containerd listens.
    pub fn socket(&self) -> PathBuf {
        self.home.join("containerd.sock")
    }

    /// Starts containerd. It listens a little later.
    pub fn start(&mut self) -> Result<()> {
        self.say("start", "started")
    }

    /// Ends containerd; the sandboxes go on, as they do on a node.
    pub fn stop(&mut self) -> Result<()> {
        self.say("stop", "stopped")
    }

    /// Brings the image into containerd, once it listens.
    pub fn import(&self) -> Result<()> {
        self.import_from(&self.home.join("image.tar"))
    }

    /// The same for an image of another archive.
    pub fn import_from(&self, archive: &Path) -> Result<()> {
        let mut last = String::new();
        for _ in 0..100 {
            let output = Command::new("ctr")
                .arg("--address")
                .arg(self.socket())
                .args(["--namespace", "k8s.io", "images", "import"])
                .args(["--snapshotter", "native"])
                .arg(archive)
                .stdin(Stdio::null())
                .output()?;
            if output.status.success() {
                return Ok(());
            }
            last = String::from_utf8_lossy(&output.stderr).into_owned();
            std::thread::sleep(Duration::from_millis(100));
        }
        anyhow::bail!("ctr cannot import the image: {last}")
    }

    /// Which sandbox holds which addresses, by the files of host-local: each is named by an address, and its first
    /// line is the id (plugins/ipam/host-local/backend/disk).
    pub fn held(&self) -> Result<BTreeMap<String, Vec<IpAddr>>> {
        let mut held: BTreeMap<String, Vec<IpAddr>> = BTreeMap::new();
        for entry in fs::read_dir(self.home.join("addresses/kubenet"))? {
            let entry = entry?;
            let Ok(address) = entry.file_name().to_string_lossy().parse() else {
                continue;
            };
            let text = fs::read_to_string(entry.path())?;
            let id = text.lines().next().unwrap_or_default().trim();
            held.entry(id.to_owned()).or_default().push(address);
        }
        for addresses in held.values_mut() {
            addresses.sort_unstable();
        }
        Ok(held)
    }

    /// The bed's bridge, as `ip` shows it inside.
    pub fn bridge(&self) -> Result<String> {
        let output = Command::new("nsenter")
            .arg(format!("--net=/proc/{}/ns/net", self.first()?))
            .args(["ip", "-oneline", "address", "show", "dev", "cbr0"])
            .output()?;
        ensure!(output.status.success(), "{output:?}");
        Ok(String::from_utf8(output.stdout)?)
    }

    /// The first process of the namespace: `unshare`'s only child, which is the keeper's.
    fn first(&self) -> Result<i32> {
        let mut pid = self.keeper.id().cast_signed();
        for _ in 0..2 {
            let children = fs::read_to_string(format!("/proc/{pid}/task/{pid}/children"))?;
            pid = children.trim().parse()?;
        }
        Ok(pid)
    }

    fn say(&mut self, word: &str, answer: &str) -> Result<()> {
        let words = self.words.as_mut().context("it has not ended")?;
        writeln!(words, "{word}")?;
        self.expect(answer)
    }

    fn expect(&mut self, answer: &str) -> Result<()> {
        let mut line = String::new();
        self.answers.read_line(&mut line)?;
        ensure!(line.trim() == answer, "not {answer}: '{line}'");
        Ok(())
    }
}

/// containerd's own settings (`containerd config default` of 1.6), everything in one directory. The native
/// snapshotter copies, and so works on every file system. A test's process cannot lower its OOM score everywhere.
fn config(home: &Path) -> Result<String> {
    let plugins = plugin_directory()?;
    let (home, plugins) = (home.display(), plugins.display());
    Ok(format!(
        r#"
version = 2
root = "{home}/root"
state = "{home}/state"
disabled_plugins = ["io.containerd.internal.v1.opt", "io.containerd.snapshotter.v1.btrfs", "io.containerd.snapshotter.v1.zfs", "io.containerd.snapshotter.v1.devmapper", "io.containerd.snapshotter.v1.aufs"]
[grpc]
address = "{home}/containerd.sock"
[plugins."io.containerd.grpc.v1.cri"]
sandbox_image = "{IMAGE}"
restrict_oom_score_adj = true
disable_apparmor = true
[plugins."io.containerd.grpc.v1.cri".cni]
bin_dir = "{plugins}"
conf_dir = "{home}/cni"
[plugins."io.containerd.grpc.v1.cri".containerd]
snapshotter = "native"
"#
    ))
}

/// An image of one static program that does nothing, as an archive that `docker load` and `ctr` read: a manifest,
/// a configuration, a layer (image-spec, "Combined Image JSON + Filesystem Changeset Format").
fn image(home: &Path) -> Result<()> {
    let layer = home.join("layer");
    fs::create_dir(&layer)?;
    let mut compile = Command::new("cc")
        .args(["-static", "-Os", "-x", "c", "-", "-o"])
        .arg(layer.join("pause"))
        .stdin(Stdio::piped())
        .spawn()
        .context("cc")?;
    let source = "#include <unistd.h>\nint main(void) { for (;;) pause(); }\n";
    compile
        .stdin
        .take()
        .context("its input is a pipe")?
        .write_all(source.as_bytes())?;
    ensure!(compile.wait()?.success(), "cc cannot link statically");
    tar(&layer, &["pause"], &home.join("layer.tar"))?;
    let sum = Command::new("sha256sum")
        .arg(home.join("layer.tar"))
        .output()?;
    ensure!(sum.status.success(), "sha256sum failed");
    let sum = String::from_utf8(sum.stdout)?;
    let digest = sum
        .split_whitespace()
        .next()
        .context("sha256sum prints a sum")?;
    let machine = match std::env::consts::ARCH {
        "x86_64" => "amd64",
        "aarch64" => "arm64",
        other => other,
    };
    let config = json!({
        "architecture": machine,
        "os": "linux",
        "config": { "Entrypoint": ["/pause"] },
        "rootfs": { "type": "layers", "diff_ids": [format!("sha256:{digest}")] },
    });
    let manifest =
        json!([{ "Config": "config.json", "RepoTags": [IMAGE], "Layers": ["layer.tar"] }]);
    fs::write(home.join("config.json"), config.to_string())?;
    fs::write(home.join("manifest.json"), manifest.to_string())?;
    tar(
        home,
        &["manifest.json", "config.json", "layer.tar"],
        &home.join("image.tar"),
    )
}

fn tar(directory: &Path, files: &[&str], to: &Path) -> Result<()> {
    let status = Command::new("tar")
        .arg("--create")
        .arg("--file")
        .arg(to)
        .arg("--directory")
        .arg(directory)
        .args(files)
        .status()?;
    ensure!(status.success(), "tar failed");
    Ok(())
}
