//! Runs the iptables programs, under the lock that all users of iptables on a cell
//! take.
//!
//! The CNI plugin and others take the lock for each single command
//! (docs/compatibility/vxlan-policy-agent.md#applying). Here the lock is held from
//! reading the table to changing it, so that the read state is still valid; for the
//! others that is one command.

use std::{
    fs::{DirBuilder, File, OpenOptions, TryLockError},
    io, iter,
    os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _},
    path::{Path, PathBuf},
    time::Duration,
};

use nix::libc::O_CREAT;
use tokio::time::{Instant, sleep};

use super::{
    batch::{Reading, Saved, Trial},
    chains::Family,
};
use crate::plane::program::{Error, Program};

/// Timeout for the lock; commands of other programs take seconds at most.
const LOCK_DEADLINE: Duration = Duration::from_secs(30);
/// Retry interval for a lock that another process holds.
const LOCK_RETRY: Duration = Duration::from_millis(2);
/// Timeout of iptables-restore for the kernel's own lock, in seconds.
const WAIT: &str = "30";

/// iptables-save and iptables-restore for both families.
#[derive(Debug)]
pub struct Iptables {
    path: PathBuf,
    lock: PathBuf,
}

/// Released when dropped.
#[derive(Debug)]
pub struct Locked {
    _file: File,
}

/// Why a batch was not applied.
#[derive(Debug)]
pub enum Refusal {
    /// iptables-restore or the kernel refuses the batch.
    Refused {
        /// The refused line, counted from 1, if the program names it.
        line: Option<usize>,
        /// The program's message.
        reason: String,
    },
    /// Any other error.
    Failed(Error),
}

impl Refusal {
    /// Drops the line number.
    #[must_use]
    pub fn into_error(self) -> Error {
        match self {
            Self::Refused { reason, .. } => Error::Refused(reason),
            Self::Failed(error) => error,
        }
    }
}

impl Iptables {
    /// The programs with this path prefix (`iptables`, `iptables-legacy`,
    /// `/sbin/iptables`), with a lock file.
    #[must_use]
    pub fn new(path: &Path, lock: &Path) -> Self {
        Self { path: path.to_owned(), lock: lock.to_owned() }
    }

    /// The lock file.
    #[must_use]
    pub fn lock_file(&self) -> &Path {
        &self.lock
    }

    fn program(&self, family: Family, what: &str) -> Program {
        let name = self.path.file_name().unwrap_or_default().to_string_lossy();
        let name = match family {
            Family::V4 => name.into_owned(),
            Family::V6 => name.replacen("iptables", "ip6tables", 1),
        };
        let path = self.path.with_file_name(format!("{name}-{what}"));
        Program { path, package: "iptables", key: "iptables_path", crash: "" }
    }

    /// Whether these programs write through nftables, so that the kernel counts their
    /// changes.
    ///
    /// # Errors
    /// The program does not run.
    pub async fn is_nft(&self) -> Result<bool, Error> {
        let program = self.program(Family::V4, "restore");
        let output = program.finish(program.start(&["--version"])?, "").await?;
        let text = String::from_utf8_lossy(&output.stdout);
        if !output.status.success() || !text.contains("iptables") {
            let problem = format!("{} --version says {:?}", program.name(), text.trim());
            return Err(Error::Refused(problem));
        }
        Ok(text.contains("nf_tables"))
    }

    /// The name of the writing program in errors.
    #[must_use]
    pub fn writer(&self, family: Family) -> String {
        self.program(family, "restore").name()
    }

    /// How these programs print each of the rules, tried in a chain without packets.
    ///
    /// # Errors
    /// The rules are refused, or the table cannot be read.
    pub async fn spell(&self, family: Family, rules: &[String]) -> Result<Vec<String>, Error> {
        let trial = Trial::of(rules.iter().map(String::as_str));
        self.restore(family, iter::once(trial.text())).await.map_err(Refusal::into_error)?;
        let saved = self.save(family).await;
        let cleaned = self.restore(family, iter::once(Trial::cleanup())).await;
        cleaned.map_err(Refusal::into_error)?;
        Ok(saved?.tried().map(str::to_owned).collect())
    }

    /// The filter table as iptables-save prints it.
    ///
    /// # Errors
    /// The program does not run, or cannot read the table.
    pub async fn save(&self, family: Family) -> Result<Saved, Error> {
        let program = self.program(family, "save");
        let mut reading = Reading::default();
        let child = program.start(&["-t", "filter"])?;
        let output = program.listen(child, |piece| reading.take(piece)).await?;
        if output.status.success() {
            let unreadable = |reason| Error::Unreadable { program: program.name(), reason };
            return reading.finish().map_err(unreadable);
        }
        Err(refusal(&String::from_utf8_lossy(&output.stderr)).into_error())
    }

    /// Packet counts of a chain's rules.
    ///
    /// # Errors
    /// The program does not run, or cannot read the table.
    pub async fn counted(&self, family: Family, chain: &str) -> Result<u64, Error> {
        let program = self.program(family, "save");
        let output = program.finish(program.start(&["-c", "-t", "filter"])?, "").await?;
        let table = String::from_utf8_lossy(&output.stdout);
        let rule = format!("] -A {chain} ");
        let of_chain = table.lines().filter(|line| line.contains(&rule));
        let packets = |line: &str| line.strip_prefix('[')?.split(':').next()?.parse::<u64>().ok();
        Ok(of_chain.filter_map(packets).sum())
    }

    /// Number of packets that returned from the end of a chain; `None` if the chain cannot be
    /// read. Reads the chain alone where the program can.
    pub async fn returned(&self, family: Family, chain: &str) -> Option<u64> {
        let mut program = self.program(family, "");
        let name = program.path.file_name()?.to_str()?.trim_end_matches('-').to_owned();
        program.path.set_file_name(name);
        let child = program.start(&["-w", "-t", "filter", "-v", "-S", chain]).ok()?;
        let output = program.finish(child, "").await.ok()?;
        let text = String::from_utf8_lossy(&output.stdout);
        let rule = text.lines().rfind(|line| line.ends_with(" -j RETURN"))?;
        rule.split_once(" -c ")?.1.split(' ').next()?.parse().ok()
    }

    /// Applies this input, all or nothing.
    ///
    /// # Errors
    /// The kernel is unchanged, except after [`Error::Hangs`] and [`Error::Run`], where
    /// its state is unknown.
    pub async fn restore(
        &self,
        family: Family,
        pieces: impl Iterator<Item = impl AsRef<str>>,
    ) -> Result<(), Refusal> {
        self.run(family, pieces, &[]).await
    }

    /// Checks whether the program accepts this input, and changes nothing.
    ///
    /// # Errors
    /// The input is refused.
    pub async fn test(
        &self,
        family: Family,
        pieces: impl Iterator<Item = impl AsRef<str>>,
    ) -> Result<(), Refusal> {
        self.run(family, pieces, &["--test"]).await
    }

    async fn run(
        &self,
        family: Family,
        pieces: impl Iterator<Item = impl AsRef<str>>,
        more: &[&str],
    ) -> Result<(), Refusal> {
        let program = self.program(family, "restore");
        let arguments = [&["--noflush", "-w", WAIT], more].concat();
        let child = program.start(&arguments).map_err(Refusal::Failed)?;
        let output = program.hand_over(child, pieces).await.map_err(Refusal::Failed)?;
        if output.status.success() {
            return Ok(());
        }
        Err(refusal(&String::from_utf8_lossy(&output.stderr)))
    }

    /// Waits for the iptables lock of the cell.
    ///
    /// # Errors
    /// The lock file cannot be created, or another process holds the lock.
    pub async fn lock(&self) -> Result<Locked, Error> {
        let failed = |source| Error::Lock { path: self.lock.clone(), source };
        let directory = self.lock.parent().unwrap_or(Path::new("."));
        DirBuilder::new().recursive(true).mode(0o700).create(directory).map_err(failed)?;
        let mut options = OpenOptions::new();
        // Read-only: the change detector ignores files that were opened for reading.
        let file = options.read(true).custom_flags(O_CREAT).mode(0o600);
        let file = file.open(&self.lock).map_err(failed)?;
        let deadline = Instant::now() + LOCK_DEADLINE;
        loop {
            match file.try_lock() {
                Ok(()) => return Ok(Locked { _file: file }),
                Err(TryLockError::Error(error)) => return Err(failed(error)),
                Err(TryLockError::WouldBlock) if Instant::now() > deadline => {
                    return Err(failed(io::Error::from(io::ErrorKind::TimedOut)));
                }
                Err(TryLockError::WouldBlock) => sleep(LOCK_RETRY).await,
            }
        }
    }
}

/// Parses the error message. iptables-restore has several forms: for a line that it
/// does not understand, for one that the kernel refuses (nft), and for a whole table
/// that the kernel refuses (legacy), where the line is that of COMMIT.
fn refusal(stderr: &str) -> Refusal {
    if let Some((_, rest)) = stderr.split_once("can't open lock file ") {
        let line = rest.lines().next().unwrap_or_default();
        let (path, reason) = line.split_once(": ").unwrap_or((line, "unknown reason"));
        let (path, source) = (path.into(), io::Error::other(reason.to_owned()));
        return Refusal::Failed(Error::Lock { path, source });
    }
    if stderr.contains("Permission denied") || stderr.contains("you must be root") {
        return Refusal::Failed(Error::Permission);
    }
    if stderr.contains("holding the xtables lock") {
        let source = io::Error::from(io::ErrorKind::TimedOut);
        return Refusal::Failed(Error::Lock { path: "/run/xtables.lock".into(), source });
    }
    let number = |text: &str| {
        let digits = text.trim_start().split(|c: char| !c.is_ascii_digit()).next()?;
        digits.parse().ok()
    };
    let after = |mark: &str| stderr.split_once(mark).and_then(|(_, rest)| number(rest));
    let line = after("occurred at line:").or_else(|| after("line "));
    let noise = |line: &&str| {
        let line = line.trim();
        let says_nothing = line.is_empty() || line.ends_with("):");
        !(says_nothing || line.starts_with("Try `") || line.starts_with("Error occurred"))
    };
    let message = stderr.lines().find(noise).unwrap_or("it says nothing").trim();
    // "iptables-restore v1.8.9 (legacy): unknown option"
    let is_named = message.starts_with("iptables") || message.starts_with("ip6tables");
    let message =
        message.split_once("): ").filter(|_| is_named).map_or(message, |(_, message)| message);
    Refusal::Refused { line, reason: message.chars().take(300).collect() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_line_and_the_reason_are_found_in_every_complaint() {
        for (stderr, line, reason) in [
            (
                "iptables-restore v1.8.9 (legacy): invalid portrange (min > max)\n\
                 Error occurred at line: 3\nTry `iptables-restore -h' for more information.\n",
                Some(3),
                "invalid portrange (min > max)",
            ),
            ("iptables-restore: line 9 failed\n", Some(9), "iptables-restore: line 9 failed"),
            (
                "iptables-nft-restore v1.8.9 (nf_tables): \n\
                 line 7: RULE_APPEND failed (No such file or directory): rule in chain asg-a\n",
                Some(7),
                "line 7: RULE_APPEND failed (No such file or directory): rule in chain asg-a",
            ),
            ("", None, "it says nothing"),
        ] {
            let Refusal::Refused { line: found, reason: why } = refusal(stderr) else { panic!() };
            assert_eq!((found, why.as_str()), (line, reason), "{stderr}");
        }
    }

    #[test]
    fn a_lock_file_of_another_user_is_no_missing_capability() {
        let stderr = "Fatal: can't open lock file /run/xtables.lock: Permission denied\n";
        let Refusal::Failed(error) = refusal(stderr) else { panic!() };
        let text = runtime::error::chain(&error).to_string();
        assert_eq!(text, "cannot lock /run/xtables.lock: Permission denied");
        let stderr = "iptables-restore: unable to initialize table 'filter'\n\
                      Permission denied (you must be root)";
        assert!(matches!(refusal(stderr), Refusal::Failed(Error::Permission)));
    }

    #[test]
    fn the_programs_are_found_by_how_their_names_begin() {
        let name = |path: &str, family, what: &str| {
            Iptables::new(Path::new(path), Path::new("lock")).program(family, what).name()
        };
        assert_eq!(name("iptables", Family::V4, "save"), "iptables-save");
        assert_eq!(name("iptables-legacy", Family::V6, "restore"), "ip6tables-legacy-restore");
        assert_eq!(
            name("/iptables/bin/iptables", Family::V6, "save"),
            "/iptables/bin/ip6tables-save"
        );
    }

    #[tokio::test]
    async fn two_do_not_hold_the_lock() {
        let directory = tempfile::tempdir().unwrap();
        let iptables = Iptables::new(Path::new("iptables"), &directory.path().join("a/lock"));
        let held = iptables.lock().await.unwrap();
        let other = async { iptables.lock().await.unwrap() };
        let mut other = Box::pin(other);
        let waited = tokio::time::timeout(Duration::from_millis(30), &mut other).await;
        waited.unwrap_err();
        drop(held);
        other.await;
    }
}
