//! Finds a container by its handle, and explains its connections, with the state in force.

use model::{effective::Probe, ids::ContainerHandle};
use tonic::Status;

use crate::{
    explain::{Explanation, Way, denied, explain},
    reconcile::Enforced,
    wire::reason,
};

/// Explains a new connection of a container with the state in force; `None` for an unknown
/// container.
pub(crate) fn verdict<'a>(
    enforced: &'a Enforced,
    handle: &ContainerHandle,
    probe: Probe,
    way: &Way,
) -> Option<Explanation<'a>> {
    let explanation = explain(&enforced.ruleset, &enforced.known, handle, probe, way)?;
    Some(if matches!(explanation, Explanation::NotDecided { .. }) {
        // The chain of an earlier process decides, so the container's own rules do
        // not matter.
        explanation
    } else if enforced.kept.contains(handle) {
        Explanation::Untold { reason: reason(enforced, handle) }
    } else if let Some(reason) = enforced.waiting.get(handle) {
        // The container's rules are not in the kernel, so they do not matter.
        denied(reason.clone())
    } else {
        explanation
    })
}

/// Maximum number of candidates in the error for an ambiguous handle.
const CANDIDATES: usize = 5;

/// Finds the container with this handle, or the only one with this handle prefix. If
/// there is none, returns the handle unchanged.
pub(crate) fn resolve(enforced: &Enforced, text: &str) -> Result<ContainerHandle, Status> {
    let handle = ContainerHandle::parse(text)
        .map_err(|error| Status::invalid_argument(format!("handle: {error}")))?;
    let containers = &enforced.ruleset.containers;
    if containers.contains_key(&handle) {
        return Ok(handle);
    }
    let candidates = containers.range(handle.clone()..).map(|(candidate, _)| candidate);
    let candidates = candidates.take_while(|candidate| candidate.as_str().starts_with(text));
    let candidates: Vec<_> = candidates.take(CANDIDATES + 1).collect();
    match candidates.as_slice() {
        [] => Ok(handle),
        [only] => Ok((*only).clone()),
        many => {
            let named: Vec<_> =
                many.iter().take(CANDIDATES).map(|handle| handle.as_str()).collect();
            let more = if many.len() > CANDIDATES { " and more" } else { "" };
            Err(Status::invalid_argument(format!(
                "handle: {text:?} is the beginning of several containers' handles: {}{more}",
                named.join(", ")
            )))
        }
    }
}
