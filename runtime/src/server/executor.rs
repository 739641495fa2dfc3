//! The requests of HTTP/2 connections.
//!
//! A request has its first turn within the turn of its connection. Most need no
//! other: what they answer leaves with the write at the end of that turn, and there
//! is no task to make, to wake and to wait for. One that has to wait becomes a task.
//!
//! What holds: a request that panics ends alone; all that run can be waited for, and
//! can be cut off.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::task::{Context, Waker};

use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

/// Runs them; clones run them together.
#[derive(Clone, Default)]
pub(super) struct InlineExecutor {
    running: TaskTracker,
    /// Ends them.
    pub(super) cut: CancellationToken,
}

impl InlineExecutor {
    /// Waits until all have ended.
    pub(super) async fn ended(&self) {
        self.running.close();
        self.running.wait().await;
    }

    /// Ends all.
    pub(super) async fn cut(&self) {
        self.cut.cancel();
        self.ended().await;
    }
}

impl<F> hyper::rt::Executor<F> for InlineExecutor
where
    F: Future + Send + 'static,
{
    fn execute(&self, future: F) {
        let mut future = Box::pin(future);
        // Nobody has to be woken: a task that goes on polls it at once.
        let mut context = Context::from_waker(Waker::noop());
        let turn = catch_unwind(AssertUnwindSafe(|| future.as_mut().poll(&mut context)));
        // The hook has reported a panic.
        if turn.is_ok_and(|turn| turn.is_pending()) {
            let cut = self.cut.clone();
            self.running.spawn(async move {
                let _output = cut.run_until_cancelled_owned(future).await;
            });
        }
    }
}

#[cfg(test)]
mod tests {
    use std::future::{pending, ready};

    use hyper::rt::Executor as _;
    use tokio::sync::oneshot;

    use super::*;

    #[tokio::test]
    async fn who_needs_one_turn_is_no_task() {
        let streams = InlineExecutor::default();
        let (done, mut seen) = oneshot::channel();
        streams.execute(async move { done.send(ready(7).await) });
        assert_eq!(seen.try_recv(), Ok(7));
        assert!(streams.running.is_empty());
    }

    #[tokio::test]
    async fn who_waits_goes_on_as_a_task_and_can_be_cut_off() {
        let streams = InlineExecutor::default();
        let (go, gone) = oneshot::channel::<()>();
        let (done, seen) = oneshot::channel();
        streams.execute(async move { done.send(gone.await) });
        assert_eq!(streams.running.len(), 1);
        go.send(()).unwrap();
        assert_eq!(seen.await, Ok(Ok(())));
        streams.ended().await;

        streams.execute(pending::<()>());
        streams.cut().await;
        assert!(streams.running.is_empty());
    }

    #[tokio::test]
    async fn a_panic_ends_nobody_else() {
        let streams = InlineExecutor::default();
        streams.execute(async { panic!("expected by the test") });
        assert!(streams.running.is_empty());
        let (done, mut seen) = oneshot::channel();
        streams.execute(async move { done.send(()) });
        assert_eq!(seen.try_recv(), Ok(()));
    }
}
