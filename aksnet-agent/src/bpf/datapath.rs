//! The loaded programs as the agent's life sees them: something that is attached to interfaces.

use super::{attach_error::AttachError, status::ProgramStatus};
use crate::node::interface::Interface;

/// Loaded programs. Dropping it must leave nothing attached.
pub trait Datapath: Send {
    /// Attaches ENTER and EXIT to an interface, both or neither. Replaces what a killed agent left there.
    ///
    /// # Errors
    /// By kind, as the caller reacts differently to each.
    fn attach(&mut self, interface: &Interface) -> Result<(), AttachError>;

    /// Detaches from an interface; nothing happens if it is gone or was never attached to.
    fn detach(&mut self, ifindex: u32);

    /// How each program is doing.
    fn programs(&self) -> Vec<ProgramStatus>;
}
