//! Read-your-writes barrier: a response is as new as any response of another instance.
//!
//! Several instances share a database, and a client may use any of them: one for the
//! stamp of the groups, another for the groups. The client remembers the stamp and does
//! not list again before the stamp rises: if the list were older than the stamp, the
//! client would never get that change (law 9). So an instance first reads the newest
//! generation from the database, and responds when it serves that generation.
//!
//! - A response includes every change committed before the request arrived.
//! - One query serves all requests that arrived before it began. One query runs at a
//!   time; it reads one row without a lock, so it is cheap and never waits for a
//!   Replace.
//! - If the database does not answer within [`TIMEOUT`], the request fails, as in the
//!   original. Agents keep their rules.
//! - With a single instance no query is needed.

use std::{sync::Arc, time::Duration};

use model::generation::{Generation, Point};
use runtime::error::chain;
use tokio::{
    sync::Mutex,
    time::{Instant, timeout},
};

use crate::{
    groups::current::SnapshotPublisher,
    store::{Answer, Store},
};

/// Timeout of a request: agents time out after five seconds and still have to read.
pub const TIMEOUT: Duration = Duration::from_secs(2);

/// Read-your-writes barrier; see the module.
#[derive(Debug)]
pub struct Fresh {
    board: Arc<SnapshotPublisher>,
    store: Option<Arc<dyn Store>>,
    last: Mutex<Option<Look>>,
}

/// Result of a query and the time when it began.
#[derive(Debug)]
struct Look {
    began: Instant,
    found: Result<Generation, Stale>,
}

/// It is unknown whether a newer generation exists.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Stale {
    /// The database query failed.
    #[error("{0}")]
    Database(String),
    /// The database has a newer generation, which this instance did not read in time.
    #[error("generation {0} was not read from the database within {TIMEOUT:?}")]
    Behind(Generation),
    /// The database does not answer.
    #[error("the database did not answer within {TIMEOUT:?}")]
    Silent,
}

impl Fresh {
    /// Barrier for `board`, with the newest generation of `store`.
    #[must_use]
    pub fn new(board: Arc<SnapshotPublisher>, store: Option<Arc<dyn Store>>) -> Self {
        Self { board, store, last: Mutex::new(None) }
    }

    /// Waits until the board includes everything committed before this call.
    ///
    /// # Errors
    /// The generation is not known or not served in time.
    pub async fn wait(&self) -> Result<(), Stale> {
        let newest = self.store.as_ref().and_then(|store| store.newest());
        let Some(newest) = newest else { return Ok(()) };
        let came = Instant::now();
        let found = timeout(TIMEOUT, self.look(newest, came)).await;
        let found = found.unwrap_or(Err(Stale::Silent))?;
        let mut generations = self.board.generations();
        let reached = generations.wait_for(|served| *served >= found);
        match timeout(TIMEOUT.saturating_sub(came.elapsed()), reached).await {
            Ok(Ok(_)) => Ok(()),
            // This value keeps the board alive.
            Ok(Err(_)) | Err(_) => Err(Stale::Behind(found)),
        }
    }

    /// Result of a query that began after `came`: a shared or a new one.
    async fn look(&self, newest: Answer<'_, Point>, came: Instant) -> Result<Generation, Stale> {
        let mut last = self.last.lock().await;
        if let Some(look) = &*last
            && look.began >= came
        {
            return look.found.clone();
        }
        if came.elapsed() >= TIMEOUT {
            return Err(Stale::Silent);
        }
        let began = Instant::now();
        let found = timeout(TIMEOUT, newest).await;
        let found = match found {
            Ok(Ok(point)) => Ok(point.generation),
            Ok(Err(error)) => Err(Stale::Database(chain(&error))),
            Err(_elapsed) => Err(Stale::Silent),
        };
        *last = Some(Look { began, found: found.clone() });
        found
    }
}

#[cfg(test)]
mod tests {
    use std::{
        pin::Pin,
        sync::atomic::{AtomicUsize, Ordering::SeqCst},
    };

    use futures_util::FutureExt as _;
    use model::{generation::Stamp, ids::CellId};
    use tokio::sync::Semaphore;

    use super::*;
    use crate::{
        groups::{
            decide::{Decision, Replacement, State},
            held::Order,
            snapshot::Snapshot,
        },
        reports::{Report, Unsaved},
        store::{Archive, Contents, Mended, News, testing::Memory},
    };

    /// A store that reads its newest generation when the test permits.
    #[derive(Debug)]
    struct Database {
        memory: Memory,
        looks: AtomicUsize,
        let_through: Semaphore,
        generation: u64,
    }

    impl Store for Database {
        fn newest(&self) -> Option<Answer<'_, Point>> {
            Some(Box::pin(async {
                self.looks.fetch_add(1, SeqCst);
                self.let_through.acquire().await.unwrap().forget();
                Ok(Point { generation: Generation(self.generation), stamp: Stamp(1) })
            }))
        }

        fn load(&self, since: Option<Point>) -> Answer<'_, Contents> {
            self.memory.load(since)
        }

        fn replace(&self, write: Arc<Replacement>) -> Answer<'_, Decision> {
            self.memory.replace(write)
        }

        fn hold(&self, change: Arc<Order>) -> Answer<'_, State> {
            self.memory.hold(change)
        }

        fn save_reports(&self, unsaved: Arc<Unsaved>) -> Answer<'_, Vec<(CellId, Report)>> {
            self.memory.save_reports(unsaved)
        }

        fn mend(&self, served: Arc<Snapshot>) -> Answer<'_, Mended> {
            self.memory.mend(served)
        }

        fn history(&self) -> &dyn Archive {
            self.memory.history()
        }

        fn uses(&self) -> &dyn crate::store::UseLog {
            self.memory.uses()
        }

        fn news(&self) -> Pin<Box<dyn Future<Output = News> + Send + '_>> {
            self.memory.news()
        }

        fn close(&self) -> Answer<'_, ()> {
            self.memory.close()
        }
    }

    fn fresh(generation: u64) -> (Arc<Database>, Fresh) {
        let database = Arc::new(Database {
            memory: Memory::default(),
            looks: AtomicUsize::new(0),
            let_through: Semaphore::new(0),
            generation,
        });
        let store = Arc::clone(&database) as Arc<dyn Store>;
        let board = SnapshotPublisher::new(Snapshot::from(Contents::default()), Instant::now());
        (database, Fresh::new(Arc::new(board), Some(store)))
    }

    #[tokio::test(start_paused = true)]
    async fn who_came_before_a_look_shares_it_and_who_came_later_does_not() {
        let (database, fresh) = fresh(0);
        let mut first = Box::pin(fresh.wait());
        assert!((&mut first).now_or_never().is_none());
        tokio::time::advance(Duration::from_millis(1)).await;
        // These arrive during the first query, whose result may be too old for them.
        let mut later: Vec<_> = (0..5).map(|_| Box::pin(fresh.wait())).collect();
        assert!(later.iter_mut().all(|wait| wait.now_or_never().is_none()));
        database.let_through.add_permits(1);
        first.await.unwrap();
        tokio::time::advance(Duration::from_millis(1)).await;
        database.let_through.add_permits(1);
        for wait in later {
            wait.await.unwrap();
        }
        assert_eq!(database.looks.load(SeqCst), 2);
    }

    #[tokio::test(start_paused = true)]
    async fn nobody_is_told_less_than_the_database_has() {
        let (database, fresh) = fresh(7);
        database.let_through.add_permits(1);
        let began = Instant::now();
        assert_eq!(fresh.wait().await, Err(Stale::Behind(Generation(7))));
        assert_eq!(began.elapsed(), TIMEOUT);
    }

    #[tokio::test(start_paused = true)]
    async fn a_silent_database_is_waited_for_once() {
        let (database, fresh) = fresh(0);
        let began = Instant::now();
        let waits = (0..5).map(|_| fresh.wait());
        for outcome in futures_util::future::join_all(waits).await {
            assert_eq!(outcome, Err(Stale::Silent));
        }
        assert_eq!(began.elapsed(), TIMEOUT);
        assert_eq!(database.looks.load(SeqCst), 1);
    }

    #[tokio::test]
    async fn alone_there_is_nothing_to_look_for() {
        let board = SnapshotPublisher::new(Snapshot::from(Contents::default()), Instant::now());
        Fresh::new(Arc::new(board), None).wait().await.unwrap();
    }
}
