//! Where everything of a cluster lies below its state directory. Pure.

use std::path::{Path, PathBuf};

use super::topology::{Cell, MOST_CELLS};

/// Bytes of a Unix socket's path: `sun_path` of `struct sockaddr_un`, less its final zero.
const LONGEST_SOCKET_PATH: usize = 107;

/// The paths of one cluster.
#[derive(Debug, Clone)]
pub struct Layout {
    root: PathBuf,
}

impl Layout {
    /// Below that directory.
    pub fn below(root: &Path) -> Self {
        Self { root: root.to_owned() }
    }

    /// The state directory.
    pub fn root(&self) -> &Path {
        &self.root
    }

    /// Directories that a start empties: nothing of an earlier run is used.
    pub fn fresh(&self) -> [PathBuf; 4] {
        ["certificates", "config", "data", "logs"].map(|kind| self.root.join(kind))
    }

    /// Directories that cells of an earlier run may have left; a start removes them.
    pub fn leftovers(&self) -> impl Iterator<Item = PathBuf> {
        Cell::all(MOST_CELLS).map(|cell| self.cell(cell))
    }

    /// The socket on which the launcher takes requests.
    pub fn launcher_socket(&self) -> PathBuf {
        self.root.join("launcher.sock")
    }

    /// Checks that every socket below the state directory has a path that the kernel takes.
    pub fn check_socket_paths(&self) -> Result<(), String> {
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

    /// Where the certificate authority keeps what it issued.
    pub fn certificates(&self) -> PathBuf {
        self.root.join("certificates")
    }

    /// The authority's certificate.
    pub fn ca(&self) -> PathBuf {
        self.certificates().join("ca.crt")
    }

    /// The certificate and the key that were issued to `name`.
    pub fn certificate(&self, name: &str) -> (PathBuf, PathBuf) {
        let file = |extension| self.certificates().join(format!("{name}.{extension}"));
        (file("crt"), file("key"))
    }

    /// The configuration file of a process.
    pub fn config(&self, process: &str) -> PathBuf {
        self.root.join("config").join(format!("{process}.json"))
    }

    /// The log file of a process.
    pub fn log(&self, process: &str) -> PathBuf {
        self.root.join("logs").join(format!("{process}.log"))
    }

    /// All log files.
    pub fn logs(&self) -> PathBuf {
        self.root.join("logs")
    }

    /// What a person's shell reads.
    pub fn env(&self) -> PathBuf {
        self.root.join("env")
    }

    /// The database of a service.
    pub fn database(&self, service: &str) -> PathBuf {
        self.root.join("data").join(format!("{service}.db"))
    }

    /// What a cell keeps.
    pub fn cell(&self, cell: Cell) -> PathBuf {
        self.root.join(cell.name())
    }

    /// A cell's container metadata store.
    pub fn metadata(&self, cell: Cell) -> PathBuf {
        self.cell(cell).join("container-metadata").join("store.json")
    }

    /// Where a cell's agent keeps its state.
    pub fn agent_state(&self, cell: Cell) -> PathBuf {
        self.cell(cell).join("agent")
    }

    /// Where a cell's agent answers operators.
    pub fn agent_socket(&self, cell: Cell) -> PathBuf {
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
