//! Answers that are as new as any that another instance gave.
//!
//! Several instances share a database, and a client asks whichever it finds: one
//! for the stamp of the groups, another for the groups. It remembers the stamp and
//! does not ask again before that rises: a list that is older than the stamp would
//! be a change that it never learns of (law 9). So an instance first looks in the
//! database which generation is the newest, and answers when it serves that one.
//!
//! - What was committed before the request came is in the answer.
//! - One look serves all requests that came before it began; there is one at a
//!   time, of one row and without a lock, so that it costs little and waits for no
//!   Replace.
//! - Without an answer from the database within [`PATIENCE`] there is none to the
//!   client, as in the original. Agents keep what they have.
//! - Where there is one instance only, there is nothing to look for.

use std::{sync::Arc, time::Duration};

use model::generation::{Generation, Point};
use runtime::error::chain;
use tokio::{
    sync::Mutex,
    time::{Instant, timeout},
};

use crate::{groups::current::SnapshotPublisher, store::Answer};

/// How long a request waits: agents give up after five seconds, and have to read.
pub const PATIENCE: Duration = Duration::from_secs(2);

/// Asks the database for its newest generation.
pub type Newest = Arc<dyn Fn() -> Answer<'static, Point> + Send + Sync>;

/// See the module.
pub struct Fresh {
    board: Arc<SnapshotPublisher>,
    newest: Option<Newest>,
    last: Mutex<Option<Look>>,
}

impl std::fmt::Debug for Fresh {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter
            .debug_struct("Fresh")
            .field("looks", &self.newest.is_some())
            .finish_non_exhaustive()
    }
}

/// What was found, and when the look began.
struct Look {
    began: Instant,
    found: Result<Generation, Stale>,
}

/// It is not known whether there is something newer.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Stale {
    /// The database could not be asked.
    #[error("{0}")]
    Database(String),
    /// Something newer is in the database, and not here in time.
    #[error("generation {0} is in the database and was not read within {PATIENCE:?}")]
    Behind(Generation),
    /// The database does not answer.
    #[error("the database did not answer within {PATIENCE:?}")]
    Silent,
}

impl Fresh {
    /// What `board` has, once that is as new as what `newest` says.
    #[must_use]
    pub fn new(board: Arc<SnapshotPublisher>, newest: Option<Newest>) -> Self {
        Self { board, newest, last: Mutex::new(None) }
    }

    /// Waits until the board has what was committed before this was called.
    ///
    /// # Errors
    /// That is not known in time.
    pub async fn wait(&self) -> Result<(), Stale> {
        let Some(newest) = &self.newest else { return Ok(()) };
        let came = Instant::now();
        let found = timeout(PATIENCE, self.look(newest, came)).await;
        let found = found.unwrap_or(Err(Stale::Silent))?;
        let mut generations = self.board.generations();
        let reached = generations.wait_for(|served| *served >= found);
        match timeout(PATIENCE.saturating_sub(came.elapsed()), reached).await {
            Ok(Ok(_)) => Ok(()),
            // The board lives as long as this does.
            Ok(Err(_)) | Err(_) => Err(Stale::Behind(found)),
        }
    }

    /// A look that began after `came`: one of somebody else, or an own one.
    async fn look(&self, newest: &Newest, came: Instant) -> Result<Generation, Stale> {
        let mut last = self.last.lock().await;
        if let Some(look) = &*last
            && look.began >= came
        {
            return look.found.clone();
        }
        if came.elapsed() >= PATIENCE {
            return Err(Stale::Silent);
        }
        let began = Instant::now();
        let found = timeout(PATIENCE, newest()).await;
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
    use std::sync::atomic::{AtomicUsize, Ordering::SeqCst};

    use futures_util::FutureExt as _;
    use model::generation::Stamp;
    use tokio::sync::Semaphore;

    use super::*;
    use crate::{groups::snapshot::Snapshot, store::Contents};

    /// A database that answers as often as it is let.
    struct Database {
        looks: AtomicUsize,
        let_through: Semaphore,
        generation: u64,
    }

    fn fresh(generation: u64) -> (Arc<Database>, Fresh) {
        let database = Arc::new(Database {
            looks: AtomicUsize::new(0),
            let_through: Semaphore::new(0),
            generation,
        });
        let asked = Arc::clone(&database);
        let newest: Newest = Arc::new(move || {
            let database = Arc::clone(&asked);
            Box::pin(async move {
                database.looks.fetch_add(1, SeqCst);
                database.let_through.acquire().await.unwrap().forget();
                Ok(Point { generation: Generation(database.generation), stamp: Stamp(1) })
            })
        });
        let board = SnapshotPublisher::new(Snapshot::from(Contents::default()), Instant::now());
        (database, Fresh::new(Arc::new(board), Some(newest)))
    }

    #[tokio::test(start_paused = true)]
    async fn who_came_before_a_look_shares_it_and_who_came_later_does_not() {
        let (database, fresh) = fresh(0);
        let mut first = Box::pin(fresh.wait());
        assert!((&mut first).now_or_never().is_none());
        tokio::time::advance(Duration::from_millis(1)).await;
        // They came while the first looks: it may have seen less than they must.
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
        assert_eq!(began.elapsed(), PATIENCE);
    }

    #[tokio::test(start_paused = true)]
    async fn a_silent_database_is_waited_for_once() {
        let (database, fresh) = fresh(0);
        let began = Instant::now();
        let waits = (0..5).map(|_| fresh.wait());
        for outcome in futures_util::future::join_all(waits).await {
            assert_eq!(outcome, Err(Stale::Silent));
        }
        assert_eq!(began.elapsed(), PATIENCE);
        assert_eq!(database.looks.load(SeqCst), 1);
    }

    #[tokio::test]
    async fn alone_there_is_nothing_to_look_for() {
        let board = SnapshotPublisher::new(Snapshot::from(Contents::default()), Instant::now());
        Fresh::new(Arc::new(board), None).wait().await.unwrap();
    }
}
