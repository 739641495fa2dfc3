//! Changes: the last changes and how cells enforce them.

use futures_util::{Stream, stream};
use jiff::Timestamp;
use model::generation::Generation;
use proto::policy_v1::{
    Change, ChangesRequest, ChangesResponse,
    change::{self, Kind},
};
use tokio_util::sync::CancellationToken;
use tonic::Status;

use super::{
    cells::text,
    messages::timestamp,
    status::{Error, status},
};
use crate::{
    feed::{
        cells::Cells,
        changes::Follower,
        ring::{self, ChangedGroup, Committed, Filter, Shown},
        watch::Feed,
    },
    groups::decide::Origin,
};

/// Default number of changes.
const LAST: usize = 20;
/// Limit of groups in a change.
const GROUPS: usize = 20;

/// Answers a Changes until `drain`.
pub(super) fn stream(
    feed: &Feed,
    drain: CancellationToken,
    request: ChangesRequest,
) -> Result<impl Stream<Item = Result<ChangesResponse, Status>> + Send + use<>, Error> {
    let ChangesRequest { last, follow, generation, group } = request;
    let filter = Filter {
        generation: (generation != 0).then_some(Generation(generation)),
        group: text("group", group)?,
    };
    let last = match usize::try_from(last).unwrap_or(usize::MAX) {
        0 => LAST,
        last => last,
    };
    let follower = feed.changes.follow(filter, last, follow);
    let state = Some((follower, feed.cells.clone(), drain));
    Ok(stream::unfold(state, async |state| {
        let (mut follower, cells, drain) = state?;
        match next(&mut follower, &drain).await {
            Ok(shown) => {
                let response = response(shown?, &cells, Timestamp::now());
                Some((Ok(response), Some((follower, cells, drain))))
            }
            Err(error) => Some((Err(status(&error)), None)),
        }
    }))
}

async fn next(follower: &mut Follower, drain: &CancellationToken) -> Result<Option<Shown>, Error> {
    tokio::select! {
        biased;
        () = drain.cancelled() => Err(Error::Draining),
        shown = follower.next() => Ok(shown),
    }
}

fn response(shown: Shown, cells: &Cells, now: Timestamp) -> ChangesResponse {
    let Shown { change, cells: connected, enforced, times, slowest } = shown;
    let Committed { generation, origin, owner, watermark, at, groups } = &*change;
    let Origin { noticed_at, read_at, trace } = *origin;
    let count = |kind| change.count(kind) as u64;
    let [median, p99, maximum] = match times {
        Some(times) => times.map(|time| time.try_into().ok()),
        None => [None; 3],
    };
    let slowest = slowest.into_iter().map(|(cell, after)| change::Cell {
        connected: cells.is_connected(&cell),
        cell_id: cell.as_str().to_owned(),
        after_commit: after.and_then(|time| time.try_into().ok()),
    });
    let message = Change {
        generation: generation.0,
        traceparent: trace.map(|trace| trace.to_string()).unwrap_or_default(),
        owner: owner.as_ref().map(|owner| owner.as_str().to_owned()).unwrap_or_default(),
        watermark: watermark.map(proto::timestamp),
        noticed_at: noticed_at.map(timestamp),
        read_at: read_at.map(timestamp),
        committed_at: Some(timestamp(*at)),
        added: count(ring::Kind::Added),
        changed: count(ring::Kind::Changed),
        removed: count(ring::Kind::Removed),
        groups: groups.iter().take(GROUPS).map(group).collect(),
        cells: u32::try_from(connected).unwrap_or(u32::MAX),
        cells_enforced: u32::try_from(enforced).unwrap_or(u32::MAX),
        median,
        p99,
        slowest: maximum,
        slowest_cells: slowest.collect(),
    };
    ChangesResponse { change: Some(message), now: Some(timestamp(now)) }
}

pub(super) fn group(group: &ChangedGroup) -> change::Group {
    let ChangedGroup { guid, name, kind } = group;
    let kind = match kind {
        ring::Kind::Added => Kind::Added,
        ring::Kind::Changed => Kind::Changed,
        ring::Kind::Removed => Kind::Removed,
    };
    change::Group { guid: guid.as_str().to_owned(), name: name.to_string(), kind: kind.into() }
}
