//! Security groups: replaced as a whole, served from memory.
//!
//! [`manifest`] and [`decide`] are pure: what a writer has to deliver, and what
//! a Replace does, with [`content`]. [`snapshot`] and [`history`] are values: what is served, over
//! HTTP as [`json`] in compressed [`fragment`]s.
//! [`board`] has the newest of them; [`committer`](crate::committer) is the one task that writes.

pub mod content;
pub mod contents;
pub mod current;
pub mod decide;
pub mod fragment;
pub mod history;
pub mod json;
pub mod manifest;
pub mod page;
pub mod reach;
pub mod snapshot;
