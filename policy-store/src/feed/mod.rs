//! Pushes the current generation to watchers.
//!
//! [`cursor`] is pure: the next update for one watcher. [`parts`] splits an update into
//! messages. [`watch`] drives one stream. [`cells`] stores the reports of cells, with an
//! [`inventory`] of each, in which [`survey`] finds containers; [`laggards`] logs which
//! cells are behind. [`ring`] is pure: the last changes and their enforcement, which
//! [`changes`] shares. [`questions`] passes requests to the agents of cells.

pub mod cells;
pub mod changes;
pub mod cursor;
pub mod inventory;
pub mod laggards;
pub mod parts;
pub mod questions;
pub mod ring;
pub mod survey;
pub mod watch;
