//! Explains connections by the security groups of a snapshot.

use std::{cmp::Reverse, sync::Arc};

use model::{
    effective::{Permit, Probe, ReadGroup, Source, Verdict, effective_rules},
    explain::{Fit, fit, near_misses},
    group::{GroupId, Lifecycle, SecurityGroup, StoredGroup},
    ids::SpaceGuid,
    rule::RuleSpec,
};

use super::snapshot::{Entry, Snapshot};

/// A rule, and where it was written.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SourcedRule {
    /// The group.
    pub group: Arc<SecurityGroup>,
    /// Position of the rule in the group, from 0.
    pub index: usize,
    /// The rule.
    pub spec: RuleSpec,
}

/// Whether the groups of a space allow a connection, and why.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Explanation {
    /// The deciding rule, and the part of it that matches.
    Allowed(SourcedRule, Permit),
    /// No rule matches.
    Denied {
        /// Number of rules that apply.
        rules: usize,
        /// Rules that nearly match, the closest first, with the reason for the mismatch.
        near_misses: Vec<(SourcedRule, String)>,
        /// Rules that cannot be enforced, with the reason; true: the rule would allow the
        /// connection, false: it may be meant.
        not_enforced: Vec<(SourcedRule, bool, String)>,
    },
}

/// Explains a connection of containers of this space and lifecycle.
#[must_use]
pub fn explain(
    snapshot: &Snapshot,
    space: &SpaceGuid,
    lifecycle: Lifecycle,
    probe: Probe,
) -> Explanation {
    let entries = snapshot.concerning([space], GroupId(0)).into_iter();
    let groups: Vec<ReadGroup> = entries.map(|entry| read(entry)).collect();
    let rules = effective_rules(&groups, lifecycle, space, false);
    let sourced = |source: &Source| {
        let group = groups.iter().find(|group| group.stored.group.guid == source.group);
        let group = &group.expect("a source is one of the groups").stored.group;
        rule(group, source.rule)
    };
    match rules.verdict(probe) {
        Verdict::Allowed(permit, source) => Explanation::Allowed(sourced(source), *permit),
        Verdict::Denied => {
            let misses = near_misses(&rules.permits, probe).into_iter();
            let isolated = rules.isolated.iter().filter_map(|(problem, source)| {
                let rule = sourced(source);
                let fit = fit(&rule.spec, Some(problem), probe);
                (fit != Fit::No).then(|| (rule, fit == Fit::Yes, problem.to_string()))
            });
            let mut not_enforced: Vec<_> = isolated.collect();
            not_enforced.sort_by_key(|(_, certain, _)| Reverse(*certain));
            let mut applying: Vec<_> = rules.permits.iter().map(|(_, source)| source).collect();
            applying.dedup();
            Explanation::Denied {
                rules: applying.len(),
                near_misses: misses.map(|(source, reason)| (sourced(source), reason)).collect(),
                not_enforced,
            }
        }
    }
}

/// All groups with a rule that allows the connection, with these rules.
#[must_use]
pub fn reach(snapshot: &Snapshot, probe: Probe) -> Vec<(Arc<SecurityGroup>, Vec<SourcedRule>)> {
    let allowing = snapshot.entries().iter().filter_map(|entry| {
        let read = read(entry);
        let rules: Vec<_> = read
            .rules_for(probe)
            .into_iter()
            .map(|index| rule(&read.stored.group, index))
            .collect();
        (!rules.is_empty()).then(|| (Arc::clone(&read.stored.group), rules))
    });
    allowing.collect()
}

fn read(entry: &Entry) -> ReadGroup {
    let group = Arc::new(entry.group());
    ReadGroup::new(StoredGroup { id: entry.id, group })
}

fn rule(group: &Arc<SecurityGroup>, index: usize) -> SourcedRule {
    let spec = group.rules.get(index).cloned().unwrap_or_default();
    SourcedRule { group: Arc::clone(group), index, spec }
}
