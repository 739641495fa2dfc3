//! Storage of the state: in memory, and in a file if one is configured.
//!
//! Invariants: a reader has an immutable state. A change that is refused or cannot be
//! saved has no effect: the methods of [`State`] check everything before they change
//! anything, and with a file the change is made on a copy, saved, and only then becomes
//! the state. The file is replaced atomically by a rename: a crash leaves the old or
//! the new one. The file holds passwords and the signing key, and only its owner can
//! read it.

use std::fs::{self, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use uuid::Uuid;

use super::refusal::Refusal;
use super::state::saved::Saved;
use super::state::{Moment, State};

/// Why the file is unusable.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Error {
    /// The file exists but cannot be read.
    #[error("reading the state file {path}")]
    Read {
        /// The file.
        path: PathBuf,
        /// The cause.
        source: io::Error,
    },
    /// The content is invalid.
    #[error("the state file {path} is not one of this program")]
    Parse {
        /// The file.
        path: PathBuf,
        /// The cause.
        source: serde_json::Error,
    },
    /// The file cannot be written.
    #[error("writing the state file {path}")]
    Write {
        /// The file.
        path: PathBuf,
        /// The cause.
        source: io::Error,
    },
}

/// The content of the file.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Content {
    /// The signing key of tokens, PKCS 8 in PEM.
    pub(crate) signing_key: String,
    state: Saved,
}

impl Content {
    /// Reads the file; `None` when it does not exist.
    pub(crate) fn load(path: &Path) -> Result<Option<Self>, Error> {
        let text = match fs::read(path) {
            Ok(text) => text,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(source) => return Err(Error::Read { path: path.to_owned(), source }),
        };
        let content = runtime::json::from_slice(&text);
        content.map(Some).map_err(|source| Error::Parse { path: path.to_owned(), source })
    }

    /// The state in the file.
    pub(crate) fn state(&self) -> State {
        State::from(self.state.clone())
    }
}

/// The state, shared by all handlers.
#[derive(Debug)]
pub(crate) struct Store {
    current: Mutex<Arc<State>>,
    file: Option<(PathBuf, String)>,
}

impl Store {
    /// Starts with `state`. With a file, every change is saved there, together with the
    /// signing key.
    pub(crate) fn new(state: State, file: Option<(PathBuf, String)>) -> Result<Self, Error> {
        let store = Self { current: Mutex::new(Arc::new(State::default())), file };
        store.save(&state)?;
        *store.lock() = Arc::new(state);
        Ok(store)
    }

    /// The current state.
    pub(crate) fn read(&self) -> Arc<State> {
        self.lock().clone()
    }

    /// Applies a change completely, or not at all.
    pub(crate) fn change<T>(
        &self,
        change: impl FnOnce(&mut State, &Moment) -> Result<T, Refusal>,
    ) -> Result<T, Refusal> {
        let moment = Moment { now: Timestamp::now(), guid: new_guid() };
        let mut current = self.lock();
        if self.file.is_none() {
            // Copies the state only while a reader holds the old one.
            return change(Arc::make_mut(&mut current), &moment);
        }
        let mut state = State::clone(&current);
        let outcome = change(&mut state, &moment)?;
        self.save(&state).map_err(|error| {
            let error = anyhow::Error::new(error);
            tracing::error!(error = format!("{error:#}"), "failed-to-save-state");
            Refusal::Broken
        })?;
        *current = Arc::new(state);
        Ok(outcome)
    }

    fn lock(&self) -> MutexGuard<'_, Arc<State>> {
        // A panic inside a change leaves the old state in place.
        self.current.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn save(&self, state: &State) -> Result<(), Error> {
        let Some((path, signing_key)) = &self.file else { return Ok(()) };
        let content = Content { signing_key: signing_key.clone(), state: Saved::from(state) };
        let text = serde_json::to_vec(&content).expect("all of the state has a JSON form");
        replace(path, &text).map_err(|source| Error::Write { path: path.clone(), source })
    }
}

/// A new GUID.
pub(crate) fn new_guid() -> String {
    Uuid::new_v4().to_string()
}

fn replace(path: &Path, text: &[u8]) -> io::Result<()> {
    let mut name = path.as_os_str().to_owned();
    name.push(".new");
    let mut file =
        OpenOptions::new().create(true).write(true).truncate(true).mode(0o600).open(&name)?;
    file.write_all(text)?;
    drop(file);
    fs::rename(&name, path)
}
