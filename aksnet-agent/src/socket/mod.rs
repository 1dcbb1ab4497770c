//! The local socket: how `aksnet-agent top` and `drops` ask the running agent. One JSON request a line in, JSON lines
//! out; only root can open it.

pub mod protocol;

pub mod server;

pub mod client;
