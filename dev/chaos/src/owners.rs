//! Clients of the lock servers: owners that compete for locks, and witnesses.

use std::time::Duration;

use proto::models::locket_client::LocketClient;
use proto::models::{FetchRequest, LockRequest, ReleaseRequest, Resource, TypeCode};
use runtime::client::{self, Options};
use runtime::tls::ClientTls;
use tokio::time::{Instant, sleep, timeout};
use tokio_util::sync::CancellationToken;
use tonic::transport::Channel;
use tonic::{Code, Status};

use crate::history::{Claim, Claimed, Event, Moment};
use crate::record::Record;

const TTL: Duration = Duration::from_secs(5);
const RENEWAL: Duration = Duration::from_secs(1);
/// Timeout of a call.
const PATIENCE: Duration = Duration::from_secs(2);
const PAUSE: Duration = Duration::from_millis(150);
/// Pause between two questions of a witness.
const GLANCE: Duration = Duration::from_millis(200);
/// The longest time that an owner keeps a lock.
const LONGEST: f64 = 6.0;

pub(crate) const KEYS: [Key; 4] = [
    Key("chaos-1", TypeCode::Lock),
    Key("chaos-2", TypeCode::Lock),
    Key("chaos-3", TypeCode::Lock),
    Key("chaos-presence", TypeCode::Presence),
];
pub(crate) const OWNERS: usize = 2;

/// A key and its kind. A presence follows the same laws as a lock.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Key(&'static str, TypeCode);

/// A client with a connection to every lock server.
pub(crate) struct Owner {
    servers: Vec<LocketClient<Channel>>,
    record: Record,
    key: Key,
    name: String,
    shutdown: CancellationToken,
}

impl Owner {
    pub(crate) fn new(
        addresses: &[String],
        tls: &ClientTls,
        record: &Record,
        key: Key,
        name: String,
        shutdown: &CancellationToken,
    ) -> anyhow::Result<Self> {
        let open = |address: &String| {
            let channel = client::channel(address, Some(tls.clone()), Options::default())?;
            Ok(LocketClient::new(channel))
        };
        Ok(Self {
            servers: addresses.iter().map(open).collect::<anyhow::Result<_>>()?,
            record: record.clone(),
            key,
            name,
            shutdown: shutdown.clone(),
        })
    }

    /// Owns the lock again and again, and leaves it by a release or, one time in three, as a
    /// crashed process does.
    pub(crate) async fn compete(mut self) -> anyhow::Result<()> {
        let mut life = 0_u32;
        while !self.shutdown.is_cancelled() {
            life += 1;
            let owner = format!("{}-{life}", self.name);
            let lasts = Duration::from_secs_f64(LONGEST * fastrand::f64());
            let Some(granted) = self.acquire(&owner).await else { break };
            let is_owner = self.keep(&owner, granted, granted + lasts).await;
            if is_owner && (fastrand::u8(..3) > 0 || self.shutdown.is_cancelled()) {
                self.release(&owner).await;
            }
            sleep(PAUSE).await;
        }
        self.shutdown.cancelled().await;
        Ok(())
    }

    /// Claims until granted; returns when the granted claim was sent.
    async fn acquire(&mut self, owner: &str) -> Option<Instant> {
        loop {
            let sent = Instant::now();
            if let Claimed::Granted(_) = self.claim(owner).await {
                return Some(sent);
            }
            self.shutdown.run_until_cancelled(sleep(PAUSE)).await?;
        }
    }

    /// Renews until `end`, or as long as the lock is certain. Returns whether it still is.
    async fn keep(&mut self, owner: &str, granted: Instant, end: Instant) -> bool {
        let mut granted = granted;
        while Instant::now() < end && !self.shutdown.is_cancelled() {
            sleep(RENEWAL).await;
            let sent = Instant::now();
            match self.claim(owner).await {
                Claimed::Granted(_) => granted = sent,
                Claimed::Refused => return false,
                Claimed::Unknown => {}
            }
            if Instant::now() > granted + TTL {
                return false;
            }
        }
        true
    }

    async fn claim(&mut self, owner: &str) -> Claimed {
        let request = LockRequest {
            resource: Some(self.resource(owner)),
            ttl_in_seconds: TTL.as_secs().cast_signed(),
        };
        let sent = self.record.now();
        let answer = timeout(PATIENCE, self.any().lock(request)).await;
        let outcome = match answer {
            Ok(Ok(answer)) => Claimed::Granted(answer.into_inner().fencing_token),
            Ok(Err(status)) if status.code() == Code::AlreadyExists => Claimed::Refused,
            Ok(Err(_)) | Err(_) => Claimed::Unknown,
        };
        let ttl = u64::try_from(TTL.as_micros()).unwrap_or(u64::MAX);
        let (key, owner) = (self.key.0.to_owned(), owner.to_owned());
        self.record.note(Event::Claim(Claim { key, owner, sent, ttl, outcome }));
        outcome
    }

    async fn release(&mut self, owner: &str) {
        let request = ReleaseRequest { resource: Some(self.resource(owner)) };
        let sent = self.record.now();
        let answer = timeout(PATIENCE, self.any().release(request)).await;
        let (key, owner) = (self.key.0.to_owned(), owner.to_owned());
        let confirmed = matches!(answer, Ok(Ok(_)));
        self.record.note(Event::Release { key, owner, sent, confirmed });
    }

    fn any(&mut self) -> &mut LocketClient<Channel> {
        let place = fastrand::usize(..self.servers.len());
        &mut self.servers[place]
    }

    fn resource(&self, owner: &str) -> Resource {
        Resource {
            key: self.key.0.to_owned(),
            owner: owner.to_owned(),
            value: "chaos".to_owned(),
            type_code: self.key.1.into(),
            ..Resource::default()
        }
    }

    /// Asks for the owners again and again.
    pub(crate) async fn witness(mut self) -> anyhow::Result<()> {
        while self.shutdown.run_until_cancelled(sleep(GLANCE)).await.is_some() {
            for Key(key, _) in KEYS {
                let sent = self.record.now();
                let request = FetchRequest { key: key.to_owned() };
                let answer = timeout(PATIENCE, self.any().fetch(request)).await;
                let Ok(answer) = answer else { continue };
                let owner = match answer {
                    Ok(found) => found.into_inner().resource.map(|found| found.owner),
                    Err(status) if is_free(&status) => None,
                    Err(_) => continue,
                };
                self.note(key, sent, owner);
            }
        }
        Ok(())
    }

    fn note(&self, key: &str, sent: Moment, owner: Option<String>) {
        self.record.note(Event::Owner { key: key.to_owned(), sent, owner });
    }
}

fn is_free(status: &Status) -> bool {
    status.code() == Code::NotFound
}
