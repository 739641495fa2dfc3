//! Reloads changed files.
//!
//! The files are compared by identity every few seconds, and every second while they change. A
//! change is loaded when two successive checks see the same identities, so that certificate and
//! key, which no tool replaces in one step, are loaded together. The identity recorded as loaded is
//! the one from before the files were read: a change in between is detected at the next check.
//! Files that could not be loaded are also retried every minute, since not every cause changes an
//! identity.
//!
//! Invariants:
//! - Files that cannot be loaded, and a certificate that is not valid now, never replace a
//!   certificate that is valid now.
//! - A certificate that is not valid now is used when there is no better one: the peer decides by
//!   its own clock, and the local clock may be wrong.

use std::fmt;
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use arc_swap::ArcSwap;
use jiff::Timestamp;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::material::Facts;
use super::report::{AGAIN, Report};
use super::{Error, Role, Unusable};
use crate::error::chain;
use crate::health::Component;

/// Interval between checks of unchanged files; wakeups are most of the cost of an idle process.
const EVERY: Duration = Duration::from_secs(4);
/// How long changed files must stay unchanged before they are loaded.
const SETTLED: Duration = Duration::from_secs(1);

/// Changes when a file is replaced or written: device, inode, size, and the last changes of content
/// and inode. `None` when stat fails.
type FileIdentity = Option<[i64; 7]>;

/// Identities of all files at one time.
type FileStamps = Vec<FileIdentity>;

/// A value loaded from files.
pub(super) struct Made<T> {
    pub(super) config: Arc<T>,
    pub(super) facts: Facts,
}

/// The state of [`HotReload`].
struct State<T> {
    made: Option<Made<T>>,
    /// Error of the last load; `None` after a success.
    failed: Option<String>,
}

impl<T> State<T> {
    /// Why no certificate is valid at `now`.
    fn problem(&self, now: Timestamp) -> Option<String> {
        match &self.made {
            None => self.failed.clone(),
            Some(made) => made.facts.problem(now).map(|error| chain(&error)),
        }
    }
}

/// A value loaded from files, and reloaded when the files change.
pub(super) struct HotReload<T> {
    role: Role,
    files: Arc<[PathBuf]>,
    /// Identities of the files before the first load.
    loaded: FileStamps,
    current: Arc<ArcSwap<State<T>>>,
    health: Option<Component>,
}

impl<T> Clone for HotReload<T> {
    fn clone(&self) -> Self {
        let Self { role, files, loaded, current, health } = self;
        Self {
            role: *role,
            files: Arc::clone(files),
            loaded: loaded.clone(),
            current: Arc::clone(current),
            health: health.clone(),
        }
    }
}

impl<T> fmt::Debug for HotReload<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Live").field("files", &self.files).finish_non_exhaustive()
    }
}

impl<T: Send + Sync + 'static> HotReload<T> {
    /// Loads the files; an error when they cannot be used now.
    pub(super) fn load(
        role: Role,
        files: &[PathBuf],
        load: impl FnOnce() -> Result<Made<T>, Error>,
    ) -> Result<Self, Error> {
        let loaded = look_at(files);
        let made = load()?;
        match made.facts.problem(Timestamp::now()) {
            Some(error) => Err(error),
            None => Ok(Self::new(role, files, loaded, State { made: Some(made), failed: None })),
        }
    }

    /// Loads the files if they can be used; see [`HotReload::watch`] for the rest.
    pub(super) fn follow(
        role: Role,
        files: &[PathBuf],
        load: impl FnOnce() -> Result<Made<T>, Error>,
    ) -> Self {
        let loaded = look_at(files);
        let state = match load() {
            Ok(made) => State { made: Some(made), failed: None },
            Err(error) => State { made: None, failed: Some(chain(&error)) },
        };
        Self::new(role, files, loaded, state)
    }

    fn new(role: Role, files: &[PathBuf], loaded: FileStamps, state: State<T>) -> Self {
        let report = Report::new(role);
        report.loaded(state.failed.is_none());
        if let Some(made) = &state.made {
            report.expiry(&made.facts);
        }
        let current = Arc::new(ArcSwap::from_pointee(state));
        Self { role, files: files.into(), loaded, current, health: None }
    }

    /// Reports to `health` whether there is a valid certificate: now and, with
    /// [`HotReload::watch`], after each change.
    pub(super) fn telling(mut self, health: Component) -> Self {
        set_health(&health, self.problem());
        self.health = Some(health);
        self
    }

    /// Why there is no valid certificate now; `None` when there is one.
    pub(super) fn problem(&self) -> Option<String> {
        self.current.load().problem(Timestamp::now())
    }

    /// The last loaded value.
    pub(super) fn current(&self) -> Result<Arc<T>, Unusable> {
        let state = self.current.load();
        match &state.made {
            Some(made) => Ok(Arc::clone(&made.config)),
            None => Err(Unusable(state.failed.clone().unwrap_or_default())),
        }
    }

    /// Swaps in the result of `load` for changed files, warns before certificates expire, and logs
    /// once a minute that there is no valid one, until shutdown.
    pub(super) async fn watch(
        self,
        load: impl Fn() -> Result<Made<T>, Error> + Clone + Send + 'static,
        shutdown: CancellationToken,
    ) {
        let mut report = Report::new(self.role);
        let mut handled = self.loaded.clone();
        let mut last_look = self.loaded.clone();
        let mut tried = Instant::now();
        let mut pause = Duration::ZERO;
        while shutdown.run_until_cancelled(tokio::time::sleep(pause)).await.is_some() {
            // Moving this to another thread would cost more than the checks.
            let look = look_at(&self.files);
            let settled = std::mem::replace(&mut last_look, look.clone()) == look;
            pause = if settled { EVERY } else { SETTLED };
            let again = self.current.load().failed.is_some() && tried.elapsed() >= AGAIN;
            if settled && (handled != look || again) {
                let changed = handled != look;
                handled = look;
                tried = Instant::now();
                // It reads files. Without an outcome the runtime is shutting down.
                let Ok(loaded) = tokio::task::spawn_blocking(load.clone()).await else {
                    return;
                };
                self.swap(loaded, changed, &mut report);
            }
            self.assess(&mut report);
        }
    }

    /// Makes the loaded value current if it is better than the present one.
    fn swap(&self, loaded: Result<Made<T>, Error>, changed: bool, report: &mut Report) {
        let now = Timestamp::now();
        let before = self.current.load_full();
        let is_valid = before.problem(now).is_none();
        let loaded = loaded.and_then(|made| match made.facts.problem(now) {
            Some(error) if is_valid => Err(error),
            _ => Ok(made),
        });
        match loaded {
            Ok(made) => {
                report.reloaded(&self.files, &made.facts);
                self.current.store(Arc::new(State { made: Some(made), failed: None }));
            }
            Err(error) => {
                let failed = chain(&error);
                let is_news = changed || before.failed.as_ref() != Some(&failed);
                report.rejected(&self.files, &failed, is_news);
                let made = before.made.as_ref().map(|Made { config, facts }| Made {
                    config: Arc::clone(config),
                    facts: facts.clone(),
                });
                self.current.store(Arc::new(State { made, failed: Some(failed) }));
            }
        }
    }

    fn assess(&self, report: &mut Report) {
        let now = Timestamp::now();
        let state = self.current.load();
        if let Some(made) = &state.made {
            report.warn(&made.facts, now);
        }
        let problem = state.problem(now);
        if let Some(health) = &self.health {
            set_health(health, problem.clone());
        }
        report.unusable(&self.files, problem.as_deref(), Instant::now());
    }
}

fn set_health(health: &Component, problem: Option<String>) {
    match problem {
        None => health.ready(),
        Some(problem) => health.not_ready(problem),
    }
}

fn look_at(files: &[PathBuf]) -> FileStamps {
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

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicU32, Ordering};

    use tokio::time::sleep;

    use super::*;

    const ROLE: Role = Role { service: "test", name: "test" };

    /// Three files whose loads are counted; the contents are not parsed.
    struct Watched {
        folder: tempfile::TempDir,
        loads: Arc<AtomicU32>,
        live: HotReload<String>,
    }

    impl Watched {
        fn new() -> Self {
            let folder = tempfile::tempdir().expect("a folder");
            let path = |name| folder.path().join(name);
            let files = ["ca", "cert", "key"].map(path);
            for path in &files {
                fs::write(path, "old").expect("a file");
            }
            let live = HotReload::load(ROLE, &files, || read_key(&files[2])).expect("a good load");
            Self { folder, loads: Arc::default(), live }
        }

        fn write(&self, name: &str, text: &str) {
            fs::write(self.folder.path().join(name), text).expect("a file");
        }

        fn current(&self) -> Arc<String> {
            self.live.current().expect("a loaded value")
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

    /// A key whose content is "bad" fails to load.
    fn read_key(key: &Path) -> Result<Made<String>, Error> {
        let text = fs::read_to_string(key).expect("the key is there");
        match text.as_str() {
            "bad" => Err(Error::Empty(key.to_owned(), "private key")),
            _ => Ok(Made { config: Arc::new(text), facts: Facts::default() }),
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
        assert_eq!(*watched.current(), "newer");
    }

    #[tokio::test(start_paused = true)]
    async fn bad_files_are_retried_once_a_minute_and_change_nothing() {
        let watched = Watched::new();
        let script = async {
            watched.write("key", "bad");
            seconds(50).await;
            assert_eq!((watched.loads(), watched.current().as_str()), (1, "old"));
            seconds(20).await;
            assert_eq!((watched.loads(), watched.current().as_str()), (2, "old"));
            watched.write("key", "good");
            seconds(6).await;
            assert_eq!((watched.loads(), watched.current().as_str()), (3, "good"));
        };
        watched.during(script).await;
    }

    #[tokio::test(start_paused = true)]
    async fn files_that_still_change_are_not_loaded() {
        let watched = Watched::new();
        let script = async {
            for step in 0..20_usize {
                // Changes the size too, so the test does not depend on the resolution of time
                // stamps.
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
        assert_eq!(*watched.current(), "newer");
    }

    #[tokio::test(start_paused = true)]
    async fn the_metrics_follow_each_load() {
        let (recorder, handle) = crate::metrics::recorder("test", "0");
        let _recorded = metrics::set_default_local_recorder(&recorder);
        let watched = Watched::new();
        let shows = |loaded: u8, failures: u8| {
            let text = handle.render();
            let loaded =
                format!("test_certificate_last_reload_successful{{tls=\"test\"}} {loaded}\n");
            let failures =
                format!("test_certificate_reload_failures_total{{tls=\"test\"}} {failures}\n");
            assert!(text.contains(&loaded) && text.contains(&failures), "{text}");
        };
        shows(1, 0);
        let script = async {
            watched.write("key", "bad");
            seconds(6).await;
            shows(0, 1);
            watched.write("key", "good");
            seconds(6).await;
            shows(1, 1);
        };
        watched.during(script).await;
    }

    #[tokio::test(start_paused = true)]
    async fn without_a_certificate_there_is_a_line_a_minute() {
        let (log, _control, _guard) = crate::lager::capture(crate::lager::Options {
            source: "test".into(),
            level: crate::lager::Level::Info,
            format: crate::lager::TimeFormat::Rfc3339,
        });
        let files = ["/nonexistent".into()];
        let nothing = || Err::<Made<String>, _>(Error::Empty("/nonexistent".into(), "certificate"));
        let health = crate::health::Health::new();
        let live =
            HotReload::follow(ROLE, &files, nothing).telling(health.component("certificate"));
        let reason = ("certificate", "/nonexistent contains no certificate".to_owned());
        assert_eq!(health.reasons(), [reason]);
        let shutdown = CancellationToken::new();
        let watch = live.watch(nothing, shutdown.clone());
        let script = async {
            seconds(130).await;
            shutdown.cancel();
        };
        tokio::join!(watch, script);
        let lines = log.lines();
        let unusable = lines.iter().filter(|line| line["message"] == "test.certificate-unusable");
        assert_eq!(unusable.count(), 3, "{lines:#?}");
        assert_eq!(lines.len(), 3, "{lines:#?}");
    }
}
