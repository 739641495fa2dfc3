//! The domain vocabulary of Portcullis: pure values and the rules between them.
//!
//! Nothing here knows a socket, a clock, a database or a wire format. Text from
//! outside becomes one of these types once, at the door of a process, and what
//! holds for a type (an owner is never empty, a port range is never inverted)
//! holds everywhere after that.

pub mod effective;
pub mod generation;
pub mod group;
pub mod ids;
pub mod lock;
pub mod rule;
