//! What the rest of the agent may know of the kernel.

use std::{sync::Arc, time::SystemTime};

use model::generation::Generation;

use crate::{
    containers::Snapshot,
    plan::{Known, Ruleset},
};

/// The outcome of the last attempt, and what is in force.
#[derive(Debug, Clone)]
pub struct Enforced {
    /// The newest reading of the container store that an attempt was made with.
    pub attempted: u64,
    /// The newest reading that is in force.
    pub reading: u64,
    /// What is in force.
    pub ruleset: Arc<Ruleset>,
    /// The containers it was made from.
    pub snapshot: Arc<Snapshot>,
    /// The groups it was made from.
    pub known: Arc<Known>,
    /// When that was confirmed for the last time; `None` before the first time.
    pub at: Option<SystemTime>,
    /// Why the last attempt failed.
    pub error: Option<String>,
    /// How often somebody else's change was undone.
    pub drift_healed: u64,
}

impl Enforced {
    /// Before the first attempt.
    #[must_use]
    pub fn nothing(ruleset: Arc<Ruleset>) -> Self {
        Self {
            attempted: 0,
            reading: 0,
            ruleset,
            snapshot: Arc::default(),
            known: Arc::default(),
            at: None,
            error: None,
            drift_healed: 0,
        }
    }

    /// The newest generation of the policy store that is in force.
    #[must_use]
    pub fn generation(&self) -> Generation {
        self.known.generation
    }
}
