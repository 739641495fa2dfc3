//! A poll loop in a term that the test can end.

use std::{sync::Arc, time::Duration};

use model::lock::FencingToken;
use runtime::{dropsonde::Dropsonde, server::Health};
use syncer::{
    cloud_controller::CloudController,
    lease::keeper::{Fenced, Term},
    poll::{Poller, Settings, schedule::Intervals, sync_now::SyncNow},
    report::Report,
    store::Store,
};
use tokio::{sync::watch, task::JoinSet, time::Instant};

pub(crate) const SETTINGS: Settings = Settings {
    intervals: Intervals {
        poll: Duration::from_millis(20),
        poll_share: 0,
        full: Duration::from_secs(300),
        unstamped: Duration::from_secs(60),
        repair: Duration::from_secs(15),
    },
    retry_deadline: Duration::from_secs(300),
    max_staleness: Duration::from_secs(30),
};

/// Stops on drop.
pub(crate) struct Leader {
    pub(crate) poller: Arc<Poller>,
    pub(crate) health: Health,
    pub(crate) sync_now: SyncNow,
    pub(crate) work: JoinSet<Fenced>,
    ends: watch::Sender<Instant>,
}

impl Leader {
    pub(crate) fn start(cloud: CloudController, store: Store, token: u64) -> Self {
        Self::with(SETTINGS, cloud, store, token)
    }

    pub(crate) fn with(
        settings: Settings,
        cloud: CloudController,
        store: Store,
        token: u64,
    ) -> Self {
        let (health, sync_now) = (Health::new(), SyncNow::default());
        let report = Report::new(Dropsonde::default());
        let poller = Poller::new(settings, cloud, store, report, &health, sync_now.clone());
        let poller = Arc::new(poller);
        let ends = watch::Sender::new(Instant::now());
        let mut leader = Self { poller, health, sync_now, work: JoinSet::new(), ends };
        leader.begin_term(token);
        leader
    }

    /// Starts another term after the previous one.
    pub(crate) fn begin_term(&mut self, token: u64) {
        self.work.abort_all();
        self.ends.send_replace(Instant::now() + Duration::from_secs(3600));
        let term = Term::new(FencingToken(token), self.ends.subscribe());
        self.work.spawn(Arc::clone(&self.poller).lead(term));
    }

    /// The lease has ended, but the work is not stopped yet.
    pub(crate) fn outlive(&self) {
        self.ends.send_replace(Instant::now());
    }
}
