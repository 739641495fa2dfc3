//! Roll-outs in steps under random events, and on every store.

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use futures_util::FutureExt as _;
use jiff::Timestamp;
use model::{
    generation::{Generation, Point, Stamp},
    group::GroupId,
    ids::CellId,
};
use policy_store::{
    feed::watch::{ClientMessage, ClientMessages, Hello, Message, Violation, Watcher},
    groups::{
        decide::Replacement,
        held::{Hold, Order},
        page::{Filter, page},
        rollout::Plan,
        snapshot::Snapshot,
    },
    reports::Agent,
};
use proptest::prelude::*;
use proto::policy_v1::ListResponse;
use tokio_util::sync::CancellationToken;

use crate::{
    store::{Place, load, replace},
    support::{
        client::Mirror,
        served::Served,
        sets::{SPACES, Set, global, replacement, set, sets, space},
    },
};

/// A canary, and cells that 70 percent, and only all cells, include.
const CELLS: [&str; 3] = ["canary", "cell-3", "cell-2"];

const STEPS: &[u8] = &[1, 70];

fn plan(percent_steps: &[u8]) -> Arc<Plan> {
    Arc::new(Plan {
        canary_cells: ["can*".into()].into(),
        percent_steps: percent_steps.into(),
        pause: Duration::from_secs(30),
        max_failing_percent: 0,
    })
}

#[derive(Debug, Clone)]
enum Event {
    Replace(Set),
    /// The step is over.
    Step,
    /// The step has problems.
    Stop,
    Finish,
    Freeze,
    Unfreeze,
    /// The store restarts, with these percent steps or without a plan, and all cells reconnect.
    Restart(Option<&'static [u8]>),
    /// A cell loses its connection, or connects again.
    Toggle(usize),
}

fn events() -> impl Strategy<Value = Vec<Event>> {
    let event = prop_oneof![
        6 => sets().prop_map(Event::Replace),
        6 => Just(Event::Step),
        2 => Just(Event::Stop),
        1 => Just(Event::Finish),
        1 => Just(Event::Freeze),
        2 => Just(Event::Unfreeze),
        2 => prop_oneof![Just(None), Just(Some([].as_slice())), Just(Some([1, 70].as_slice()))]
            .prop_map(Event::Restart),
        3 => (0..CELLS.len()).prop_map(Event::Toggle),
    ];
    prop::collection::vec(event, 1..30)
}

/// A cell that sends nothing.
struct Silent;

impl ClientMessages for Silent {
    type Error = Violation;

    async fn next(&mut self) -> Result<Option<ClientMessage>, Violation> {
        std::future::pending().await
    }
}

struct Cell {
    id: CellId,
    watcher: Option<Watcher<Silent>>,
    mirror: Mirror,
}

impl Cell {
    fn new(id: &str) -> Self {
        Self { id: CellId::parse(id).unwrap(), watcher: None, mirror: Mirror::default() }
    }

    fn connect(&mut self, served: &Served) {
        self.mirror = std::mem::take(&mut self.mirror).on_a_new_watch();
        let generation = Generation(self.mirror.generation);
        let known = Point { generation, stamp: Stamp(self.mirror.stamp) };
        let hello = Hello {
            cell: self.id.clone(),
            spaces: (0..SPACES).map(|index| space(&format!("s{index}"))).collect(),
            known: (generation.0 != 0).then_some(known),
            agent: Agent::default(),
        };
        let feed = served.feed(&CancellationToken::new());
        self.watcher = Some(Watcher::new(feed, hello, Silent).unwrap());
    }

    /// Reads all that the store sends now.
    fn read(&mut self) {
        let Some(watcher) = &mut self.watcher else { return };
        while let Some(message) = watcher.next().now_or_never() {
            let Ok(Message::Part(part)) = message else { panic!("{message:?}") };
            let before = self.mirror.generation;
            let is_complete = self.mirror.apply(part.into());
            assert!(!is_complete || self.mirror.generation >= before, "a cell never goes back");
        }
    }
}

struct World {
    served: Served,
    cells: Vec<Cell>,
    /// Every generation that was stored.
    snapshots: BTreeMap<u64, Arc<Snapshot>>,
}

impl World {
    fn start() -> Self {
        let served = Served::rolling_out(Some(plan(STEPS)));
        let mut cells: Vec<Cell> = CELLS.map(Cell::new).into();
        cells.iter_mut().for_each(|cell| cell.connect(&served));
        Self { served, cells, snapshots: BTreeMap::new() }
    }

    async fn on(&mut self, event: Event) {
        match event {
            Event::Replace(set) => _ = self.served.replace(&set).await,
            Event::Step => self.served.step(false).await,
            Event::Stop => self.served.step(true).await,
            Event::Finish => self.served.finish().await,
            Event::Freeze => self.served.freeze().await,
            Event::Unfreeze => self.served.unfreeze().await,
            Event::Restart(steps) => {
                self.served = self.served.restart_with(steps.map(plan)).await;
                for cell in self.cells.iter_mut().filter(|cell| cell.watcher.is_some()) {
                    cell.connect(&self.served);
                }
            }
            Event::Toggle(index) => match self.cells[index].watcher.take() {
                Some(_) => {}
                None => self.cells[index].connect(&self.served),
            },
        }
        let current = self.served.board.current();
        self.snapshots.insert(current.state.generation.0, current);
    }

    /// Each connected cell reads, and has what it should.
    fn check(&mut self) {
        let state = self.served.board.current().state.clone();
        let released = self.served.board.released();
        for cell in &mut self.cells {
            let before = cell.mirror.generation;
            cell.read();
            if cell.watcher.is_none() || !state.is_whole() {
                continue;
            }
            let due = released.of(&cell.id).state.generation.0;
            let has = cell.mirror.generation;
            let is_due = has == due || (before > due && has >= before);
            assert!(is_due, "{} has {has}, had {before}, is due {due}: {state:?}", cell.id);
            if let Some(rollout) =
                state.rollout.as_ref().filter(|rollout| !rollout.includes(&cell.id))
            {
                assert!(before > due || has == rollout.base.generation.0, "{} is early", cell.id);
            }
            if state.rollout.is_none() && state.held.is_none() {
                assert_eq!(has, state.generation.0, "{} is left behind", cell.id);
            }
            let spaces = (0..SPACES).map(|index| space(&format!("s{index}")));
            let filter = Filter::Spaces(spaces.collect());
            let listed = page(&self.snapshots[&has], &filter, GroupId(0), 1000);
            assert_eq!(cell.mirror.sorted(), ListResponse::from(listed).groups);
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 300, ..ProptestConfig::default() })]

    /// No cell goes back, none gets a generation before its step, each has exactly the set of its
    /// generation, and none is left behind when all is over.
    #[test]
    fn every_cell_has_the_generation_of_its_step(events in events()) {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap();
        runtime.block_on(async {
            let mut world = World::start();
            for event in events {
                world.on(event).await;
                world.check();
            }
            world.on(Event::Unfreeze).await;
            for index in 0..world.cells.len() {
                if world.cells[index].watcher.is_none() {
                    world.on(Event::Toggle(index)).await;
                }
            }
            // A stopped roll-out ends with the next generation, which is rolled out, and so is
            // what waited for that one.
            world.on(Event::Replace(set([global("last", "1")]))).await;
            for _step in 0..4 * plan(STEPS).steps() {
                world.check();
                world.on(Event::Step).await;
            }
            world.check();
            assert_eq!(world.served.board.current().state.rollout, None);
        });
    }
}

fn rolled_out(text: &str) -> Replacement {
    Replacement { rollout: Some(plan(STEPS)), ..replacement(&set([global("a", text)])) }
}

#[tokio::test]
async fn a_rollout_is_stored_and_survives_a_restart() {
    for place in Place::all() {
        let store = place.open().await;
        replace(&*store, rolled_out("1")).await.unwrap();
        assert_eq!(load(&*store).await.state.rollout, None, "cells had nothing before");
        replace(&*store, rolled_out("2")).await.unwrap();
        let began = load(&*store).await.state.rollout.unwrap();
        assert_eq!(
            (began.base.generation, began.target.generation),
            (Generation(1), Generation(2))
        );
        let (target, at) = (began.target, Timestamp::from_second(1_800_000_000).unwrap());
        let order = |change| Arc::new(Order { change, plan: Some(plan(STEPS)) });
        store.hold(order(Hold::NextStep { target, step: 0, at })).await.unwrap();
        let reason = "\"isolated\" \0 \u{1F600}".into();
        store.hold(order(Hold::StopRollout { target, step: 1, reason, at })).await.unwrap();
        let stopped = load(&*store).await.state.rollout.unwrap();
        store.close().await.unwrap();
        let store = place.open().await;
        let after = load(&*store).await.state.rollout.unwrap();
        assert_eq!(
            (after.step, &*after.stopped.clone().unwrap()),
            (1, "\"isolated\" \0 \u{1F600}")
        );
        assert_eq!((after.since, after), (at, stopped));
        store.close().await.unwrap();
    }
}

/// Cells of a store that restarts get the generation of their step again.
#[tokio::test]
async fn an_instance_that_restarts_knows_who_gets_what() {
    let served = Served::rolling_out(Some(plan(STEPS)));
    for text in ["1", "2", "3"] {
        served.replace(&set([global("a", text)])).await;
    }
    let served = served.restart().await;
    let released = served.board.released();
    let generation = |id: &str| released.of(&CellId::parse(id).unwrap()).state.generation.0;
    assert_eq!(CELLS.map(generation), [2, 1, 1]);
}
