//! The parts of the foundation. Pure.

use std::fmt;

use serde::{Deserialize, Serialize};

/// A part of the foundation. Instances and cells are counted from 1.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum Part {
    CloudController,
    LockServer(u8),
    PolicyStore(u8),
    Syncer(u8),
    Agent(u8),
    /// The database server that lock servers and policy stores share.
    Database,
}

impl fmt::Display for Part {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::CloudController => f.write_str("cloud-controller"),
            Self::LockServer(number) => write!(f, "lock-server-{number}"),
            Self::PolicyStore(number) => write!(f, "policy-store-{number}"),
            Self::Syncer(number) => write!(f, "syncer-{number}"),
            Self::Agent(number) => write!(f, "cell-agent-{number}"),
            Self::Database => f.write_str("database"),
        }
    }
}

/// How many parts there are, and what else can fail.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Shape {
    pub(crate) lock_servers: u8,
    pub(crate) policy_stores: u8,
    pub(crate) syncers: u8,
    pub(crate) cells: u8,
    pub(crate) has_database: bool,
    /// The database server has a replica.
    pub(crate) has_replica: bool,
    /// There are programs of an earlier release.
    pub(crate) has_earlier: bool,
}

impl Shape {
    /// All parts that are processes of the services, and the Cloud Controller.
    pub(crate) fn parts(self) -> Vec<Part> {
        let mut parts = vec![Part::CloudController];
        parts.extend(self.services());
        parts
    }

    /// All parts that are processes of the services.
    pub(crate) fn services(self) -> Vec<Part> {
        let mut parts: Vec<Part> = (1..=self.lock_servers).map(Part::LockServer).collect();
        parts.extend((1..=self.policy_stores).map(Part::PolicyStore));
        parts.extend((1..=self.syncers).map(Part::Syncer));
        parts.extend((1..=self.cells).map(Part::Agent));
        parts
    }

    /// The parts with a database file of their own.
    pub(crate) fn with_files(self) -> Vec<Part> {
        if self.has_database {
            return Vec::new();
        }
        vec![Part::LockServer(1), Part::PolicyStore(1)]
    }

    /// Pairs of parts, the client first.
    pub(crate) fn links(self) -> Vec<(Part, Part)> {
        let mut links = Vec::new();
        let stores = || (1..=self.policy_stores).map(Part::PolicyStore);
        let locks = || (1..=self.lock_servers).map(Part::LockServer);
        for syncer in (1..=self.syncers).map(Part::Syncer) {
            links.push((syncer, Part::CloudController));
            links.extend(stores().chain(locks()).map(|server| (syncer, server)));
        }
        for agent in (1..=self.cells).map(Part::Agent) {
            links.extend(stores().map(|store| (agent, store)));
        }
        if self.has_database {
            links.extend(stores().chain(locks()).map(|client| (client, Part::Database)));
        }
        links
    }
}
