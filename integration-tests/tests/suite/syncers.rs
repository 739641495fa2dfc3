//! Several syncer processes with a Cloud Controller, a lock server and a policy store: at
//! most one writes while syncers are killed, paused and disconnected. Measures how long a
//! change of leader takes.

use std::{
    collections::{BTreeMap, BTreeSet},
    env,
    time::Duration,
};

use integration_tests::{
    process::Process,
    services::{ControlPlane, LOCK_TTL, LockServer, Surroundings},
    wait,
    wire::Wire,
};
use jiff::Timestamp;
use nix::sys::signal::Signal;
use serde_json::Value;

/// Duration of the faults in seconds.
const CHAOS_SECONDS: &str = "PORTCULLIS_CHAOS_SECONDS";
/// Number of measured leader changes of each kind.
const FAILOVERS: &str = "PORTCULLIS_FAILOVERS";
/// Configured time to live of the lock in seconds; the syncer's default if not set.
const FAILOVER_TTL: &str = "PORTCULLIS_FAILOVER_TTL";

const APPLIED: &str = "applied-security-groups";
const COLLIDED: &str = "locket-lock.failed-to-acquire-lock";

fn number(name: &str, default: u64) -> u64 {
    match env::var(name) {
        Ok(text) => text.parse().unwrap_or_else(|error| panic!("{name}={text}: {error}")),
        Err(_) => default,
    }
}

fn since(then: Timestamp) -> Duration {
    Duration::try_from(Timestamp::now().duration_since(then)).unwrap_or_default()
}

/// The proxied connections of one syncer.
struct Wires {
    locks: Wire,
    store: Wire,
    api: Wire,
    internal_api: Wire,
}

impl Wires {
    fn of(plane: &ControlPlane) -> Self {
        let Surroundings { lock_server, policy_store, api, internal_api, .. } =
            plane.surroundings();
        let host = |url: &str| Wire::to(url.split_once("://").expect("a URL has a scheme").1);
        Self {
            locks: Wire::to(&lock_server),
            store: Wire::to(&policy_store),
            api: host(&api),
            internal_api: host(&internal_api),
        }
    }

    fn start(&self, plane: &ControlPlane, name: &str) -> Process {
        let Self { locks, store, api, internal_api } = self;
        let surroundings = Surroundings {
            lock_server: locks.address.clone(),
            policy_store: store.address.clone(),
            api: format!("http://{}", api.address),
            internal_api: format!("https://{}", internal_api.address),
            lock_ttl: Some(LOCK_TTL),
            otlp: None,
        };
        plane.syncer_among(name, &surroundings)
    }
}

/// One syncer, subject to faults.
struct Member {
    name: String,
    wires: Wires,
    process: Process,
    trouble: Option<(Trouble, Timestamp)>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Trouble {
    Killed,
    Stopped,
    Paused,
    NoLocks,
    NoStore,
    NoCloudController,
    Alone,
}

const TROUBLES: [Trouble; 7] = [
    Trouble::Killed,
    Trouble::Stopped,
    Trouble::Paused,
    Trouble::NoLocks,
    Trouble::NoStore,
    Trouble::NoCloudController,
    Trouble::Alone,
];

impl Trouble {
    /// Duration in milliseconds; can exceed the time to live, so that another syncer leads
    /// meanwhile.
    fn length(self, chance: &mut fastrand::Rng) -> u64 {
        match self {
            Self::Killed | Self::Stopped => chance.u64(100..2_000),
            Self::Paused
            | Self::NoLocks
            | Self::NoStore
            | Self::NoCloudController
            | Self::Alone => LOCK_TTL * 1_000 + chance.u64(500..3_000),
        }
    }

    fn cuts(self, wires: &Wires) -> Vec<&Wire> {
        let Wires { locks, store, api, internal_api } = wires;
        match self {
            Self::Killed | Self::Stopped | Self::Paused => Vec::new(),
            Self::NoLocks => vec![locks],
            Self::NoStore => vec![store],
            Self::NoCloudController => vec![api, internal_api],
            Self::Alone => vec![locks, store, api, internal_api],
        }
    }
}

impl Member {
    fn start(plane: &ControlPlane, name: &str) -> Self {
        let wires = Wires::of(plane);
        let process = wires.start(plane, name);
        Self { name: name.to_owned(), wires, process, trouble: None }
    }

    fn meets(&mut self, trouble: Trouble, lasts: Duration) {
        match trouble {
            Trouble::Killed => drop(self.process.kill()),
            Trouble::Stopped => assert_eq!(self.process.terminate().code(), Some(0)),
            Trouble::Paused => self.process.signal(Signal::SIGSTOP),
            Trouble::NoLocks | Trouble::NoStore | Trouble::NoCloudController | Trouble::Alone => {
                trouble.cuts(&self.wires).into_iter().for_each(Wire::cut);
            }
        }
        self.trouble = Some((trouble, Timestamp::now() + lasts));
    }

    fn recovers(&mut self, plane: &ControlPlane) {
        let Some((trouble, _)) = self.trouble.take() else { return };
        match trouble {
            Trouble::Killed | Trouble::Stopped => {
                self.process = self.wires.start(plane, &self.name);
            }
            Trouble::Paused => self.process.signal(Signal::SIGCONT),
            Trouble::NoLocks | Trouble::NoStore | Trouble::NoCloudController | Trouble::Alone => {
                trouble.cuts(&self.wires).into_iter().for_each(Wire::mend);
            }
        }
    }
}

/// The writes that the store accepted, in commit order: token and writer.
fn writes(plane: &ControlPlane) -> Vec<(u64, String)> {
    told(plane, "replaced-security-groups")
}

fn refusals(plane: &ControlPlane) -> Vec<(u64, String)> {
    told(plane, "refused-replace")
}

fn told(plane: &ControlPlane, message: &str) -> Vec<(u64, String)> {
    let lines = plane.policy_store.log().into_iter();
    let mine = lines.filter(|line| line["message"].as_str().is_some_and(|m| m.ends_with(message)));
    let write = |line: Value| {
        let data = &line["data"];
        let writer = data["writer"].as_str().expect("a write has a writer");
        (data["fencing-token"].as_u64().expect("a write has a token"), writer.to_owned())
    };
    mine.map(write).collect()
}

/// Laws 1 to 3: at most one syncer writes at a time. In the store's commit order, tokens
/// never decrease, and each token belongs to one syncer. Returns the number of tokens.
fn check_writes(plane: &ControlPlane) -> usize {
    let writes = writes(plane);
    let falls = writes.windows(2).find(|pair| pair[1].0 < pair[0].0);
    assert_eq!(falls, None, "an older token was let in");
    let mut owners = BTreeMap::new();
    for (token, writer) in &writes {
        let owner = owners.entry(*token).or_insert(writer);
        assert_eq!(*owner, writer, "two wrote under token {token}");
    }
    let newest = writes.last().map_or(0, |(token, _)| *token);
    for (token, writer) in refusals(plane) {
        assert!(token < newest, "{writer} was refused under {token} though {newest} is the newest");
    }
    owners.len()
}

fn wait_until_equal(plane: &ControlPlane) {
    wait::until("the store to have what the Cloud Controller has", || {
        let (wanted, stored) = (plane.cloud.group_destinations(), plane.stored_destinations());
        if wanted == stored { Ok(()) } else { Err(format!("{stored:?}, not {wanted:?}")) }
    });
}

/// Continuous changes to the Cloud Controller's groups. The number of groups stays below
/// the limit of the store's removal guard, since any number of them may be replaced between
/// two writes.
#[derive(Default)]
struct Changes {
    groups: Vec<String>,
    made: u64,
}

const MOST_GROUPS: usize = 40;

impl Changes {
    fn another(&mut self, plane: &ControlPlane, chance: &mut fastrand::Rng) {
        self.made += 1;
        let destination = format!("10.{}.{}.1", self.made / 250 % 250, self.made % 250);
        match chance.u8(..10) {
            0..4 if self.groups.len() < MOST_GROUPS => {
                let name = format!("group-{}", self.made);
                self.groups.push(plane.cloud.create_group(&name, &destination));
            }
            0..7 if !self.groups.is_empty() => {
                let guid = &self.groups[chance.usize(..self.groups.len())];
                plane.cloud.change_group(guid, &destination);
            }
            _ if !self.groups.is_empty() => {
                let guid = self.groups.swap_remove(chance.usize(..self.groups.len()));
                plane.cloud.delete_group(&guid);
            }
            _ => {}
        }
    }
}

struct Chaos {
    plane: ControlPlane,
    members: Vec<Member>,
    chance: fastrand::Rng,
    changes: Changes,
    troubles: BTreeMap<Trouble, u32>,
}

impl Chaos {
    fn start(names: &[&str], seed: u64) -> Self {
        let plane = ControlPlane::start();
        let members = names.iter().map(|name| Member::start(&plane, name)).collect();
        let chance = fastrand::Rng::with_seed(seed);
        Self { plane, members, chance, changes: Changes::default(), troubles: BTreeMap::new() }
    }

    fn step(&mut self) {
        self.changes.another(&self.plane, &mut self.chance);
        for member in &mut self.members {
            if member.trouble.is_some_and(|(_, ends)| ends <= Timestamp::now()) {
                member.recovers(&self.plane);
            }
        }
        if self.chance.u8(..16) == 0 {
            self.hit();
        }
        wait::let_pass(Duration::from_millis(self.chance.u64(10..100)));
    }

    /// Applies a fault, mostly to the leader.
    fn hit(&mut self) {
        let Self { plane, members, chance, troubles, .. } = self;
        let leader = plane.leader().filter(|_| chance.u8(..3) > 0);
        let hit = members.iter().position(|member| Some(&member.name) == leader.as_ref());
        let hit = hit.unwrap_or_else(|| chance.usize(..members.len()));
        let trouble = TROUBLES[chance.usize(..TROUBLES.len())];
        let lasts = trouble.length(chance);
        if members[hit].trouble.is_none() {
            members[hit].meets(trouble, Duration::from_millis(lasts));
            *troubles.entry(trouble).or_default() += 1;
        }
    }

    fn writers(&self) -> BTreeSet<String> {
        writes(&self.plane).into_iter().map(|(_, writer)| writer).collect()
    }
}

/// Applies faults for the configured time, and then until a second syncer has led.
#[expect(clippy::print_stdout, reason = "a test says what it did")]
fn chaos(names: &[&str]) {
    let lasts = Duration::from_secs(number(CHAOS_SECONDS, 10));
    let seed = fastrand::u64(..);
    println!("seed {seed}");
    let mut chaos = Chaos::start(names, seed);
    let began = Timestamp::now();
    while since(began) < lasts || chaos.writers().len() < 2 {
        assert!(since(began) < lasts + wait::LONG, "nobody else led: {:?}", chaos.troubles);
        chaos.step();
    }
    let Chaos { mut members, plane, .. } = chaos;
    for member in &mut members {
        member.recovers(&plane);
    }
    let calm = Timestamp::now();
    wait_until_equal(&plane);
    let settled = since(calm);
    let terms = check_writes(&plane);
    println!(
        "{} syncers, {lasts:?}: {} changes, {} writes in {terms} terms, {} refused, \
         equal {settled:?} after the last trouble, troubles {:?}",
        names.len(),
        chaos.changes.made,
        writes(&plane).len(),
        refusals(&plane).len(),
        chaos.troubles,
    );
    assert!(members.iter_mut().all(|member| member.process.is_running()));
}

#[test]
fn one_of_two_syncers_writes_under_faults_and_nothing_is_lost() {
    chaos(&["syncer-a", "syncer-b"]);
}

#[test]
fn one_of_five_syncers_writes_under_faults_and_nothing_is_lost() {
    chaos(&["syncer-a", "syncer-b", "syncer-c", "syncer-d", "syncer-e"]);
}

/// More bytes than a small Replace without its groups.
const MANIFEST: usize = 4 << 10;

/// Law 3: a delayed Commit of a paused leader arrives while another syncer leads, and is
/// refused. The old leader writes nothing when it continues.
#[test]
fn a_write_that_arrives_after_the_next_leader_is_refused() {
    let plane = ControlPlane::start();
    let old = Member::start(&plane, "old");
    old.process.wait_for(APPLIED);
    let new = Member::start(&plane, "new");
    new.process.wait_for(COLLIDED);
    old.wires.store.cut_after(MANIFEST);
    let destinations: Vec<_> =
        (0..2_000).map(|n| format!("10.0.{}.{}", n / 250, n % 250)).collect();
    let guid = plane.cloud.create_group("read-by-the-old-leader", &destinations.join(","));
    wait::until("the old leader's groups to wait in the wire", || {
        if old.wires.store.holds_back() { Ok(()) } else { Err("not yet".to_owned()) }
    });
    // The Commit follows at once; the proxy cannot separate it from the groups.
    wait::let_pass(Duration::from_secs(1));
    old.process.signal(Signal::SIGSTOP);
    new.process.wait_for(APPLIED);
    plane.cloud.delete_group(&guid);
    wait_until_equal(&plane);
    old.wires.store.mend();
    wait::until("a refusal", || match refusals(&plane).as_slice() {
        [] => Err("none".to_owned()),
        all => {
            let is_old = |(token, writer): &(u64, String)| (*token, writer.as_str()) == (1, "old");
            assert!(all.iter().all(is_old), "{all:?}");
            Ok(())
        }
    });
    old.process.signal(Signal::SIGCONT);
    old.process.wait_for("locket-lock.lost-lock");
    plane.cloud.create_group("made-after-it-woke-up", "10.0.0.2");
    wait_until_equal(&plane);
    assert_eq!(check_writes(&plane), 2);
    assert_eq!(writes(&plane).last().map(|(_, writer)| writer.as_str()), Some("new"));
}

/// Law 3, as the leader sees it: its lock server was replaced by one whose tokens start
/// again. The store refuses its writes; the leader releases the lock and keeps running.
#[test]
fn a_leader_with_an_older_token_is_refused() {
    let plane = ControlPlane::start();
    for name in ["first", "second"] {
        let mut syncer = plane.syncer(name);
        syncer.wait_for(APPLIED);
        syncer.terminate();
    }
    let other = LockServer::start_as(&plane.site, "another-lock-server");
    let surroundings = Surroundings { lock_server: other.address.clone(), ..plane.surroundings() };
    let mut old = plane.syncer_among("old", &surroundings);
    let line = old.wait_for("fenced-by-policy-store");
    assert!(line["data"]["error"].as_str().is_some_and(|text| text.contains("older")), "{line}");
    old.wait_for("locket-lock.released-lock");
    assert_eq!(old.count(APPLIED), 0);
    assert_eq!(refusals(&plane).first(), Some(&(1, "old".to_owned())));
    assert!(old.is_running());
}

/// Time from `then` to the first set that a syncer applied.
fn first_sync(syncer: &Process, then: Timestamp) -> Duration {
    let line = syncer.wait_for(APPLIED);
    assert_eq!(line["data"]["reason"], "first");
    let text = line["timestamp"].as_str().expect("a line has a time");
    let at: Timestamp = text.parse().unwrap_or_else(|error| panic!("{text}: {error}"));
    Duration::try_from(at.duration_since(then)).expect("it comes after")
}

fn summary(times: &mut [Duration]) -> String {
    times.sort_unstable();
    let ms = |index: usize| times[index].as_millis();
    let last = times.len() - 1;
    format!("median {} ms, least {} ms, most {} ms", ms(last / 2), ms(0), ms(last))
}

#[test]
fn the_next_leader_syncs_soon() {
    let plane = ControlPlane::start();
    let configured = env::var_os(FAILOVER_TTL).map(|_| number(FAILOVER_TTL, 0));
    let surroundings = Surroundings { lock_ttl: configured, ..plane.surroundings() };
    let ttl = configured.unwrap_or(5);
    let mut names = (1..).map(|number| format!("syncer-{number}"));
    let mut next = || plane.syncer_among(&names.next().expect("it never ends"), &surroundings);
    let mut leader = next();
    leader.wait_for(APPLIED);
    let (mut released, mut expired) = (Vec::new(), Vec::new());
    for _ in 0..number(FAILOVERS, 1) {
        let mut second = next();
        second.wait_for(COLLIDED);
        let asked = Timestamp::now();
        leader.terminate();
        released.push(first_sync(&second, asked));
        leader = next();
        leader.wait_for(COLLIDED);
        let killed = Timestamp::now();
        second.kill();
        expired.push(first_sync(&leader, killed));
    }
    println!("first sync of the next leader, {} times each, TTL {ttl} s:", released.len());
    println!("after SIGTERM: {}", summary(&mut released));
    println!("after kill -9: {}", summary(&mut expired));
    let within = |times: &[Duration], limit| times.iter().all(|time| *time < limit);
    assert!(within(&released, Duration::from_secs(1)), "{released:?}");
    assert!(within(&expired, Duration::from_secs(ttl + 1)), "{expired:?}");
}
