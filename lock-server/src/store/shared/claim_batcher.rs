//! Batches concurrent claims into one transaction, on PostgreSQL; on MySQL each claim is
//! executed alone.
//!
//! A single claim costs the database a transaction, a flush and two round trips. The
//! batcher has at most [`AT_ONCE`] statements in flight; claims that arrive meanwhile
//! join the next statement. Invariants:
//! - A claim takes effect as it would alone: the statement treats each row in the same
//!   way and writes the rows in key order, so that two statements can wait for each
//!   other but never deadlock.
//! - A contended key does not delay other claims for long: a statement waits only
//!   briefly for a locked row, and if it fails each of its claims is executed alone. A
//!   statement that runs for longer than [`WAIT`] no longer blocks others, and answers
//!   when it ends.
//! - No claim is executed twice, except after an error.
//! - After such a failure or delay, claims are executed alone for [`APART`].

use std::{collections::HashSet, mem, pin::Pin, time::Duration};

use futures_util::future::join_all;
use model::lock::{Claim, LockKey};
use serde::Serialize;
use storage::server::{Dialect, Server};
use tokio::{
    sync::{mpsc, oneshot},
    task::{JoinError, JoinSet},
    time::{Instant, timeout},
};
use tokio_util::sync::CancellationToken;

use super::statements::{self, Taken};

/// Limit of claims per statement.
const MOST: usize = 64;
/// Limit of concurrent statements.
const AT_ONCE: usize = 2;
/// How long a statement blocks others; [`statements`] has its lock timeout for a row.
const WAIT: Duration = Duration::from_millis(500);
/// How long claims are executed alone after a statement failed.
const APART: Duration = Duration::from_secs(1);

/// Result of a claim; `None` when another owner holds the key.
pub(super) type Answer = Result<Option<Taken>, storage::Error>;

/// A queued claim.
#[derive(Debug)]
pub(super) struct PendingClaim {
    pub(super) claim: Claim,
    /// `modified_id` for a new life of the row.
    pub(super) id: String,
    pub(super) reply: oneshot::Sender<Answer>,
}

/// A claim as JSON input of the statement.
#[derive(Debug, Serialize)]
struct Asked<'a> {
    path: &'a str,
    owner: &'a str,
    value: &'a str,
    r#type: &'a str,
    id: &'a str,
    ttl: i64,
}

impl PendingClaim {
    fn asked(&self) -> Asked<'_> {
        let Self { claim, id, reply: _ } = self;
        let Claim { key, owner, value, kind, ttl } = claim;
        Asked {
            path: key.as_str(),
            owner: owner.as_str(),
            value: value.as_str(),
            r#type: kind.as_str(),
            id,
            ttl: ttl.seconds(),
        }
    }

    fn answer(self, answer: Answer) {
        let _gave_up = self.reply.send(answer);
    }
}

/// A statement in flight: answers its claims, or returns those that it failed to
/// execute.
type InFlight = Pin<Box<dyn Future<Output = Vec<PendingClaim>> + Send>>;

/// Work that is not answered yet.
struct Unfinished {
    asks: Vec<PendingClaim>,
    /// The statement still runs.
    making: Option<InFlight>,
    has_failed: bool,
}

/// Executes claims until `stop`, then those that are queued.
///
/// # Errors
/// A task panicked.
pub(super) async fn run(
    server: Server,
    mut asks: mpsc::Receiver<PendingClaim>,
    stop: CancellationToken,
) -> Result<(), storage::Error> {
    let panicked = |_: JoinError| storage::Error::Panicked;
    let (mut together, mut alone) = (JoinSet::new(), JoinSet::new());
    let mut waiting = Vec::with_capacity(MOST);
    let mut apart_until = Instant::now();
    let (mut is_stopping, mut is_over) = (false, false);
    while !(is_over && together.is_empty() && alone.is_empty()) {
        tokio::select! {
            biased;
            () = stop.cancelled(), if !is_stopping => {
                is_stopping = true;
                asks.close();
            }
            Some(ended) = together.join_next() => {
                let Unfinished { asks, making, has_failed } = ended.map_err(panicked)?;
                if has_failed {
                    apart_until = Instant::now() + APART;
                }
                if let Some(making) = making {
                    alone.spawn(go_on(server.clone(), making));
                }
                for ask in asks {
                    alone.spawn(claim_alone(server.clone(), ask));
                }
            }
            Some(ended) = alone.join_next() => ended.map_err(panicked)?,
            count = asks.recv_many(&mut waiting, MOST), if !is_over && together.len() < AT_ONCE => {
                is_over = count == 0;
                if server.dialect() == Dialect::MySql || Instant::now() < apart_until {
                    for ask in waiting.drain(..) {
                        alone.spawn(claim_alone(server.clone(), ask));
                    }
                } else if count > 0 {
                    together.spawn(claim_together(server.clone(), mem::take(&mut waiting)));
                }
            }
        }
    }
    Ok(())
}

async fn claim_alone(server: Server, ask: PendingClaim) {
    let answer = statements::claim(&server, &ask.claim, &ask.id).await;
    ask.answer(answer);
}

/// Waits for a slow statement; claims that it fails to execute are executed alone.
async fn go_on(server: Server, making: InFlight) {
    let failed = making.await;
    join_all(failed.into_iter().map(|ask| claim_alone(server.clone(), ask))).await;
}

/// Runs one statement for the first claim of each key; returns the other claims.
async fn claim_together(server: Server, asks: Vec<PendingClaim>) -> Unfinished {
    let mut keys: HashSet<LockKey> = HashSet::with_capacity(asks.len());
    let (first, others): (Vec<_>, Vec<_>) =
        asks.into_iter().partition(|ask| keys.insert(ask.claim.key.clone()));
    let mut making: InFlight = Box::pin(make(server, first));
    match timeout(WAIT, &mut making).await {
        Ok(failed) => Unfinished {
            has_failed: !failed.is_empty(),
            asks: failed.into_iter().chain(others).collect(),
            making: None,
        },
        Err(_) => Unfinished { has_failed: true, asks: others, making: Some(making) },
    }
}

/// Executes claims with distinct keys and answers them; on failure returns them.
async fn make(server: Server, mut asks: Vec<PendingClaim>) -> Vec<PendingClaim> {
    if asks.len() == 1 {
        join_all(asks.drain(..).map(|ask| claim_alone(server.clone(), ask))).await;
        return asks;
    }
    let asked: Vec<_> = asks.iter().map(PendingClaim::asked).collect();
    let text = serde_json::to_string(&asked).expect("texts and numbers");
    let Ok(mut taken) = statements::claim_many(&server, text).await else { return asks };
    for ask in asks.drain(..) {
        let taken = taken.remove(ask.claim.key.as_str());
        ask.answer(Ok(taken));
    }
    asks
}
