//! The small disk of a part with SQLite: an ext4 file system in a file, which can be full or slow,
//! and have a database with a torn end.

use std::fs::{self, File};
use std::io::{ErrorKind, Write};
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::Context;
use cni::tools;
use tokio::time::sleep;
use tokio_util::sync::CancellationToken;

/// Enough for the databases of an hour, in bytes.
const SIZE: u64 = 96 << 20;
/// The file that fills a disk.
const FILLER: &str = "filler";
/// A slow disk writes nothing for the first time, and then something for the second.
const FROZEN: Duration = Duration::from_millis(300);
const THAWED: Duration = Duration::from_millis(50);

/// A disk, by its mount point.
#[derive(Debug, Clone)]
pub(crate) struct Disk {
    mount_point: PathBuf,
}

impl Disk {
    pub(crate) fn at(mount_point: PathBuf) -> Self {
        Self { mount_point }
    }

    /// Creates and mounts an empty disk.
    pub(crate) fn mount(&self) -> anyhow::Result<()> {
        let image = self.mount_point.with_extension("disk");
        fs::create_dir_all(&self.mount_point)?;
        File::create(&image)?.set_len(SIZE)?;
        let (image, to) = (image.as_os_str(), self.mount_point.as_os_str());
        // Without reserved blocks: the services run as root.
        let options = ["-q", "-F", "-m", "0"].map(AsRef::as_ref);
        tools::run("mkfs.ext4", options.into_iter().chain([image]))?;
        tools::run("mount", ["-o".as_ref(), "loop".as_ref(), image, to])?;
        Ok(())
    }

    pub(crate) fn unmount(&self) -> Result<(), tools::Error> {
        tools::run("umount", [&self.mount_point]).map(drop)
    }

    /// Unmounts the disk of a killed run, if there is one.
    pub(crate) fn unmount_leftover(&self) {
        let _not_frozen = self.thaw();
        let _not_mounted = self.unmount();
    }

    /// Writes until the disk is full.
    pub(crate) fn fill(&self) -> anyhow::Result<()> {
        let mut file = File::create(self.mount_point.join(FILLER))?;
        let block = [0; 64 << 10];
        loop {
            match file.write(&block) {
                Ok(_length) => {}
                Err(error) if error.kind() == ErrorKind::StorageFull => return Ok(()),
                Err(error) => return Err(error).context("filling a disk"),
            }
        }
    }

    /// Makes room again.
    pub(crate) fn empty(&self) -> anyhow::Result<()> {
        Ok(fs::remove_file(self.mount_point.join(FILLER))?)
    }

    /// Is slow until `end`.
    pub(crate) async fn slow(self, end: CancellationToken) -> anyhow::Result<()> {
        while !end.is_cancelled() {
            tools::run("fsfreeze", ["-f".as_ref(), self.mount_point.as_os_str()])?;
            end.run_until_cancelled(sleep(FROZEN)).await;
            self.thaw()?;
            end.run_until_cancelled(sleep(THAWED)).await;
        }
        Ok(())
    }

    fn thaw(&self) -> Result<(), tools::Error> {
        tools::run("fsfreeze", ["-u".as_ref(), self.mount_point.as_os_str()]).map(drop)
    }
}

/// Shorter than a frame of SQLite's write-ahead log.
const TORN_FRAME: [u8; 1000] = [7; 1000];
/// File systems leave zeros where a write was lost.
const LOST_FRAMES: [u8; 10_000] = [0; 10_000];

/// Leaves the end of the database's write-ahead log as a power failure during a write does.
pub(crate) fn tear(database: &Path) -> anyhow::Result<()> {
    let mut log = database.as_os_str().to_owned();
    log.push("-wal");
    // No log: its process has just started.
    let Ok(mut file) = File::options().append(true).open(&log) else { return Ok(()) };
    file.write_all(&LOST_FRAMES)?;
    Ok(file.write_all(&TORN_FRAME)?)
}
