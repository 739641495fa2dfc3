//! The security groups of the spaces that have containers here.
//!
//! They come from our policy store, which pushes changes (`client`), or from a
//! genuine policy-server-internal, which is asked (`poll`). Either way what
//! belongs together becomes one [`Known`](crate::plan::Known) at once, never a
//! part of it. The last one is on disk, so that a cell that starts while the
//! store is down has its rules (laws 4 and 5).

mod api;
mod client;
mod follow;
pub mod page;
mod poll;
mod saved;
mod spaces;

pub use client::Client;
pub use follow::Follow;
pub use poll::{Poller, Refresh, Server};
pub use saved::{load, save_latest};

/// Whether the store can be reached.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Link {
    /// It told a whole state, and answers still.
    Up,
    /// It does not answer, or has not said anything yet.
    Down,
}
