//! Writing a session. Whatever ends the recorder, the file is whole up to then: a batch of complete lines is written at
//! once, and in a compressed file is a gzip member of its own (RFC 1952, 2.2: a file is a series of members).

use std::{
    fs::{File, OpenOptions},
    io::{self, Write as _},
    path::{Path, PathBuf},
};

use flate2::{Compression, write::GzEncoder};

use super::{Ending, Head, Line, Missed};
use crate::exit::{Exit, Failure, OrExit as _};

/// Lines of so many bytes are written at once.
const BATCH: usize = 64 * 1024;

/// See the module's header.
#[derive(Debug)]
pub struct Writer {
    file: File,
    path: PathBuf,
    zipped: bool,
    /// Where the file ends as long as nothing fails.
    length: u64,
    waiting: Vec<u8>,
    flows: u64,
    drops: u64,
    missed: Missed,
}

impl Writer {
    /// Begins a file with its head.
    ///
    /// # Errors
    /// When the file is there and is not to be replaced, or cannot be made.
    pub fn create(path: &Path, force: bool, head: Head) -> Result<Self, Failure> {
        let mut options = OpenOptions::new();
        options.write(true).truncate(true);
        if force {
            options.create(true);
        } else {
            options.create_new(true);
        }
        let file = options.open(path).map_err(|error| {
            let path = path.display();
            match error.kind() {
                io::ErrorKind::AlreadyExists => Failure::new(
                    Exit::CantCreate,
                    format_args!(
                        "{path} is there already; choose another name, or replace it with --force"
                    ),
                ),
                io::ErrorKind::PermissionDenied => Failure::new(
                    Exit::NoPermission,
                    format_args!("cannot create {path}: {error}"),
                ),
                _ => Failure::new(
                    Exit::CantCreate,
                    format_args!("cannot create {path}: {error}"),
                ),
            }
        })?;
        let mut writer = Self {
            file,
            path: path.to_owned(),
            zipped: path.extension().is_some_and(|extension| extension == "gz"),
            length: 0,
            waiting: Vec::new(),
            flows: 0,
            drops: 0,
            missed: Missed::default(),
        };
        writer.line(&Line::Session(head))?;
        writer.flush()?;
        Ok(writer)
    }

    /// Records so far.
    #[must_use]
    pub const fn written(&self) -> u64 {
        self.flows + self.drops
    }

    /// Adds a line; it is written with the next batch.
    ///
    /// # Errors
    /// When the disc is full or fails.
    pub fn line(&mut self, line: &Line) -> Result<(), Failure> {
        match line {
            Line::Flow(_) => self.flows += 1,
            Line::Drop(_) => self.drops += 1,
            Line::Missed(missed) => {
                self.missed.flows += missed.flows;
                self.missed.drops += missed.drops;
            }
            Line::Session(_) | Line::End(_) => {}
        }
        serde_json::to_writer(&mut self.waiting, line).or_exit(Exit::Software)?;
        self.waiting.push(b'\n');
        if self.waiting.len() >= BATCH {
            self.flush()
        } else {
            Ok(())
        }
    }

    /// Writes what waits.
    ///
    /// # Errors
    /// When the disc is full or fails: what was written before stays whole.
    pub fn flush(&mut self) -> Result<(), Failure> {
        if self.waiting.is_empty() {
            return Ok(());
        }
        let lines = std::mem::take(&mut self.waiting);
        let bytes = if self.zipped {
            zip(&lines).or_exit(Exit::Software)?
        } else {
            lines
        };
        if let Err(error) = self.file.write_all(&bytes) {
            // A part of a batch is no lines.
            let _as_good_as_it_gets = self.file.set_len(self.length);
            let (path, written) = (self.path.display(), self.written());
            let hint = match error.kind() {
                io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => {
                    ": make room, or record elsewhere; what is written is whole"
                }
                _ => "",
            };
            return Err(Failure::new(
                Exit::Io,
                format_args!("cannot write {path} after about {written} records: {error}{hint}"),
            ));
        }
        self.length += bytes.len() as u64;
        Ok(())
    }

    /// Ends the file, and says how much is in it.
    ///
    /// # Errors
    /// When the disc is full or fails.
    pub fn end(mut self, ended_ms: u64, because: &str) -> Result<Ending, Failure> {
        let ending = Ending {
            ended_ms,
            because: because.to_owned(),
            flows: self.flows,
            drops: self.drops,
            missed: self.missed,
        };
        self.line(&Line::End(ending.clone()))?;
        self.flush()?;
        Ok(ending)
    }
}

fn zip(lines: &[u8]) -> io::Result<Vec<u8>> {
    let mut encoder = GzEncoder::new(Vec::new(), Compression::default());
    encoder.write_all(lines)?;
    encoder.finish()
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;
    use crate::{
        capture::file::{Input, open},
        flowlog::record::tests::record,
        session::{VERSION, read},
    };

    fn head() -> Head {
        Head {
            format: VERSION,
            agent: String::new(),
            started_ms: 1,
            knows: serde_json::Value::Null,
        }
    }

    fn lines(path: &Path) -> Vec<Line> {
        let Input::Session(input) = open(File::open(path).unwrap()).unwrap() else {
            panic!("a session");
        };
        let mut lines = Vec::new();
        read(input, |line| lines.push(line)).unwrap();
        lines
    }

    #[test]
    fn the_file_is_whole_after_each_batch_and_at_the_end() {
        let dir = tempfile::tempdir().unwrap();
        for name in ["session.jsonl", "session.jsonl.gz"] {
            let path = dir.path().join(name);
            let mut writer = Writer::create(&path, false, head()).unwrap();
            assert_eq!(lines(&path).len(), 1);
            let flow = Line::Flow(Box::new(record()));
            for _ in 0..200 {
                writer.line(&flow).unwrap();
                assert!(!lines(&path).is_empty(), "whole at any moment");
            }
            assert!(lines(&path).len() > 1, "a full batch is written");
            let ending = writer.end(9, "SIGTERM").unwrap();
            assert_eq!((ending.flows, ending.drops), (200, 0));
            let lines = lines(&path);
            assert_eq!(lines.len(), 202);
            assert_eq!(lines[201], Line::End(ending));
            let zipped = fs::read(&path).unwrap().starts_with(&[0x1f, 0x8b]);
            assert_eq!(zipped, path.extension().is_some_and(|end| end == "gz"));
        }
    }

    #[test]
    fn a_file_that_is_there_is_not_replaced_unless_asked_for() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("f");
        fs::write(&path, "mine").unwrap();
        let failure = Writer::create(&path, false, head()).unwrap_err();
        assert_eq!(failure.exit, Exit::CantCreate);
        assert!(failure.to_string().contains("--force"), "{failure}");
        assert_eq!(fs::read(&path).unwrap(), b"mine");
        Writer::create(&path, true, head()).unwrap();
        assert_eq!(lines(&path).len(), 1);
        let failure = Writer::create(&dir.path().join("no/f"), false, head()).unwrap_err();
        assert_eq!(failure.exit, Exit::CantCreate);
    }

    #[test]
    fn a_full_disc_is_a_clear_error() {
        let failure = Writer::create(Path::new("/dev/full"), true, head()).unwrap_err();
        assert_eq!(failure.exit, Exit::Io);
        assert!(failure.to_string().contains("make room"), "{failure}");
    }
}
