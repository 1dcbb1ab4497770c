//! The question of `aksnet-agent explain`: may this pod reach that one, by the policies of a cluster or of a directory of
//! manifests.
//!
//! [`manifest`] reads files, [`scene`] holds what they say and finds who is meant, [`report`] says what comes of it. What
//! the policies say is [`crate::policy`]'s.

// Files to objects.
pub mod manifest;

// Objects to who is meant.
pub mod scene;

mod template;

pub mod question;

// The answer.
pub mod report;
