//! The metadata store on disk: data, version and lock file
//! (docs/compatibility/vxlan-policy-agent.md#metadata-store).
//!
//! Writers hold the lock, rewrite the data in place and then increment the version; a
//! writer that dies in between leaves torn or empty data behind. So data is read only
//! under the lock, and data that became empty while the version is unchanged counts as
//! torn.

use std::{
    fs::{self, File, Metadata, OpenOptions, TryLockError},
    io,
    os::unix::fs::OpenOptionsExt as _,
    path::{Path, PathBuf},
    time::{Duration, SystemTime},
};

use super::Snapshot;

/// Retry interval for a lock that another process holds.
const LOCK_RETRY: Duration = Duration::from_millis(2);

/// Why the store could not be read. The previous state stays valid.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The lock file cannot be opened or locked.
    #[error("cannot lock {path}")]
    Lock {
        /// The lock file.
        path: PathBuf,
        /// The cause.
        source: io::Error,
    },
    /// Another process holds the lock.
    #[error("{path} has been locked by another process for {waited:?}")]
    Busy {
        /// The lock file.
        path: PathBuf,
        /// Time spent waiting.
        waited: Duration,
    },
    /// The data or version file cannot be read.
    #[error("cannot read {path}")]
    Read {
        /// The file.
        path: PathBuf,
        /// The cause.
        source: io::Error,
    },
    /// The data is not a metadata store.
    #[error("{path} is torn: {problem}")]
    Torn {
        /// The data file.
        path: PathBuf,
        /// The problem in the data.
        problem: String,
    },
}

/// The three files of a metadata store.
#[derive(Debug, Clone)]
pub struct StoreFile {
    data: PathBuf,
    version: PathBuf,
    lock: PathBuf,
    lock_timeout: Duration,
}

/// State of the files; equal stamps mean that there was no write in between.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(super) struct Stamp {
    version: Vec<u8>,
    length: u64,
    modified: Option<SystemTime>,
}

impl StoreFile {
    /// The store with the data file `data`. A lock that is held longer than
    /// `lock_timeout` is an error.
    #[must_use]
    pub fn new(data: &Path, lock_timeout: Duration) -> Self {
        let beside = |suffix: &str| {
            let mut path = data.as_os_str().to_owned();
            path.push(suffix);
            PathBuf::from(path)
        };
        Self {
            data: data.to_owned(),
            version: beside("_version"),
            lock: beside("_lock"),
            lock_timeout,
        }
    }

    /// The directory of the files.
    #[must_use]
    pub fn directory(&self) -> &Path {
        self.data.parent().filter(|path| !path.as_os_str().is_empty()).unwrap_or(Path::new("."))
    }

    /// Path of the data file.
    pub(super) fn path(&self) -> &Path {
        &self.data
    }

    /// Current state of the files, without the lock.
    pub(super) fn stamp(&self) -> Result<Stamp, Error> {
        let metadata = absent_is_none(fs::metadata(&self.data), &self.data)?;
        let version = absent_is_none(fs::read(&self.version), &self.version)?.unwrap_or_default();
        Ok(Stamp {
            version,
            length: metadata.as_ref().map_or(0, Metadata::len),
            modified: metadata.and_then(|metadata| metadata.modified().ok()),
        })
    }

    /// Reads the store under its lock. Blocks. `before` is the stamp of the last state
    /// with containers.
    pub(super) fn read(&self, before: Option<&Stamp>) -> Result<(Stamp, Snapshot), Error> {
        let _locked = self.lock()?;
        let stamp = self.stamp()?;
        let text = absent_is_none(fs::read(&self.data), &self.data)?;
        let torn = |problem| Error::Torn { path: self.data.clone(), problem };
        let emptied = text.as_ref().is_none_or(Vec::is_empty);
        if emptied && before.is_some_and(|before| before.version == stamp.version) {
            return Err(torn("it is empty or gone, but its version was not raised".to_owned()));
        }
        let snapshot = Snapshot::parse(&text.unwrap_or_default()).map_err(torn)?;
        Ok((stamp, snapshot))
    }

    /// Takes the lock; closing the file releases the lock.
    fn lock(&self) -> Result<File, Error> {
        let failed = |source| Error::Lock { path: self.lock.clone(), source };
        let mut options = OpenOptions::new();
        options.read(true).write(true).create(true).truncate(false).mode(0o600);
        let file = options.open(&self.lock).map_err(failed)?;
        let mut waited = Duration::ZERO;
        loop {
            match file.try_lock() {
                Ok(()) => return Ok(file),
                Err(TryLockError::WouldBlock) if waited < self.lock_timeout => {
                    pause(LOCK_RETRY);
                    waited += LOCK_RETRY;
                }
                Err(TryLockError::WouldBlock) => {
                    return Err(Error::Busy { path: self.lock.clone(), waited });
                }
                Err(TryLockError::Error(source)) => return Err(failed(source)),
            }
        }
    }
}

#[expect(clippy::disallowed_methods, reason = "runs on a thread for blocking work")]
fn pause(time: Duration) {
    std::thread::sleep(time);
}

/// Treats a missing file as empty, since the original creates it.
fn absent_is_none<T>(result: io::Result<T>, path: &Path) -> Result<Option<T>, Error> {
    match result {
        Ok(value) => Ok(Some(value)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(source) => Err(Error::Read { path: path.to_owned(), source }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ONE: &str = r#"{"c1":{"handle":"c1","ip":"10.0.0.1","metadata":null}}"#;

    fn store(directory: &tempfile::TempDir) -> StoreFile {
        StoreFile::new(&directory.path().join("store.json"), Duration::from_millis(20))
    }

    #[test]
    fn missing_files_are_an_empty_store() {
        let directory = tempfile::tempdir().unwrap();
        let (_, snapshot) = store(&directory).read(None).unwrap();
        assert_eq!(snapshot, Snapshot::default());
    }

    #[test]
    fn every_write_changes_the_stamp() {
        let directory = tempfile::tempdir().unwrap();
        let store = store(&directory);
        let (empty, _) = store.read(None).unwrap();
        fs::write(&store.data, ONE).unwrap();
        let (written, snapshot) = store.read(Some(&empty)).unwrap();
        assert_eq!(snapshot.containers.len(), 1);
        assert_ne!(empty, written);
        fs::write(&store.version, "2").unwrap();
        assert_ne!(store.stamp().unwrap(), written);
    }

    #[test]
    fn data_that_emptied_itself_is_torn_unless_the_version_rose() {
        let directory = tempfile::tempdir().unwrap();
        let store = store(&directory);
        fs::write(&store.data, ONE).unwrap();
        let (before, _) = store.read(None).unwrap();
        fs::write(&store.data, "").unwrap();
        let error = store.read(Some(&before)).unwrap_err();
        assert!(error.to_string().contains("its version was not raised"), "{error}");
        fs::remove_file(&store.data).unwrap();
        assert!(store.read(Some(&before)).is_err(), "a file that is gone is no empty cell");
        fs::write(&store.version, "2").unwrap();
        assert_eq!(store.read(Some(&before)).unwrap().1, Snapshot::default());
    }

    #[test]
    fn a_half_written_store_is_torn() {
        let directory = tempfile::tempdir().unwrap();
        let store = store(&directory);
        fs::write(&store.data, &ONE[..20]).unwrap();
        assert!(matches!(store.read(None), Err(Error::Torn { .. })));
    }

    #[test]
    fn a_version_that_is_no_number_does_not_matter() {
        let directory = tempfile::tempdir().unwrap();
        let store = store(&directory);
        fs::write(&store.data, ONE).unwrap();
        fs::write(&store.version, "rubbish").unwrap();
        assert_eq!(store.read(None).unwrap().1.containers.len(), 1);
    }

    #[test]
    fn a_lock_that_is_not_released_is_an_error() {
        let directory = tempfile::tempdir().unwrap();
        let store = store(&directory);
        let held = store.lock().unwrap();
        let error = store.read(None).unwrap_err();
        assert!(matches!(error, Error::Busy { .. }), "{error}");
        drop(held);
        store.read(None).unwrap();
    }
}
