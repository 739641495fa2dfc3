//! Applying the updates of a watch gives the result of List, at every complete state and
//! whatever happens in between (law 9).

use std::{
    collections::{BTreeSet, HashSet},
    sync::Arc,
};

use model::{
    generation::{Generation, Point, Stamp},
    group::{ContentHash, GroupId},
    ids::{CellId, SpaceGuid},
};
use policy_store::{
    feed::{
        cursor::{self, Cursor, MAX_SPACES},
        parts::{Part, Parts},
        watch::{ClientMessage, ClientMessages, End, Feed, Hello, Message, Violation, Watcher},
    },
    groups::{
        current::SnapshotPublisher,
        page::{Filter, page},
        snapshot::Snapshot,
    },
    reports::Agent,
};
use proptest::prelude::*;
use proto::policy_v1::{CellRequest, CellResponse, ListResponse};
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

use crate::support::{
    client::Mirror,
    served::Served,
    sets::{SPACES, Set, bound, global, named, set, sets, space},
};

/// Random event of a watcher.
#[derive(Debug, Clone)]
enum Event {
    /// The set is replaced.
    Replace(Set),
    /// The watcher's spaces change: bits to add, bits to drop.
    Subscribe(u8, u8),
    /// The watcher reads until it is up to date.
    Read,
    /// More small changes than the history can remember.
    Storm,
    /// The watch breaks, and the watcher reconnects with its state; or it claims a state of
    /// another life of the store.
    Reconnect(bool),
    /// The store restarts.
    Restart,
    /// Cells keep what they have.
    Freeze,
    /// Cells get the newest generation.
    Unfreeze,
}

fn events() -> impl Strategy<Value = Vec<Event>> {
    let spaces = 0u8..1 << SPACES;
    let event = prop_oneof![
        8 => sets().prop_map(Event::Replace),
        5 => (spaces.clone(), spaces).prop_map(|(add, drop)| Event::Subscribe(add, drop)),
        8 => Just(Event::Read),
        1 => Just(Event::Storm),
        3 => prop::bool::weighted(0.2).prop_map(Event::Reconnect),
        2 => Just(Event::Restart),
        2 => Just(Event::Freeze),
        2 => Just(Event::Unfreeze),
    ];
    prop::collection::vec(event, 1..24)
}

fn spaces_of(bits: u8) -> Vec<SpaceGuid> {
    let has = |index: &u8| bits & (1 << index) != 0;
    (0..SPACES).filter(has).map(|index| space(&format!("s{index}"))).collect()
}

/// A watcher, its updates, and its state.
struct Watched {
    cursor: Cursor,
    mirror: Mirror,
    spaces: BTreeSet<SpaceGuid>,
    /// Spaces of the last received state.
    told_spaces: BTreeSet<SpaceGuid>,
    sequence: u64,
    is_greeted: bool,
}

impl Watched {
    fn new(bits: u8) -> Self {
        let spaces = spaces_of(bits);
        Self {
            cursor: Cursor::new(spaces.iter().cloned().collect(), None).unwrap(),
            mirror: Mirror::default(),
            spaces: spaces.iter().cloned().collect(),
            told_spaces: spaces.into_iter().collect(),
            sequence: 0,
            is_greeted: false,
        }
    }

    /// Reconnects with the spaces of the last received state.
    fn reconnect(&mut self, is_of_another_life: bool) {
        self.mirror = std::mem::take(&mut self.mirror).on_a_new_watch();
        self.spaces.clone_from(&self.told_spaces);
        self.sequence = 0;
        let stamp = Stamp(self.mirror.stamp + i64::from(is_of_another_life));
        let generation = Generation(self.mirror.generation);
        let known = (generation.0 != 0).then_some(Point { generation, stamp });
        self.cursor = Cursor::new(self.spaces.iter().cloned().collect(), known).unwrap();
        self.is_greeted = false;
    }

    fn subscribe(&mut self, add: u8, drop: u8) {
        self.sequence += 1;
        let (add, drop) = (spaces_of(add), spaces_of(drop));
        self.spaces.retain(|space| !drop.contains(space));
        self.spaces.extend(add.iter().cloned());
        self.cursor.subscribe(self.sequence, add, &drop).unwrap();
    }

    /// Reads all updates in wire format and compares with List.
    fn read(&mut self, board: &SnapshotPublisher) {
        let snapshot = board.released_base();
        let generation = snapshot.state.generation.0;
        assert!(generation >= self.mirror.generation, "a cell never goes back");
        let is_due = generation != 0
            && (!self.is_greeted
                || self.mirror.generation != generation
                || self.mirror.sequence != self.sequence);
        let update = self.cursor.advance(&snapshot);
        assert_eq!(update.is_some(), is_due);
        let Some(update) = update else { return };
        let mut whole = false;
        for part in Parts::from(update) {
            assert!(!whole, "nothing comes after the last part");
            whole = self.mirror.apply(part.into());
        }
        assert!(whole);
        self.is_greeted = true;
        self.told_spaces.clone_from(&self.spaces);
        assert_eq!(self.mirror.generation, generation);
        assert_eq!(self.mirror.sequence, self.sequence);
        let filter = Filter::Spaces(self.spaces.iter().cloned().collect());
        let listed = page(&snapshot, &filter, GroupId(0), 1000);
        let listed = ListResponse::from(listed);
        assert_eq!(self.mirror.sorted(), listed.groups);
        assert!(self.cursor.advance(&snapshot).is_none(), "everything was told");
    }
}

fn contents(snapshot: &Snapshot) -> Vec<(GroupId, ContentHash)> {
    snapshot.entries().iter().map(|entry| (entry.id, entry.hash)).collect()
}

async fn storm(served: &Served) {
    for round in 0..300u32 {
        served.replace(&set([global("storm", &round.to_string())])).await;
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 400, ..ProptestConfig::default() })]

    /// Two watchers, of which one always reads and one reads at random times. While they are
    /// frozen, they are equal to the set at the freeze, also after a restart.
    #[test]
    fn a_watcher_ends_equal_to_the_store(
        (first, second) in (0u8..1 << SPACES, 0u8..1 << SPACES), events in events(),
    ) {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap();
        runtime.block_on(async {
            let mut served = Served::start();
            let (mut prompt, mut lazy) = (Watched::new(first), Watched::new(second));
            let mut frozen = None;
            for event in events {
                match event {
                    Event::Replace(set) => _ = served.replace(&set).await,
                    Event::Subscribe(add, drop) => {
                        prompt.subscribe(add, drop);
                        lazy.subscribe(add, drop);
                    }
                    Event::Read => lazy.read(&served.board),
                    Event::Storm => storm(&served).await,
                    Event::Reconnect(is_of_another_life) => lazy.reconnect(is_of_another_life),
                    Event::Freeze => {
                        served.freeze().await;
                        let current = served.board.current();
                        if current.state.is_whole() {
                            frozen.get_or_insert(current);
                        }
                    }
                    Event::Unfreeze => {
                        served.unfreeze().await;
                        frozen = None;
                    }
                    Event::Restart => {
                        served = served.restart().await;
                        lazy.reconnect(false);
                        prompt.reconnect(false);
                    }
                }
                prompt.read(&served.board);
                let expected = frozen.clone().unwrap_or_else(|| served.board.current());
                let released = served.board.released_base();
                assert_eq!(released.point(), expected.point());
                assert_eq!(contents(&released), contents(&expected));
            }
            lazy.read(&served.board);
            served.unfreeze().await;
            prompt.read(&served.board);
            lazy.read(&served.board);
            let newest = served.board.current().state.generation.0;
            assert_eq!([prompt.mirror.generation, lazy.mirror.generation], [newest; 2]);
        });
    }
}

#[tokio::test]
async fn only_what_changed_is_told() {
    let served = Served::start();
    let mut watched = Watched::new(0b1);
    let groups = |name: &str| {
        set([global("all", "1"), bound("mine", name, &["s0"]), bound("other", name, &["s1"])])
    };
    served.replace(&groups("1")).await;
    let first = watched.cursor.advance(&served.board.current()).unwrap();
    assert!(first.reset);
    assert_eq!(first.upserted.len(), 2);
    served.replace(&groups("2")).await;
    let second = watched.cursor.advance(&served.board.current()).unwrap();
    assert!(!second.reset);
    let told: Vec<_> = second.upserted.iter().map(|entry| entry.guid.as_str()).collect();
    assert_eq!((told, second.removed.len()), (vec!["mine"], 0));
    let mut third = groups("2");
    third.remove(&crate::support::sets::guid("other"));
    served.replace(&third).await;
    let third = watched.cursor.advance(&served.board.current()).unwrap();
    assert_eq!((third.upserted.len(), third.removed.len()), (0, 0));
    assert_eq!(third.point.generation, Generation(3), "told though nothing concerns it");
}

/// A cell that reconnects gets the difference, also from a restarted store; one from
/// another life of the store gets the complete state.
#[tokio::test]
async fn who_comes_back_is_told_what_it_missed() {
    let served = Served::start();
    let mut watched = Watched::new(0b1);
    let groups = |name: &str| {
        set([global("all", "1"), bound("mine", name, &["s0"]), bound("other", name, &["s1"])])
    };
    served.replace(&groups("1")).await;
    watched.read(&served.board);
    served.replace(&groups("2")).await;
    let served = served.restart().await;
    watched.reconnect(false);
    let update = watched.cursor.advance(&served.board.current()).unwrap();
    let told: Vec<_> = update.upserted.iter().map(|entry| entry.guid.as_str()).collect();
    assert_eq!((update.reset, told), (false, vec!["mine"]));
    watched.reconnect(true);
    let update = watched.cursor.advance(&served.board.current()).unwrap();
    assert_eq!((update.reset, update.upserted.len()), (true, 2));
}

/// Each Hello is answered, also without changes.
#[tokio::test]
async fn who_missed_nothing_is_told_so() {
    let served = Served::start();
    let mut watched = Watched::new(0b1);
    served.replace(&set([global("all", "1")])).await;
    watched.read(&served.board);
    watched.reconnect(false);
    let update = watched.cursor.advance(&served.board.current()).unwrap();
    assert_eq!((update.reset, update.upserted.len(), update.removed.len()), (false, 0, 0));
    assert!(watched.cursor.advance(&served.board.current()).is_none());
}

#[tokio::test]
async fn who_is_too_far_behind_gets_a_complete_state() {
    let served = Served::start();
    let mut watched = Watched::new(0);
    served.replace(&set([global("a", "1")])).await;
    watched.read(&served.board);
    storm(&served).await;
    let update = watched.cursor.advance(&served.board.current()).unwrap();
    assert!(update.reset);
    assert_eq!(update.upserted.len(), 1);
}

#[test]
fn a_subscription_has_limits() {
    let mut cursor = Cursor::new(HashSet::new(), None).unwrap();
    cursor.subscribe(3, vec![space("s")], &[]).unwrap();
    let error = cursor.subscribe(3, Vec::new(), &[]).unwrap_err();
    assert_eq!(error.to_string(), "subscription sequence 3 does not rise above 3");
    let many = |count: usize| (0..count).map(|index| space(&index.to_string()));
    assert!(Cursor::new(many(MAX_SPACES).collect(), None).is_ok());
    let error = Cursor::new(many(MAX_SPACES + 1).collect(), None).unwrap_err();
    assert_eq!(error, cursor::Error::TooManySpaces);
    let error = cursor.subscribe(4, many(MAX_SPACES).collect(), &[]).unwrap_err();
    assert_eq!(error, cursor::Error::TooManySpaces, "with the one it has");
}

/// Client messages from a test.
struct Said(mpsc::Receiver<ClientMessage>);

impl ClientMessages for Said {
    type Error = Violation;

    async fn next(&mut self) -> Result<Option<ClientMessage>, Violation> {
        Ok(self.0.recv().await)
    }
}

fn watcher(feed: Feed, spaces: &[&str]) -> (Watcher<Said>, mpsc::Sender<ClientMessage>) {
    let (say, said) = mpsc::channel(4);
    let spaces = spaces.iter().map(|text| space(text)).collect();
    let cell = CellId::parse("cell-1").unwrap();
    let hello = Hello { cell, spaces, known: None, agent: Agent::default() };
    (Watcher::new(feed, hello, Said(said)).unwrap(), say)
}

/// The next part; there is no question.
async fn next(watcher: &mut Watcher<Said>) -> Result<Part, End<Violation>> {
    match watcher.next().await? {
        Message::Part(part) => Ok(part),
        Message::Question(question) => panic!("a question came: {question:?}"),
    }
}

fn subscribe(sequence: u64, add: &[&str]) -> ClientMessage {
    let add = add.iter().map(|text| space(text)).collect();
    ClientMessage::Subscribe { sequence, add, drop: Vec::new() }
}

#[tokio::test(start_paused = true)]
async fn nothing_is_told_before_the_first_replace() {
    let served = Served::start();
    let (mut watcher, say) = watcher(served.feed(&CancellationToken::new()), &["s0"]);
    say.send(subscribe(1, &["s1"])).await.unwrap();
    let an_hour = std::time::Duration::from_secs(3600);
    assert!(tokio::time::timeout(an_hour, next(&mut watcher)).await.is_err());
    served.replace(&Set::new()).await;
    let part = next(&mut watcher).await.unwrap();
    assert!(part.reset && part.complete);
    assert_eq!((part.point.generation, part.sequence), (Generation(1), 1));
}

#[tokio::test(start_paused = true)]
async fn each_subscription_is_acknowledged_though_nothing_changes() {
    let served = Served::start();
    served.replace(&set([bound("a", "1", &["s1"])])).await;
    let (mut watcher, say) = watcher(served.feed(&CancellationToken::new()), &[]);
    assert!(next(&mut watcher).await.unwrap().complete);
    say.send(subscribe(1, &["nobody"])).await.unwrap();
    say.send(subscribe(2, &["nobody"])).await.unwrap();
    say.send(subscribe(3, &["s1"])).await.unwrap();
    for (sequence, told) in [(1, 0), (2, 0), (3, 1)] {
        let part = next(&mut watcher).await.unwrap();
        assert!(part.complete && !part.reset);
        assert_eq!((part.sequence, part.upserted.len()), (sequence, told));
    }
}

/// A cell that has half-closed its stream still receives.
#[tokio::test(start_paused = true)]
async fn who_falls_silent_is_still_told() {
    let served = Served::start();
    served.replace(&Set::new()).await;
    let (mut watcher, say) = watcher(served.feed(&CancellationToken::new()), &[]);
    next(&mut watcher).await.unwrap();
    drop(say);
    let (part, _) = tokio::join!(next(&mut watcher), async {
        tokio::task::yield_now().await;
        served.replace(&set([global("a", "1")])).await
    });
    assert_eq!(part.unwrap().upserted.len(), 1);
}

#[tokio::test(start_paused = true)]
async fn a_drain_ends_every_watch() {
    let served = Served::start();
    let drain = CancellationToken::new();
    let (mut idle, _say) = watcher(served.feed(&drain), &[]);
    drain.cancel();
    assert_eq!(next(&mut idle).await.unwrap_err(), End::Draining);
    served.replace(&named(3, "1")).await;
    let (mut busy, _say) = watcher(served.feed(&drain), &[]);
    assert_eq!(next(&mut busy).await.unwrap_err(), End::Draining);
}

#[tokio::test(start_paused = true)]
async fn a_broken_rule_ends_the_watch() {
    let served = Served::start();
    let (mut watcher, say) = watcher(served.feed(&CancellationToken::new()), &[]);
    say.send(subscribe(0, &[])).await.unwrap();
    let end = next(&mut watcher).await.unwrap_err();
    let error = cursor::Error::SequenceDoesNotRise { sequence: 0, before: 0 };
    assert_eq!(end, End::Broken(error.into()));
}

/// A question overtakes the rest of a state, and its answer reaches the asker.
#[tokio::test]
async fn a_question_comes_between_the_parts_of_a_state() {
    let served = Served::start();
    let mut groups = named(50, &"x".repeat(20_000));
    for group in groups.values_mut() {
        Arc::make_mut(group).running.everywhere = true;
    }
    served.replace(&groups).await;
    let feed = served.feed(&CancellationToken::new());
    let (mut watcher, say) = watcher(feed.clone(), &[]);
    assert!(!next(&mut watcher).await.unwrap().complete);
    let (desk, _agent) = feed.cells.desk(watcher.cell()).unwrap().unwrap();
    let pending = desk.ask(CellRequest::default()).unwrap();
    let message = watcher.next().await.unwrap();
    let Message::Question(question) = message else { panic!("{message:?}") };
    let answer = Ok(CellResponse::default());
    say.send(ClientMessage::Answer(question.id, Box::new(answer.clone()))).await.unwrap();
    while !next(&mut watcher).await.unwrap().complete {}
    let idle = async { watcher.next().await.map(|message| panic!("{message:?}")) };
    tokio::select! {
        end = idle => panic!("{end:?}"),
        answered = pending.answer() => assert_eq!(answered, Ok(answer)),
    }
}

/// A watcher that never reads holds no snapshot: old ones are freed.
#[tokio::test]
async fn a_watcher_that_does_not_read_holds_no_snapshot() {
    let served = Served::start();
    let everybody = |round: usize| {
        let mut set = named(50, &format!("{round} {}", "x".repeat(20_000)));
        for group in set.values_mut() {
            Arc::make_mut(group).running.everywhere = true;
        }
        set
    };
    served.replace(&everybody(0)).await;
    let feed = served.feed(&CancellationToken::new());
    let mut watchers: Vec<_> = (0..8).map(|_| watcher(feed.clone(), &[])).collect();
    // Each is in the middle of a state of several parts.
    for (watcher, _say) in &mut watchers {
        let part = next(watcher).await.unwrap();
        assert!(!part.complete);
    }
    let mut old = Vec::new();
    for round in 1..100 {
        old.push(Arc::downgrade(&served.board.current()));
        served.replace(&everybody(round)).await;
    }
    let alive = old.iter().filter(|snapshot| snapshot.upgrade().is_some()).count();
    assert_eq!(alive, 0, "old snapshots that live");
    // When polled at last, each completes its state and then gets the newest.
    for (watcher, _say) in &mut watchers {
        let mut states = Vec::new();
        while states.last() != Some(&100) {
            let part = next(watcher).await.unwrap();
            states.extend(part.complete.then_some(part.point.generation.0));
        }
        assert_eq!(states, [1, 100], "a backlog");
    }
}
