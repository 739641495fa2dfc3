//! Pushes the current generation to watchers.
//!
//! [`cursor`] is pure: the next update for one watcher. [`parts`] splits an update into
//! messages. [`watch`] drives one stream. [`cells`] stores the reports of cells, and
//! [`laggards`] logs which cells are behind.

pub mod cells;
pub mod cursor;
pub mod laggards;
pub mod parts;
pub mod watch;
