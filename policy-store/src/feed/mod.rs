//! The current generation, pushed to those who watch.
//!
//! [`cursor`] is pure: what one watcher has to be told. [`parts`] cuts that into
//! messages. [`watch`] drives one stream. [`cells`] remembers what cells said
//! about themselves, and [`laggards`] logs which of them are behind.

pub mod cells;
pub mod cursor;
pub mod laggards;
pub mod parts;
pub mod watch;
