//! Random trouble for a foundation of real processes, with a history of all operations and
//! observations, and a checker of the laws of docs/architecture.md.
//!
//! The checker ([`check`]) is pure: history in, violations out.

pub mod check;
pub mod history;
