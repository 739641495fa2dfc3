//! Where everything of a cluster lies below its state directory. Pure.

use std::path::{Path, PathBuf};

use super::topology::Cell;

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

    /// What a start makes anew: nothing of an earlier run is used.
    pub fn fresh(&self, cells: u8) -> Vec<PathBuf> {
        let kinds = ["certificates", "config", "data", "logs"].map(|kind| self.root.join(kind));
        kinds.into_iter().chain(Cell::all(cells).map(|cell| self.cell(cell))).collect()
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
