//! Paths of a cluster's files below its state directory. Pure.

use std::path::{Path, PathBuf};

use super::topology::{Cell, MOST_CELLS};

/// Maximum length of a Unix socket's path: `sun_path` of `struct sockaddr_un`, without
/// the final zero.
const LONGEST_SOCKET_PATH: usize = 107;

/// The paths of one cluster.
#[derive(Debug, Clone)]
pub(crate) struct Layout {
    root: PathBuf,
}

impl Layout {
    /// The paths below that directory.
    pub(crate) fn below(root: &Path) -> Self {
        Self { root: root.to_owned() }
    }

    /// The state directory.
    pub(crate) fn root(&self) -> &Path {
        &self.root
    }

    /// Directories that a start empties, so that no file of an earlier run is used.
    pub(crate) fn fresh(&self) -> [PathBuf; 4] {
        ["certificates", "config", "data", "logs"].map(|kind| self.root.join(kind))
    }

    /// Directories of cells of an earlier run; a start removes them.
    pub(crate) fn leftovers(&self) -> impl Iterator<Item = PathBuf> {
        Cell::all(MOST_CELLS).map(|cell| self.cell(cell))
    }

    /// The socket for requests to the launcher.
    pub(crate) fn launcher_socket(&self) -> PathBuf {
        self.root.join("launcher.sock")
    }

    /// Checks that every socket path below the state directory is short enough for the
    /// kernel.
    pub(crate) fn check_socket_paths(&self) -> Result<(), String> {
        let agents = Cell::all(MOST_CELLS).map(|cell| self.agent_socket(cell));
        let longest = agents.chain([self.launcher_socket()]).map(|path| path.as_os_str().len());
        let longest = longest.max().unwrap_or_default();
        if longest <= LONGEST_SOCKET_PATH {
            return Ok(());
        }
        Err(format!(
            "--state-dir {} is too long by {} bytes: Unix sockets below it may have paths of at \
             most {LONGEST_SOCKET_PATH} bytes",
            self.root.display(),
            longest - LONGEST_SOCKET_PATH
        ))
    }

    /// Directory of the issued certificates.
    pub(crate) fn certificates(&self) -> PathBuf {
        self.root.join("certificates")
    }

    /// The CA certificate.
    pub(crate) fn ca(&self) -> PathBuf {
        self.certificates().join("ca.crt")
    }

    /// The certificate and the key of `name`.
    pub(crate) fn certificate(&self, name: &str) -> (PathBuf, PathBuf) {
        let file = |extension| self.certificates().join(format!("{name}.{extension}"));
        (file("crt"), file("key"))
    }

    /// The configuration file of a process.
    pub(crate) fn config(&self, process: &str) -> PathBuf {
        self.root.join("config").join(format!("{process}.json"))
    }

    /// The log file of a process.
    pub(crate) fn log(&self, process: &str) -> PathBuf {
        self.root.join("logs").join(format!("{process}.log"))
    }

    /// Directory of all log files.
    pub(crate) fn logs(&self) -> PathBuf {
        self.root.join("logs")
    }

    /// The file for an operator's shell.
    pub(crate) fn env(&self) -> PathBuf {
        self.root.join("env")
    }

    /// The context file of `portcullisctl`.
    pub(crate) fn context(&self) -> PathBuf {
        self.root.join("context.json")
    }

    /// The database of a service.
    pub(crate) fn database(&self, service: &str) -> PathBuf {
        self.root.join("data").join(format!("{service}.db"))
    }

    /// Directory of a cell.
    pub(crate) fn cell(&self, cell: Cell) -> PathBuf {
        self.root.join(cell.name())
    }

    /// A cell's container metadata store.
    pub(crate) fn metadata(&self, cell: Cell) -> PathBuf {
        self.cell(cell).join("container-metadata").join("store.json")
    }

    /// State directory of a cell's agent.
    pub(crate) fn agent_state(&self, cell: Cell) -> PathBuf {
        self.cell(cell).join("agent")
    }

    /// The gRPC socket of a cell's agent.
    pub(crate) fn agent_socket(&self, cell: Cell) -> PathBuf {
        self.cell(cell).join("agent.sock")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_state_directory_that_is_too_long_for_sockets_is_refused() {
        let suffix = "/cell-32/agent.sock".len();
        let fits = "/".to_owned() + &"d".repeat(LONGEST_SOCKET_PATH - suffix - 1);
        assert_eq!(Layout::below(Path::new(&fits)).check_socket_paths(), Ok(()));
        let error = Layout::below(Path::new(&(fits + "dd"))).check_socket_paths().unwrap_err();
        assert!(error.contains("is too long by 2 bytes"), "{error}");
    }
}
