//! Finds the rule or container that iptables-restore refuses.

use model::ids::{ContainerHandle, GroupGuid};

use super::{
    batch::Step,
    chains::Family,
    programs::Refusal,
    render::{Filter, Part},
};
use crate::{
    isolate::Unit,
    plan::{Assignment, Policy, Ruleset},
    plane::Error,
};

/// Maps a refusal to a rule or container, if iptables names the line.
pub(super) fn refused(
    refusal: Refusal,
    (family, wanted): (Family, &Filter),
    step: &Step,
    ruleset: Option<&Ruleset>,
) -> Error {
    let (line, reason) = match refusal {
        Refusal::Failed(error) => return error,
        Refusal::Refused { line, reason } => (line, reason),
    };
    let unit = || {
        let batch = step.batch.as_ref()?;
        let (handle, part) = batch.blame(line?, wanted)?;
        culprit(ruleset?, family, handle, part)
    };
    match unit() {
        Some(unit) => Error::Culprit { unit, reason },
        None => Error::Refused(reason),
    }
}

fn culprit(
    ruleset: &Ruleset,
    family: Family,
    handle: &ContainerHandle,
    part: Part,
) -> Option<Unit> {
    let place = match part {
        Part::Fixed => return Some(Unit::Container(handle.clone())),
        Part::Permit(place) => place,
    };
    let Assignment::Bound(belongs) = &ruleset.containers.get(handle)?.assignment else {
        return None;
    };
    let (group, rule) = source(ruleset.policies.get(belongs)?, family, place)?;
    Some(Unit::Rule(group, rule))
}

/// The source of the permit at this index in a chain.
fn source(policy: &Policy, family: Family, place: usize) -> Option<(GroupGuid, usize)> {
    let permits = policy.segments.iter().flat_map(|segment| &segment.permits);
    let of_family = |permit: &&model::effective::Permit| {
        permit.destination.first().is_ipv4() == (family == Family::V4)
    };
    let permit = permits.filter(of_family).nth(place)?;
    let (_, source) = policy.rules.permits.iter().find(|(written, _)| written == permit)?;
    Some((source.group.clone(), source.rule))
}
