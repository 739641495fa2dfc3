//! The state behind the view: what the servers reported ([`Data`]), and what the user looks
//! at ([`Model`]).
//!
//! Invariants:
//! - A server that does not answer leaves its last data in place; [`Data::problems`] has its
//!   error and the age of the data.
//! - Pausing freezes the displayed data. Reports continue to arrive, and the next
//!   continuation shows the newest ones.
//! - What is kept is bounded: [`MOST_CHANGES`] changes, and the cells of one answer.

use std::{
    collections::{BTreeMap, HashMap},
    time::Duration,
};

use jiff::Timestamp;

use super::{
    data::{Cell, Change, Containers, Counters, Level, Lock, Owner, Store, elapsed},
    format::span,
};

/// Time since the start of the view.
pub(crate) type Moment = Duration;

/// Changes that are kept.
pub(crate) const MOST_CHANGES: usize = 200;

/// The lock of the syncers, unless the store's writer owns another one.
const LEADER_LOCK: &str = "policy-server-asg-syncer";

/// A report of a server.
#[derive(Debug, Clone)]
pub(crate) enum Message {
    /// The state of the policy store.
    Store(Store),
    /// The policy store did not answer: why.
    StoreLost(String),
    /// All locks.
    Locks(Vec<Lock>),
    /// The lock server did not answer: why.
    LocksLost(String),
    /// A change of an instance of the store that is new, or that more cells enforce.
    Change(usize, Box<Change>),
    /// The stream of changes of an instance is open.
    ChangesOpen(usize),
    /// The stream of changes of an instance ended: why.
    ChangesLost(usize, String),
    /// An instance is too old to report changes.
    ChangesUnserved,
    /// The containers of the selected cell.
    Containers(Containers),
}

/// Whether a server answers.
#[derive(Debug, Clone, Default)]
struct Health {
    last_answer: Option<Moment>,
    error: Option<String>,
}

impl Health {
    fn answered(&mut self, now: Moment) {
        *self = Self { last_answer: Some(now), error: None };
    }

    fn has_heard(&self) -> bool {
        self.last_answer.is_some() || self.error.is_some()
    }

    fn problem(&self, server: &str, now: Moment) -> Option<String> {
        let error = self.error.as_ref()?;
        let data = match self.last_answer {
            Some(at) => format!("data {} old", span(now.saturating_sub(at))),
            None => "no data yet".to_owned(),
        };
        // The error may be too long for the line.
        Some(format!("{server}: retrying, {data}: {error}"))
    }
}

/// The owner of the leader lock.
#[derive(Debug, Clone)]
pub(crate) struct Leader {
    pub(crate) owner: Owner,
    pub(crate) since: Moment,
    /// Whether this program saw the acquisition; otherwise the owner is older.
    pub(crate) is_witnessed: bool,
}

/// Packets per second of a cell, from its last two reports.
#[derive(Debug, Clone, Copy)]
struct Rate {
    reported_at: Timestamp,
    counters: Counters,
    allowed: f64,
    denied: f64,
}

/// Packets of all cells.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub(crate) struct Traffic {
    /// Whether a cell reports counters.
    pub(crate) is_known: bool,
    /// Packets, and packets per second.
    pub(crate) allowed: (Option<u64>, f64),
    pub(crate) denied: (Option<u64>, f64),
    pub(crate) unattributed: u64,
}

/// Numbers over all cells.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Census {
    pub(crate) cells: u64,
    pub(crate) connected: u64,
    pub(crate) containers: u64,
    pub(crate) isolated_rules: u64,
    pub(crate) levels: BTreeMap<Level, u64>,
}

impl Census {
    /// Connected cells that do not enforce the newest generation.
    pub(crate) fn behind(&self) -> u64 {
        [Level::Behind, Level::Late].iter().filter_map(|level| self.levels.get(level)).sum()
    }
}

/// What the servers reported.
#[derive(Debug, Clone, Default)]
pub(crate) struct Data {
    store: Option<(Store, Moment)>,
    store_health: Health,
    leader: Option<Leader>,
    lock_health: Health,
    /// By generation and instance of the store.
    reported: BTreeMap<(u64, usize), Change>,
    /// By generation, the reports of all instances together.
    changes: BTreeMap<u64, Change>,
    changes_health: BTreeMap<usize, Health>,
    lacks_changes: bool,
    rates: HashMap<String, Rate>,
    containers: Containers,
}

impl Data {
    fn apply(&mut self, message: Message, now: Moment) {
        match message {
            Message::Store(store) => {
                self.store_health.answered(now);
                self.measure(&store);
                self.store = Some((store, now));
            }
            Message::StoreLost(error) => self.store_health.error = Some(error),
            Message::Locks(locks) => {
                let knew = self.lock_health.last_answer.is_some();
                self.lock_health.answered(now);
                self.elect(&locks, knew, now);
            }
            Message::LocksLost(error) => self.lock_health.error = Some(error),
            Message::Change(instance, change) => {
                self.changes_health.entry(instance).or_default().answered(now);
                self.reported.insert((change.generation, instance), *change);
                while self.reported.len() > MOST_CHANGES {
                    self.reported.pop_first();
                }
                self.combine();
            }
            // The instance may have lost its memory: its stream repeats what it knows.
            Message::ChangesOpen(instance) => {
                self.lacks_changes = false;
                self.changes_health.entry(instance).or_default().answered(now);
                self.reported.retain(|(_, of), _| *of != instance);
                self.combine();
            }
            Message::ChangesLost(instance, error) => {
                self.changes_health.entry(instance).or_default().error = Some(error);
            }
            Message::ChangesUnserved => self.lacks_changes = true,
            Message::Containers(containers) => self.containers = containers,
        }
    }

    fn combine(&mut self) {
        self.changes.clear();
        for ((generation, _), change) in &self.reported {
            match self.changes.get_mut(generation) {
                Some(known) => known.join(change),
                None => drop(self.changes.insert(*generation, change.clone())),
            }
        }
    }

    /// Keeps the moment of the acquisition while the owner and its token stay.
    fn elect(&mut self, locks: &[Lock], knew: bool, now: Moment) {
        let writer = self.store().and_then(|store| store.writer.as_ref());
        let usual = locks.iter().find(|lock| lock.key == LEADER_LOCK);
        let of_writer = || locks.iter().find(|lock| Some(&lock.owner) == writer);
        let owner = usual.or_else(of_writer).map(|lock| lock.owner.clone());
        if self.leader.as_ref().map(|leader| &leader.owner) != owner.as_ref() {
            self.leader = owner.map(|owner| Leader { owner, since: now, is_witnessed: knew });
        }
    }

    /// Rates between the last two reports of each cell. Counters that went down are those of
    /// a restarted agent.
    fn measure(&mut self, store: &Store) {
        let mut rates = HashMap::with_capacity(store.cells.len());
        for cell in &store.cells {
            let counters = cell.details.as_ref().and_then(|details| details.counters);
            let Some((counters, reported_at)) = counters.zip(cell.reported_at) else { continue };
            let known = self.rates.get(&cell.id);
            let rate = match known {
                Some(known) if known.reported_at == reported_at => *known,
                Some(known) if known.reported_at < reported_at => {
                    let seconds = elapsed(known.reported_at, reported_at).as_secs_f64();
                    let per_second = |new: Option<u64>, old: Option<u64>| {
                        let packets = new.unwrap_or(0).checked_sub(old.unwrap_or(0));
                        packets.map_or(0.0, |packets| packets as f64 / seconds)
                    };
                    let allowed = per_second(counters.allowed, known.counters.allowed);
                    let denied = per_second(counters.denied, known.counters.denied);
                    Rate { reported_at, counters, allowed, denied }
                }
                _ => Rate { reported_at, counters, allowed: 0.0, denied: 0.0 },
            };
            rates.insert(cell.id.clone(), rate);
        }
        self.rates = rates;
    }

    /// The state of the store, once it answered.
    pub(crate) fn store(&self) -> Option<&Store> {
        self.store.as_ref().map(|(store, _)| store)
    }

    /// Time since the state of the store arrived.
    pub(crate) fn store_age(&self, now: Moment) -> Option<Duration> {
        self.store.as_ref().map(|(_, at)| now.saturating_sub(*at))
    }

    /// The store's clock now.
    pub(crate) fn clock(&self, now: Moment) -> Option<Timestamp> {
        let (store, at) = self.store.as_ref()?;
        store.now?.checked_add(now.saturating_sub(*at)).ok()
    }

    /// Age of a time of the store.
    pub(crate) fn age(&self, time: Option<Timestamp>, now: Moment) -> Option<Duration> {
        Some(elapsed(time?, self.clock(now)?))
    }

    /// The owner of the leader lock.
    pub(crate) fn leader(&self) -> Option<&Leader> {
        self.leader.as_ref()
    }

    /// Whether the lock server answered.
    pub(crate) fn knows_locks(&self) -> bool {
        self.lock_health.last_answer.is_some()
    }

    /// The cells, in order of their names.
    pub(crate) fn cells(&self) -> &[Cell] {
        self.store().map_or(&[], |store| &store.cells)
    }

    /// A cell by its id.
    pub(crate) fn cell(&self, id: &str) -> Option<&Cell> {
        self.cells().iter().find(|cell| cell.id == id)
    }

    /// The changes, the newest first.
    pub(crate) fn changes(&self) -> impl DoubleEndedIterator<Item = &Change> {
        self.changes.values().rev()
    }

    /// A change by its generation.
    pub(crate) fn change(&self, generation: u64) -> Option<&Change> {
        self.changes.get(&generation)
    }

    /// The newest change that all its cells enforce.
    pub(crate) fn last_complete_change(&self) -> Option<&Change> {
        self.changes().find(|change| change.is_complete())
    }

    /// Whether the store is too old to report changes.
    pub(crate) fn lacks_changes(&self) -> bool {
        self.lacks_changes
    }

    /// The containers of a cell, if they were requested.
    pub(crate) fn containers(&self, cell: &str) -> Option<&Containers> {
        Some(&self.containers).filter(|containers| containers.cell == cell)
    }

    /// The level of a cell.
    pub(crate) fn level(&self, cell: &Cell, now: Moment) -> Level {
        let released = self.store().map_or(0, |store| store.released);
        cell.level(released, self.clock(now))
    }

    /// Numbers over all cells.
    pub(crate) fn census(&self, now: Moment) -> Census {
        let mut census = Census::default();
        for cell in self.cells() {
            census.cells += 1;
            census.connected += u64::from(cell.connected);
            census.containers += u64::from(cell.containers);
            census.isolated_rules += u64::from(cell.isolated_rules);
            *census.levels.entry(self.level(cell, now)).or_default() += 1;
        }
        census
    }

    /// Packets of all cells; the rates are those of the connected ones.
    pub(crate) fn traffic(&self) -> Traffic {
        let mut traffic = Traffic::default();
        let add = |sum: &mut Option<u64>, more: Option<u64>| {
            if let Some(more) = more {
                *sum = Some(sum.unwrap_or(0).saturating_add(more));
            }
        };
        for cell in self.cells() {
            let counters = cell.details.as_ref().and_then(|details| details.counters);
            let Some(Counters { allowed, denied, unattributed }) = counters else { continue };
            traffic.is_known = true;
            add(&mut traffic.allowed.0, allowed);
            add(&mut traffic.denied.0, denied);
            traffic.unattributed = traffic.unattributed.saturating_add(unattributed);
            let (allowed, denied) = self.rates(cell);
            traffic.allowed.1 += allowed;
            traffic.denied.1 += denied;
        }
        traffic
    }

    /// Allowed and denied packets per second of a cell.
    pub(crate) fn rates(&self, cell: &Cell) -> (f64, f64) {
        let rate = self.rates.get(&cell.id).filter(|_| cell.connected);
        rate.map_or((0.0, 0.0), |rate| (rate.allowed, rate.denied))
    }

    /// Whether all servers have answered, or failed to.
    pub(crate) fn has_heard_all(&self) -> bool {
        self.store_health.has_heard() && self.lock_health.has_heard()
    }

    /// A freeze, and servers that do not answer, with the age of their last data.
    pub(crate) fn problems(&self, now: Moment) -> Vec<String> {
        let store = self.store_health.problem("policy store", now);
        // The stream ends together with the other calls.
        let streams = self.changes_health.values();
        let changes = streams.filter_map(|health| health.problem("changes", now)).next();
        let changes = changes.filter(|_| store.is_none());
        let locks = self.lock_health.problem("lock server", now);
        let silent = self.store().into_iter().flat_map(|store| store.silent.clone());
        let warnings = self.store().into_iter().flat_map(|store| store.warnings.clone());
        let lost = [store, changes, locks].into_iter().flatten().chain(silent);
        warnings.chain(lost).collect()
    }
}

/// What is displayed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Page {
    /// Everything.
    Overview,
    /// One cell, by its id.
    Cell(String),
    /// One change, by its generation.
    Change(u64),
}

/// The list of the overview that the arrow keys move in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Pane {
    /// The changes.
    Changes,
    /// The cells.
    Cells,
}

/// The state of the view.
#[derive(Debug)]
pub(crate) struct Model {
    data: Data,
    frozen: Option<Box<Data>>,
    pub(crate) address: String,
    pub(crate) page: Page,
    pub(crate) pane: Pane,
    pub(crate) shows_help: bool,
    /// First displayed line of a page.
    pub(crate) scroll: usize,
    pub(crate) selected_cell: Option<String>,
    pub(crate) selected_change: Option<u64>,
    pub(crate) filter: String,
    pub(crate) is_typing: bool,
    /// Columns and rows of the terminal.
    pub(crate) size: (u16, u16),
}

impl Model {
    /// The view before the first answer.
    pub(crate) fn new(address: String, size: (u16, u16)) -> Self {
        Self {
            data: Data::default(),
            frozen: None,
            address,
            page: Page::Overview,
            pane: Pane::Cells,
            shows_help: false,
            scroll: 0,
            selected_cell: None,
            selected_change: None,
            filter: String::new(),
            is_typing: false,
            size,
        }
    }

    /// Takes in a report.
    pub(crate) fn update(&mut self, message: Message, now: Moment) {
        self.data.apply(message, now);
    }

    /// The displayed data.
    pub(crate) fn data(&self) -> &Data {
        self.frozen.as_deref().unwrap_or(&self.data)
    }

    /// Whether the displayed data is frozen.
    pub(crate) fn is_paused(&self) -> bool {
        self.frozen.is_some()
    }

    /// Freezes the displayed data, or continues.
    pub(crate) fn toggle_pause(&mut self) {
        self.frozen = match self.frozen {
            Some(_) => None,
            None => Some(Box::new(self.data.clone())),
        };
    }

    /// The cell whose containers are to be requested.
    pub(crate) fn wanted_containers(&self) -> Option<&str> {
        match &self.page {
            Page::Cell(id) => Some(id),
            Page::Overview | Page::Change(_) => None,
        }
    }

    /// The cells that pass the filter.
    pub(crate) fn cells(&self) -> Vec<&Cell> {
        let cells = self.data().cells().iter();
        cells.filter(|cell| self.passes([cell.name.as_str()])).collect()
    }

    /// The changes that pass the filter, the newest first.
    pub(crate) fn changes(&self) -> Vec<&Change> {
        let changes = self.data().changes();
        let texts = |change: &&Change| {
            let groups = change.groups.iter();
            self.passes(groups.flat_map(|group| [group.name.as_str(), group.guid.as_str()]))
        };
        changes.filter(texts).collect()
    }

    /// Whether one of the texts contains the filter, in any case.
    pub(crate) fn passes<'a>(&self, texts: impl IntoIterator<Item = &'a str>) -> bool {
        let wanted = self.filter.to_lowercase();
        wanted.is_empty() || texts.into_iter().any(|text| text.to_lowercase().contains(&wanted))
    }
}
