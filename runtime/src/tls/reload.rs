//! Takes up changed files.
//!
//! The files are compared by identity every few seconds, and every second while
//! they change. A change is taken up when it has been the same for two looks, so that certificate and key, which nobody can
//! replace in one step, are seen together. The identity that counts
//! as loaded is the one from before the files were read: a change in between is
//! noticed at the next look.

use std::fmt;
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use arc_swap::ArcSwap;
use tokio_util::sync::CancellationToken;

use super::Error;
use crate::error::chain;

/// How often files are looked at that do not change; waking up is most of what an
/// idle process costs.
const EVERY: Duration = Duration::from_secs(4);
/// For how long changed files must have been the same.
const SETTLED: Duration = Duration::from_secs(1);

/// What changes when a file is replaced or written: device, inode, size, and
/// when content and inode last changed. `None` when it cannot be looked at.
type FileIdentity = Option<[i64; 7]>;

/// What all files are at one moment.
type Look = Vec<FileIdentity>;

/// Something made of files, which can follow them.
pub(super) struct Live<T> {
    files: Arc<[PathBuf]>,
    /// The files before they were loaded first.
    loaded: Look,
    current: Arc<ArcSwap<T>>,
}

impl<T> Clone for Live<T> {
    fn clone(&self) -> Self {
        let Self { files, loaded, current } = self;
        Self { files: Arc::clone(files), loaded: loaded.clone(), current: Arc::clone(current) }
    }
}

impl<T> fmt::Debug for Live<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Live").field("files", &self.files).finish_non_exhaustive()
    }
}

impl<T: Send + Sync + 'static> Live<T> {
    pub(super) fn load(
        files: &[PathBuf],
        load: impl FnOnce() -> Result<Arc<T>, Error>,
    ) -> Result<Self, Error> {
        let loaded = look_at(files);
        let current = Arc::new(ArcSwap::from(load()?));
        Ok(Self { files: files.into(), loaded, current })
    }

    pub(super) fn current(&self) -> Arc<T> {
        self.current.load_full()
    }

    /// Swaps in what `load` makes of changed files, until shutdown.
    pub(super) async fn watch(
        self,
        load: impl Fn() -> Result<Arc<T>, Error> + Clone + Send + 'static,
        shutdown: CancellationToken,
    ) {
        let Self { files, loaded, current } = self;
        let mut handled = loaded.clone();
        let mut last_look = loaded;
        let mut pause = Duration::ZERO;
        while shutdown.run_until_cancelled(tokio::time::sleep(pause)).await.is_some() {
            // Handing this to another thread would cost more than the looks.
            let look = look_at(&files);
            let settled = std::mem::replace(&mut last_look, look.clone()) == look;
            pause = if settled { EVERY } else { SETTLED };
            if !settled || handled == look {
                continue;
            }
            handled = look;
            let Some(loaded) = blocking(load.clone()).await else {
                return;
            };
            take_up(&files, loaded, &current);
        }
    }
}

fn take_up<T>(files: &[PathBuf], loaded: Result<Arc<T>, Error>, current: &ArcSwap<T>) {
    let files: Vec<_> = files.iter().map(|path| path.display().to_string()).collect();
    let files = files.join(" ");
    match loaded {
        Ok(config) => {
            current.store(config);
            tracing::info!(files, "tls-files-reloaded");
        }
        Err(error) => tracing::error!(error = chain(&error), files, "tls-files-rejected"),
    }
}

fn look_at(files: &[PathBuf]) -> Look {
    files.iter().map(|path| identity(path)).collect()
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

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicU32, Ordering};

    use tokio::time::sleep;

    use super::*;

    /// Three files whose load is counted instead of understood.
    struct Watched {
        folder: tempfile::TempDir,
        loads: Arc<AtomicU32>,
        live: Live<String>,
    }

    impl Watched {
        fn new() -> Self {
            let folder = tempfile::tempdir().expect("a folder");
            let path = |name| folder.path().join(name);
            let files = ["ca", "cert", "key"].map(path);
            for path in &files {
                fs::write(path, "old").expect("a file");
            }
            let live = Live::load(&files, || read_key(&files[2])).expect("a good load");
            Self { folder, loads: Arc::default(), live }
        }

        fn write(&self, name: &str, text: &str) {
            fs::write(self.folder.path().join(name), text).expect("a file");
        }

        fn loads(&self) -> u32 {
            self.loads.load(Ordering::SeqCst)
        }

        /// Watches while `script` runs.
        async fn during(&self, script: impl Future<Output = ()>) {
            let shutdown = CancellationToken::new();
            let loads = Arc::clone(&self.loads);
            let key = self.folder.path().join("key");
            let load = move || {
                loads.fetch_add(1, Ordering::SeqCst);
                read_key(&key)
            };
            let watch = self.live.clone().watch(load, shutdown.clone());
            let script = async {
                script.await;
                shutdown.cancel();
            };
            tokio::join!(watch, script);
        }
    }

    /// A key that says "bad" is bad.
    fn read_key(key: &Path) -> Result<Arc<String>, Error> {
        let text = fs::read_to_string(key).expect("the key is there");
        match text.as_str() {
            "bad" => Err(Error::Empty(key.to_owned(), "private key")),
            _ => Ok(Arc::new(text)),
        }
    }

    async fn seconds(count: u64) {
        sleep(Duration::from_secs(count)).await;
    }

    #[tokio::test(start_paused = true)]
    async fn unchanged_files_are_not_loaded_again() {
        let watched = Watched::new();
        watched.during(seconds(60)).await;
        assert_eq!(watched.loads(), 0);
    }

    #[tokio::test(start_paused = true)]
    async fn a_change_is_loaded_once_whichever_file_it_is() {
        let watched = Watched::new();
        let script = async {
            for (loads, name) in ["ca", "cert", "key"].into_iter().enumerate() {
                watched.write(name, "newer");
                seconds(6).await;
                assert_eq!(watched.loads() as usize, loads + 1, "{name}");
                seconds(60).await;
                assert_eq!(watched.loads() as usize, loads + 1, "{name}");
            }
        };
        watched.during(script).await;
        assert_eq!(*watched.live.current(), "newer");
    }

    #[tokio::test(start_paused = true)]
    async fn bad_files_are_tried_once_and_change_nothing() {
        let watched = Watched::new();
        let script = async {
            watched.write("key", "bad");
            seconds(60).await;
            assert_eq!((watched.loads(), watched.live.current().as_str()), (1, "old"));
            watched.write("key", "good");
            seconds(6).await;
            assert_eq!((watched.loads(), watched.live.current().as_str()), (2, "good"));
        };
        watched.during(script).await;
    }

    #[tokio::test(start_paused = true)]
    async fn files_in_motion_are_waited_for() {
        let watched = Watched::new();
        let script = async {
            for step in 0..20_usize {
                // The size changes too, whatever the resolution of time stamps.
                watched.write("cert", &"x".repeat(step));
                sleep(Duration::from_millis(900)).await;
            }
            assert_eq!(watched.loads(), 0);
            seconds(6).await;
            assert_eq!(watched.loads(), 1);
        };
        watched.during(script).await;
    }

    #[tokio::test(start_paused = true)]
    async fn a_change_before_the_watch_began_is_not_missed() {
        let watched = Watched::new();
        watched.write("key", "newer");
        watched.during(seconds(6)).await;
        assert_eq!(*watched.live.current(), "newer");
    }
}
