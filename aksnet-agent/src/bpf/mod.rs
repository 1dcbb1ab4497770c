//! Handles to the kernel side: loading, attaching, and the maps. All `unsafe` of the agent is in here.

// What the running kernel says of itself.
pub mod kernel;

// The object, loaded program by program.
pub mod loader;

// What the agent's life sees of it.
pub mod datapath;

pub mod attach_error;

pub mod status;

// What the programs have to say themselves.
pub mod log;

// Links that follow interfaces.
pub mod attach;

// The flow table's pages, shared with the programs.
pub mod mapped;

// The maps as one sweep reads them.
pub mod maps;

// Maps that are emptied many entries at a time.
mod batch;

pub use attach::Attacher;
pub use loader::{DROP, LoadOptions, Loaded, load};
pub use maps::MapSource;
