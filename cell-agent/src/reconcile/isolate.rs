//! Isolates rules and containers that the kernel refuses or that cannot be parsed, and
//! reports them by their names in the inputs.

use std::collections::{BTreeMap, BTreeSet};

use model::{ids::GroupGuid, rule::Unenforceable};

use super::enforce::{Attempt, Call, Enforcer};
use crate::{
    isolate::{Finding, Search, Unit},
    plan::{Assignment, Refused, Ruleset, plan},
    plane::{Error, Plane},
};

impl Enforcer {
    /// Finds the refused rules and containers, and excludes them from now on.
    pub(super) async fn isolate(
        &mut self,
        plane: &mut dyn Plane,
        check: Call<()>,
        attempt: &Attempt,
        ruleset: &Ruleset,
        reason: String,
    ) -> Result<(), Error> {
        if self.logged == Refused::default() {
            tracing::error!(error = reason, "kernel-refused.looking-for-the-culprit");
        }
        let all = units(ruleset);
        let mut search = Search::new(all.iter().cloned().collect());
        while let Some(trial) = search.trial() {
            let mut refused = self.refused.clone();
            for unit in all.iter().filter(|unit| !trial.contains(unit)) {
                refuse(&mut refused, attempt, unit, "left out for a trial");
            }
            let trial = plan(&self.settings, &attempt.snapshot, &attempt.known, &refused);
            match check(plane, &trial).await {
                Ok(()) => search.answer(Ok(())),
                Err(Error::Refused(reason)) => search.answer(Err(reason)),
                Err(error) => return Err(error),
            }
        }
        match search.finding() {
            Finding::Culprits(culprits) if !culprits.is_empty() => {
                for (unit, reason) in culprits {
                    self.leave_out(attempt, ruleset, &unit, &reason);
                }
                Ok(())
            }
            Finding::Culprits(_) => Err(Error::Refused(reason)),
            Finding::NoUnit(reason) => Err(Error::Refused(reason)),
        }
    }

    pub(super) fn leave_out(
        &mut self,
        attempt: &Attempt,
        ruleset: &Ruleset,
        unit: &Unit,
        reason: &str,
    ) {
        refuse(&mut self.refused, attempt, unit, reason);
        if !is_same(&self.logged, &self.refused, unit) {
            log(ruleset, unit, reason);
        }
    }
}

/// Everything that the kernel could refuse by itself. Rules of one group are adjacent,
/// so that the first halves of the search are whole groups.
fn units(ruleset: &Ruleset) -> BTreeSet<Unit> {
    let mut units = BTreeSet::new();
    for policy in ruleset.policies.values() {
        let rules = policy.rules.permits.iter();
        units.extend(rules.map(|(_, at)| Unit::Rule(at.group.clone(), at.rule)));
    }
    let bound = ruleset.containers.iter().filter(|(_, planned)| planned.address.is_some());
    units.extend(bound.map(|(handle, _)| Unit::Container(handle.clone())));
    units
}

fn refuse(refused: &mut Refused, attempt: &Attempt, unit: &Unit, reason: &str) {
    match unit {
        Unit::Rule(group, rule) => {
            let read = attempt.known.groups.get(group);
            if let Some(spec) = read.and_then(|read| read.rule(*rule)) {
                let entry = (spec.clone(), reason.to_owned());
                refused.rules.insert((group.clone(), *rule), entry);
            }
        }
        Unit::Container(handle) => {
            if let Some(container) = attempt.snapshot.containers.get(handle) {
                let entry = (container.clone(), format!("the kernel rejects the rules: {reason}"));
                refused.containers.insert(handle.clone(), entry);
            }
        }
    }
}

/// Whether both refuse the unit with the same content.
fn is_same(one: &Refused, other: &Refused, unit: &Unit) -> bool {
    match unit {
        Unit::Rule(group, rule) => {
            let at = (group.clone(), *rule);
            let (one, other) = (one.rules.get(&at), other.rules.get(&at));
            one.zip(other).is_some_and(|((one, _), (other, _))| one == other)
        }
        Unit::Container(handle) => {
            let (one, other) = (one.containers.get(handle), other.containers.get(handle));
            one.zip(other).is_some_and(|((one, _), (other, _))| one == other)
        }
    }
}

/// Logs an isolated unit and the containers concerned.
fn log(ruleset: &Ruleset, unit: &Unit, reason: &str) {
    match unit {
        Unit::Container(handle) => {
            tracing::error!(container = %handle, error = reason, "container-isolated");
        }
        Unit::Rule(group, rule) => {
            let containers = concerned(ruleset, group);
            tracing::error!(
                "security-group" = %group,
                rule,
                containers = runtime::lager::json(&containers),
                error = reason,
                "rule-isolated"
            );
        }
    }
}

/// Logs unreadable rules or parts of them; once, when they appear.
pub(super) fn log_unreadable(before: &Ruleset, after: &Ruleset) {
    let logged = unreadable(before);
    for (at, problems) in unreadable(after) {
        if logged.get(&at) == Some(&problems) {
            continue;
        }
        let (group, rule) = at;
        let more = match problems.len() {
            1 => String::new(),
            several => format!(", and {} more", several - 1),
        };
        tracing::error!(
            "security-group" = %group,
            rule,
            containers = runtime::lager::json(&concerned(after, group)),
            error = format_args!("{}{more}", problems[0]),
            "rule-isolated"
        );
    }
}

/// The problems of each unreadable rule; at least one.
fn unreadable(ruleset: &Ruleset) -> BTreeMap<(&GroupGuid, usize), Vec<&Unenforceable>> {
    let mut unreadable = BTreeMap::new();
    for policy in ruleset.policies.values() {
        let mut own = BTreeMap::<_, Vec<_>>::new();
        for (problem, at) in &policy.rules.isolated {
            own.entry((&at.group, at.rule)).or_default().push(problem);
        }
        // Another policy with the same group has the same problems.
        unreadable.extend(own);
    }
    unreadable
}

/// The containers with rules of a group, limited for a log line.
fn concerned<'a>(ruleset: &'a Ruleset, group: &GroupGuid) -> Vec<&'a str> {
    let has = |assignment: &_| match assignment {
        Assignment::Bound(belongs) => {
            let rules = &ruleset.policies[belongs].rules;
            let permits = rules.permits.iter().map(|(_, source)| source);
            let mut all = permits.chain(rules.isolated.iter().map(|(_, source)| source));
            all.any(|source| source.group == *group)
        }
        _ => false,
    };
    let containers = ruleset.containers.iter().filter(|(_, planned)| has(&planned.assignment));
    containers.map(|(handle, _)| handle.as_str()).take(20).collect()
}
