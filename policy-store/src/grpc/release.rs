//! Freeze and Unfreeze, and what cells get.

use jiff::Timestamp;
use proto::policy_v1::{FreezeRequest, Frozen, Release, UnfreezeRequest};

use super::{
    inventory,
    messages::timestamp,
    status::{Error, invalid},
};
use crate::{
    committer::Commits,
    groups::{current::SnapshotPublisher, decide::Held, held::Hold},
};

/// Limit of a reason in characters.
const REASON: usize = 1_000;

/// Answers a Freeze of this peer.
pub(super) async fn freeze(
    (board, commits): (&SnapshotPublisher, &Commits),
    by: &str,
    request: FreezeRequest,
    at: Timestamp,
) -> Result<Release, Error> {
    let FreezeRequest { reason, until } = request;
    let reason = reason_of(reason)?.ok_or_else(|| invalid("reason", "is missing"))?;
    let until = match until {
        None => None,
        Some(until) => {
            let parsed = inventory::time(Some(until));
            Some(parsed.ok_or_else(|| invalid("until", "is out of range"))?)
        }
    };
    if let Some(until) = until.filter(|until| *until <= at) {
        return Err(invalid("until", format_args!("{until} is not in the future: it is {at}")));
    }
    if !board.current().state.is_whole() {
        return Err(Error::NothingStored);
    }
    commits.hold(Hold::Freeze { reason, by: by.into(), at, until }).await?;
    Ok(release(board))
}

/// Answers an Unfreeze of this peer.
pub(super) async fn unfreeze(
    (board, commits): (&SnapshotPublisher, &Commits),
    by: &str,
    request: UnfreezeRequest,
    at: Timestamp,
) -> Result<Release, Error> {
    let reason = reason_of(request.reason)?.unwrap_or_default();
    commits.hold(Hold::Unfreeze { reason, by: by.into(), at }).await?;
    Ok(release(board))
}

fn reason_of(text: String) -> Result<Option<Box<str>>, Error> {
    let chars = text.chars().count();
    if chars > REASON {
        let problem = format_args!("has {chars} characters, at most {REASON} are allowed");
        return Err(invalid("reason", problem));
    }
    Ok((!text.trim().is_empty()).then(|| text.into()))
}

/// What cells get.
pub(super) fn release(board: &SnapshotPublisher) -> Release {
    let held = board.current().state.held.clone();
    Release {
        generation: board.released().state.generation.0,
        frozen: held.map(|Held { point: _, reason, by, since, until }| Frozen {
            reason: reason.into(),
            by: by.into(),
            since: Some(timestamp(since)),
            until: until.map(timestamp),
        }),
    }
}
