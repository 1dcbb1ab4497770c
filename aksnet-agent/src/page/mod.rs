//! The *page*: what a browser shows of this node, for people who came by `kubectl port-forward`. It is one page with its
//! style and scripts, all of them in the binary, that asks for a [`crate::live::Snapshot`] each second. It shows nothing
//! that `/metrics` and the socket do not, and changes nothing.
//!
//! It names addresses of peers, which `/metrics` does not. So it has a listener of its own, at the node's loopback unless
//! somebody says otherwise, and does not answer to names that a stranger's web site may have given this address.

// Where it is served, or why it is not.
mod place;

// Which names it answers to.
mod host;

// Its files.
mod files;

// What is asked of `/api/live`, and what is answered.
mod answers;

mod question;

// All of it over HTTP.
mod routes;

pub use self::{
    host::Hosts,
    place::{Place, serve},
    routes::{Look, Shown, router},
};

#[cfg(test)]
mod tests;
