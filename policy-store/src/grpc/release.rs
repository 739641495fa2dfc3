//! Freeze, Unfreeze and FinishRollout, and what cells get.

use jiff::Timestamp;
use proto::policy_v1::{
    FinishRolloutRequest, FreezeRequest, Frozen, Release, Rollout, UnfreezeRequest,
};

use super::{
    inventory,
    messages::timestamp,
    status::{Error, invalid},
};
use crate::{
    committer::Commits,
    feed::{cells::CellStatus, watch::Feed},
    groups::{decide::Held, held::Hold, released::Ahead},
};

/// Limit of a reason in characters.
const REASON: usize = 1_000;

/// Answers a Freeze of this peer.
pub(super) async fn freeze(
    (feed, commits): (&Feed, &Commits),
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
    if !feed.board.current().state.is_whole() {
        return Err(Error::NothingStored);
    }
    commits.hold(Hold::Freeze { reason, by: by.into(), at, until }).await?;
    Ok(release(feed))
}

/// Answers an Unfreeze of this peer.
pub(super) async fn unfreeze(
    (feed, commits): (&Feed, &Commits),
    by: &str,
    request: UnfreezeRequest,
    at: Timestamp,
) -> Result<Release, Error> {
    let reason = reason_of(request.reason)?.unwrap_or_default();
    commits.hold(Hold::Unfreeze { reason, by: by.into(), at }).await?;
    Ok(release(feed))
}

/// Answers a FinishRollout of this peer.
pub(super) async fn finish(
    (feed, commits): (&Feed, &Commits),
    by: &str,
    request: FinishRolloutRequest,
    at: Timestamp,
) -> Result<Release, Error> {
    let reason = reason_of(request.reason)?.ok_or_else(|| invalid("reason", "is missing"))?;
    if feed.board.current().state.held.is_some() {
        return Err(Error::Frozen);
    }
    commits.hold(Hold::FinishRollout { reason, by: by.into(), at }).await?;
    Ok(release(feed))
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
pub(super) fn release(feed: &Feed) -> Release {
    let held = feed.board.current().state.held.clone();
    let released = feed.board.released();
    Release {
        generation: released.base.state.generation.0,
        frozen: held.map(|Held { point: _, reason, by, since, until }| Frozen {
            reason: reason.into(),
            by: by.into(),
            since: Some(timestamp(since)),
            until: until.map(timestamp),
        }),
        rollout: released.ahead.as_ref().map(|ahead| rollout(ahead, &feed.cells.status())),
    }
}

fn rollout(Ahead { rollout, .. }: &Ahead, cells: &[CellStatus]) -> Rollout {
    let count = |count: usize| u32::try_from(count).unwrap_or(u32::MAX);
    let included = || cells.iter().filter(|cell| cell.connected && rollout.includes(&cell.id));
    let reached = included().filter(|cell| cell.enforced() >= rollout.target.generation);
    Rollout {
        generation: rollout.target.generation.0,
        step: count(rollout.step + 1),
        steps: count(rollout.plan.steps()),
        percent: rollout.plan.percent(rollout.step).into(),
        since: Some(timestamp(rollout.since)),
        stopped: rollout.stopped.as_deref().unwrap_or_default().to_owned(),
        cells: count(included().count()),
        reached: count(reached.count()),
    }
}
