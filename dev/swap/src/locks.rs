//! Lock clients: owners that compete for keys, owners that keep theirs, and presences.
//! Each uses whichever instance answers; a failed call is repeated at the other one.

use std::sync::Arc;
use std::time::Duration;

use proto::models::locket_client::LocketClient;
use proto::models::{
    FetchAllRequest, FetchRequest, LockRequest, ReleaseRequest, Resource, TypeCode,
};
use runtime::client::{self, Options};
use runtime::tls::ClientTls;
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep, sleep_until, timeout};
use tokio_util::sync::CancellationToken;
use tonic::transport::Channel;
use tonic::{Code, Status};

use crate::ledger::{Granted, Ledger};

/// Pause between two attempts at the instances.
const PAUSE: Duration = Duration::from_millis(50);
/// Most time a competing owner holds a key.
const LONGEST: Duration = Duration::from_secs(6);

/// Times to live and intervals of renewals: those of all clients in a foundation, and
/// shorter ones, so that expiry happens often.
const TIMES: [(u64, u64); 2] = [(15, 5), (10, 1)];
const CONTENDED: usize = 6;
const OWNERS: usize = 3;
const KEPT: usize = 6;
const PRESENCES: usize = 20;

/// The instances of the lock service.
#[derive(Debug, Clone)]
pub(crate) struct Instances {
    addresses: Vec<String>,
    tls: ClientTls,
}

impl Instances {
    pub(crate) fn new(addresses: Vec<String>, tls: ClientTls) -> Self {
        Self { addresses, tls }
    }

    /// A client of each instance, with a connection of its own.
    pub(crate) fn clients(&self) -> anyhow::Result<Vec<LocketClient<Channel>>> {
        let options = Options { keepalive_interval: None, ..Options::default() };
        let open = |address: &String| {
            let channel = client::channel(address, Some(self.tls.clone()), options)?;
            Ok(LocketClient::new(channel))
        };
        self.addresses.iter().map(open).collect()
    }

    /// The owner of a key, by whichever instance answers.
    pub(crate) async fn owner(&self, key: &str) -> anyhow::Result<Option<String>> {
        for mut client in self.clients()? {
            match client.fetch(FetchRequest { key: key.to_owned() }).await {
                Ok(found) => return Ok(found.into_inner().resource.map(|found| found.owner)),
                Err(status) if status.code() == Code::NotFound => return Ok(None),
                Err(_status) => {}
            }
        }
        anyhow::bail!("no instance of the lock service answers")
    }
}

/// Starts all clients.
pub(crate) fn start(
    instances: &Instances,
    ledger: &Arc<Ledger>,
    shutdown: &CancellationToken,
) -> anyhow::Result<JoinSet<()>> {
    let mut running = JoinSet::new();
    let client = |key: String, is_presence: bool, times: (u64, u64)| {
        let (ttl, renew) = times;
        Ok::<_, anyhow::Error>(Client {
            instances: instances.clients()?,
            turn: fastrand::usize(..instances.addresses.len()),
            ledger: Arc::clone(ledger),
            shutdown: shutdown.clone(),
            key,
            is_presence,
            ttl: Duration::from_secs(ttl),
            renew: Duration::from_secs(renew),
        })
    };
    let times = |number: usize| TIMES[number % TIMES.len()];
    for number in 0..CONTENDED {
        for owner in 0..OWNERS {
            let client = client(format!("contended-{number}"), false, times(number))?;
            running.spawn(client.compete(format!("owner-{owner}")));
        }
    }
    for number in 0..KEPT {
        let client = client(format!("kept-{number}"), false, times(number))?;
        running.spawn(client.keep(format!("keeper-{number}")));
    }
    for number in 0..PRESENCES {
        let client = client(format!("cell-{number}"), true, times(number))?;
        running.spawn(client.keep(format!("rep-{number}")));
    }
    Ok(running)
}

struct Client {
    instances: Vec<LocketClient<Channel>>,
    turn: usize,
    ledger: Arc<Ledger>,
    shutdown: CancellationToken,
    key: String,
    is_presence: bool,
    ttl: Duration,
    renew: Duration,
}

/// The end of a time of holding.
enum Held {
    Lost,
    /// The owner's time is over.
    Over,
}

impl Client {
    /// Holds the key again and again, and leaves it to others by a release, or, one time in
    /// three, by a crash.
    async fn compete(mut self, owner: String) {
        let mut life = 0;
        while !self.shutdown.is_cancelled() {
            life += 1;
            let owner = format!("{owner}-{life}");
            let Some((number, until)) = self.acquire(&owner).await else { return };
            let time = LONGEST.mul_f64(fastrand::f64());
            let held = self.hold(&owner, number, until, Instant::now() + time).await;
            match held {
                Held::Lost => {}
                Held::Over if fastrand::u8(..3) == 0 && !self.shutdown.is_cancelled() => {
                    // The next life of a crashed process is another owner.
                    sleep(self.renew.min(Duration::from_secs(1))).await;
                }
                Held::Over => self.release(&owner, number).await,
            }
            let pause = Duration::from_millis(fastrand::u64(100..1_000));
            self.shutdown.run_until_cancelled(sleep(pause)).await;
        }
    }

    /// Holds the key until the shutdown; claims it again after a loss.
    async fn keep(mut self, owner: String) {
        while let Some((number, until)) = self.acquire(&owner).await {
            let forever = Instant::now() + Duration::from_secs(86_400);
            if let Held::Over = self.hold(&owner, number, until, forever).await {
                return self.release(&owner, number).await;
            }
        }
    }

    /// Claims the key until it is granted; `None` after the shutdown.
    async fn acquire(&mut self, owner: &str) -> Option<(u64, Instant)> {
        loop {
            match self.claim(owner).await {
                Ok(granted) => {
                    let (ledger, ttl) = (&self.ledger, self.ttl);
                    let number = ledger.begin(&self.key, owner, self.is_presence, ttl, granted);
                    return Some((number, granted.sent + ttl));
                }
                Err(status) if status.code() == Code::AlreadyExists => {
                    let pause = self.renew.min(Duration::from_millis(500));
                    self.shutdown.run_until_cancelled(sleep(pause)).await?;
                }
                Err(_failed) => {
                    self.shutdown.run_until_cancelled(sleep(PAUSE)).await?;
                }
            }
            if self.shutdown.is_cancelled() {
                return None;
            }
        }
    }

    /// Renews until `over` or the shutdown.
    async fn hold(&mut self, owner: &str, number: u64, until: Instant, over: Instant) -> Held {
        let mut until = until;
        let mut due = until - self.ttl + self.renew;
        loop {
            let next = due.min(over);
            let waited = self.shutdown.run_until_cancelled(sleep_until(next)).await;
            if waited.is_none() || next == over {
                return Held::Over;
            }
            match self.claim(owner).await {
                Ok(granted) => {
                    self.ledger.renew(&self.key, number, granted);
                    until = granted.sent + self.ttl;
                    due = granted.sent + self.renew;
                }
                Err(status) if status.code() == Code::AlreadyExists => {
                    self.ledger.lose(&self.key, number, "a renewal collides");
                    return Held::Lost;
                }
                Err(_failed) if Instant::now() < until => {
                    sleep(PAUSE).await;
                    due = Instant::now();
                }
                Err(status) => {
                    let why = format!("no renewal in time: {}", client::describe(&status));
                    self.ledger.lose(&self.key, number, &why);
                    return Held::Lost;
                }
            }
        }
    }

    async fn release(&mut self, owner: &str, number: u64) {
        self.ledger.end(&self.key, number);
        // An owner whose release fails at all instances leaves the lock to its expiry.
        for _attempt in 0..10 {
            let request = ReleaseRequest { resource: Some(self.resource(owner)) };
            let client = self.next();
            let answer = timeout(Duration::from_secs(5), client.release(request)).await;
            let is_ok = matches!(answer, Ok(Ok(_)));
            self.ledger.count_call(is_ok);
            if is_ok {
                return;
            }
            sleep(PAUSE).await;
        }
    }

    /// One call, at the next instance.
    async fn claim(&mut self, owner: &str) -> Result<Granted, Status> {
        let ttl_in_seconds = self.ttl.as_secs().cast_signed();
        let request = LockRequest { resource: Some(self.resource(owner)), ttl_in_seconds };
        let limit = self.renew.max(Duration::from_secs(2));
        let sent = Instant::now();
        let answer = timeout(limit, self.next().lock(request)).await;
        let late = |_elapsed| Err(Status::deadline_exceeded("no answer"));
        let answer = answer.unwrap_or_else(late);
        let is_collision = |status: &Status| status.code() == Code::AlreadyExists;
        self.ledger.count_call(answer.as_ref().map_or_else(is_collision, |_answer| true));
        answer.map(|answer| Granted { sent, token: answer.into_inner().fencing_token })
    }

    fn next(&mut self) -> &mut LocketClient<Channel> {
        self.turn = (self.turn + 1) % self.instances.len();
        &mut self.instances[self.turn]
    }

    fn resource(&self, owner: &str) -> Resource {
        let type_code = if self.is_presence { TypeCode::Presence } else { TypeCode::Lock };
        Resource {
            key: self.key.clone(),
            owner: owner.to_owned(),
            value: "v".repeat(600),
            type_code: type_code.into(),
            ..Resource::default()
        }
    }
}

/// Reads all locks and presences of each instance again and again, and compares them with
/// what their owners believe.
pub(crate) async fn witness(
    instances: Instances,
    ledger: Arc<Ledger>,
    shutdown: CancellationToken,
) -> anyhow::Result<()> {
    const INTERVAL: Duration = Duration::from_millis(400);
    let mut clients = instances.clients()?;
    while shutdown.run_until_cancelled(sleep(INTERVAL)).await.is_some() {
        for (client, address) in clients.iter_mut().zip(&instances.addresses) {
            for kind in [TypeCode::Lock, TypeCode::Presence] {
                let before = ledger.beliefs();
                let request =
                    FetchAllRequest { type_code: kind.into(), ..FetchAllRequest::default() };
                let answer = timeout(Duration::from_secs(5), client.fetch_all(request)).await;
                let Ok(Ok(answer)) = answer else {
                    ledger.count_call(false);
                    continue;
                };
                ledger.count_call(true);
                let all = answer.into_inner().resources;
                let owner_of = |key: &str| {
                    let found = all.iter().find(|resource| resource.key == key)?;
                    Some((found.owner.clone(), None))
                };
                let is_presence = kind == TypeCode::Presence;
                let reader = format!("FetchAll at {address}");
                ledger.judge(
                    &before,
                    |_key, belief| belief.is_presence == is_presence,
                    owner_of,
                    &reader,
                );
            }
        }
    }
    Ok(())
}
