//! A *guest* is what runs in the machine: its first process, and the initramfs that has it.

use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, ensure};

use super::initramfs::Initramfs;
use super::kernel::Kernel;
use super::work::Program;

/// The first process, before it is told what to run.
const SCRIPT: &str = include_str!("guest.sh");

/// Where Debian's `busybox-static` is, in older and in newer releases.
const BUSYBOX: [&str; 2] = ["/bin/busybox", "/usr/bin/busybox"];

/// The tag by which a guest mounts the `n`th of its shares.
#[must_use]
pub fn tag(n: usize) -> String {
    format!("share{n}")
}

/// The first process that mounts these directories of the host at their own places and runs these programs.
#[must_use]
pub fn script(shares: &[PathBuf], programs: &[Program]) -> String {
    let share = |(n, path): (usize, &PathBuf)| {
        format!("share {} {}", tag(n), quoted(&path.display().to_string()))
    };
    let shares: Vec<String> = shares.iter().enumerate().map(share).collect();
    let runs: Vec<String> = programs.iter().map(run).collect();
    SCRIPT
        .replace("\nSHARES\n", &format!("\n{}\n", shares.join("\n")))
        .replace("\nPROGRAMS\n", &format!("\n{}\n", runs.join("\n")))
}

fn run(program: &Program) -> String {
    let environment = program
        .environment
        .iter()
        .map(|(name, value)| format!("{name}={value}"));
    let words = ["run".to_owned(), program.name.clone(), "env".to_owned()]
        .into_iter()
        .chain(environment)
        .chain([program.path.display().to_string()])
        .chain(program.arguments.iter().cloned());
    words
        .map(|word| quoted(&word))
        .collect::<Vec<_>>()
        .join(" ")
}

/// A word as the shell takes it, whatever is in it.
fn quoted(word: &str) -> String {
    let plain = |c: char| c.is_ascii_alphanumeric() || "/._-=:".contains(c);
    if !word.is_empty() && word.chars().all(plain) {
        word.to_owned()
    } else {
        format!("'{}'", word.replace('\'', r"'\''"))
    }
}

/// Writes the initramfs of a kernel with this first process.
///
/// # Errors
/// When busybox is not there, or a file cannot be read or written.
pub fn write<W: Write>(to: W, kernel: &Kernel, script: &str) -> Result<W> {
    let path = BUSYBOX
        .iter()
        .map(Path::new)
        .find(|path| path.exists())
        .context("no busybox: `cargo xtask setup` installs busybox-static")?;
    let busybox = fs::read(path)?;
    ensure!(
        is_static(&busybox),
        "{} needs libraries: install busybox-static in its place",
        path.display()
    );
    let mut archive = Initramfs::new(to);
    for directory in ["/bin", "/dev", "/lib", "/lib/modules"] {
        archive.directory(directory)?;
    }
    archive.file("/bin/busybox", 0o755, &busybox)?;
    archive.file("/init", 0o755, script.as_bytes())?;
    // Whole, as the kernel asks for modules by itself: it looks for them in its own first root.
    archive.tree(&format!("/lib/modules/{}", kernel.release), &kernel.modules)?;
    archive.finish()
}

/// Whether an ELF program names no loader (no segment of type 3).
fn is_static(program: &[u8]) -> bool {
    let number = |at: usize, size: usize| {
        let bytes = program.get(at..at + size)?;
        Some(
            bytes
                .iter()
                .rev()
                .fold(0_u64, |n, byte| n << 8 | u64::from(*byte)),
        )
    };
    let headers = || {
        let (start, size, count) = (number(32, 8)?, number(54, 2)?, number(56, 2)?);
        (0..count)
            .map(|n| number(usize::try_from(start + n * size).ok()?, 4))
            .collect::<Option<Vec<u64>>>()
    };
    headers().is_some_and(|kinds| !kinds.contains(&3))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_process_is_told_what_to_mount_and_run() {
        let program = Program {
            name: "programs".to_owned(),
            path: "/it's/here".into(),
            arguments: vec!["--show-output".to_owned(), "a b".to_owned()],
            environment: vec![("SLOW", "10".to_owned())],
        };
        let text = script(&["/work space".into()], &[program]);
        assert!(text.contains("\nshare share0 '/work space'\n"), "{text}");
        let expected = r"run programs env SLOW=10 '/it'\''s/here' --show-output 'a b'";
        assert!(text.contains(&format!("\n{expected}\n")), "{text}");
        assert!(!text.contains("\nSHARES\n") && !text.contains("\nPROGRAMS\n"));
    }

    #[test]
    fn a_program_with_a_loader_is_not_static() {
        let own = fs::read("/proc/self/exe").unwrap();
        assert!(!is_static(&own));
        assert!(!is_static(b"\x7fELF"));
    }
}
