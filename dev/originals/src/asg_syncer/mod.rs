//! policy-server-asg-syncer, docs/compatibility/asg-syncer.md: the holder of one lock
//! copies the Cloud Controller's groups into the database.
//!
//! As in the original, a failed renewal and any error of a poll end the process with exit
//! code 1, the first poll comes one interval after the lock, and no token fences the
//! writes.

mod cloud;

use std::time::Duration;

use anyhow::Context;
use jiff::Timestamp;
use proto::models::locket_client::LocketClient;
use proto::models::{FetchRequest, LockRequest, ReleaseRequest, Resource, TypeCode};
use runtime::client::{self, Options};
use runtime::tls::ClientTls;
use serde_json::json;
use tokio::time::{Instant, MissedTickBehavior, interval, sleep, timeout};
use tokio_util::sync::CancellationToken;
use tonic::transport::Channel;
use tonic::{Code, Status};

use crate::config::Config;
use crate::groups;
use crate::log::Log;
use crate::sql::Database;
use cloud::Cloud;

const KEY: &str = "policy-server-asg-syncer";
const TTL_SECONDS: i64 = 15;
/// Interval of attempts and of renewals.
const RETRY: Duration = Duration::from_secs(5);
/// Deadline of a renewal. It waits for a connection, as gRPC's "wait for ready" does.
const RENEWAL: Duration = Duration::from_secs(15);
/// Pause between two attempts to connect meanwhile.
const RECONNECT: Duration = Duration::from_millis(100);

pub(crate) async fn serve(
    config: &Config,
    log: &Log,
    shutdown: CancellationToken,
) -> anyhow::Result<()> {
    let database = Database::of_job(config)?;
    // The pool pings at the start.
    database.run("SELECT 1", &[]).await.context("db connect")?;
    let mut lock = Lock::new(config)?;
    let poller = Poller {
        cloud: Cloud::new(config)?,
        database,
        interval: config.seconds("asg_poll_interval_seconds")?,
        log: log.clone(),
        last: None,
    };
    log.info("starting-asg-syncer", &json!({ "interval": poller.interval.as_secs() }));
    if lock.acquire(log, &shutdown).await.is_none() {
        log.info("exited", &json!({}));
        return Ok(());
    }
    log.info("locket-lock.acquired-lock", &json!({ "lock": { "key": KEY, "owner": lock.owner } }));
    let outcome = tokio::select! {
        lost = lock.keep() => {
            let error = anyhow::Error::msg(client::describe(&lost));
            log.error("locket-lock.lost-lock", &error);
            return Err(error.context("exited-with-failure: lost the lock"));
        }
        outcome = poller.run(shutdown) => outcome,
    };
    // Released whatever the outcome; without success the lock expires.
    let _released = timeout(RENEWAL, lock.release()).await;
    log.info("locket-lock.released-lock", &json!({ "lock": { "key": KEY } }));
    match &outcome {
        Ok(()) => log.info("exited", &json!({})),
        Err(error) => log.error("exited-with-failure", error),
    }
    outcome
}

struct Lock {
    client: LocketClient<Channel>,
    owner: String,
}

impl Lock {
    fn new(config: &Config) -> anyhow::Result<Self> {
        let (ca, cert) = ("locket_ca_cert_file", "locket_client_cert_file");
        let files = config.files(ca, cert, "locket_client_key_file")?;
        let tls = ClientTls::load(&files).context("failed-to-create-locket-client")?;
        let options = Options { keepalive_interval: None, ..Options::default() };
        let channel = client::channel(&config.text("locket_address")?, Some(tls), options)?;
        Ok(Self { client: LocketClient::new(channel), owner: config.text("uuid")? })
    }

    fn resource(&self) -> Option<Resource> {
        let (key, owner) = (KEY.to_owned(), self.owner.clone());
        Some(Resource { key, owner, type_code: TypeCode::Lock.into(), ..Resource::default() })
    }

    async fn claim(&mut self) -> Result<(), Status> {
        let request = LockRequest { resource: self.resource(), ttl_in_seconds: TTL_SECONDS };
        let deadline = Instant::now() + RENEWAL;
        loop {
            let answer = timeout(RENEWAL, self.client.lock(request.clone())).await;
            match answer {
                Ok(Ok(_answer)) => return Ok(()),
                Ok(Err(status))
                    if status.code() == Code::Unavailable && Instant::now() < deadline =>
                {
                    sleep(RECONNECT).await;
                }
                Ok(Err(status)) => return Err(status),
                Err(_elapsed) => return Err(Status::deadline_exceeded("no answer")),
            }
        }
    }

    /// Claims until it holds the lock; `None` after a shutdown.
    async fn acquire(&mut self, log: &Log, shutdown: &CancellationToken) -> Option<()> {
        let mut told = false;
        loop {
            match shutdown.run_until_cancelled(self.claim()).await? {
                Ok(()) => return Some(()),
                Err(status) => {
                    if !told || status.code() != Code::AlreadyExists {
                        let error = anyhow::Error::msg(client::describe(&status));
                        log.error("locket-lock.failed-to-acquire-lock", &error);
                        let holder = self.client.fetch(FetchRequest { key: KEY.to_owned() }).await;
                        let holder = holder.ok().and_then(|found| found.into_inner().resource);
                        let holder = holder.map(|resource| resource.owner);
                        log.info("locket-lock.holder", &json!({ "lock-owner": holder }));
                        told = true;
                    }
                }
            }
            shutdown.run_until_cancelled(sleep(RETRY)).await?;
        }
    }

    /// Renews until a renewal fails.
    async fn keep(&mut self) -> Status {
        loop {
            sleep(RETRY).await;
            if let Err(status) = self.claim().await {
                return status;
            }
        }
    }

    async fn release(&mut self) {
        let request = ReleaseRequest { resource: self.resource() };
        let _released = self.client.release(request).await;
    }
}

struct Poller {
    cloud: Cloud,
    database: Database,
    interval: Duration,
    log: Log,
    /// The stamp of the last good list, in the memory of the process only.
    last: Option<Timestamp>,
}

impl Poller {
    /// Polls until a shutdown, which is only looked at between two polls.
    async fn run(mut self, shutdown: CancellationToken) -> anyhow::Result<()> {
        let mut ticks = interval(self.interval);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        ticks.tick().await;
        while shutdown.run_until_cancelled(ticks.tick()).await.is_some() {
            self.poll().await.inspect_err(|error| self.log.error("asg-sync-cycle", error))?;
        }
        Ok(())
    }

    async fn poll(&mut self) -> anyhow::Result<()> {
        let token = self.cloud.token().await?;
        let stamp = self.cloud.last_update(&token).await?;
        if stamp.is_some_and(|stamp| self.last.is_some_and(|last| stamp <= last)) {
            return Ok(());
        }
        let groups = self.cloud.security_groups(&token).await?;
        self.log.info("successfully-fetched-security-groups", &json!({ "count": groups.len() }));
        if let Some(stamp) = stamp {
            self.last = Some(stamp);
        }
        groups::replace(&self.database, &groups).await
    }
}
