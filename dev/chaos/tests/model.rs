//! A small model of the whole system, which writes valid histories: every delay is random, and
//! every value is what a correct system answers.

use std::collections::BTreeMap;

use chaos::history::{
    Begin, Bounds, Claim, Claimed, Entry, Event, Fate, Goal, Moment, Outcome, Phase, StoreState,
};
use fastrand::Rng;

pub(crate) const BAD: &str = "bad";
pub(crate) const CELLS: [&str; 2] = ["cell-1", "cell-2"];
pub(crate) const KEYS: [&str; 2] = ["lock-1", "lock-2"];
const GROUPS: u32 = 2;
const WIDTH: u32 = 40;
const MILLISECOND: u64 = 1_000;
const SECOND: u64 = 1_000 * MILLISECOND;
/// The faults are over after this time, and the history ends `TAIL` later.
const TROUBLE: u64 = 40 * SECOND;
const TAIL: u64 = 16 * SECOND;
const TTL: u64 = 2 * SECOND;

const BOUNDS: Bounds =
    Bounds { recovery: 8 * SECOND, change: 2 * SECOND, heal: SECOND, late: SECOND };

/// A version of a group: when it is at the Cloud Controller.
#[derive(Debug, Clone, Copy)]
struct Version {
    effective: u64,
    confirmed: bool,
}

/// When each cell has which generation.
type Timeline = BTreeMap<&'static str, Vec<(u64, u64)>>;

struct Model {
    random: Rng,
    entries: Vec<Entry>,
    groups: Vec<Vec<Version>>,
    /// The time and the content of each generation, from 1.
    generations: Vec<(u64, Vec<u32>)>,
    cells: Timeline,
    faults: Vec<(u64, u64)>,
}

/// A valid history.
pub(crate) fn history(seed: u64) -> Vec<Entry> {
    let mut model = Model {
        random: Rng::with_seed(seed),
        entries: Vec::new(),
        groups: Vec::new(),
        generations: Vec::new(),
        cells: Timeline::new(),
        faults: Vec::new(),
    };
    model.faults();
    model.changes();
    model.generations();
    model.cells();
    model.containers();
    for key in KEYS {
        model.lock(key);
    }
    model.writers();
    let mut entries = model.entries;
    entries.sort_by_key(|entry| entry.at);
    let begin = Begin {
        seed,
        backend: "model".to_owned(),
        plane: "model".to_owned(),
        cells: CELLS.map(str::to_owned).to_vec(),
        bad_group: Some(BAD.to_owned()),
        loses_commits: false,
        bounds: BOUNDS,
    };
    entries.insert(0, Entry { at: Moment(0), event: Event::Begin(begin) });
    entries
}

impl Model {
    fn push(&mut self, at: u64, event: Event) {
        self.entries.push(Entry { at: Moment(at), event });
    }

    fn faults(&mut self) {
        let mut at = self.random.u64(11 * SECOND..18 * SECOND);
        let mut number = 0;
        while at < TROUBLE {
            let end = (at + self.random.u64(SECOND..4 * SECOND)).min(TROUBLE);
            for (begins, at) in [(true, at), (false, end)] {
                let what = format!("fault {number}");
                self.push(at, Event::Fault { number, what, begins, flushed: None });
            }
            self.faults.push((at, end));
            number += 1;
            at = end + self.random.u64(SECOND..16 * SECOND);
        }
        self.push(TROUBLE + MILLISECOND, Event::Calm);
        self.push(TROUBLE + TAIL, Event::End);
    }

    fn changes(&mut self) {
        for group in 0..GROUPS {
            let mut at = self.random.u64(0..50 * MILLISECOND);
            let mut versions = Vec::new();
            while at < TROUBLE {
                let version = u32::try_from(versions.len()).expect("small");
                let (sent, effective) = (at, at + self.random.u64(1..20 * MILLISECOND));
                let answer = effective + self.random.u64(1..20 * MILLISECOND);
                // The last version must be known.
                let confirmed = self.random.u8(..10) > 0 || answer + SECOND > TROUBLE;
                let confirmed = confirmed || version == 0;
                let outcome = if confirmed { Outcome::Confirmed } else { Outcome::Unknown };
                let ports = (version, version + WIDTH - 1);
                let sent = Moment(sent);
                self.push(answer, Event::Change { group, version, ports, sent, outcome });
                versions.push(Version { effective, confirmed });
                at = answer + self.random.u64(200 * MILLISECOND..900 * MILLISECOND);
            }
            assert!(versions.iter().any(|version| version.confirmed));
            self.groups.push(versions);
        }
    }

    /// The content at the Cloud Controller.
    fn content(&self, at: u64) -> Vec<u32> {
        let newest = |versions: &Vec<Version>| {
            let known = versions.partition_point(|version| version.effective <= at);
            u32::try_from(known).expect("small").saturating_sub(1)
        };
        self.groups.iter().map(newest).collect()
    }

    /// Until when a fault delays an effect of that time.
    fn delayed(&mut self, at: u64) -> u64 {
        let fault = self.faults.iter().find(|(from, to)| *from <= at && at < *to);
        match fault {
            Some(&(_, to)) => to + self.random.u64(0..3 * SECOND),
            None => at,
        }
    }

    fn generations(&mut self) {
        let mut at = 200 * MILLISECOND;
        while at < TROUBLE + TAIL {
            let content = self.content(at);
            if self.generations.last().is_none_or(|(_, last)| *last != content) {
                self.generations.push((at, content));
            }
            let next = at + self.random.u64(50 * MILLISECOND..300 * MILLISECOND);
            at = self.delayed(next);
        }
        for (generation, (at, content)) in (1..).zip(self.generations.clone()) {
            let versions: Vec<_> = (0..).zip(content).collect();
            for watcher in ["watcher-1", "watcher-2"] {
                let at = at + self.random.u64(1..200 * MILLISECOND);
                let (watcher, versions) = (watcher.to_owned(), versions.clone());
                self.push(at, Event::Content { watcher, generation, versions });
            }
        }
    }

    fn newest_generation(&self, at: u64) -> u64 {
        self.generations.partition_point(|(made, _)| *made <= at) as u64
    }

    fn cells(&mut self) {
        for cell in CELLS {
            let mut timeline: Vec<(u64, u64)> = Vec::new();
            let mut at = 300 * MILLISECOND;
            while at < TROUBLE + TAIL {
                let generation = self.newest_generation(at);
                let in_force = at + self.random.u64(1..200 * MILLISECOND);
                timeline.push((in_force, generation));
                let sent = in_force + self.random.u64(1..100 * MILLISECOND);
                let answer = sent + self.random.u64(1..100 * MILLISECOND);
                let cell = cell.to_owned();
                let (sent, isolated) = (Moment(sent), vec![BAD.to_owned()]);
                self.push(answer, Event::Cell { cell, sent, generation, isolated });
                let next = answer + self.random.u64(10 * MILLISECOND..200 * MILLISECOND);
                at = self.delayed(next);
            }
            self.cells.insert(cell, timeline);
        }
    }

    fn containers(&mut self) {
        for number in 0..6_u32 {
            let (name, group) = (format!("container-{number}"), number % GROUPS);
            let cell = CELLS[usize::try_from(number).expect("small") % CELLS.len()];
            let added = self.random.u64(0..20 * SECOND);
            let ready = added.max(2 * SECOND) + self.random.u64(MILLISECOND..SECOND);
            let gone =
                if number < 2 { TROUBLE + TAIL } else { self.random.u64(25 * SECOND..TROUBLE) };
            for (at, phase) in [(added, Phase::Added), (ready, Phase::Ready), (gone, Phase::Gone)] {
                let (name, cell) = (name.clone(), cell.to_owned());
                self.push(at, Event::Container { name, cell, group, phase });
            }
            let mut at = added + MILLISECOND;
            while at < gone {
                self.packet(&name, cell, group, at, at >= ready);
                at += self.random.u64(40 * MILLISECOND..200 * MILLISECOND);
            }
        }
    }

    fn packet(&mut self, name: &str, cell: &'static str, group: u32, sent: u64, ready: bool) {
        let judged = sent + self.random.u64(0..2 * MILLISECOND);
        let timeline = &self.cells[cell];
        let known = timeline.partition_point(|(at, _)| *at <= judged);
        let generation = known.checked_sub(1).map_or(0, |place| timeline[place].1);
        let version = usize::try_from(generation).expect("small").checked_sub(1);
        let version = version.map(|place| self.generations[place].1[group as usize]);
        let goal = match self.random.u8(..4) {
            0 => Goal::Always,
            1 => Goal::Never,
            _ => {
                let newest = self.content(sent)[group as usize];
                Goal::Port(self.random.u32(newest.saturating_sub(WIDTH)..newest + 2 * WIDTH))
            }
        };
        let is_allowed = match (goal, version) {
            (_, None) => false,
            (Goal::Always, _) => true,
            (Goal::Never, _) => false,
            (Goal::Port(port), Some(version)) => (version..version + WIDTH).contains(&port),
        };
        let fate = match (is_allowed && ready, self.random.bool()) {
            (true, _) => Fate::Passed,
            (false, true) => Fate::Rejected,
            (false, false) => Fate::Silent,
        };
        let done = judged + self.random.u64(1..5 * MILLISECOND);
        let (container, sent) = (name.to_owned(), Moment(sent));
        self.push(done, Event::Packet { container, goal, sent, fate });
    }

    /// Owners take turns; a witness asks meanwhile.
    fn lock(&mut self, key: &str) {
        let key = key.to_owned();
        let mut at = self.random.u64(1..SECOND);
        for token in 1.. {
            let owner = format!("owner-{token}");
            let effect = at + self.random.u64(1..20 * MILLISECOND);
            let mut answer = effect + self.random.u64(1..20 * MILLISECOND);
            let mut sent = at;
            for _renewal in 0..self.random.u32(1..4) {
                let outcome = Claimed::Granted(token);
                self.claim(&key, &owner, sent, answer, outcome);
                let other = sent + self.random.u64(1..SECOND);
                let refused = [Claimed::Refused, Claimed::Unknown][self.random.usize(..2)];
                self.claim(&key, "nobody", other, other + 5 * MILLISECOND, refused);
                let asked = answer + self.random.u64(1..100 * MILLISECOND);
                let seen = Some(owner.clone());
                let (asked, key) = (Moment(asked), key.clone());
                self.push(
                    asked.0 + 3 * MILLISECOND,
                    Event::Owner { key, sent: asked, owner: seen },
                );
                sent += self.random.u64(300 * MILLISECOND..SECOND);
                answer = sent + self.random.u64(1..20 * MILLISECOND);
            }
            // The last request may have no answer, and still prolong the lock.
            self.claim(&key, &owner, sent, answer, Claimed::Unknown);
            let free = if self.random.bool() {
                let release = answer + self.random.u64(1..300 * MILLISECOND);
                let (key, sent) = (key.clone(), Moment(release));
                self.push(
                    release + 2 * MILLISECOND,
                    Event::Release { key, owner, sent, confirmed: true },
                );
                release + self.random.u64(1..2 * MILLISECOND)
            } else {
                answer + TTL
            };
            at = free + self.random.u64(0..300 * MILLISECOND);
            if at > TROUBLE {
                return;
            }
        }
    }

    fn claim(&mut self, key: &str, owner: &str, sent: u64, at: u64, outcome: Claimed) {
        let (key, owner, sent) = (key.to_owned(), owner.to_owned(), Moment(sent));
        self.push(at, Event::Claim(Claim { key, owner, sent, ttl: TTL, outcome }));
    }

    fn writers(&mut self) {
        let mut token = 1;
        let mut at = SECOND;
        while at < TROUBLE + TAIL {
            token += u64::from(self.random.u8(..8) == 0);
            let answer = at + self.random.u64(1..20 * MILLISECOND);
            let generation = self.newest_generation(at);
            let watermark = i64::try_from(at / SECOND).expect("small");
            let (store, sent) = ("store-1".to_owned(), Moment(at));
            self.push(
                answer,
                Event::Store(StoreState {
                    store: store.clone(),
                    sent,
                    generation,
                    token,
                    watermark,
                }),
            );
            if token > 1 && self.random.bool() {
                let outcome = [Outcome::Refused, Outcome::Unknown][self.random.usize(..2)];
                let sent = Moment(answer + 1);
                self.push(answer + 2, Event::Write { store, token: token - 1, sent, outcome });
            }
            at = answer + self.random.u64(50 * MILLISECOND..400 * MILLISECOND);
        }
    }
}
