//! The *place* of the runtime's socket: given, looked for, or not wanted.

use std::{
    fmt,
    os::unix::fs::FileTypeExt as _,
    path::{Path, PathBuf},
};

/// Where runtimes listen unless told otherwise: containerd (and so AKS and kind), k3s's own containerd, CRI-O,
/// Docker behind cri-dockerd. The first that answers is taken: Docker's packages run a containerd without CRI.
pub const WELL_KNOWN: [&str; 4] = [
    "/run/containerd/containerd.sock",
    "/run/k3s/containerd/containerd.sock",
    "/var/run/crio/crio.sock",
    "/run/cri-dockerd.sock",
];

/// Where the socket is.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Place {
    /// The runtime is not asked.
    Off,
    /// At one of [`WELL_KNOWN`].
    #[default]
    Look,
    /// Here, and nowhere else.
    At(PathBuf),
}

impl Place {
    /// Reads `off`, a path, or nothing. A path may be written as kubelet wants it, with `unix://` before it
    /// (`--container-runtime-endpoint`).
    ///
    /// # Errors
    /// When it is none of these.
    pub fn parse(text: &str) -> Result<Self, String> {
        let path = text.strip_prefix("unix://").unwrap_or(text);
        match path {
            "" => Ok(Self::Look),
            "off" => Ok(Self::Off),
            _ if path.starts_with('/') && !path.ends_with('/') => Ok(Self::At(path.into())),
            _ => Err(format!(
                "'{text}' is no path of a socket: it starts at '/', as {}; or 'off'",
                WELL_KNOWN[0]
            )),
        }
    }

    /// The paths to try, in order.
    #[must_use]
    pub fn paths(&self) -> Vec<PathBuf> {
        match self {
            Self::Off => Vec::new(),
            Self::Look => WELL_KNOWN.iter().map(PathBuf::from).collect(),
            Self::At(path) => vec![path.clone()],
        }
    }
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Off => f.write_str("off"),
            Self::Look => Ok(()),
            Self::At(path) => write!(f, "{}", path.display()),
        }
    }
}

/// Why nothing can listen there, if so; said before it is tried, as what `connect` says is no help.
pub(super) fn obstacle(path: &Path) -> Option<String> {
    match std::fs::metadata(path) {
        Ok(found) if found.file_type().is_socket() => None,
        Ok(_) => Some("is no socket".to_owned()),
        Err(error) => Some(error.to_string()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_written_is_read_back() {
        for text in ["", "off", "/run/containerd/containerd.sock"] {
            assert_eq!(Place::parse(text).unwrap().to_string(), text);
        }
        assert_eq!(
            Place::parse("unix:///run/crio.sock").unwrap(),
            Place::At("/run/crio.sock".into())
        );
    }

    #[test]
    fn what_is_no_path_is_refused() {
        for text in ["containerd.sock", "tcp://127.0.0.1:1", "on", "/run/", "/"] {
            assert!(Place::parse(text).is_err(), "{text}");
        }
    }

    #[test]
    fn a_given_path_is_the_only_one_tried_and_containerd_is_looked_for_first() {
        assert_eq!(Place::At("/a".into()).paths(), [PathBuf::from("/a")]);
        assert!(Place::Look.paths()[0].ends_with("containerd/containerd.sock"));
        assert!(Place::Off.paths().is_empty());
    }

    #[test]
    fn a_file_and_a_missing_path_are_told_apart() {
        let directory = tempfile::tempdir().unwrap();
        let file = directory.path().join("file");
        std::fs::write(&file, "").unwrap();
        assert_eq!(obstacle(&file).as_deref(), Some("is no socket"));
        assert!(
            obstacle(&directory.path().join("none")).is_some_and(|why| why.contains("No such"))
        );
    }
}
