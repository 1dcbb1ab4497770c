//! How each program is doing. Degraded is a state that people can see, not a line in the log: one summary
//! at start, `/status`, and `aksnet_program_up`.

use serde::Serialize;

/// What became of one program.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(tag = "state", content = "reason", rename_all = "snake_case")]
pub enum ProgramState {
    /// Loaded; attached to nothing yet.
    Loaded,
    /// Loaded and attached.
    Attached,
    /// This kernel lacks what the program needs.
    Unsupported(String),
    /// The kernel refused it.
    Failed(String),
}

/// One program.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct ProgramStatus {
    /// `enter`, `exit`, `drop`.
    pub program: String,
    /// `tcx_ingress`, `clsact_egress`, `tp_btf/kfree_skb`, ...
    pub hook: String,
    /// What became of it.
    #[serde(flatten)]
    pub state: ProgramState,
    /// Whether it is attached and running somewhere.
    pub up: bool,
    /// To how many interfaces it is attached; 0 for what is not attached to interfaces.
    pub interfaces: usize,
}

impl ProgramStatus {
    /// In a few words, for the log.
    #[must_use]
    pub fn summary(&self) -> String {
        let Self { program, hook, .. } = self;
        match &self.state {
            ProgramState::Loaded => format!("{program} ({hook}): loaded"),
            ProgramState::Attached if self.interfaces == 0 => {
                format!("{program} ({hook}): attached")
            }
            ProgramState::Attached => {
                format!(
                    "{program} ({hook}): attached to {} interfaces",
                    self.interfaces
                )
            }
            ProgramState::Unsupported(why) => format!("{program} ({hook}): not supported: {why}"),
            ProgramState::Failed(why) => format!("{program} ({hook}): failed: {why}"),
        }
    }
}
