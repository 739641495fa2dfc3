//! The honest client: the normal call of a door at a fixed rate on a connection that stays open,
//! and twice a second on a new connection. A call's time counts from the moment when it was due,
//! so that a call that waits delays the ones after it. Each has a thread of its own, apart from
//! the attacker's.

use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering::Relaxed};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;

use anyhow::Context;
use load::connect;
use load::histogram::Tally;
use proto::cell_v1::cell_client::CellClient;
use proto::models::locket_client::LocketClient;
use proto::models::{LockRequest, Resource, TypeCode};
use proto::policy_v1::policy_store_client::PolicyStoreClient;
use runtime::client::{Options, channel, unix};
use tokio::time::{MissedTickBehavior, interval, timeout};
use tokio_rustls::rustls::ClientConfig;
use tonic::Code;
use tonic::transport::Channel;

/// Calls a second.
pub(crate) const RATE: u32 = 50;
/// New connections a second.
pub(crate) const CONNECTS: u32 = 2;
/// A call without a response fails.
const PATIENCE: Duration = Duration::from_secs(5);
/// Periods of a run: before, during and after the attack, and between them.
const PERIODS: usize = 4;
/// The period whose calls are not counted.
pub(crate) const APART: usize = 3;

/// How to call a door.
#[derive(Debug, Clone)]
pub(crate) enum Spec {
    Locks(connect::Target),
    Store(connect::Target),
    Cell(PathBuf),
    Http { tls: Option<Box<ClientConfig>>, url: String, token: Option<String> },
}

impl Spec {
    pub(crate) fn http(tls: Option<ClientConfig>, url: String, token: Option<String>) -> Self {
        Self::Http { tls: tls.map(Box::new), url, token }
    }

    fn connect(&self) -> anyhow::Result<Client> {
        let channel = |target: &connect::Target| {
            channel(&target.address, Some(target.tls()?), Options::default())
                .context("the honest client's channel")
        };
        Ok(match self {
            Self::Locks(target) => Client::Locks(LocketClient::new(channel(target)?)),
            Self::Store(target) => Client::Store(PolicyStoreClient::new(channel(target)?)),
            Self::Cell(path) => Client::Cell(CellClient::new(unix(path))),
            Self::Http { tls, url, token } => Client::Http {
                http: client(tls.as_deref())?,
                url: url.clone(),
                token: token.clone(),
            },
        })
    }
}

/// An HTTP/1 client with these certificates.
pub(crate) fn client(tls: Option<&ClientConfig>) -> anyhow::Result<reqwest::Client> {
    let builder = reqwest::Client::builder().http1_only().no_proxy();
    let builder = match tls {
        Some(tls) => builder.tls_backend_preconfigured(tls.clone()),
        None => builder,
    };
    builder.build().context("an HTTP client")
}

#[derive(Debug)]
enum Client {
    Locks(LocketClient<Channel>),
    Store(PolicyStoreClient<Channel>),
    Cell(CellClient<Channel>),
    Http { http: reqwest::Client, url: String, token: Option<String> },
}

impl Client {
    async fn call(&mut self) -> Result<(), String> {
        let status = |status: tonic::Status| format!("{:?}: {}", status.code(), status.message());
        match self {
            Self::Locks(locks) => {
                let resource = Resource {
                    key: "honest".to_owned(),
                    owner: "honest".to_owned(),
                    type_code: TypeCode::Lock.into(),
                    ..Resource::default()
                };
                let request = LockRequest { resource: Some(resource), ttl_in_seconds: 60 };
                locks.lock(request).await.map(drop).map_err(status)
            }
            Self::Store(store) => {
                let request = proto::policy_v1::ListRequest {
                    all: true,
                    page_size: 20,
                    ..proto::policy_v1::ListRequest::default()
                };
                store.list(request).await.map(drop).map_err(status)
            }
            Self::Cell(cell) => {
                let request = proto::cell_v1::StatusRequest {};
                cell.status(request).await.map(drop).map_err(status)
            }
            Self::Http { http, url, token } => {
                let mut request = http.get(&*url);
                if let Some(token) = token {
                    request = request.bearer_auth(token);
                }
                let answer = request.send().await.and_then(reqwest::Response::error_for_status);
                let text = match answer {
                    Ok(answer) => answer.bytes().await.map(drop),
                    Err(error) => Err(error),
                };
                text.map_err(|error| runtime::error::chain(&error))
            }
        }
    }
}

/// Figures of one period.
#[derive(Debug, Default)]
struct Period {
    calls: Tally,
    connects: Tally,
    failures: u64,
    /// The first failure.
    failure: Option<String>,
}

/// Figures of one period as numbers; times in milliseconds.
#[derive(Debug, Clone, Default, PartialEq)]
pub(crate) struct Figures {
    pub(crate) calls: u64,
    pub(crate) failures: u64,
    pub(crate) failure: Option<String>,
    pub(crate) p50: f64,
    pub(crate) p99: f64,
    pub(crate) max: f64,
    /// Longest connect with a call.
    pub(crate) connect: f64,
}

#[derive(Debug, Default)]
struct Shared {
    period: AtomicUsize,
    is_over: AtomicBool,
    periods: Mutex<[Period; PERIODS]>,
}

impl Shared {
    fn record(&self, period: usize, is_new: bool, took: Duration, outcome: Result<(), String>) {
        let mut periods = self.periods.lock().unwrap_or_else(PoisonError::into_inner);
        let period = &mut periods[period];
        let tally = if is_new { &mut period.connects } else { &mut period.calls };
        match outcome {
            Ok(()) => tally.success(took, 0),
            Err(error) => {
                tally.failure(Code::Unknown);
                period.failures += 1;
                period.failure.get_or_insert(error);
            }
        }
    }
}

/// The threads of an honest client.
#[derive(Debug)]
pub(crate) struct Honest {
    shared: Arc<Shared>,
    threads: Vec<JoinHandle<anyhow::Result<()>>>,
}

impl Honest {
    /// Begins to call; nothing counts before a period is chosen.
    pub(crate) fn start(spec: &Spec) -> Self {
        let shared = Arc::new(Shared { period: AtomicUsize::new(APART), ..Shared::default() });
        let threads = [false, true].map(|is_new| {
            let (shared, spec) = (Arc::clone(&shared), spec.clone());
            std::thread::spawn(move || work(&shared, &spec, is_new))
        });
        Self { shared, threads: threads.into() }
    }

    /// Calls count for this period from now on.
    pub(crate) fn period(&self, period: usize) {
        self.shared.period.store(period, Relaxed);
    }

    /// Ends the threads, and returns the figures before, during and after.
    pub(crate) fn end(self) -> anyhow::Result<[Figures; 3]> {
        self.shared.is_over.store(true, Relaxed);
        for thread in self.threads {
            thread.join().map_err(|_panic| anyhow::anyhow!("the honest client panicked"))??;
        }
        let mut periods = self.shared.periods.lock().unwrap_or_else(PoisonError::into_inner);
        let [before, during, after, _apart] = std::mem::take(&mut *periods);
        Ok([before, during, after].map(|period| {
            let Period { calls, connects, failures, failure } = period;
            let calls = calls.summary(Duration::ZERO);
            let connects = connects.summary(Duration::ZERO);
            Figures {
                calls: calls.operations + connects.operations,
                failures,
                failure,
                p50: calls.p50_ms,
                p99: calls.p99_ms,
                max: calls.max_ms,
                connect: connects.max_ms,
            }
        }))
    }
}

fn work(shared: &Shared, spec: &Spec, is_new: bool) -> anyhow::Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(async {
        let rate = if is_new { CONNECTS } else { RATE };
        let mut pace = interval(Duration::from_secs(1) / rate);
        pace.set_missed_tick_behavior(MissedTickBehavior::Burst);
        let mut client = spec.connect()?;
        while !shared.is_over.load(Relaxed) {
            let due = pace.tick().await;
            if is_new {
                client = spec.connect()?;
            }
            // A call counts for the period in which it was due.
            let period = shared.period.load(Relaxed);
            let outcome = timeout(PATIENCE, client.call()).await;
            let outcome = outcome.unwrap_or_else(|_| Err("no response within 5 s".to_owned()));

            shared.record(period, is_new, due.elapsed(), outcome);
        }
        Ok(())
    })
}
