//! The container metadata store of a cell, written like the CNI plugin does: three
//! files, the whole content rewritten in place under an exclusive lock, the version
//! incremented afterwards.

use std::collections::BTreeMap;
use std::fs::{File, OpenOptions};
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::net::{IpAddr, Ipv4Addr};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

/// One container in the file.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Entry {
    /// The Garden handle.
    pub handle: String,
    /// The container's address.
    pub ip: String,
    /// `policy_group_id`, `space_id`, `container_workload` and so on.
    pub metadata: Option<BTreeMap<String, String>>,
}

impl Entry {
    /// A running app with what the CNI plugin writes for it.
    #[must_use]
    pub fn app(handle: &str, address: Ipv4Addr, app: &str, space: &str) -> Self {
        let metadata = [
            ("policy_group_id", app),
            ("app_id", app),
            ("space_id", space),
            ("ports", "8080"),
            ("container_workload", "app"),
        ];
        let metadata = metadata.map(|(key, value)| (key.to_owned(), value.to_owned()));
        Self {
            handle: handle.to_owned(),
            ip: address.to_string(),
            metadata: Some(metadata.into_iter().collect()),
        }
    }
}

/// Why an entry was not written.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A container must have a handle.
    #[error("a container needs a handle")]
    NoHandle,
    /// A container must have a valid address.
    #[error("{0:?} is not an address")]
    BadAddress(String),
    /// A file operation failed.
    #[error("cannot {verb} {}", .path.display())]
    File {
        /// The operation.
        verb: &'static str,
        /// The file.
        path: PathBuf,
        /// The cause.
        source: io::Error,
    },
    /// The data file is torn. Rewriting it would lose containers.
    #[error("{} is not a metadata store", .path.display())]
    Torn {
        /// The data file.
        path: PathBuf,
        /// The parse error.
        source: serde_json::Error,
    },
    /// The version file is invalid.
    #[error("version file: '{}' is not a number", .0.display())]
    BadVersion(PathBuf),
}

/// The store of one cell.
#[derive(Debug, Clone)]
pub struct Store {
    data: PathBuf,
}

impl Store {
    /// The store in that file; its directory is created at the first write.
    pub fn at(data: PathBuf) -> Self {
        Self { data }
    }

    /// The data file.
    pub fn path(&self) -> &Path {
        &self.data
    }

    /// Adds a container, or replaces the entry of its handle.
    pub fn add(&self, entry: Entry) -> Result<(), Error> {
        if entry.handle.is_empty() {
            return Err(Error::NoHandle);
        }
        if entry.ip.parse::<IpAddr>().is_err() {
            return Err(Error::BadAddress(entry.ip));
        }
        self.change(|entries| {
            entries.insert(entry.handle.clone(), entry);
        })
    }

    /// Removes a container; an unknown handle only increments the version.
    pub fn remove(&self, handle: &str) -> Result<(), Error> {
        self.change(|entries| {
            entries.remove(handle);
        })
    }

    /// Replaces the whole content.
    pub fn fill(&self, all: Vec<Entry>) -> Result<(), Error> {
        self.change(|entries| {
            *entries = all.into_iter().map(|entry| (entry.handle.clone(), entry)).collect();
        })
    }

    fn change(&self, edit: impl FnOnce(&mut BTreeMap<String, Entry>)) -> Result<(), Error> {
        let _locked = self.lock()?;
        let mut file = open(&self.data)?;
        let failed = |verb| move |source| Error::File { verb, path: self.data.clone(), source };
        let mut text = String::new();
        file.read_to_string(&mut text).map_err(failed("read"))?;
        let torn = |source| Error::Torn { path: self.data.clone(), source };
        let mut entries = match text.trim() {
            "" => BTreeMap::new(),
            text => runtime::json::from_str(text).map_err(torn)?,
        };
        edit(&mut entries);
        let text = serde_json::to_string(&entries).map_err(torn)?;
        rewrite(&mut file, &text).map_err(failed("write"))?;
        self.raise_version()
    }

    fn raise_version(&self) -> Result<(), Error> {
        let path = self.beside("_version");
        let mut file = open(&path)?;
        let failed = |verb| {
            let path = path.clone();
            move |source| Error::File { verb, path, source }
        };
        let mut text = String::new();
        file.read_to_string(&mut text).map_err(failed("read"))?;
        let version = match text.as_str() {
            "" => 1,
            text => text.parse::<u64>().map_err(|_error| Error::BadVersion(path.clone()))?,
        };
        rewrite(&mut file, &(version + 1).to_string()).map_err(failed("write"))
    }

    /// Held until the file is dropped.
    fn lock(&self) -> Result<File, Error> {
        let path = self.beside("_lock");
        if let Some(directory) = path.parent() {
            let made = std::fs::DirBuilder::new().recursive(true).mode(0o700).create(directory);
            made.map_err(|source| Error::File { verb: "make", path: directory.into(), source })?;
        }
        let file = open(&path)?;
        file.lock().map_err(|source| Error::File { verb: "lock", path, source })?;
        Ok(file)
    }

    fn beside(&self, suffix: &str) -> PathBuf {
        let mut path = self.data.clone().into_os_string();
        path.push(suffix);
        path.into()
    }
}

fn open(path: &Path) -> Result<File, Error> {
    let options = OpenOptions::new().read(true).write(true).create(true).mode(0o600).clone();
    options.open(path).map_err(|source| Error::File { verb: "open", path: path.into(), source })
}

fn rewrite(file: &mut File, text: &str) -> io::Result<()> {
    file.set_len(0)?;
    file.seek(SeekFrom::Start(0))?;
    file.write_all(text.as_bytes())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entry(handle: &str, ip: &str) -> Entry {
        let metadata = BTreeMap::from([("space_id".to_owned(), "s1".to_owned())]);
        Entry { handle: handle.to_owned(), ip: ip.to_owned(), metadata: Some(metadata) }
    }

    fn store() -> (tempfile::TempDir, Store) {
        let directory = tempfile::tempdir().unwrap();
        let store = Store::at(directory.path().join("container-metadata/store.json"));
        (directory, store)
    }

    fn text(store: &Store, suffix: &str) -> String {
        std::fs::read_to_string(format!("{}{suffix}", store.path().display())).unwrap()
    }

    #[test]
    fn entries_are_written_sorted_and_the_version_rises() {
        let (_directory, store) = store();
        store.add(entry("b", "10.255.1.3")).unwrap();
        assert_eq!(text(&store, "_version"), "2");
        store.add(entry("a", "10.255.1.2")).unwrap();
        assert_eq!(
            text(&store, ""),
            r#"{"a":{"handle":"a","ip":"10.255.1.2","metadata":{"space_id":"s1"}},"b":{"handle":"b","ip":"10.255.1.3","metadata":{"space_id":"s1"}}}"#
        );
        store.remove("b").unwrap();
        assert_eq!(
            text(&store, ""),
            r#"{"a":{"handle":"a","ip":"10.255.1.2","metadata":{"space_id":"s1"}}}"#
        );
        assert_eq!(text(&store, "_version"), "4");
    }

    #[test]
    fn the_file_is_rewritten_in_place_and_private() {
        use std::os::unix::fs::MetadataExt;
        let (_directory, store) = store();
        store.add(entry("a", "10.255.1.2")).unwrap();
        let before = std::fs::metadata(store.path()).unwrap();
        store.remove("a").unwrap();
        let after = std::fs::metadata(store.path()).unwrap();
        assert_eq!(before.ino(), after.ino());
        assert_eq!(after.mode() & 0o777, 0o600);
        assert_eq!(text(&store, ""), "{}");
    }

    #[test]
    fn a_torn_file_is_an_error_and_unchanged() {
        let (_directory, store) = store();
        store.add(entry("a", "10.255.1.2")).unwrap();
        let torn = r#"{"a":{"handle":"a","ip":"10.25"#;
        std::fs::write(store.path(), torn).unwrap();
        let error = store.add(entry("b", "10.255.1.3")).unwrap_err();
        assert!(matches!(error, Error::Torn { .. }), "{error}");
        assert_eq!(text(&store, ""), torn);
        assert_eq!(text(&store, "_version"), "2");
    }

    #[test]
    fn a_bad_version_is_an_error() {
        let (_directory, store) = store();
        store.add(entry("a", "10.255.1.2")).unwrap();
        std::fs::write(format!("{}_version", store.path().display()), "two").unwrap();
        let error = store.remove("a").unwrap_err();
        assert!(error.to_string().ends_with("store.json_version' is not a number"), "{error}");
    }

    #[test]
    fn what_the_store_refuses_is_refused() {
        let (_directory, store) = store();
        assert!(matches!(store.add(entry("", "10.255.1.2")), Err(Error::NoHandle)));
        assert!(matches!(store.add(entry("a", "10.255.1")), Err(Error::BadAddress(_))));
        assert!(!store.path().exists());
    }

    #[test]
    fn writers_wait_for_each_other() {
        let (_directory, store) = store();
        std::thread::scope(|scope| {
            for writer in 0..4 {
                let store = store.clone();
                scope.spawn(move || {
                    for turn in 0..20 {
                        store.add(entry(&format!("{writer}-{turn}"), "10.255.1.2")).unwrap();
                    }
                });
            }
        });
        let entries: BTreeMap<String, Entry> = serde_json::from_str(&text(&store, "")).unwrap();
        assert_eq!(entries.len(), 80);
        assert_eq!(text(&store, "_version"), "81");
    }
}
