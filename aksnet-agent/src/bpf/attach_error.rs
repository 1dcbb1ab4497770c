//! Why a program could not be attached to an interface: the agent reacts to each kind differently.

/// An attachment that failed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum AttachError {
    /// The interface went away meanwhile. No error: pods end.
    #[error("the interface is gone")]
    InterfaceGone,
    /// This kernel or device cannot do it. Not tried again.
    #[error("not supported by this kernel or device: {0}")]
    Unsupported(String),
    /// The kernel refuses, and says why. Tried again, ever more rarely.
    #[error("{0}")]
    Rejected(String),
}
