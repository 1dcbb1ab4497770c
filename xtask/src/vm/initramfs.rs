//! An *initramfs*: the archive that a kernel unpacks as its first root. It is cpio's `newc` format, uncompressed
//! (Documentation/driver-api/early-userspace/buffer-format.rst of the kernel).

use std::fs;
use std::io::Write;
use std::os::unix::fs::MetadataExt as _;
use std::path::Path;

use anyhow::{Context as _, Result};

/// What `mode` says of the kind of a file: a directory, a regular file, a symbolic link.
const DIRECTORY: u32 = 0o040_000;
const REGULAR: u32 = 0o100_000;
const LINK: u32 = 0o120_000;

/// An archive under way.
#[derive(Debug)]
pub struct Initramfs<W> {
    to: W,
    files: u32,
}

impl<W: Write> Initramfs<W> {
    /// An empty one.
    pub fn new(to: W) -> Self {
        Self { to, files: 0 }
    }

    /// A directory, whose parents are there.
    ///
    /// # Errors
    /// When it cannot be written.
    pub fn directory(&mut self, path: &str) -> Result<()> {
        self.entry(path, DIRECTORY | 0o755, &[])
    }

    /// A file with these permissions.
    ///
    /// # Errors
    /// When it cannot be written.
    pub fn file(&mut self, path: &str, permissions: u32, content: &[u8]) -> Result<()> {
        self.entry(path, REGULAR | permissions, content)
    }

    /// A symbolic link.
    ///
    /// # Errors
    /// When it cannot be written.
    pub fn link(&mut self, path: &str, target: &str) -> Result<()> {
        self.entry(path, LINK | 0o777, target.as_bytes())
    }

    /// A directory of this machine with all that is in it, in the order of names.
    ///
    /// # Errors
    /// When it cannot be read or written.
    pub fn tree(&mut self, path: &str, from: &Path) -> Result<()> {
        self.directory(path)?;
        let mut entries = fs::read_dir(from)
            .and_then(Iterator::collect::<std::io::Result<Vec<_>>>)
            .with_context(|| from.display().to_string())?;
        entries.sort_by_key(fs::DirEntry::file_name);
        for entry in entries {
            let name = format!("{path}/{}", entry.file_name().display());
            let source = entry.path();
            if source.is_dir() {
                self.tree(&name, &source)?;
            } else {
                let content = fs::read(&source).with_context(|| source.display().to_string())?;
                self.file(&name, fs::metadata(&source)?.mode() & 0o777, &content)?;
            }
        }
        Ok(())
    }

    /// Ends it.
    ///
    /// # Errors
    /// When it cannot be written.
    pub fn finish(mut self) -> Result<W> {
        self.entry("TRAILER!!!", 0, &[])?;
        self.to.flush()?;
        Ok(self.to)
    }

    fn entry(&mut self, path: &str, mode: u32, content: &[u8]) -> Result<()> {
        self.files += 1;
        let path = path.trim_start_matches('/');
        let size = u32::try_from(content.len()).context("a file of more than 4 GiB")?;
        let name = u32::try_from(path.len() + 1)?;
        // inode, mode, owner, group, links, time, size, device, device it stands for, length of name, no checksum.
        let fields = [self.files, mode, 0, 0, 1, 0, size, 0, 0, 0, 0, name, 0];
        let mut header = b"070701".to_vec();
        for field in fields {
            write!(header, "{field:08x}")?;
        }
        header.extend_from_slice(path.as_bytes());
        header.push(0);
        pad(&mut header);
        self.to.write_all(&header)?;
        self.to.write_all(content)?;
        let rest = (4 - content.len() % 4) % 4;
        Ok(self.to.write_all(&[0; 4][..rest])?)
    }
}

/// Header with name, and content, end at a multiple of four bytes.
fn pad(bytes: &mut Vec<u8>) {
    bytes.resize(bytes.len().next_multiple_of(4), 0);
}

#[cfg(test)]
mod tests {
    use std::process::{Command, Stdio};

    use super::*;

    #[test]
    fn what_goes_in_comes_out_of_another_reader() {
        let source = tempfile::tempdir().unwrap();
        fs::create_dir(source.path().join("inner")).unwrap();
        fs::write(source.path().join("inner/five"), "12345").unwrap();
        let mut archive = Initramfs::new(Vec::new());
        archive.file("/init", 0o755, b"#!/bin/sh\n").unwrap();
        archive.link("/sbin", "bin").unwrap();
        archive.tree("/modules", source.path()).unwrap();
        let bytes = archive.finish().unwrap();

        let out = tempfile::tempdir().unwrap();
        let mut busybox = Command::new("busybox")
            .args(["cpio", "-i", "-d"])
            .current_dir(out.path())
            .stdin(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        busybox.stdin.take().unwrap().write_all(&bytes).unwrap();
        assert!(busybox.wait().unwrap().success());
        let init = out.path().join("init");
        assert_eq!(fs::read(&init).unwrap(), b"#!/bin/sh\n");
        assert_eq!(fs::metadata(&init).unwrap().mode() & 0o777, 0o755);
        assert_eq!(
            fs::read_link(out.path().join("sbin")).unwrap(),
            Path::new("bin")
        );
        assert_eq!(
            fs::read(out.path().join("modules/inner/five")).unwrap(),
            b"12345"
        );
    }
}
