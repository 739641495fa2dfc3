//! Watchers of the policy store, as our agents watch it: each reconnects, and says what it
//! has.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use proto::policy_v1::policy_store_client::PolicyStoreClient;
use proto::policy_v1::watch_request::{Hello, Step};
use proto::policy_v1::{WatchRequest, WatchResponse};
use runtime::client::{self, Options};
use runtime::tls::ClientTls;
use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep};
use tokio_stream::wrappers::ReceiverStream;
use tokio_util::sync::CancellationToken;
use tonic::{Status, Streaming};

use crate::ledger::At;

/// Pause before a watcher connects again.
const PAUSE: Duration = Duration::from_millis(100);

/// What arrived at each watcher: the generation, with the time.
#[derive(Debug, Clone, Default)]
pub(crate) struct Arrivals {
    by_watcher: Arc<Mutex<Vec<Vec<At<u64>>>>>,
}

impl Arrivals {
    fn note(&self, watcher: usize, generation: u64) {
        let mut all = self.by_watcher.lock().unwrap_or_else(PoisonError::into_inner);
        all[watcher].push(At { at: Instant::now(), what: generation });
    }

    pub(crate) fn all(&self) -> Vec<Vec<At<u64>>> {
        self.by_watcher.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

/// Watchers that ran for a time, and what arrived at each.
#[derive(Debug, Clone)]
pub(crate) struct Watched {
    pub(crate) from: Instant,
    pub(crate) to: Instant,
    pub(crate) by_watcher: Vec<Vec<At<u64>>>,
}

impl Watched {
    /// The longest time that a watcher lacked a generation of a period. `seen` is when each
    /// generation was in the database.
    pub(crate) fn behind(&self, seen: &[At<u64>], from: Instant, to: Instant) -> Option<Duration> {
        let late = |generation: &At<u64>| {
            let arrived = |watcher: &Vec<At<u64>>| {
                let has = watcher.iter().find(|arrival| arrival.what >= generation.what);
                has.map_or(self.to, |arrival| arrival.at)
            };
            let last = self.by_watcher.iter().map(arrived).max()?;
            Some(last.saturating_duration_since(generation.at))
        };
        let (from, to) = (from.max(self.from), to.min(self.to));
        let in_period =
            seen.iter().filter(|generation| from <= generation.at && generation.at < to);
        in_period.filter_map(late).max()
    }
}

/// Starts watchers of a space each.
pub(crate) fn start(
    address: &str,
    tls: &ClientTls,
    spaces: &[String],
    count: usize,
    shutdown: &CancellationToken,
) -> (Arrivals, JoinSet<()>) {
    let arrivals = Arrivals::default();
    let mut running = JoinSet::new();
    arrivals.by_watcher.lock().unwrap_or_else(PoisonError::into_inner).resize(count, Vec::new());
    for number in 0..count {
        let watcher = Watcher {
            address: address.to_owned(),
            tls: tls.clone(),
            hello: Hello {
                cell_id: format!("watcher-{number}"),
                space_guids: vec![spaces[number % spaces.len()].clone()],
                ..Hello::default()
            },
            arrivals: arrivals.clone(),
            number,
        };
        let shutdown = shutdown.clone();
        running.spawn(async move {
            // Ends with the shutdown.
            let _ = shutdown.run_until_cancelled(watcher.run()).await;
        });
    }
    (arrivals, running)
}

struct Watcher {
    address: String,
    tls: ClientTls,
    hello: Hello,
    arrivals: Arrivals,
    number: usize,
}

impl Watcher {
    async fn run(mut self) {
        loop {
            // A watch ends when its instance stops.
            let _ended = self.watch().await;
            sleep(PAUSE).await;
        }
    }

    async fn watch(&mut self) -> Result<(), Status> {
        let channel = client::channel(&self.address, Some(self.tls.clone()), Options::default());
        let channel = channel.map_err(|error| Status::internal(error.to_string()))?;
        // The sender stays until the watch ends: the request stream must not end.
        let (sender, requests) = mpsc::channel(1);
        let hello = WatchRequest { step: Some(Step::Hello(self.hello.clone())) };
        let _sent = sender.send(hello).await;
        let requests = ReceiverStream::new(requests);
        let answer = PolicyStoreClient::new(channel).watch(requests).await?;
        let mut answers: Streaming<WatchResponse> = answer.into_inner();
        while let Some(answer) = answers.message().await? {
            if answer.complete {
                self.arrivals.note(self.number, answer.generation);
                self.hello.generation = answer.generation;
                self.hello.stamp = answer.stamp;
            }
        }
        drop(sender);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_slowest_watcher_counts() {
        let began = Instant::now();
        let at = |seconds: u64, what| At { at: began + Duration::from_secs(seconds), what };
        let end = began + Duration::from_secs(60);
        let seen = [at(10, 1), at(20, 2)];
        let watchers = [vec![at(11, 1), at(23, 2)], vec![at(21, 2)]];
        let lag = |watchers: &[Vec<At<u64>>]| {
            let watched = Watched { from: began, to: end, by_watcher: watchers.to_vec() };
            watched.behind(&seen, began, end)
        };
        assert_eq!(lag(&watchers), Some(Duration::from_secs(11)));
        assert_eq!(lag(&watchers[..1]), Some(Duration::from_secs(3)));
        assert_eq!(lag(&[vec![at(11, 1)]]), Some(Duration::from_secs(40)), "it never came");
        assert_eq!(lag(&[]), None);
    }
}
