//! The domain vocabulary of Portcullis: pure values and the rules between them.
//!
//! This crate has no sockets, clocks, databases or wire formats. Text from outside is parsed into
//! these types once, where it enters a process; the invariants of a type (an owner is never empty,
//! a port range is never inverted) hold everywhere after that.

pub mod effective;
pub mod generation;
pub mod group;
pub mod ids;
pub mod lock;
pub mod rule;
