//! Small state files that survive a restart.
//!
//! A file is written to a temporary name, synced, and renamed, so that a complete file
//! always exists, the old or the new. Each begins with its own name and the hash of the
//! rest: a file that does not match is treated as an error, not as state.

use std::{
    fs::{self, File},
    io::{self, Write as _},
    os::unix::fs::{DirBuilderExt as _, PermissionsExt as _},
    path::{Path, PathBuf},
};

use sha2::{Digest as _, Sha256};

/// A directory of state files.
#[derive(Debug, Clone)]
pub struct StateDirectory {
    path: PathBuf,
}

impl StateDirectory {
    /// Opens the directory, and creates it if it is missing.
    ///
    /// # Errors
    /// The directory cannot be created or written to.
    pub fn open(path: &Path) -> io::Result<Self> {
        fs::DirBuilder::new().recursive(true).mode(0o700).create(path)?;
        let directory = Self { path: path.to_owned() };
        directory.write("writable", b"")?;
        Ok(directory)
    }

    /// A read-only directory, which may be missing.
    #[must_use]
    pub fn only_read(path: &Path) -> Self {
        Self { path: path.to_owned() }
    }

    /// Replaces a file, which only its owner may read. Blocks until the file is on disk.
    ///
    /// # Errors
    /// The file is unchanged.
    pub fn write(&self, name: &str, content: &[u8]) -> io::Result<()> {
        let fresh = self.path.join(format!("{name}.new"));
        let mut file = File::create(&fresh)?;
        // Also a file that an earlier process left.
        file.set_permissions(fs::Permissions::from_mode(0o600))?;
        file.write_all(header(name, content).as_bytes())?;
        file.write_all(content)?;
        file.sync_all()?;
        fs::rename(&fresh, self.path.join(name))?;
        File::open(&self.path)?.sync_all()
    }

    /// Reads a file; `None` when there is none.
    ///
    /// # Errors
    /// The file cannot be read, or is corrupt.
    pub fn read(&self, name: &str) -> io::Result<Option<Vec<u8>>> {
        let mut content = match fs::read(self.path.join(name)) {
            Ok(content) => content,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(error),
        };
        let damaged = || io::Error::new(io::ErrorKind::InvalidData, "the file is damaged");
        let length = content.iter().position(|byte| *byte == b'\n').ok_or_else(damaged)? + 1;
        let body = content.split_off(length);
        if content != header(name, &body).as_bytes() {
            return Err(damaged());
        }
        Ok(Some(body))
    }

    /// Reads a file; a file that cannot be read is logged and counts as missing.
    #[must_use]
    pub fn load(&self, name: &'static str) -> Option<Vec<u8>> {
        self.read(name).unwrap_or_else(|error| {
            tracing::error!(error = %error, file = name, "state-unreadable");
            None
        })
    }

    /// Replaces a file on a blocking thread, with the content that `encode` makes there. Logs a
    /// failure; returns whether the file is on disk.
    pub async fn save(
        &self,
        name: &'static str,
        encode: impl FnOnce() -> Vec<u8> + Send + 'static,
    ) -> bool {
        let state = self.clone();
        let written = tokio::task::spawn_blocking(move || state.write(name, &encode()));
        let written = written.await.expect("writing does not panic");
        if let Err(error) = &written {
            tracing::error!(error = %error, file = name, "state-not-written");
        }
        written.is_ok()
    }
}

fn header(name: &str, content: &[u8]) -> String {
    format!("portcullis cell-agent {name} 1 {:x}\n", Sha256::digest(content))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_owner_can_read_a_file() {
        let directory = tempfile::tempdir().unwrap();
        let state = StateDirectory::open(directory.path()).unwrap();
        let old = directory.path().join("groups.new");
        fs::write(&old, "left").unwrap();
        fs::set_permissions(&old, fs::Permissions::from_mode(0o644)).unwrap();
        for name in ["groups", "told"] {
            state.write(name, b"content").unwrap();
            let mode = fs::metadata(directory.path().join(name)).unwrap().permissions().mode();
            assert_eq!(mode & 0o777, 0o600, "{name}");
        }
    }

    #[test]
    fn only_a_written_file_can_be_read() {
        let directory = tempfile::tempdir().unwrap();
        let state = StateDirectory::open(&directory.path().join("a/b")).unwrap();
        assert!(state.read("groups").unwrap().is_none());
        state.write("groups", b"one\ntwo").unwrap();
        assert_eq!(state.read("groups").unwrap().unwrap(), b"one\ntwo");
        state.write("groups", b"").unwrap();
        assert_eq!(state.read("groups").unwrap().unwrap(), b"");
    }

    #[test]
    fn a_damaged_file_is_an_error() {
        let directory = tempfile::tempdir().unwrap();
        let state = StateDirectory::open(directory.path()).unwrap();
        state.write("groups", b"content").unwrap();
        let path = directory.path().join("groups");
        let whole = fs::read(&path).unwrap();
        for torn in [&whole[..whole.len() - 1], &whole[..10], b"", b"\n"] {
            fs::write(&path, torn).unwrap();
            assert_eq!(state.read("groups").unwrap_err().kind(), io::ErrorKind::InvalidData);
        }
        fs::write(directory.path().join("applied"), &whole).unwrap();
        state.read("applied").unwrap_err();
    }
}

#[cfg(test)]
#[path = "state_fuzz_tests.rs"]
mod fuzz_tests;
