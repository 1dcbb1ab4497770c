//! What an ELF program *needs* to start: its loader and its shared libraries, and theirs.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, Result, ensure};

use super::machine::Machine;

/// A program's needs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Needs {
    /// Where the kernel looks for the loader, such as `/lib64/ld-linux-x86-64.so.2`.
    pub loader: String,
    /// Each library's name, and where it is on this machine. The loader is among them where a library names it.
    pub libraries: BTreeMap<String, PathBuf>,
}

/// Finds what a program needs, in the directories that this machine has for the other one's libraries.
///
/// # Errors
/// When it is no dynamic program, or a library is not found.
pub fn needs(program: &Path, machine: Machine) -> Result<Needs> {
    let text = readelf(program)?;
    let loader = loader(&text)
        .with_context(|| format!("{} names no loader", program.display()))?
        .to_owned();
    let mut libraries = BTreeMap::new();
    let mut open: Vec<String> = needed(&text).map(str::to_owned).collect();
    while let Some(name) = open.pop() {
        if libraries.contains_key(&name) {
            continue;
        }
        let path = find(&name, machine)?;
        open.extend(needed(&readelf(&path)?).map(str::to_owned));
        libraries.insert(name, path);
    }
    Ok(Needs { loader, libraries })
}

/// Where a library is: at its place, or where Debian's cross compilers have it.
///
/// # Errors
/// When it is in neither.
pub fn find(name: &str, machine: Machine) -> Result<PathBuf> {
    let multiarch = machine.multiarch();
    [
        format!("/lib/{multiarch}/{name}"),
        format!("/usr/lib/{multiarch}/{name}"),
        format!("/usr/{multiarch}/lib/{name}"),
        format!("/lib64/{name}"),
    ]
    .into_iter()
    .map(PathBuf::from)
    .find(|path| path.exists())
    .with_context(|| {
        format!(
            "{name} for {} is not on this machine (Debian: libc6, libgcc-s1; for another machine \
             crossbuild-essential-{0})",
            machine.oci()
        )
    })
}

fn readelf(path: &Path) -> Result<String> {
    let output = Command::new("readelf")
        .args(["--wide", "--program-headers", "--dynamic"])
        .arg(path)
        .env("LC_ALL", "C")
        .output()
        .context("readelf (Debian: binutils)")?;
    ensure!(
        output.status.success(),
        "readelf {}: {}",
        path.display(),
        String::from_utf8_lossy(&output.stderr).trim()
    );
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

/// `[Requesting program interpreter: /lib64/ld-linux-x86-64.so.2]`
fn loader(text: &str) -> Option<&str> {
    let (_, rest) = text.split_once("program interpreter: ")?;
    rest.split_once(']').map(|(path, _)| path)
}

/// `0x0000000000000001 (NEEDED)  Shared library: [libc.so.6]`
fn needed(text: &str) -> impl Iterator<Item = &str> {
    text.lines()
        .filter(|line| line.contains("(NEEDED)"))
        .filter_map(|line| line.split_once('[')?.1.split_once(']'))
        .map(|(name, _)| name)
}

#[cfg(test)]
mod tests {
    use super::*;

    const TEXT: &str = "\
  INTERP         0x0002e0 0x00000000000002e0 0x00000000000002e0 0x00001c 0x00001c R   0x1
      [Requesting program interpreter: /lib64/ld-linux-x86-64.so.2]
 0x0000000000000001 (NEEDED)             Shared library: [libgcc_s.so.1]
 0x0000000000000001 (NEEDED)             Shared library: [libc.so.6]
 0x000000000000000e (SONAME)             Library soname: [libx.so.1]
";

    #[test]
    fn loader_and_libraries_are_read() {
        assert_eq!(loader(TEXT), Some("/lib64/ld-linux-x86-64.so.2"));
        assert_eq!(
            needed(TEXT).collect::<Vec<_>>(),
            ["libgcc_s.so.1", "libc.so.6"]
        );
        assert_eq!(loader("There is no dynamic section in this file."), None);
    }

    #[test]
    fn needs_of_needs_are_found() {
        let needs = needs(&std::env::current_exe().unwrap(), Machine::this().unwrap()).unwrap();
        assert!(needs.loader.contains("ld-linux"), "{needs:?}");
        assert!(needs.libraries.contains_key("libc.so.6"), "{needs:?}");
    }

    #[test]
    fn a_missing_library_is_named_with_its_package() {
        let error = find("libnone.so.9", Machine::Arm64)
            .unwrap_err()
            .to_string();
        assert!(
            error.contains("libnone.so.9 for arm64")
                && error.contains("crossbuild-essential-arm64"),
            "{error}"
        );
    }
}
