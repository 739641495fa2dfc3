//! Plans rulesets, and applies them without the rules and containers that the kernel
//! refuses.

use std::{collections::BTreeSet, pin::Pin, sync::Arc};

use runtime::error::chain;

use super::Inputs;
use crate::{
    containers::{Containers, Snapshot},
    interfaces::Routes,
    plan::{Known, Planner, Refused, Ruleset, Settings},
    plane::{Error, Plane},
};

/// Maximum number of refused rules or containers that are isolated one by one, as named
/// in the data plane's errors; above that a search is faster.
const NAMED_MOST: usize = 8;

/// The inputs of one attempt.
#[derive(Debug)]
pub(super) struct Attempt {
    /// Number of the reading of the metadata store; 0 before the first.
    pub(super) reading: u64,
    pub(super) snapshot: Arc<Snapshot>,
    /// Empty if the groups are unknown.
    pub(super) known: Arc<Known>,
    pub(super) knows_groups: bool,
}

impl Attempt {
    /// The current inputs.
    pub(super) fn of(inputs: &mut Inputs) -> Self {
        let Containers { reading, snapshot } = inputs.containers.borrow_and_update().clone();
        let known = inputs.groups.borrow_and_update().clone();
        let knows_groups = known.is_some();
        Self { reading, snapshot, known: known.unwrap_or_default(), knows_groups }
    }
}

/// A call of a data plane with a ruleset.
pub(super) type Call<T> = for<'a> fn(
    &'a mut dyn Plane,
    &'a Ruleset,
)
    -> Pin<Box<dyn Future<Output = Result<T, Error>> + Send + 'a>>;

/// Plans rulesets, and remembers what the kernel refuses.
#[derive(Debug)]
pub(super) struct Enforcer {
    pub(super) settings: Arc<Settings>,
    planner: Planner,
    pub(super) refused: Refused,
    /// Refused rules and containers that are already logged; each is logged once.
    pub(super) logged: Refused,
    /// Interfaces of containers.
    interfaces: BTreeSet<String>,
}

impl Enforcer {
    pub(super) fn new(settings: Arc<Settings>) -> Self {
        Self {
            planner: Planner::new(Arc::clone(&settings)),
            settings,
            refused: Refused::default(),
            logged: Refused::default(),
            interfaces: BTreeSet::new(),
        }
    }

    /// Forgets refused rules and containers, since the kernel may accept them now.
    /// Returns whether there were any.
    pub(super) fn retries_refused(&mut self) -> bool {
        let refused = std::mem::take(&mut self.refused);
        let any = refused != Refused::default();
        self.logged.add(refused);
        any
    }

    /// Finds the interfaces of the containers. Returns whether they changed.
    pub(super) fn finds_interfaces(&mut self, snapshot: &Snapshot) -> bool {
        let claimed = snapshot.claimed.iter().copied();
        let interfaces = match Routes::read() {
            Ok(routes) => routes.behind(claimed, &self.interfaces, &self.settings.underlay),
            Err(error) => {
                tracing::error!(error = chain(&error), "interfaces-unreadable");
                return false;
            }
        };
        let others = self.interfaces != interfaces;
        if others {
            tracing::info!(interfaces = ?interfaces, "container-interfaces");
        }
        self.interfaces = interfaces;
        others
    }

    /// Plans the inputs, and calls `apply` with the ruleset; rules and containers that it
    /// or `check` refuses are left out and logged. Returns the ruleset, the result, and
    /// whether refused rules were searched for.
    pub(super) async fn enforce<T>(
        &mut self,
        plane: &mut dyn Plane,
        (apply, check): (Call<T>, Call<()>),
        attempt: &Attempt,
    ) -> Result<(Ruleset, T, bool), Error> {
        let mut ruleset = self.plan(attempt);
        let mut result = apply(plane, &ruleset).await;
        for _ in 0..NAMED_MOST {
            let Err(Error::Culprit { unit, reason }) = &result else { break };
            self.leave_out(attempt, &ruleset, unit, reason);
            ruleset = self.plan(attempt);
            result = apply(plane, &ruleset).await;
        }
        let searched = matches!(result, Err(Error::Refused(_) | Error::Culprit { .. }));
        if let Err(Error::Refused(reason) | Error::Culprit { reason, .. }) = result {
            self.isolate(plane, check, attempt, &ruleset, reason).await?;
            ruleset = self.plan(attempt);
            result = apply(plane, &ruleset).await;
        }
        let result = result?;
        self.logged = Refused::default();
        Ok((ruleset, result, searched))
    }

    fn plan(&mut self, attempt: &Attempt) -> Ruleset {
        let mut ruleset = self.planner.plan(&attempt.snapshot, &attempt.known, &self.refused);
        ruleset.interfaces.clone_from(&self.interfaces);
        ruleset
    }
}
