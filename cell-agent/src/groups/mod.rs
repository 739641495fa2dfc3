//! The security groups of the spaces that have containers here.
//!
//! What the policy store tells is put together in `follow`: answers that belong
//! together become one [`Known`](crate::plan::Known) at once, never a part of it. The last one is on
//! disk, so that a cell that starts while the store is down has its rules
//! (laws 4 and 5).

mod client;
mod follow;
mod saved;

pub use client::{Client, Link};
pub use follow::Follow;
pub use saved::{load, save_latest};
