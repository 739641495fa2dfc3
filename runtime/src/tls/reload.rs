//! Takes up changed files.
//!
//! The three files are compared by identity once a second. A change is taken up
//! when it has been the same for two looks, so that certificate and key, which
//! nobody can replace in one step, are seen together. The identity that counts
//! as loaded is the one from before the files were read: a change in between is
//! noticed at the next look.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use arc_swap::ArcSwap;
use tokio::time::MissedTickBehavior;
use tokio_util::sync::CancellationToken;

use super::{Error, Files};

const EVERY: Duration = Duration::from_secs(1);

/// What changes when a file is replaced or written: device, inode, size, and
/// when content and inode last changed. `None` when it cannot be looked at.
type FileIdentity = Option<[i64; 7]>;

/// Swaps in what `load` makes of changed files, until shutdown.
pub(super) async fn watch<T: Send + Sync + 'static>(
    files: Arc<Files>,
    load: impl Fn(&Files) -> Result<Arc<T>, Error> + Clone + Send + 'static,
    current: &ArcSwap<T>,
    shutdown: CancellationToken,
) {
    let mut ticks = tokio::time::interval(EVERY);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    // The files may have changed between their loading and now, so load once more.
    let mut handled = None;
    let mut last_look = None;
    while shutdown.run_until_cancelled(ticks.tick()).await.is_some() {
        let files_to_look_at = Arc::clone(&files);
        let Some(look) = blocking(move || identities(&files_to_look_at)).await else {
            return;
        };
        let settled = last_look.replace(look) == Some(look);
        if !settled || handled == Some(look) {
            continue;
        }
        let first = handled.replace(look).is_none();
        let (files_to_load, load) = (Arc::clone(&files), load.clone());
        let Some(loaded) = blocking(move || load(&files_to_load)).await else {
            return;
        };
        take_up(&files, loaded, current, first);
    }
}

fn take_up<T>(files: &Files, loaded: Result<Arc<T>, Error>, current: &ArcSwap<T>, first: bool) {
    let cert = files.cert.display();
    match loaded {
        Ok(config) => {
            current.store(config);
            if !first {
                tracing::info!(cert = %cert, "tls-files-reloaded");
            }
        }
        Err(error) => {
            let error = anyhow::Error::new(error);
            tracing::error!(
                error = format_args!("{error:#}"),
                cert = %cert,
                "tls-files-rejected"
            );
        }
    }
}

fn identities(files: &Files) -> [FileIdentity; 3] {
    let Files { ca, cert, key } = files;
    [identity(ca), identity(cert), identity(key)]
}

fn identity(path: &Path) -> FileIdentity {
    let metadata = fs::metadata(path).ok()?;
    Some([
        metadata.dev().cast_signed(),
        metadata.ino().cast_signed(),
        metadata.size().cast_signed(),
        metadata.mtime(),
        metadata.mtime_nsec(),
        metadata.ctime(),
        metadata.ctime_nsec(),
    ])
}

/// Runs file work away from the runtime's threads. `None` when the runtime is
/// shutting down.
async fn blocking<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> Option<T> {
    tokio::task::spawn_blocking(work).await.ok()
}
