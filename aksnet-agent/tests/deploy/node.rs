//! A *node* that runs the DaemonSet's pod as kubelet would have it: a testbed, containerd in its network, and the
//! translation of a manifest into what the runtime is asked for (`pkg/kubelet/kuberuntime`, `pkg/securitycontext`).

use std::{
    fs,
    io::{Read as _, Write as _},
    net::{SocketAddr, TcpStream},
    os::unix::fs::PermissionsExt as _,
    path::{Path, PathBuf},
    sync::OnceLock,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, bail, ensure};
use k8s_openapi::{
    api::core::v1::{HTTPGetAction, Volume},
    apimachinery::pkg::{api::resource::Quantity, util::intstr::IntOrString},
};
use xtask::{
    image::{self, Image},
    testbed::Testbed,
};

use crate::{
    bed::{Bed, IMAGE, lacking},
    cri::{
        CapabilityLists, ContainerConfig, ContainerMetadata, ContainerSecurity, CreateRequest, Cri,
        EXITED, Executed, ImageSpec, Int64, KeyValue, LinuxContainer, LinuxSandbox, Mount,
        Namespaces, Resources, SandboxConfig, SandboxMetadata, SandboxSecurity, SecurityProfile,
    },
    manifest::Manifest,
    scrape::Scrape,
};

/// How long anything may take on a busy machine.
const PATIENCE: Duration = Duration::from_secs(30);

/// What kubelet has the runtime hide and protect (`pkg/securitycontext/util.go`).
const MASKED: [&str; 10] = [
    "/proc/asound",
    "/proc/acpi",
    "/proc/kcore",
    "/proc/keys",
    "/proc/latency_stats",
    "/proc/timer_list",
    "/proc/timer_stats",
    "/proc/sched_debug",
    "/proc/scsi",
    "/sys/firmware",
];
const READ_ONLY: [&str; 5] = [
    "/proc/bus",
    "/proc/fs",
    "/proc/irq",
    "/proc/sys",
    "/proc/sysrq-trigger",
];

/// Whether these tests can run here; says why not. A tool that is missing is an error.
pub fn can_run() -> Result<bool> {
    if !nix::unistd::geteuid().is_root() {
        println!("skipped: containers and network namespaces need root");
        return Ok(false);
    }
    match lacking() {
        None => Ok(true),
        Some(why) => bail!(why),
    }
}

/// The image of the agent in its release build, made once.
pub fn image() -> Result<&'static Image> {
    static IMAGE: OnceLock<Result<Image, String>> = OnceLock::new();
    let made = IMAGE.get_or_init(|| {
        image::make(&image::Options::default()).map_err(|error| format!("{error:#}"))
    });
    made.as_ref().map_err(|error| anyhow::anyhow!("{error}"))
}

/// A node whose runtime has the image.
pub struct Node<'a> {
    pub bed: &'a Testbed,
    runtime: Bed,
    pub cri: Cri,
    serial: u32,
}

/// A container that was started.
pub struct Container {
    pub id: String,
    log: PathBuf,
    /// Where its manifest has it listen.
    pub address: SocketAddr,
}

impl<'a> Node<'a> {
    pub async fn new(bed: &'a Testbed) -> Result<Self> {
        let image = image()?;
        let mut runtime = Bed::on(bed.node())?;
        runtime.start()?;
        runtime.import()?;
        runtime.import_from(&image.path)?;
        let cri = Cri::connect(&runtime.socket(), &[IMAGE, &image.reference]).await?;
        Ok(Self {
            bed,
            runtime,
            cri,
            serial: 0,
        })
    }

    /// Starts the manifest's pod. `settings` are further variables, `files` a directory of the node's that is mounted at
    /// `/run/test`.
    pub async fn run(
        &mut self,
        manifest: &Manifest,
        settings: &[(&str, &str)],
        files: Option<&Path>,
    ) -> Result<Container> {
        self.serial += 1;
        let sandbox_config = self.sandbox(manifest);
        let sandbox = self.cri.run_sandbox(sandbox_config.clone()).await?;
        fs::create_dir_all(self.bed.node().root().join("log"))?;
        let log_path = format!("agent-{}.log", self.serial);
        let mut config = self.container(manifest)?;
        for (key, value) in settings {
            config.envs.push(KeyValue {
                key: (*key).to_owned(),
                value: (*value).to_owned(),
            });
        }
        if let Some(files) = files {
            config.mounts.push(Mount {
                container_path: "/run/test".to_owned(),
                host_path: self.file(files).display().to_string(),
                readonly: true,
            });
        }
        config.log_path.clone_from(&log_path);
        let listen = config
            .envs
            .iter()
            .find(|variable| variable.key == "AKSNET_LISTEN");
        let address = listen
            .context("it is told where to listen")?
            .value
            .parse()?;
        let request = CreateRequest {
            sandbox,
            config: Some(config),
            sandbox_config: Some(sandbox_config),
        };
        let id = self.cri.create(request).await?;
        self.cri.start(&id).await?;
        Ok(Container {
            id,
            log: self.bed.node().root().join("log").join(log_path),
            address,
        })
    }

    fn sandbox(&self, manifest: &Manifest) -> SandboxConfig {
        SandboxConfig {
            metadata: Some(SandboxMetadata {
                name: format!("aksnet-{}", self.serial),
                uid: format!("7f1e2a90-{}", self.serial),
                namespace: "aksnet".to_owned(),
                attempt: 0,
            }),
            log_directory: self.runtime.node().join("log").display().to_string(),
            linux: Some(LinuxSandbox {
                cgroup_parent: format!("/{}", self.runtime.group),
                security: Some(SandboxSecurity {
                    namespaces: Some(namespaces(manifest)),
                }),
            }),
        }
    }

    fn container(&self, manifest: &Manifest) -> Result<ContainerConfig> {
        let container = manifest.container();
        let security = manifest.security()?;
        let capabilities = manifest.capabilities()?;
        let limits = container.resources.as_ref().and_then(|r| r.limits.as_ref());
        let requests = container
            .resources
            .as_ref()
            .and_then(|r| r.requests.as_ref());
        let memory = limits
            .and_then(|l| l.get("memory"))
            .context("a limit of memory")?;
        let cpu = requests
            .and_then(|l| l.get("cpu"))
            .context("a request of CPU")?;
        Ok(ContainerConfig {
            metadata: Some(ContainerMetadata {
                name: container.name.clone(),
                attempt: 0,
            }),
            image: Some(ImageSpec {
                image: container.image.clone().context("an image")?,
            }),
            command: container.command.clone().unwrap_or_default(),
            args: container.args.clone().unwrap_or_default(),
            envs: variables(self.bed, manifest)?,
            mounts: self.mounts(manifest)?,
            log_path: String::new(),
            linux: Some(LinuxContainer {
                resources: Some(Resources {
                    cpu_shares: milli(cpu)? * 1024 / 1000,
                    memory_limit: mebibytes(memory)? << 20,
                }),
                security: Some(ContainerSecurity {
                    capabilities: Some(CapabilityLists {
                        add: capabilities.add.clone().unwrap_or_default(),
                        drop: capabilities.drop.clone().unwrap_or_default(),
                    }),
                    privileged: security.privileged.unwrap_or_default(),
                    namespaces: Some(namespaces(manifest)),
                    run_as_user: security.run_as_user.map(|value| Int64 { value }),
                    run_as_group: security.run_as_group.map(|value| Int64 { value }),
                    readonly_rootfs: security.read_only_root_filesystem.unwrap_or_default(),
                    no_new_privs: security.allow_privilege_escalation == Some(false),
                    masked_paths: MASKED.map(str::to_owned).to_vec(),
                    readonly_paths: READ_ONLY.map(str::to_owned).to_vec(),
                    seccomp: Some(seccomp(manifest)?),
                }),
            }),
        })
    }

    fn mounts(&self, manifest: &Manifest) -> Result<Vec<Mount>> {
        let mounts = manifest.container().volume_mounts.iter().flatten();
        let volumes: Vec<&Volume> = manifest.pod().volumes.iter().flatten().collect();
        mounts
            .map(|mount| {
                let volume = volumes.iter().find(|volume| volume.name == mount.name);
                let volume = volume.with_context(|| format!("no volume {}", mount.name))?;
                let path = host_path(self.bed, volume)?;
                // The emulated node's own files are elsewhere for the runtime; what the kernel shows is this machine's.
                let path = match path.strip_prefix(self.bed.node().root()) {
                    Ok(below) => self.file(below),
                    Err(_) => path,
                };
                Ok(Mount {
                    container_path: mount.mount_path.clone(),
                    host_path: path.display().to_string(),
                    readonly: mount.read_only.unwrap_or_default(),
                })
            })
            .collect()
    }

    /// As kubelet asks: over HTTP, at the pod's address, which is the node's.
    pub fn probe(&self, container: &Container, action: &HTTPGetAction) -> Result<u16> {
        let port = &action.port;
        ensure!(
            *port == IntOrString::String("metrics".to_owned()),
            "probes name the port: {port:?}"
        );
        let path = action.path.as_deref().context("a path")?;
        Ok(get(self.bed, container.address, path)?.0)
    }

    pub fn scrape(&self, container: &Container) -> Result<Scrape> {
        scrape(self.bed, container.address)
    }

    /// Waits until it is ready by its own probe.
    pub async fn ready(&mut self, manifest: &Manifest, container: &Container) -> Result<()> {
        let probe = manifest.container().readiness_probe.clone();
        let action = probe
            .and_then(|p| p.http_get)
            .context("a readiness probe")?;
        let deadline = Instant::now() + PATIENCE;
        loop {
            if self.probe(container, &action).is_ok_and(|code| code == 200) {
                return Ok(());
            }
            let (status, _) = self.cri.status(&container.id).await?;
            ensure!(
                status.state != EXITED,
                "it ended with {}:\n{}",
                status.exit_code,
                container.said()
            );
            ensure!(
                Instant::now() < deadline,
                "not ready:\n{}",
                container.said()
            );
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }

    /// Waits until it has ended by itself; its exit code.
    pub async fn ended(&mut self, container: &Container) -> Result<i32> {
        let deadline = Instant::now() + PATIENCE;
        loop {
            let (status, _) = self.cri.status(&container.id).await?;
            if status.state == EXITED {
                return Ok(status.exit_code);
            }
            ensure!(
                Instant::now() < deadline,
                "it goes on:\n{}",
                container.said()
            );
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }

    /// `kubectl exec`; what it printed.
    pub async fn exec(&mut self, container: &Container, words: &[&str]) -> Result<String> {
        let Executed {
            stdout,
            stderr,
            exit_code,
        } = self.cri.exec(&container.id, words).await?;
        ensure!(
            exit_code == 0,
            "{words:?}: {exit_code}: {}",
            String::from_utf8_lossy(&stderr)
        );
        Ok(String::from_utf8(stdout)?)
    }

    /// A file of the node's, as the runtime sees it.
    pub fn file(&self, below: &Path) -> PathBuf {
        self.runtime.node().join(below)
    }

    /// A file of its control group, from the first hierarchy that has it: there is one, or one for each controller.
    fn group_file(&self, container: &Container, name: &str) -> Option<String> {
        let hierarchies =
            ["", "memory"].map(|hierarchy| Path::new("/sys/fs/cgroup").join(hierarchy));
        hierarchies.iter().find_map(|hierarchy| {
            let group = hierarchy.join(&self.runtime.group).join(&container.id);
            fs::read_to_string(group.join(name)).ok()
        })
    }

    /// What it takes of memory, as its control group has it.
    pub fn memory(&self, container: &Container) -> Result<String> {
        let mut found = Vec::new();
        for name in [
            "memory.current",
            "memory.peak",
            "memory.usage_in_bytes",
            "memory.max_usage_in_bytes",
        ] {
            if let Some(bytes) = self.group_file(container, name) {
                let bytes: u64 = bytes.trim().parse()?;
                found.push(format!("{name} {} MiB", bytes >> 20));
            }
        }
        Ok(found.join(", "))
    }

    /// `/proc/PID/status` of its process. The runtime knows that by its number in another process namespace.
    pub fn process_status(&self, container: &Container) -> Result<String> {
        let processes = self.group_file(container, "cgroup.procs");
        let processes = processes.context("a control group")?;
        let pid = processes.lines().next().context("a process")?;
        fs::read_to_string(format!("/proc/{pid}/status")).context("its status")
    }

    /// Ends it as kubelet does; its exit code.
    pub async fn stop(&mut self, manifest: &Manifest, container: &Container) -> Result<i32> {
        let grace = manifest.pod().termination_grace_period_seconds;
        self.cri
            .stop(&container.id, grace.context("a grace period")?)
            .await?;
        let (status, _) = self.cri.status(&container.id).await?;
        Ok(status.exit_code)
    }
}

impl Container {
    /// What it wrote, without the runtime's own columns.
    pub fn said(&self) -> String {
        let text = fs::read_to_string(&self.log).unwrap_or_default();
        let lines = text
            .lines()
            .map(|line| line.splitn(4, ' ').last().unwrap_or_default());
        lines.collect::<Vec<_>>().join("\n")
    }
}

/// As kubelet's `makeEnvironmentVariables`: fields of the pod, and `$(NAME)` of those before.
pub fn variables(bed: &Testbed, manifest: &Manifest) -> Result<Vec<KeyValue>> {
    let mut made: Vec<KeyValue> = Vec::new();
    for variable in manifest.container().env.iter().flatten() {
        let field = variable
            .value_from
            .as_ref()
            .and_then(|v| v.field_ref.as_ref());
        let mut value = match field.map(|field| field.field_path.as_str()) {
            None => variable.value.clone().unwrap_or_default(),
            Some("spec.nodeName") => bed.node().name().to_owned(),
            Some("status.hostIP") => bed.node().ip().to_string(),
            Some(other) => bail!("{}: {other} is not known here", variable.name),
        };
        for known in &made {
            value = value.replace(&format!("$({})", known.key), &known.value);
        }
        made.push(KeyValue {
            key: variable.name.clone(),
            value,
        });
    }
    Ok(made)
}

/// Where a volume's files are on this machine. The emulated node has files of its own, below its root; what the kernel
/// shows is the machine's.
pub fn host_path(bed: &Testbed, volume: &Volume) -> Result<PathBuf> {
    if volume.empty_dir.is_some() {
        // Everybody's, as kubelet makes them.
        let path = bed.node().root().join("volumes").join(&volume.name);
        fs::create_dir_all(&path)?;
        fs::set_permissions(&path, fs::Permissions::from_mode(0o777))?;
        return Ok(path);
    }
    let host = volume.host_path.as_ref().context("a host path")?;
    let path = if host.path.starts_with("/sys/") {
        PathBuf::from(&host.path)
    } else {
        bed.node().root().join(host.path.trim_start_matches('/'))
    };
    if host.type_.as_deref() == Some("DirectoryOrCreate") {
        fs::create_dir_all(&path)?;
    }
    ensure!(path.is_dir(), "{}: no directory", path.display());
    Ok(path)
}

/// Status and body of what is served at an address of the node's.
fn get(bed: &Testbed, address: SocketAddr, path: &str) -> Result<(u16, String)> {
    let mut stream = bed.node().netns().run(|| {
        Ok(TcpStream::connect_timeout(
            &address,
            Duration::from_secs(2),
        )?)
    })?;
    stream.set_read_timeout(Some(PATIENCE))?;
    write!(
        stream,
        "GET {path} HTTP/1.1\r\nHost: node\r\nConnection: close\r\n\r\n"
    )?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer)?;
    let (head, body) = answer.split_once("\r\n\r\n").context("an answer")?;
    let status = head.split(' ').nth(1).context("a status")?.parse()?;
    Ok((status, body.to_owned()))
}

/// What an agent at an address of the node's counts.
pub fn scrape(bed: &Testbed, address: SocketAddr) -> Result<Scrape> {
    Scrape::parse(&get(bed, address, "/metrics")?.1)
}

fn namespaces(manifest: &Manifest) -> Namespaces {
    let node = |yes: Option<bool>, own: i32| if yes == Some(true) { 2 } else { own };
    let pod = manifest.pod();
    Namespaces {
        network: node(pod.host_network, 0),
        pid: node(pod.host_pid, 1),
        ipc: node(pod.host_ipc, 0),
    }
}

fn seccomp(manifest: &Manifest) -> Result<SecurityProfile> {
    let own = manifest.security()?.seccomp_profile.as_ref();
    let pods = manifest.pod().security_context.as_ref();
    let profile = own.or_else(|| pods.and_then(|p| p.seccomp_profile.as_ref()));
    let profile = profile.context("a profile of system calls")?;
    let kind = match profile.type_.as_str() {
        "RuntimeDefault" => 0,
        "Unconfined" => 1,
        "Localhost" => 2,
        other => bail!("{other} is not known here"),
    };
    Ok(SecurityProfile {
        kind,
        file: profile.localhost_profile.clone().unwrap_or_default(),
    })
}

fn milli(quantity: &Quantity) -> Result<i64> {
    let text = &quantity.0;
    Ok(text
        .strip_suffix('m')
        .with_context(|| format!("{text}: in m"))?
        .parse()?)
}

fn mebibytes(quantity: &Quantity) -> Result<i64> {
    let text = &quantity.0;
    Ok(text
        .strip_suffix("Mi")
        .with_context(|| format!("{text}: in Mi"))?
        .parse()?)
}
