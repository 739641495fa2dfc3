//! The security groups of the spaces that have containers on this cell.
//!
//! They come from our policy store, which pushes changes (`client`), or from a genuine
//! policy-server-internal, which is polled (`poll`). In both cases a complete state
//! becomes one [`Known`], never a part of it. The last state is saved on disk, so that
//! a cell that starts while the store is down has its rules (laws 4 and 5).
//!
//! Over the same watch the store receives what the cell enforces (`report`, `inventory`),
//! and sends operators' questions.

use std::sync::Arc;

use runtime::client::describe;
use tokio::{sync::watch, time::Instant};
use tokio_util::sync::CancellationToken;

use crate::plan::Known;

mod api;
mod client;
mod follow;
mod inventory;
pub mod page;
mod poll;
mod report;
mod saved;
mod spaces;

pub use client::{About, Asked, Client};
pub use follow::WatchSession;
pub use poll::{Poller, Refresh, Server};
pub use saved::{load, save, save_latest};

/// Source of the groups.
#[derive(Debug)]
pub enum GroupSource {
    /// Our policy store.
    Watch(Box<Client>),
    /// A policy server.
    Poll(Box<Poller>),
}

impl GroupSource {
    /// The name of its task.
    #[must_use]
    pub fn name(&self) -> &'static str {
        match self {
            Self::Watch(_) => "policy-store-watch",
            Self::Poll(_) => "policy-server-poll",
        }
    }

    /// Receives groups until shutdown.
    ///
    /// # Errors
    /// Never; failures are reported and retried.
    pub async fn run(self, shutdown: CancellationToken) -> anyhow::Result<()> {
        match self {
            Self::Watch(client) => client.run(shutdown).await,
            Self::Poll(poller) => poller.run(shutdown).await,
        }
    }

    /// Fetches the groups once.
    ///
    /// # Errors
    /// Why the groups are not known, as a sentence.
    pub async fn fetch(self) -> Result<(), String> {
        match self {
            Self::Watch(client) => client.fetch().await.map_err(|status| describe(&status)),
            Self::Poll(poller) => poller.fetch().await,
        }
    }
}

/// Replaces the known groups, and gives them the next revision and the time of arrival.
fn publish(latest: &watch::Sender<Option<Arc<Known>>>, mut known: Arc<Known>) -> Arc<Known> {
    latest.send_modify(|latest| {
        let last = latest.as_ref().map_or(0, |last| last.revision);
        let received = Arc::make_mut(&mut known);
        received.revision = last + 1;
        received.arrived = Some(Instant::now().into_std());
        *latest = Some(Arc::clone(&known));
    });
    known
}

/// A text from outside in one line, with at most this many characters.
fn bounded(text: &str, most: usize) -> String {
    let plain = |c: char| if c.is_control() { ' ' } else { c };
    text.chars().take(most).map(plain).collect()
}

/// State of the connection to the source of the groups.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Connectivity {
    /// The source sent a complete state, and still responds.
    Up,
    /// The source does not respond, with the reason.
    Down(Arc<str>),
}

impl Connectivity {
    /// State before the first response.
    #[must_use]
    pub fn begin() -> Self {
        Self::Down("it has not answered yet".into())
    }

    /// Why there is no connection.
    #[must_use]
    pub fn problem(&self) -> Option<String> {
        match self {
            Self::Up => None,
            Self::Down(reason) => Some(format!("the policy store is not reached: {reason}")),
        }
    }
}
