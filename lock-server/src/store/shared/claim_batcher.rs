//! Claims that wait at the same time share a transaction, on PostgreSQL; on MySQL each is
//! made alone.
//!
//! Each claim alone costs the database a transaction, a flush and two round trips of
//! its attention. Here at most [`AT_ONCE`] statements are on their way; what comes
//! meanwhile goes with the next one. What holds:
//! - A claim takes effect as it would alone: the statement is the same for each of
//!   its rows, and rows are written in the order of their keys, so that two such
//!   statements wait for each other and never block each other.
//! - Nobody waits long for somebody else's key: a statement waits for a locked row for
//!   a moment only, and if it fails each of its claims is made alone. One that is still
//!   going on after [`WAIT`] makes room for others, and answers when it ends.
//! - No claim is made twice, except after an error.
//! - After such a failure or delay claims are made alone for [`APART`].

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

/// Claims of one statement at most.
const MOST: usize = 64;
/// Statements at the same time.
const AT_ONCE: usize = 2;
/// How long a statement keeps others waiting; [`statements`] has how long it waits for
/// a row.
const WAIT: Duration = Duration::from_millis(500);
/// How long claims are made alone after a statement failed.
const APART: Duration = Duration::from_secs(1);

/// What became of a claim; none when the key is somebody else's.
pub(super) type Answer = Result<Option<Taken>, storage::Error>;

/// A claim that waits.
#[derive(Debug)]
pub(super) struct PendingClaim {
    pub(super) claim: Claim,
    /// For a new life of the row.
    pub(super) id: String,
    pub(super) reply: oneshot::Sender<Answer>,
}

/// A claim as the statement reads it.
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

/// A statement under way: it answers its claims, or ends with those that it failed to
/// make.
type InFlight = Pin<Box<dyn Future<Output = Vec<PendingClaim>> + Send>>;

/// What is not answered yet.
struct Unfinished {
    asks: Vec<PendingClaim>,
    /// It goes on.
    making: Option<InFlight>,
    has_failed: bool,
}

/// Makes claims until `stop`, then those that wait.
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

/// Waits for a statement that takes long; what it fails to make is made alone.
async fn go_on(server: Server, making: InFlight) {
    let failed = making.await;
    join_all(failed.into_iter().map(|ask| claim_alone(server.clone(), ask))).await;
}

/// One statement for the first claim of each key; the others are left.
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

/// Makes the claims, no two of one key, and answers them; or returns them.
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
