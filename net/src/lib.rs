//! Outgoing TCP connections: which address of a name is tried first, when a peer counts as dead,
//! and the pauses between attempts.
//!
//! Invariants:
//! - A name is resolved for every connection.
//! - The addresses of a name are tried as RFC 8305 ("Happy Eyeballs") specifies: both families
//!   interleaved, the next address [`STAGGER`] after the previous one or as soon as that fails, and
//!   the first connection that is ready wins.
//! - An address that was slower than another one, or stopped responding, is tried last for a minute
//!   by every client of the process.
//! - An established connection whose peer disappears without a FIN fails within [`SILENCE`] +
//!   [`PROBE`], even when it is idle.
//!
//! `docs/adr/0023-connecting-to-names-with-several-addresses.md` says why this crate exists.

pub mod backoff;
mod memory;
mod order;
mod race;
mod stream;
#[cfg(feature = "testing")]
pub mod testing;

pub use race::{Addresses, HANDSHAKE, STAGGER, open};
pub use stream::{PROBE, SILENCE, Stream, notice_dead_peer};
