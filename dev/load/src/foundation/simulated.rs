//! Simulated cells: each has its own connection and watches the store like an agent, with the
//! containers and spaces of a cell. It comes back with the state that it has.
//!
//! A gate decides when cells may connect, so that all of them come within a chosen time.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use anyhow::{Context, bail};
use runtime::client::{self, Options};
use runtime::tls::ClientTls;
use tokio::sync::{mpsc, watch};
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep, timeout_at};
use tonic::Status;

use crate::connect::Target;
use crate::locket::failure;
use crate::store::watchers::{Arrival, Cell, Session};

/// Pause after a connect that failed: at least half of it.
const RETRY: Duration = Duration::from_millis(200);
/// Queue length of connected cells.
const CONNECTED: usize = 1 << 12;

/// Whether cells may connect, and the time over which they spread their attempts.
#[derive(Debug, Clone, Copy)]
struct Gate {
    is_open: bool,
    within: Duration,
}

/// A cell that connected and has its state.
#[derive(Debug, Clone)]
pub(super) struct Connected {
    /// Its first attempt.
    pub(super) began: Instant,
    /// The state of its spaces was complete.
    pub(super) whole: Instant,
    /// Failed attempts before.
    pub(super) failed: u32,
    /// Size of the state.
    pub(super) bytes: u64,
}

/// All simulated cells.
#[derive(Debug)]
pub(super) struct Simulated {
    count: usize,
    gate: watch::Sender<Gate>,
    connected: mpsc::Receiver<Connected>,
    arrived: Arrived,
    running: JoinSet<anyhow::Error>,
}

/// Arrivals of each generation at the cells.
type Arrived = Arc<Mutex<BTreeMap<u64, Vec<Instant>>>>;

impl Simulated {
    /// Starts the cells behind a closed gate; cells take turns in the stores.
    pub(super) fn start(cells: Vec<Cell>, stores: &[Target]) -> anyhow::Result<Self> {
        let closed = Gate { is_open: false, within: Duration::ZERO };
        let (gate, waiting) = watch::channel(closed);
        let (sender, connected) = mpsc::channel(CONNECTED);
        let (count, arrived) = (cells.len(), Arrived::default());
        let ends = stores.iter().map(|store| Ok((store.address.clone(), store.tls()?)));
        let ends: Vec<(String, ClientTls)> = ends.collect::<anyhow::Result<_>>()?;
        let mut running = JoinSet::new();
        for cell in cells {
            let (address, tls) =
                ends.get(cell.number % ends.len().max(1)).context("there is no store")?.clone();
            let (gate, sender, arrived) = (waiting.clone(), sender.clone(), Arc::clone(&arrived));
            running.spawn(Life { cell, address, tls, gate, sender, arrived }.run());
        }
        Ok(Self { count, gate, connected, arrived, running })
    }

    /// Cells that lose their store wait for [`Self::open`].
    pub(super) fn close(&self) {
        let _before = self.gate.send_replace(Gate { is_open: false, within: Duration::ZERO });
    }

    /// Cells connect, each at a random moment within this time.
    pub(super) fn open(&self, within: Duration) {
        let _before = self.gate.send_replace(Gate { is_open: true, within });
    }

    /// Waits until every cell has connected and has its state.
    pub(super) async fn all_connected(&mut self, wait: Duration) -> anyhow::Result<Vec<Connected>> {
        let deadline = Instant::now() + wait;
        let mut all = Vec::with_capacity(self.count);
        while all.len() < self.count {
            let next = tokio::select! {
                next = timeout_at(deadline, self.connected.recv()) => next,
                Some(ended) = self.running.join_next() => return Err(ended?),
            };
            let Ok(Some(connected)) = next else {
                bail!("{} of {} simulated cells have their state in time", all.len(), self.count);
            };
            all.push(connected);
        }
        Ok(all)
    }

    /// Connections since the last call beyond those that were waited for: each is a watch that
    /// was lost while nothing was wrong.
    pub(super) fn take_reconnected(&mut self) -> usize {
        std::iter::from_fn(|| self.connected.try_recv().ok()).count()
    }

    /// Arrivals of a generation.
    pub(super) fn arrivals(&self, generation: u64) -> Vec<Instant> {
        let arrived = self.arrived.lock().unwrap_or_else(PoisonError::into_inner);
        arrived.get(&generation).cloned().unwrap_or_default()
    }
}

/// A cell from its start to the end of the tool.
struct Life {
    cell: Cell,
    address: String,
    tls: ClientTls,
    gate: watch::Receiver<Gate>,
    sender: mpsc::Sender<Connected>,
    arrived: Arrived,
}

impl Life {
    /// Returns the reason of an end.
    async fn run(mut self) -> anyhow::Error {
        let mut known = None;
        loop {
            let Ok(gate) = self.gate.wait_for(|gate| gate.is_open).await.map(|gate| *gate) else {
                return anyhow::anyhow!("the gate is gone");
            };
            sleep(gate.within.mul_f64(fastrand::f64())).await;
            let began = Instant::now();
            let mut failed = 0;
            let (mut session, first) = loop {
                match self.connect(known).await {
                    Ok(opened) => break opened,
                    Err(error) if !is_transient(&error) => {
                        return failure(&error).context(self.cell.id());
                    }
                    Err(_refused) => failed += 1,
                }
                sleep(RETRY.mul_f64(0.5 + 0.5 * fastrand::f64())).await;
            };
            let connected = Connected { began, whole: first.at, failed, bytes: first.bytes };
            // The receiver is gone when the tool ends.
            drop(self.sender.send(connected).await);
            session.report_containers(&self.cell).await;
            known = Some(self.follow(&mut session, first).await);
        }
    }

    async fn connect(&self, known: Option<Arrival>) -> Result<(Session, Arrival), Status> {
        let channel = client::channel(&self.address, Some(self.tls.clone()), Options::default());
        let channel = channel.map_err(|error| Status::internal(error.to_string()))?;
        let mut session = Session::open(channel, &self.cell, known).await?;
        let first = session.whole().await?;
        Ok((session, first))
    }

    /// Reports each generation until the watch ends; returns the last one.
    async fn follow(&self, session: &mut Session, first: Arrival) -> Arrival {
        let mut last = first;
        loop {
            session.report(&self.cell, last.generation).await;
            match session.whole().await {
                Ok(arrival) => last = arrival,
                Err(_ended) => return last,
            }
            let mut arrived = self.arrived.lock().unwrap_or_else(PoisonError::into_inner);
            arrived.entry(last.generation).or_default().push(last.at);
        }
    }
}

/// Whether the next attempt may succeed.
fn is_transient(status: &Status) -> bool {
    use tonic::Code::{
        Cancelled, DeadlineExceeded, Internal, ResourceExhausted, Unavailable, Unknown,
    };
    matches!(
        status.code(),
        Cancelled | DeadlineExceeded | Internal | ResourceExhausted | Unavailable | Unknown
    )
}
