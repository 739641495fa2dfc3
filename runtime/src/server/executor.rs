//! Runs the requests of HTTP/2 connections.
//!
//! The first poll of a request runs inside the poll of its connection. Most requests complete
//! there: their response leaves with the write at the end of that poll, without spawning, waking
//! and joining a task. A request that is still pending is spawned as a task.
//!
//! Invariants: a panic affects only its request; all running requests can be awaited and aborted.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::task::{Context, Waker};

use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

/// Executor for hyper; clones share their requests.
#[derive(Clone, Default)]
pub(super) struct InlineExecutor {
    running: TaskTracker,
    /// Aborts all requests.
    pub(super) cut: CancellationToken,
}

impl InlineExecutor {
    /// Waits until all requests have ended.
    pub(super) async fn ended(&self) {
        self.running.close();
        self.running.wait().await;
    }

    /// Aborts all requests and waits for them.
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
        // No waker is needed: a pending request is spawned, which polls it at once.
        let mut context = Context::from_waker(Waker::noop());
        let turn = catch_unwind(AssertUnwindSafe(|| future.as_mut().poll(&mut context)));
        // The panic hook has already reported a panic.
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
    async fn a_request_that_completes_in_one_poll_is_not_spawned() {
        let streams = InlineExecutor::default();
        let (done, mut seen) = oneshot::channel();
        streams.execute(async move { done.send(ready(7).await) });
        assert_eq!(seen.try_recv(), Ok(7));
        assert!(streams.running.is_empty());
    }

    #[tokio::test]
    async fn a_pending_request_is_spawned_and_can_be_aborted() {
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
    async fn a_panic_ends_only_its_own_request() {
        let streams = InlineExecutor::default();
        streams.execute(async { panic!("expected by the test") });
        assert!(streams.running.is_empty());
        let (done, mut seen) = oneshot::channel();
        streams.execute(async move { done.send(()) });
        assert_eq!(seen.try_recv(), Ok(()));
    }
}
