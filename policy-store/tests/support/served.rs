//! A board with its committer, on a store in memory.

use std::sync::Arc;

use jiff::Timestamp;
use policy_store::{
    committer::{Commits, committer},
    feed::{cells::Cells, changes::Changes, watch::Feed},
    groups::{
        current::SnapshotPublisher, held::Hold, released::Released, rollout::Plan,
        snapshot::Snapshot,
    },
    release,
    store::{Contents, Store, testing::Memory},
    uses::Uses,
};
use tokio::{task::JoinSet, time::Instant};
use tokio_util::sync::CancellationToken;

use super::sets::{Set, replacement};

/// A board with its committer.
pub(crate) struct Served {
    pub(crate) store: Memory,
    pub(crate) board: Arc<SnapshotPublisher>,
    pub(crate) commits: Commits,
    pub(crate) plan: Option<Arc<Plan>>,
    _committer: JoinSet<anyhow::Result<()>>,
}

impl Served {
    pub(crate) fn start() -> Self {
        Self::rolling_out(None)
    }

    /// Rolls new generations out in steps.
    pub(crate) fn rolling_out(plan: Option<Arc<Plan>>) -> Self {
        let nothing = Arc::new(Snapshot::from(Contents::default()));
        Self::on(Memory::default(), Arc::clone(&nothing), nothing.into(), plan)
    }

    /// Another instance that has just started.
    pub(crate) async fn restart(&self) -> Self {
        self.restart_with(self.plan.clone()).await
    }

    /// Another instance, with another plan.
    pub(crate) async fn restart_with(&self, plan: Option<Arc<Plan>>) -> Self {
        let newest = Arc::new(Snapshot::from(self.store.load(None).await.unwrap()));
        let released = release::released(&self.store, &newest, &[]).await.unwrap();
        Self::on(self.store.clone(), newest, released, plan)
    }

    fn on(
        store: Memory,
        newest: Arc<Snapshot>,
        released: Released,
        plan: Option<Arc<Plan>>,
    ) -> Self {
        let board = Arc::new(SnapshotPublisher::starting(newest, released, Instant::now()));
        let (commits, committer) = committer(Arc::new(store.clone()), Arc::clone(&board));
        let committer = committer.rolling_out(plan.clone());
        let mut tasks = JoinSet::new();
        tasks.spawn(committer.run(CancellationToken::new()));
        Self { store, board, commits, plan, _committer: tasks }
    }

    pub(crate) async fn replace(&self, set: &Set) -> u64 {
        self.commits.commit(replacement(set)).await.unwrap().generation.0
    }

    pub(crate) async fn freeze(&self) {
        let (reason, by) = ("release".into(), "cn=operator".into());
        let change = Hold::Freeze { reason, by, at: Timestamp::UNIX_EPOCH, until: None };
        self.commits.hold(change).await.unwrap();
    }

    pub(crate) async fn unfreeze(&self) {
        let (reason, by) = ("done".into(), "cn=operator".into());
        let change = Hold::Unfreeze { reason, by, at: Timestamp::UNIX_EPOCH };
        self.commits.hold(change).await.unwrap();
    }

    /// The step that the roll-out is at is over, or has problems.
    pub(crate) async fn step(&self, is_stop: bool) {
        let Some(rollout) = self.board.current().state.rollout.clone() else { return };
        let (target, step, at) = (rollout.target, rollout.step, Timestamp::UNIX_EPOCH);
        let change = match is_stop {
            false => Hold::NextStep { target, step, at },
            true => Hold::StopRollout { target, step, reason: "isolated".into(), at },
        };
        self.commits.hold(change).await.unwrap();
    }

    pub(crate) async fn finish(&self) {
        let (reason, by) = ("harmless".into(), "cn=operator".into());
        let change = Hold::FinishRollout { reason, by, at: Timestamp::UNIX_EPOCH };
        self.commits.hold(change).await.unwrap();
    }

    pub(crate) fn feed(&self, drain: &CancellationToken) -> Feed {
        let board = Arc::clone(&self.board);
        let (cells, changes) = (Cells::default(), Changes::default());
        let uses = Uses::default();
        Feed { board, cells, changes, uses, drain: drain.clone() }
    }
}
