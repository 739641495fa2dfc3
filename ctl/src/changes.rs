//! Changes of the set of security groups on their way to the cells: `get changes`, `trace` and
//! `watch changes`.

use std::{collections::BTreeMap, time::Duration};

use anyhow::bail;
use futures_util::future::try_join_all;
use jiff::Timestamp;
use proto::policy_v1::{
    Change, ChangesRequest, ChangesResponse,
    change::{Cell, Group, Kind},
};
use runtime::backoff::Backoff;
use tokio::sync::mpsc;
use tonic::{Status, transport::Channel};

use crate::{
    connect::Connection,
    escape::escape,
    field::{Field, Tone, duration, instant, milliseconds, rows},
    output::Output,
    refused::{Refused, is_final},
    report::{self, Report},
    stores::{Store, foundation},
};

/// Initial and maximum delay before reconnecting.
const PAUSES: [Duration; 2] = [Duration::from_millis(250), Duration::from_secs(5)];

pub(crate) const CHANGES: &[Field<Change>] = &[
    Field::integer("generation", |change| Some(change.generation)),
    Field::time("committed_at", |change| instant(change.committed_at)),
    Field::texts("groups", names),
    Field::milliseconds("notice_ms", |change| hops(change).notice),
    Field::milliseconds("read_ms", |change| hops(change).read),
    Field::milliseconds("commit_ms", |change| hops(change).commit),
    Field::milliseconds("enforce_ms", |change| duration(change.slowest)),
    Field::integer("cells", |change| Some(change.cells.into())),
    Field::toned(
        Field::integer("cells_enforced", |change| Some(change.cells_enforced.into())),
        tone,
    ),
    Field::wide(Field::integer("added", |change| Some(change.added))),
    Field::wide(Field::integer("changed", |change| Some(change.changed))),
    Field::wide(Field::integer("removed", |change| Some(change.removed))),
    Field::wide(Field::milliseconds("median_ms", |change| duration(change.median))),
    Field::wide(Field::milliseconds("p99_ms", |change| duration(change.p99))),
    Field::wide(Field::text("syncer", |change| change.owner.clone())),
    Field::wide(Field::text("trace_id", trace_id)),
];

fn tone(change: &Change) -> Tone {
    if change.cells_enforced < change.cells { Tone::Warning } else { Tone::Good }
}

/// `added web`, `removed dns`.
pub(crate) fn names(change: &Change) -> Vec<String> {
    let name = |group: &Group| {
        let kind = match group.kind() {
            Kind::Unspecified => "touched",
            Kind::Added => "added",
            Kind::Changed => "changed",
            Kind::Removed => "removed",
        };
        let name = if group.name.is_empty() { &group.guid } else { &group.name };
        format!("{kind} {name}")
    };
    let mut names: Vec<String> = change.groups.iter().map(name).collect();
    let total = change.added + change.changed + change.removed;
    let more = total.saturating_sub(names.len() as u64);
    if more > 0 {
        names.push(format!("{more} more"));
    }
    names
}

/// The 32 hexadecimal digits of a W3C trace context.
pub(crate) fn trace_id(change: &Change) -> String {
    change.traceparent.split('-').nth(1).unwrap_or_default().to_owned()
}

/// Durations of the hops up to the commit. Clocks of several machines: a negative time is 0.
pub(crate) struct Hops {
    pub(crate) notice: Option<Duration>,
    pub(crate) read: Option<Duration>,
    commit: Option<Duration>,
}

pub(crate) fn hops(change: &Change) -> Hops {
    let [stamp, noticed, read, committed] = times(change);
    Hops {
        notice: between(stamp, noticed),
        read: between(noticed, read),
        commit: between(read, committed),
    }
}

fn times(change: &Change) -> [Option<Timestamp>; 4] {
    [change.watermark, change.noticed_at, change.read_at, change.committed_at].map(instant)
}

fn between(from: Option<Timestamp>, to: Option<Timestamp>) -> Option<Duration> {
    Some(Duration::try_from(to?.duration_since(from?)).unwrap_or_default())
}

/// One stage of a change.
pub(crate) struct Stage {
    name: &'static str,
    pub(crate) at: Option<Timestamp>,
    /// Since the stage before.
    took: Option<Duration>,
    /// Since the first stage.
    total: Option<Duration>,
}

pub(crate) const STAGES: &[Field<Stage>] = &[
    Field::text("stage", |stage| stage.name.to_owned()),
    Field::milliseconds("took_ms", |stage| stage.took),
    Field::milliseconds("total_ms", |stage| stage.total),
    Field::time("at", |stage| stage.at),
];

pub(crate) fn stages(change: &Change) -> Vec<Stage> {
    let [stamp, noticed, read, committed] = times(change);
    let hops = hops(change);
    let total = |at| between(stamp, at);
    let mut stages = vec![
        Stage { name: "Cloud Controller's stamp", at: stamp, took: None, total: None },
        Stage {
            name: "noticed by the syncer",
            at: noticed,
            took: hops.notice,
            total: total(noticed),
        },
        Stage { name: "groups read", at: read, took: hops.read, total: total(read) },
        Stage { name: "committed", at: committed, took: hops.commit, total: total(committed) },
    ];
    let enforced = [
        ("enforced, median cell", change.median),
        ("enforced, 99th percentile", change.p99),
        ("enforced, slowest cell", change.slowest),
    ];
    stages.extend(enforced.into_iter().map(|(name, took)| {
        let took = duration(took);
        let after = |took| Some(total(committed)? + took);
        let at = took.and_then(|took| committed?.checked_add(took).ok());
        Stage { name, at, took, total: took.and_then(after) }
    }));
    stages
}

pub(crate) const SLOWEST: &[Field<Cell>] = &[
    Field::text("cell", |cell| cell.cell_id.clone()),
    Field::milliseconds("after_commit_ms", |cell| duration(cell.after_commit)),
    Field::toned(
        Field::text("state", |cell| {
            let state = match (cell.after_commit.is_some(), cell.connected) {
                (true, _) => "enforced",
                (false, true) => "waiting",
                (false, false) => "disconnected",
            };
            state.to_owned()
        }),
        |cell| if cell.after_commit.is_some() { Tone::Good } else { Tone::Bad },
    ),
];

pub(crate) const TRACED: &[Field<Change>] = &[
    Field::integer("generation", |change| Some(change.generation)),
    Field::texts("groups", names),
    Field::text("syncer", |change| change.owner.clone()),
    Field::text("trace_id", trace_id),
    Field::integer("cells", |change| Some(change.cells.into())),
    Field::toned(
        Field::integer("cells_enforced", |change| Some(change.cells_enforced.into())),
        tone,
    ),
    Field::rows("stages", |change| rows(STAGES, stages(change))),
    Field::rows("slowest_cells", |change| rows(SLOWEST, change.slowest_cells.clone())),
];

/// The selected changes, oldest first.
async fn fetch(
    connection: &Connection,
    request: ChangesRequest,
) -> anyhow::Result<(Vec<Change>, Option<Timestamp>)> {
    let call = async |channel| collect(channel, request.clone()).await;
    let answers = connection.ask_stores("changes", call).await?;
    let now = answers.iter().flatten().find_map(|answer| instant(answer.now));
    let mut merged: BTreeMap<u64, Change> = BTreeMap::new();
    for change in answers.into_iter().flatten().filter_map(|answer| answer.change) {
        let known = merged.remove(&change.generation);
        merged.insert(change.generation, merge(known, change));
    }
    Ok((merged.into_values().collect(), now))
}

async fn collect(
    channel: Channel,
    request: ChangesRequest,
) -> Result<Vec<ChangesResponse>, Status> {
    let mut stream = foundation(channel).changes(request).await?.into_inner();
    let mut found = Vec::new();
    while let Some(answer) = stream.message().await? {
        found.push(answer);
    }
    Ok(found)
}

/// One change as two instances know it: each knows its own cells, and only the instance that
/// committed knows the times of the syncer. Median and 99th percentile of all cells are not known:
/// the larger ones count.
fn merge(known: Option<Change>, other: Change) -> Change {
    let Some(mut one) = known else { return other };
    one.noticed_at = one.noticed_at.or(other.noticed_at);
    one.read_at = one.read_at.or(other.read_at);
    one.committed_at = one.committed_at.or(other.committed_at);
    if one.traceparent.is_empty() {
        one.traceparent = other.traceparent;
    }
    if one.groups.len() < other.groups.len() {
        one.groups = other.groups;
    }
    one.cells += other.cells;
    one.cells_enforced += other.cells_enforced;
    let longer = |one: Option<prost_types::Duration>, other: Option<prost_types::Duration>| {
        one.into_iter().chain(other).max_by_key(|time| (time.seconds, time.nanos))
    };
    one.median = longer(one.median, other.median);
    one.p99 = longer(one.p99, other.p99);
    one.slowest = longer(one.slowest, other.slowest);
    one.slowest_cells.extend(other.slowest_cells);
    let place = |cell: &Cell| {
        let time = cell.after_commit.map(|time| (time.seconds, time.nanos));
        (time.is_some(), std::cmp::Reverse(time))
    };
    one.slowest_cells.sort_by_key(place);
    one
}

/// The last changes.
pub(crate) async fn list(
    connection: &Connection,
    last: u32,
    group: Option<String>,
) -> anyhow::Result<Report> {
    let group = group.unwrap_or_default();
    let request = ChangesRequest { last, group, ..ChangesRequest::default() };
    let (changes, now) = fetch(connection, request).await?;
    Ok(Report::list(CHANGES, changes).at(now))
}

/// One change: of this generation, or the last one of this group.
pub(crate) async fn trace(connection: &Connection, which: &str) -> anyhow::Result<Report> {
    let request = match which.parse() {
        Ok(generation) => ChangesRequest { generation, ..ChangesRequest::default() },
        Err(_) => ChangesRequest { last: 1, group: which.to_owned(), ..ChangesRequest::default() },
    };
    let (mut changes, now) = fetch(connection, request).await?;
    let Some(change) = changes.pop() else {
        bail!(
            "trace: no change of generation or group {which:?} is known; the policy store \
             remembers changes since its start (get changes)"
        );
    };
    Ok(Report::record(TRACED, change).at(now))
}

/// Prints changes until the user interrupts.
pub(crate) async fn watch(connection: &Connection, output: &Output) -> anyhow::Result<()> {
    let stores = connection.stores().await?;
    let (sender, mut receiver) = mpsc::channel(16);
    let follow =
        (0..).zip(&stores).map(|(number, store)| follow(connection, store, number, sender.clone()));
    let print = async {
        // Of each generation what each instance said last.
        let mut known: BTreeMap<u64, BTreeMap<usize, Change>> = BTreeMap::new();
        while let Some((number, change)) = receiver.recv().await {
            let change: Change = change;
            let generation = change.generation;
            let said = known.entry(generation).or_default();
            said.insert(number, change);
            let merged = said.values().cloned().fold(None, |one, other| Some(merge(one, other)));
            if let Some(merged) = merged {
                let line = line(&merged);
                report::event(CHANGES, merged, output, &line)?;
            }
            while known.len() > REMEMBERED {
                known.pop_first();
            }
        }
        Ok(())
    };
    tokio::select! {
        ended = try_join_all(follow) => ended.map(|_| ()),
        ended = print => ended,
    }
}

/// Generations whose updates are merged.
const REMEMBERED: usize = 100;

/// Sends the changes of one instance; reconnects after a lost connection.
async fn follow(
    connection: &Connection,
    store: &Store,
    number: usize,
    sender: mpsc::Sender<(usize, Change)>,
) -> anyhow::Result<()> {
    let mut backoff = Backoff::new(PAUSES[0], PAUSES[1]);
    let mut last = 1;
    loop {
        let lost = match connect(connection, store, last).await {
            Err(error) if is_final(&error) => return Err(error),
            Err(error) => error,
            Ok(mut stream) => loop {
                match stream.message().await {
                    Ok(Some(answer)) => {
                        backoff.reset();
                        let Some(change) = answer.change else { continue };
                        if sender.send((number, change)).await.is_err() {
                            return Ok(());
                        }
                    }
                    Ok(None) => break anyhow::anyhow!("the policy store ended the stream"),
                    Err(status) => break Refused::new(&status).into(),
                }
            },
        };
        last = 20;
        report::warn(&format!("watch changes: {}: {lost:#}; reconnecting", store.address));
        tokio::time::sleep(backoff.pause()).await;
    }
}

async fn connect(
    connection: &Connection,
    store: &Store,
    last: u32,
) -> anyhow::Result<tonic::Streaming<ChangesResponse>> {
    let mut client = foundation(connection.open(store).await?);
    let request = ChangesRequest { last, follow: true, ..ChangesRequest::default() };
    Ok(connection.ask("watch changes", client.changes(request)).await?.into_inner())
}

/// `12  added web  noticed 220 ms, read 31.0 ms, committed 4.20 ms, enforced 3/3 in 18.5 ms`
fn line(change: &Change) -> String {
    let hops = hops(change);
    let steps = [("noticed", hops.notice), ("read", hops.read), ("committed", hops.commit)];
    let mut parts: Vec<String> = steps
        .into_iter()
        .filter_map(|(name, time)| Some(format!("{name} {} ms", milliseconds(time?))))
        .collect();
    let slowest = duration(change.slowest).map(|time| format!(" in {} ms", milliseconds(time)));
    let (done, all) = (change.cells_enforced, change.cells);
    parts.push(format!("enforced {done}/{all}{}", slowest.unwrap_or_default()));
    let names = names(change).join(", ");
    format!("{}  {}  {}", change.generation, escape(&names), parts.join(", "))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(milliseconds: i64) -> Option<prost_types::Timestamp> {
        let (seconds, rest) = (milliseconds / 1_000, milliseconds % 1_000);
        let nanos = i32::try_from(rest * 1_000_000).unwrap();
        Some(prost_types::Timestamp { seconds, nanos })
    }

    fn taking(milliseconds: u64) -> Option<prost_types::Duration> {
        Duration::from_millis(milliseconds).try_into().ok()
    }

    fn change() -> Change {
        Change {
            generation: 12,
            traceparent: format!("00-{}-0000000000000001-01", "ab".repeat(16)),
            watermark: at(1_000),
            noticed_at: at(1_220),
            read_at: at(1_250),
            committed_at: at(1_240),
            added: 22,
            groups: vec![Group { guid: "g".to_owned(), name: "w\u{1b}".to_owned(), kind: 1 }],
            cells: 2,
            cells_enforced: 1,
            slowest: taking(18),
            slowest_cells: vec![Cell { cell_id: "a".to_owned(), ..Cell::default() }],
            ..Change::default()
        }
    }

    #[test]
    fn a_line_has_every_hop() {
        assert_eq!(
            line(&change()),
            "12  added w\\u{1b}, 21 more  noticed 220 ms, read 30.0 ms, committed 0.00 ms, \
             enforced 1/2 in 18.0 ms"
        );
        assert_eq!(trace_id(&change()), "ab".repeat(16));
        let unknown = Change { watermark: None, noticed_at: None, ..change() };
        assert!(hops(&unknown).notice.is_none() && hops(&unknown).read.is_none());
    }

    #[test]
    fn two_instances_know_different_cells() {
        let cell =
            |id: &str, time| Cell { cell_id: id.to_owned(), after_commit: time, ..Cell::default() };
        let other = Change {
            generation: 12,
            cells: 3,
            cells_enforced: 3,
            slowest: taking(40),
            slowest_cells: vec![cell("b", taking(40)), cell("c", taking(41))],
            ..Change::default()
        };
        for merged in [merge(Some(change()), other.clone()), merge(Some(other), change())] {
            assert_eq!((merged.cells, merged.cells_enforced), (5, 4));
            assert_eq!(merged.slowest, taking(40));
            assert_eq!(merged.noticed_at, at(1_220));
            let order: Vec<&str> =
                merged.slowest_cells.iter().map(|cell| cell.cell_id.as_str()).collect();
            assert_eq!(order, ["a", "c", "b"]);
        }
    }

    #[test]
    fn stages_add_up() {
        let stages = rows(STAGES, stages(&change()));
        let values: Vec<String> = stages.iter().map(crate::data::json).collect();
        assert!(values[1].contains("\"took_ms\":220.0,\"total_ms\":220.0"), "{values:?}");
        assert!(values[6].contains("\"took_ms\":18.0,\"total_ms\":258.0"), "{values:?}");
    }
}
