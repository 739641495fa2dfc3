//! A board with its committer, on a store in memory.

use std::sync::Arc;

use jiff::Timestamp;
use policy_store::{
    committer::{Commits, committer},
    feed::{cells::Cells, changes::Changes, watch::Feed},
    groups::{current::SnapshotPublisher, held::Hold, snapshot::Snapshot},
    release,
    store::{Contents, Store, memory::Memory},
};
use tokio::{task::JoinSet, time::Instant};
use tokio_util::sync::CancellationToken;

use super::sets::{Set, replacement};

/// A board with its committer.
pub(crate) struct Served {
    pub(crate) store: Memory,
    pub(crate) board: Arc<SnapshotPublisher>,
    pub(crate) commits: Commits,
    _committer: JoinSet<anyhow::Result<()>>,
}

impl Served {
    pub(crate) fn start() -> Self {
        let nothing = Arc::new(Snapshot::from(Contents::default()));
        Self::on(Memory::default(), Arc::clone(&nothing), nothing)
    }

    /// Another instance that has just started.
    pub(crate) async fn restart(&self) -> Self {
        let newest = Arc::new(Snapshot::from(self.store.load(None).await.unwrap()));
        let released = release::released(&self.store, &newest, &[]).await.unwrap();
        Self::on(self.store.clone(), newest, released)
    }

    fn on(store: Memory, newest: Arc<Snapshot>, released: Arc<Snapshot>) -> Self {
        let board = Arc::new(SnapshotPublisher::starting(newest, released, Instant::now()));
        let (commits, committer) = committer(Arc::new(store.clone()), Arc::clone(&board));
        let mut tasks = JoinSet::new();
        tasks.spawn(committer.run(CancellationToken::new()));
        Self { store, board, commits, _committer: tasks }
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

    pub(crate) fn feed(&self, drain: &CancellationToken) -> Feed {
        let board = Arc::clone(&self.board);
        let (cells, changes) = (Cells::default(), Changes::default());
        Feed { board, cells, changes, drain: drain.clone() }
    }
}
