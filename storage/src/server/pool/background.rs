//! Work on a connection that continues after its caller is cancelled.

use std::{
    pin::Pin,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    task::{Context, Poll},
};

use tokio::{
    runtime::Handle,
    task::JoinSet,
    time::{Instant, timeout_at},
};

use super::Pool;

/// Tasks of a pool, each with a deadline.
#[derive(Default)]
pub(super) struct Background(Mutex<JoinSet<()>>);

impl Background {
    fn tasks(&self) -> MutexGuard<'_, JoinSet<()>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Spawns a task. Without a runtime the work is dropped, and its connection with it.
    pub(super) fn spawn(&self, work: impl Future<Output = ()> + Send + 'static) {
        let Ok(runtime) = Handle::try_current() else { return };
        let mut tasks = self.tasks();
        while let Some(ended) = tasks.try_join_next() {
            if let Err(error) = ended {
                tracing::error!(error = %error, "database-connection-task-failed");
            }
        }
        tasks.spawn_on(work, &runtime);
    }

    /// Waits until all tasks have ended, including tasks started in the meantime.
    pub(super) async fn finished(&self) {
        loop {
            let mut tasks = std::mem::take(&mut *self.tasks());
            if tasks.is_empty() {
                return;
            }
            while tasks.join_next().await.is_some() {}
        }
    }
}

/// A future that continues in the background if its caller drops it early.
pub(super) struct Finish<T: Send + 'static> {
    pool: Arc<Pool>,
    /// `None`: the work has its own timeout.
    deadline: Option<Instant>,
    work: Option<Pin<Box<dyn Future<Output = T> + Send>>>,
}

impl<T: Send + 'static> Finish<T> {
    pub(super) fn new(
        pool: &Arc<Pool>,
        deadline: Option<Instant>,
        work: impl Future<Output = T> + Send + 'static,
    ) -> Self {
        Self { pool: Arc::clone(pool), deadline, work: Some(Box::pin(work)) }
    }
}

impl<T: Send + 'static> Future for Finish<T> {
    type Output = T;

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<T> {
        let work = self.work.as_mut().expect("it is not polled after its end");
        let outcome = std::task::ready!(work.as_mut().poll(context));
        self.work = None;
        Poll::Ready(outcome)
    }
}

impl<T: Send + 'static> Drop for Finish<T> {
    fn drop(&mut self) {
        let Some(work) = self.work.take() else { return };
        let deadline = self.deadline;
        self.pool.background.spawn(async move {
            match deadline {
                None => drop(work.await),
                Some(deadline) => drop(timeout_at(deadline, work).await),
            }
        });
    }
}
