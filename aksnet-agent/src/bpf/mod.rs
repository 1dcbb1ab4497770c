//! Handles to the kernel side: loading, attaching, and the maps. All `unsafe` of the agent is in here.

pub mod datapath;

pub mod attach_error;

pub mod status;
