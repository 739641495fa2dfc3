//! Stores as processes: laws 3, 4 and 9 while watchers connect, disconnect, stall and
//! change their spaces, and instances are killed; several on one database, which is
//! killed, too, and one alone with its file.

use std::{
    collections::BTreeSet,
    sync::{
        Arc, Mutex,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use nix::sys::signal::Signal;
use proto::policy_v1::{ListRequest, StatusRequest, StoredGroup};
use storage::{server::Dialect, testing::TestServer};
use tokio::{sync::watch, task::JoinSet, time::Instant};
use tonic::Code;

use crate::support::{
    client::{Cell, Mirror, list, replace},
    process::Program,
    sets::{Set, bound, fenced, global, set},
    site::{Client, Site},
    until,
};

const WATCHERS: u64 = 8;

/// Minimum number of Replaces for a meaningful run.
const ENOUGH: u64 = 20;

/// Minimum duration of the disorder: a few seconds, or as the environment says. On a slow
/// machine it lasts until enough was written.
fn disorder() -> Duration {
    let seconds = std::env::var("PORTCULLIS_DISORDER_SECONDS");
    Duration::from_secs(seconds.map_or(8, |text| text.parse().expect("a number of seconds")))
}

/// Pseudo-random numbers, reproducible by seed.
struct Dice(u64);

impl Dice {
    fn new(seed: u64) -> Self {
        Self(seed.wrapping_mul(0x9E37_79B9_7F4A_7C15) | 1)
    }

    /// Random number below `sides`.
    fn roll(&mut self, sides: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0 % sides
    }

    async fn pause(&mut self, most: u64) {
        tokio::time::sleep(Duration::from_millis(self.roll(most))).await;
    }
}

fn space_name(number: u64) -> String {
    format!("s{number}")
}

fn some_set(dice: &mut Dice) -> Set {
    set((0..12).filter_map(|index| {
        let (guid, name) = (format!("g{index}"), format!("name-{}", dice.roll(4)));
        match dice.roll(8) {
            0 | 1 => None,
            2 => Some(global(&guid, &name)),
            _ => Some(bound(&guid, &name, &[&space_name(dice.roll(5)), &space_name(dice.roll(5))])),
        }
    }))
}

/// Instances and their current addresses.
struct Cluster {
    site: Site,
    addresses: Mutex<Vec<String>>,
    /// Confirmed Replaces, and refused old tokens.
    written: AtomicU64,
    refused: AtomicU64,
}

impl Cluster {
    fn new(site: Site, addresses: Vec<String>) -> Self {
        let (written, refused) = (AtomicU64::new(0), AtomicU64::new(0));
        Self { site, addresses: Mutex::new(addresses), written, refused }
    }

    /// Whether enough was written for a meaningful result.
    fn has_seen_enough(&self) -> bool {
        self.written.load(Ordering::Relaxed) > ENOUGH && self.refused.load(Ordering::Relaxed) > 0
    }

    fn client(&self, which: u64, name: &str, unit: Option<&str>) -> Client {
        let address = {
            let addresses = self.addresses.lock().unwrap();
            addresses[usize::try_from(which).unwrap() % addresses.len()].clone()
        };
        self.site.client(&address, name, unit)
    }
}

/// A cell that watches any reachable instance, and reconnects with its state.
struct Follower {
    id: String,
    dice: Dice,
    /// The last complete state, and its spaces.
    whole: Mirror,
    spaces: BTreeSet<String>,
}

impl Follower {
    fn new(number: u64) -> Self {
        let mut dice = Dice::new(number + 1);
        let spaces = (0..3).map(|_| space_name(dice.roll(5))).collect();
        Self { id: format!("cell-{number}"), dice, whole: Mirror::default(), spaces }
    }

    /// Watches until `enough` names the last generation, and it has arrived.
    async fn run(
        mut self,
        cluster: Arc<Cluster>,
        mut enough: watch::Receiver<Option<u64>>,
    ) -> Self {
        let is_done = |this: &Self, enough: Option<u64>| enough == Some(this.whole.generation);
        while !is_done(&self, *enough.borrow()) {
            let client = cluster.client(self.dice.roll(2), &self.id, Some("cell"));
            let spaces: Vec<&str> = self.spaces.iter().map(String::as_str).collect();
            let Ok(cell) = Cell::back(&client, &self.id, &spaces, self.whole.clone()).await else {
                self.dice.pause(100).await;
                continue;
            };
            self.watch(cell, &mut enough).await;
        }
        self
    }

    /// One watch, until it ends or is dropped.
    async fn watch(&mut self, mut cell: Cell, enough: &mut watch::Receiver<Option<u64>>) {
        let (mut sequence, mut asked) = (0, None);
        loop {
            let told = tokio::select! {
                told = cell.whole() => told,
                _ = enough.changed() => return,
            };
            if told.is_err() {
                return;
            }
            if cell.mirror.sequence == sequence {
                self.spaces = asked.take().unwrap_or_else(|| self.spaces.clone());
            }
            self.whole = cell.mirror.clone();
            if *enough.borrow() == Some(self.whole.generation) {
                return;
            }
            if asked.is_some() {
                // The response to the subscription is in flight.
                continue;
            }
            match self.dice.roll(6) {
                0 => return,
                1 => self.dice.pause(400).await,
                _ => {}
            }
            let (add, drop) = (space_name(self.dice.roll(5)), space_name(self.dice.roll(5)));
            let mut next = self.spaces.clone();
            next.remove(&drop);
            next.insert(add.clone());
            sequence += 1;
            cell.subscribe(sequence, &[&add], &[&drop]).await;
            asked = Some(next);
            cell.report(self.whole.generation).await;
        }
    }
}

/// Writes at random instances; records the newest confirmed token.
async fn write(cluster: Arc<Cluster>, mut enough: watch::Receiver<Option<u64>>) -> u64 {
    let mut dice = Dice::new(77);
    let (mut token, mut confirmed) = (1, 0);
    while enough.borrow_and_update().is_none() {
        if dice.roll(5) == 0 {
            token += 1;
        }
        let writer = cluster.client(dice.roll(2), "syncer", None);
        let set = some_set(&mut dice);
        if replace(&writer, &fenced(&set, &format!("syncer-{token}"), token)).await.is_ok() {
            confirmed = token;
            cluster.written.fetch_add(1, Ordering::Relaxed);
        }
        if confirmed > 1 && dice.roll(3) == 0 {
            let old = confirmed - 1;
            let writer = cluster.client(dice.roll(2), "syncer", None);
            let status = replace(&writer, &fenced(&set, &format!("syncer-{old}"), old)).await;
            let status = status.expect_err("an old token never gets in");
            let is_refused = status.code() == Code::FailedPrecondition;
            cluster.refused.fetch_add(u64::from(is_refused), Ordering::Relaxed);
        }
        dice.pause(60).await;
    }
    confirmed
}

/// Kills instances and the database until the time is over and enough was written.
///
/// # Panics
/// Too little was written in an additional minute.
async fn disturb(cluster: &Cluster, server: Option<&TestServer>, programs: &mut [Program]) {
    let until = Instant::now() + disorder();
    let mut dice = Dice::new(5);
    let mut round = 0;
    while Instant::now() < until || !cluster.has_seen_enough() {
        assert!(Instant::now() < until + Duration::from_secs(60), "little happened");
        dice.pause(1500).await;
        round += 1;
        if round % 3 == 0
            && let Some(server) = server
        {
            server.kill();
            dice.pause(500).await;
            tokio::task::block_in_place(|| server.restart());
            continue;
        }
        let which = usize::try_from(dice.roll(2)).unwrap() % programs.len();
        programs[which].signal(Signal::SIGKILL);
        tokio::task::block_in_place(|| {
            programs[which].wait();
            programs[which] = Program::start(&cluster.site);
        });
        cluster.addresses.lock().unwrap()[which].clone_from(&programs[which].address);
    }
}

/// Two instances on a server of this kind, or one with its own file.
async fn in_disorder(dialect: Option<Dialect>) {
    let server = dialect.map(TestServer::start);
    let site = server.as_ref().map_or_else(Site::new, Site::on);
    let count = if server.is_some() { 2 } else { 1 };
    let mut programs: Vec<Program> =
        tokio::task::block_in_place(|| (0..count).map(|_| Program::start(&site)).collect());
    let addresses = programs.iter().map(|program| program.address.clone()).collect();
    let cluster = Arc::new(Cluster::new(site, addresses));
    let (tell_enough, enough) = watch::channel(None);
    let (writing, stop) = watch::channel(None);
    let mut writers = JoinSet::new();
    writers.spawn(write(Arc::clone(&cluster), stop));
    let mut followers = JoinSet::new();
    for number in 0..WATCHERS {
        followers.spawn(Follower::new(number).run(Arc::clone(&cluster), enough.clone()));
    }
    disturb(&cluster, server.as_ref(), &mut programs).await;
    writing.send_replace(Some(0));
    let token = writers.join_all().await[0];

    // After the disorder all instances converge, with the newest token.
    let mut status = Vec::new();
    until("both instances serve the same", async || {
        status.clear();
        for which in [0, 1] {
            let mut operator = cluster.client(which, "operator", None);
            match operator.status(StatusRequest {}).await {
                Ok(answer) => status.push(answer.into_inner()),
                Err(_) => return false,
            }
        }
        let [one, other] = &status[..] else { return false };
        (one.generation, &one.writer, one.synced_at)
            == (other.generation, &other.writer, other.synced_at)
    })
    .await;
    assert!(status[0].writer.as_ref().unwrap().fencing_token >= token, "law 3");
    let generation = status[0].generation;
    tell_enough.send_replace(Some(generation));
    let ended = tokio::time::timeout(Duration::from_secs(60), followers.join_all()).await;
    for follower in ended.expect("every watcher comes to the newest") {
        for which in [0, 1] {
            let operator = cluster.client(which, "operator", None);
            let space_guids = follower.spaces.iter().cloned().collect();
            let request = ListRequest { space_guids, ..ListRequest::default() };
            let listed: (u64, Vec<StoredGroup>) = list(&operator, request).await.unwrap();
            assert_eq!((follower.whole.generation, follower.whole.sorted()), listed);
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn every_watcher_ends_equal_to_postgresql() {
    in_disorder(Some(Dialect::Postgres)).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn every_watcher_ends_equal_to_mariadb() {
    in_disorder(Some(Dialect::MySql)).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn every_watcher_ends_equal_to_sqlite() {
    in_disorder(None).await;
}

/// A Replace at one instance is pushed by the other; reports of cells to one instance
/// appear in the status of both.
#[tokio::test(flavor = "multi_thread")]
async fn instances_are_one_store() {
    for dialect in [Dialect::Postgres, Dialect::MySql] {
        let site = Site::on(TestServer::shared(dialect));
        let [one, other] =
            tokio::task::block_in_place(|| [Program::start(&site), Program::start(&site)]);
        let writer = site.client(&one.address, "syncer", None);
        let client = |program: &Program| site.client(&program.address, "cell-1", Some("cell"));
        let mut cell = Cell::hello(&client(&other), "cell-1", &["s1"]).await;
        let groups = |name: &str| set([bound("a", name, &["s1"]), global("b", "1")]);
        replace(&writer, &fenced(&groups("1"), "a", 1)).await.unwrap();
        cell.until(1).await;
        replace(&writer, &fenced(&groups("2"), "a", 1)).await.unwrap();
        let answered = Instant::now();
        cell.until(2).await;
        println!("{dialect:?}: told by the other instance after {:?}", answered.elapsed());
        // Fails when PostgreSQL sends no notification or MySQL is not polled.
        assert!(answered.elapsed() < Duration::from_secs(2));

        // The cell moves to the other instance, and gets exactly the changes.
        let mirror = cell.mirror.clone();
        drop(cell);
        replace(&writer, &fenced(&groups("3"), "a", 1)).await.unwrap();
        let mut cell = Cell::back(&client(&one), "cell-1", &["s1"], mirror).await.unwrap();
        let answer = cell.answers.message().await.unwrap().unwrap();
        assert_eq!((answer.reset, answer.upserted.len()), (false, 1));
        assert!(cell.mirror.apply(answer));

        cell.report(3).await;
        let mut operator = site.client(&other.address, "operator", None);
        until("the other instance tells of the report", async || {
            let status = operator.status(StatusRequest {}).await.unwrap().into_inner();
            status.cells.iter().any(|cell| cell.enforced_generation == 3)
        })
        .await;
    }
}
