//! Writes the history while the run goes on.

use std::fs::File;
use std::io::{self, BufWriter, Write};
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};

use tokio::time::Instant;

use crate::history::{Entry, Event, Moment, line};

/// Shared by everything that observes.
#[derive(Debug, Clone)]
pub(crate) struct Record {
    began: Instant,
    file: Arc<Mutex<Written>>,
}

#[derive(Debug)]
struct Written {
    file: BufWriter<File>,
    /// The first error; later entries are lost.
    error: Option<io::Error>,
}

impl Record {
    pub(crate) fn create(path: &Path) -> io::Result<Self> {
        let file = BufWriter::new(File::create(path)?);
        let file = Arc::new(Mutex::new(Written { file, error: None }));
        Ok(Self { began: Instant::now(), file })
    }

    pub(crate) fn moment(&self, at: Instant) -> Moment {
        Moment::default().after(at.saturating_duration_since(self.began))
    }

    pub(crate) fn now(&self) -> Moment {
        self.moment(Instant::now())
    }

    /// Writes an event of now.
    pub(crate) fn note(&self, event: Event) {
        self.note_at(self.now(), event);
    }

    pub(crate) fn note_at(&self, at: Moment, event: Event) {
        let line = line(&Entry { at, event });
        let mut written = self.file.lock().unwrap_or_else(PoisonError::into_inner);
        if written.error.is_none() {
            written.error = writeln!(written.file, "{line}").err();
        }
    }

    /// Writes everything to the file.
    pub(crate) fn finish(&self) -> io::Result<()> {
        let mut written = self.file.lock().unwrap_or_else(PoisonError::into_inner);
        match written.error.take() {
            Some(error) => Err(error),
            None => written.file.flush(),
        }
    }
}
