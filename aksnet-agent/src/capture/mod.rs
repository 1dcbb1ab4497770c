//! *Captures*: packets as somebody saw them on interfaces, from a file or live, instead of as programs counted them.
//!
//! A capture shows a forwarded packet each time it passes an interface; programs count it once, where it enters.
//! [`sighting`] finds the sightings of one packet by its fingerprint and counts it once in a [`table`], which a sweep
//! reads as it reads the programs' maps. From there on everything is the same code: joining, classes, records.

// What a captured frame begins with.
pub mod link;

// Counts by flow, in ordinary memory.
pub mod table;

// Which sightings are of one packet.
pub mod sighting;

// Captures in files.
pub mod file;

// A capture played through all of it.
pub mod replay;

// Captures as they happen.
pub mod live;
