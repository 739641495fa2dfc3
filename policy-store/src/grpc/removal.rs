//! AcceptRemoval: an operator lets a refused mass removal pass.

use std::sync::Arc;

use jiff::Timestamp;
use proto::policy_v1::{
    self, AcceptRemovalRequest, AcceptRemovalResponse,
    change::{Group, Kind},
};
use runtime::tls::{Identity, describe};

use super::{messages::timestamp, status::Error};
use crate::removals::{RefusedRemoval, Removals};

/// Answers an AcceptRemoval.
pub(super) fn accept(
    removals: &Removals,
    identity: Option<&Arc<Identity>>,
    request: AcceptRemovalRequest,
    now: Timestamp,
) -> Result<AcceptRemovalResponse, Error> {
    let AcceptRemovalRequest { removed } = request;
    let accepted = removals.accept(removed, now)?;
    tracing::info!(
        groups = accepted.groups.len(),
        stored = accepted.stored,
        writer = %accepted.owner,
        by = describe(identity.map(|identity| &**identity)),
        until = accepted.accepted_until.map(tracing::field::display),
        "accepted-mass-removal"
    );
    Ok(AcceptRemovalResponse { refused_removal: Some(accepted.into()) })
}

impl From<RefusedRemoval> for policy_v1::RefusedRemoval {
    fn from(refused: RefusedRemoval) -> Self {
        let RefusedRemoval { at, owner, groups, stored, named, accepted_until } = refused;
        let named = named.into_iter().map(|(guid, name)| Group {
            guid: guid.as_str().to_owned(),
            name,
            kind: Kind::Removed.into(),
        });
        Self {
            at: Some(timestamp(at)),
            owner: owner.as_str().to_owned(),
            removed: groups.len() as u64,
            stored: stored as u64,
            groups: named.collect(),
            accepted_until: accepted_until.map(timestamp),
        }
    }
}
