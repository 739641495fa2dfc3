//! Invariants of [`Tasks`], on a paused clock.

use std::future::pending;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use runtime::supervise::Tasks;
use tokio::time::{Instant, sleep, timeout};
use tokio_util::sync::CancellationToken;

const DEADLINE: Duration = Duration::from_secs(10);
const DAY: Duration = Duration::from_secs(86_400);

fn tasks() -> (Tasks, CancellationToken) {
    let shutdown = CancellationToken::new();
    (Tasks::new(shutdown.clone()), shutdown)
}

/// Joins the group, which must end within a day of the paused clock.
async fn joined(tasks: Tasks) -> anyhow::Result<()> {
    timeout(DAY, tasks.join(DEADLINE)).await.expect("the group ends")
}

/// A task that ends at shutdown.
async fn obedient(shutdown: CancellationToken) -> anyhow::Result<()> {
    shutdown.cancelled().await;
    Ok(())
}

#[tokio::test(start_paused = true)]
async fn tasks_that_end_after_shutdown_are_no_error() {
    let (mut tasks, shutdown) = tasks();
    tasks.add("first", obedient(shutdown.clone()));
    let late = shutdown.clone();
    tasks.add("second", async move {
        late.cancelled().await;
        sleep(Duration::from_secs(9)).await;
        Ok(())
    });
    let start = Instant::now();
    let stop = async {
        sleep(Duration::from_secs(100)).await;
        shutdown.cancel();
    };
    let (joined, ()) = tokio::join!(joined(tasks), stop);
    joined.expect("all ended in time");
    assert_eq!(start.elapsed().as_secs(), 109);
}

#[tokio::test(start_paused = true)]
async fn a_task_that_fails_ends_the_others_and_is_named() {
    let (mut tasks, shutdown) = tasks();
    tasks.add("obedient", obedient(shutdown.clone()));
    tasks.add("reaper", async {
        sleep(Duration::from_secs(5)).await;
        Err(anyhow::anyhow!("disk full").context("deleting"))
    });
    let error = joined(tasks).await.expect_err("the reaper failed");
    assert_eq!(format!("{error:#}"), "reaper failed: deleting: disk full");
    assert!(shutdown.is_cancelled());
}

#[tokio::test(start_paused = true)]
async fn a_task_that_just_ends_is_an_error_too() {
    let (mut tasks, shutdown) = tasks();
    tasks.add("obedient", obedient(shutdown));
    tasks.add("feed", async { Ok(()) });
    let error = joined(tasks).await.expect_err("the feed ended");
    assert_eq!(error.to_string(), "feed ended unexpectedly");
}

#[tokio::test(start_paused = true)]
async fn a_panic_is_an_error_too() {
    let (mut tasks, shutdown) = tasks();
    tasks.add("obedient", obedient(shutdown));
    tasks.add("keeper", async { panic!("no lock {}", 7) });
    let error = joined(tasks).await.expect_err("the keeper panicked");
    assert_eq!(format!("{error:#}"), "keeper failed: panicked: no lock 7");
}

#[tokio::test(start_paused = true)]
async fn an_early_end_is_detected_before_join() {
    let (mut tasks, shutdown) = tasks();
    tasks.add("feed", async { anyhow::bail!("gone") });
    timeout(DAY, shutdown.cancelled()).await.expect("shut down by the end of the feed");
    let error = joined(tasks).await.expect_err("the feed failed");
    assert_eq!(format!("{error:#}"), "feed failed: gone");
}

#[tokio::test(start_paused = true)]
async fn the_first_to_fail_is_the_error_and_not_its_consequences() {
    let (mut tasks, shutdown) = tasks();
    for name in ["consequence-a", "consequence-b"] {
        let shutdown = shutdown.clone();
        tasks.add(name, async move {
            shutdown.cancelled().await;
            anyhow::bail!("the cause is gone")
        });
    }
    tasks.add("cause", async {
        sleep(Duration::from_millis(1)).await;
        anyhow::bail!("first")
    });
    let error = joined(tasks).await.expect_err("all failed");
    assert_eq!(format!("{error:#}"), "cause failed: first");
}

#[tokio::test(start_paused = true)]
async fn a_task_that_misses_the_deadline_is_aborted_and_named() {
    let (mut tasks, shutdown) = tasks();
    let dropped = Arc::new(AtomicBool::new(false));
    let guard = SetOnDrop(Arc::clone(&dropped));
    tasks.add("obedient", obedient(shutdown.clone()));
    tasks.add("stuck", async move {
        let _guard = guard;
        pending().await
    });
    tasks.add("slow", async {
        sleep(Duration::from_secs(3_600)).await;
        Ok(())
    });
    let start = Instant::now();
    shutdown.cancel();
    let error = joined(tasks).await.expect_err("two were late");
    assert_eq!(error.to_string(), "did not end within 10s and were aborted: stuck, slow");
    assert_eq!(start.elapsed(), DEADLINE);
    assert!(dropped.load(Ordering::SeqCst), "the task is gone when join returns");
}

#[tokio::test(start_paused = true)]
async fn a_failure_during_shutdown_is_an_error() {
    let (mut tasks, shutdown) = tasks();
    let stop = shutdown.clone();
    tasks.add("writer", async move {
        stop.cancelled().await;
        anyhow::bail!("flush failed")
    });
    shutdown.cancel();
    let error = joined(tasks).await.expect_err("the writer failed");
    assert_eq!(format!("{error:#}"), "writer failed during shutdown: flush failed");
}

#[tokio::test(start_paused = true)]
async fn a_group_without_tasks_lasts_until_shutdown() {
    let (tasks, shutdown) = tasks();
    let start = Instant::now();
    let stop = async {
        sleep(Duration::from_secs(7)).await;
        shutdown.cancel();
    };
    let (joined, ()) = tokio::join!(joined(tasks), stop);
    joined.expect("nothing failed");
    assert_eq!(start.elapsed().as_secs(), 7);
}

#[tokio::test(start_paused = true)]
async fn no_task_outlives_its_group() {
    let (mut tasks, _shutdown) = tasks();
    let dropped = Arc::new(AtomicBool::new(false));
    let guard = SetOnDrop(Arc::clone(&dropped));
    tasks.add("stuck", async move {
        let _guard = guard;
        pending().await
    });
    drop(tasks);
    tokio::task::yield_now().await;
    assert!(dropped.load(Ordering::SeqCst));
}

struct SetOnDrop(Arc<AtomicBool>);

impl Drop for SetOnDrop {
    fn drop(&mut self) {
        self.0.store(true, Ordering::SeqCst);
    }
}
