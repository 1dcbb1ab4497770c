//! The local socket: how `aksnet-agent top` asks the running agent. One JSON request a line in, JSON lines
//! out; only root can open it.

pub mod protocol;

pub mod server;

pub mod client;
