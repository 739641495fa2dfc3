//! Runs a program that changes the packet filter, and describes how it can fail.

use std::{
    io, iter,
    os::unix::process::ExitStatusExt as _,
    path::PathBuf,
    process::{Output, Stdio},
    time::Duration,
};

use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    process::{Child, Command},
};

use crate::isolate::Unit;

/// Timeout of one run; far more than any input needs.
const DEADLINE: Duration = Duration::from_secs(60);

/// Capacity of a pipe.
const PIECE: usize = 64 << 10;

/// `SIGABRT`, `SIGBUS` and `SIGSEGV`.
const CRASHES: [i32; 3] = [nix::libc::SIGABRT, nix::libc::SIGBUS, nix::libc::SIGSEGV];

/// Why a script was not applied.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The program was not found.
    #[error("there is no {program}: install {package}, or set {key}")]
    Missing {
        /// The program.
        program: String,
        /// The package that contains the program.
        package: &'static str,
        /// The configuration key of the program's path.
        key: &'static str,
    },
    /// The program failed to run.
    #[error("cannot run {program}")]
    Run {
        /// The program.
        program: String,
        /// The cause.
        source: io::Error,
    },
    /// The agent lacks permission to change the packet filter.
    #[error("no permission to change the packet filter: the agent needs the capability NET_ADMIN")]
    Permission,
    /// The program or the kernel refuses the script.
    #[error("the packet filter refuses: {0}")]
    Refused(String),
    /// The program names the refused part of the script.
    #[error("the packet filter refuses {unit:?}: {reason}")]
    Culprit {
        /// The rule or container that the part belongs to.
        unit: Unit,
        /// The program's message.
        reason: String,
    },
    /// The program does not list the kernel's state. That does not mean that the state
    /// is empty.
    #[error("{program} does not print the table: {reason}")]
    Unreadable {
        /// The program.
        program: String,
        /// The program's output.
        reason: String,
    },
    /// The program reports success, but the kernel does not show the change.
    #[error("{program} reports success, but the kernel {state}")]
    NotSeen {
        /// The program.
        program: String,
        /// The kernel's state.
        state: String,
    },
    /// The change exceeds the size limit of one netlink message.
    #[error(
        "the change does not fit into one message to the kernel: \
         raise net.core.wmem_default, or give the agent CAP_NET_ADMIN in the first user namespace"
    )]
    TooLong,
    /// The program timed out.
    #[error("the program did not end within {DEADLINE:?}")]
    Hangs,
    /// Another process holds the iptables lock.
    #[error("cannot lock {path}")]
    Lock {
        /// The lock file.
        path: PathBuf,
        /// The cause.
        source: io::Error,
    },
}

/// A program that changes the packet filter.
#[derive(Debug, Clone)]
pub(super) struct Program {
    pub(super) path: PathBuf,
    /// The package that contains the program.
    pub(super) package: &'static str,
    /// The configuration key of the program's path.
    pub(super) key: &'static str,
    /// Possible cause of a crash.
    pub(super) crash: &'static str,
}

impl Program {
    pub(super) fn start(&self, arguments: &[&str]) -> Result<Child, Error> {
        let started = Command::new(&self.path)
            .args(arguments)
            .env("LC_ALL", "C")
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .kill_on_drop(true)
            .spawn();
        started.map_err(|source| match source.kind() {
            io::ErrorKind::NotFound => {
                Error::Missing { program: self.name(), package: self.package, key: self.key }
            }
            _ => Error::Run { program: self.name(), source },
        })
    }

    pub(super) async fn finish(&self, child: Child, input: &str) -> Result<Output, Error> {
        self.hand_over(child, iter::once(input)).await
    }

    /// Writes the input to the program in pieces.
    pub(super) async fn hand_over(
        &self,
        mut child: Child,
        pieces: impl Iterator<Item = impl AsRef<str>>,
    ) -> Result<Output, Error> {
        let mut stdin = child.stdin.take().expect("stdin is piped");
        let talk = async {
            for piece in pieces {
                if stdin.write_all(piece.as_ref().as_bytes()).await.is_err() {
                    // The program exited without reading its input; its output says
                    // why.
                    break;
                }
            }
            drop(stdin);
            child.wait_with_output().await
        };
        self.in_time(talk).await
    }

    /// Passes the program's standard output to `take` in pieces; the returned output
    /// has none of it.
    pub(super) async fn listen(
        &self,
        mut child: Child,
        mut take: impl FnMut(&[u8]),
    ) -> Result<Output, Error> {
        drop(child.stdin.take());
        let mut stdout = child.stdout.take().expect("stdout is piped");
        let talk = async {
            let mut buffer = vec![0; PIECE];
            let read = async {
                loop {
                    match stdout.read(&mut buffer).await? {
                        0 => return Ok(()),
                        length => take(&buffer[..length]),
                    }
                }
            };
            let (read, output) = tokio::join!(read, child.wait_with_output());
            read.and(output)
        };
        self.in_time(talk).await
    }

    async fn in_time(
        &self,
        talk: impl Future<Output = io::Result<Output>>,
    ) -> Result<Output, Error> {
        let output = tokio::time::timeout(DEADLINE, talk).await.map_err(|_elapsed| Error::Hangs)?;
        let failed = |source| Error::Run { program: self.name(), source };
        let output = output.map_err(failed)?;
        // A killed program has not refused the script.
        match output.status.signal() {
            Some(signal) => {
                let hint = if CRASHES.contains(&signal) { self.crash } else { "" };
                Err(failed(io::Error::other(format!("ended with {}{hint}", output.status))))
            }
            None => Ok(output),
        }
    }

    pub(super) fn name(&self) -> String {
        self.path.display().to_string()
    }
}
