//! Compiles `aksnet-ebpf` for the BPF target and leaves the object where the agent embeds it.
//!
//! Which toolchain: `AKSNET_BPF_OBJECT` names an object built before; else `AKSNET_BPF_RUSTC` names a rustc
//! that has `core` for the BPF target; else rustup's nightly, where it has `rust-src` (then cargo builds
//! `core` itself); else Debian's rustc, where its sysroot holds `core` for the BPF target
//! (package `libstd-rust-web-dev-bpf`).

use std::{
    env,
    ffi::OsString,
    fs,
    path::{Path, PathBuf},
    process::Command,
};

/// `core` for this target is what the toolchain must have or build.
const TARGET: &str = "bpfel-unknown-none";

/// cpu v3: 32-bit registers and jumps, and the atomic instructions of kernel 5.12.
const RUSTFLAGS: [&str; 6] = [
    "-Clinker=bpf-linker",
    "-Cdebuginfo=2",
    "-Clink-arg=--btf",
    "-Ctarget-cpu=v3",
    "-Cpanic=abort",
    "-Awarnings",
];

struct Toolchain {
    rustc: OsString,
    builds_core: bool,
}

fn main() {
    let out = PathBuf::from(env::var_os("OUT_DIR").expect("cargo sets OUT_DIR"));
    let object = out.join("aksnet.bpf.o");
    for name in ["AKSNET_BPF_OBJECT", "AKSNET_BPF_RUSTC", "AKSNET_REVISION"] {
        println!("cargo::rerun-if-env-changed={name}");
    }
    revision();
    if let Err(problem) = build(&out, &object) {
        println!("cargo::error={problem}");
        std::process::exit(1);
    }
}

fn build(out: &Path, object: &Path) -> Result<(), String> {
    if let Some(built) = env::var_os("AKSNET_BPF_OBJECT") {
        println!("cargo::rerun-if-changed={}", Path::new(&built).display());
        return fs::copy(&built, object)
            .map(|_| ())
            .map_err(|e| format!("AKSNET_BPF_OBJECT={}: {e}", Path::new(&built).display()));
    }
    let manifest =
        PathBuf::from(env::var_os("CARGO_MANIFEST_DIR").expect("cargo sets CARGO_MANIFEST_DIR"));
    let workspace = manifest.parent().expect("the crate lies in the workspace");
    for part in [
        "aksnet-ebpf/src",
        "aksnet-ebpf/Cargo.toml",
        "aksnet-common/src",
        "aksnet-common/Cargo.toml",
        "Cargo.lock",
    ] {
        println!("cargo::rerun-if-changed={}", workspace.join(part).display());
    }
    let toolchain = find_toolchain()
        .ok_or_else(|| missing("no Rust compiler with `core` for the BPF target"))?;
    let path = path_with_cargo_bin();
    if Command::new("bpf-linker")
        .arg("--version")
        .env("PATH", &path)
        .output()
        .is_err()
    {
        return Err(missing("bpf-linker is not installed"));
    }
    let target_dir = out.join("bpf");
    let mut cargo = Command::new(env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    cargo
        .current_dir(workspace)
        .args([
            "build",
            "--release",
            "--package",
            "aksnet-ebpf",
            "--target",
            TARGET,
            "--target-dir",
        ])
        .arg(&target_dir);
    // What belongs to the build of the host must not leak in (clippy's wrapper, coverage flags, ...).
    for name in [
        "RUSTC_WRAPPER",
        "RUSTC_WORKSPACE_WRAPPER",
        "RUSTFLAGS",
        "CARGO_ENCODED_RUSTFLAGS",
        "CARGO_BUILD_TARGET",
        "CARGO_TARGET_DIR",
    ] {
        cargo.env_remove(name);
    }
    for (name, _) in env::vars_os() {
        if name.to_string_lossy().starts_with("CARGO_PROFILE_")
            || name.to_string_lossy().starts_with("CARGO_CFG_")
        {
            cargo.env_remove(name);
        }
    }
    if toolchain.builds_core {
        cargo.args(["-Z", "build-std=core"]);
    }
    cargo
        .env("PATH", &path)
        .env("RUSTC", &toolchain.rustc)
        .env("RUSTC_BOOTSTRAP", "1")
        .env("CARGO_ENCODED_RUSTFLAGS", RUSTFLAGS.join("\x1f"));
    let output = cargo
        .output()
        .map_err(|e| format!("cannot run cargo for the BPF object: {e}"))?;
    if !output.status.success() {
        eprintln!("{}", String::from_utf8_lossy(&output.stderr));
        return Err(missing(
            "the BPF object does not compile (its messages are above)",
        ));
    }
    fs::copy(target_dir.join(TARGET).join("release/aksnet"), object)
        .map(|_| ())
        .map_err(|e| format!("the BPF object is not where cargo should have left it: {e}"))
}

fn missing(what: &str) -> String {
    format!("{what}: run `cargo xtask setup`, which installs what building aksnet needs")
}

fn find_toolchain() -> Option<Toolchain> {
    if let Some(rustc) = env::var_os("AKSNET_BPF_RUSTC") {
        return Some(Toolchain {
            rustc,
            builds_core: false,
        });
    }
    if let Some(sysroot) = sysroot(Command::new("rustc").arg("+nightly"))
        && sysroot.join("lib/rustlib/src/rust/library/core").is_dir()
    {
        return Some(Toolchain {
            rustc: sysroot.join("bin/rustc").into(),
            builds_core: true,
        });
    }
    let debian = Path::new("/usr/bin/rustc");
    if let Some(sysroot) = sysroot(&mut Command::new(debian))
        && sysroot.join("lib/rustlib").join(TARGET).is_dir()
    {
        return Some(Toolchain {
            rustc: debian.into(),
            builds_core: false,
        });
    }
    None
}

fn sysroot(rustc: &mut Command) -> Option<PathBuf> {
    let output = rustc
        .args(["--print", "sysroot"])
        .env_remove("RUSTUP_TOOLCHAIN")
        .output()
        .ok()?;
    let path = String::from_utf8(output.stdout).ok()?;
    output.status.success().then(|| PathBuf::from(path.trim()))
}

/// PATH with cargo's own bin directory, where `cargo install` puts bpf-linker.
fn path_with_cargo_bin() -> OsString {
    let mut parts: Vec<PathBuf> = env::var_os("PATH")
        .map(|p| env::split_paths(&p).collect())
        .unwrap_or_default();
    let home = env::var_os("CARGO_HOME")
        .map(PathBuf::from)
        .or_else(|| env::var_os("HOME").map(|h| PathBuf::from(h).join(".cargo")));
    if let Some(home) = home {
        parts.push(home.join("bin"));
    }
    env::join_paths(parts).unwrap_or_default()
}

/// The commit the agent is built from, for `--version` and `aksnet_build_info`; empty outside a checkout.
fn revision() {
    let revision = env::var("AKSNET_REVISION").ok().or_else(|| {
        let output = Command::new("git")
            .args(["rev-parse", "--short=12", "HEAD"])
            .output()
            .ok()?;
        output
            .status
            .success()
            .then(|| String::from_utf8_lossy(&output.stdout).trim().to_owned())
    });
    println!(
        "cargo::rustc-env=AKSNET_REVISION={}",
        revision.unwrap_or_default()
    );
    // The log of HEAD changes with each commit, also of the same branch.
    if let Ok(output) = Command::new("git")
        .args(["rev-parse", "--git-path", "logs/HEAD"])
        .output()
    {
        let head = String::from_utf8_lossy(&output.stdout).trim().to_owned();
        if output.status.success() && Path::new(&head).exists() {
            println!("cargo::rerun-if-changed={head}");
        }
    }
}
