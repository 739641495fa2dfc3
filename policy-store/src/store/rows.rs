//! Conversion between rows and values, the same for every SQL database.
//!
//! Databases have signed integers; a number out of range, or an invalid text, is an
//! error that names the column.

use std::{
    collections::{BTreeSet, HashMap},
    sync::Arc,
};

use jiff::Timestamp;
use model::{
    generation::{Generation, Point, Stamp, Watermark},
    group::{ContentHash, GroupId, Lifecycle, Scope, SecurityGroup},
    ids::{CellId, GroupGuid, SpaceGuid},
    lock::{FencingToken, Owner},
};
use serde::{Deserialize, Serialize};

use super::{Error, Stored, held_text, rules};
use crate::{
    groups::{
        content::SharedSpaces,
        decide::{Known, State},
        history::{Change, Past, Step},
        reach::Reach,
    },
    reports::Report,
};

pub(super) const RUNNING: &str = "running";
pub(super) const STAGING: &str = "staging";

pub(super) fn corrupt<E: ToString>(field: &'static str) -> impl Fn(E) -> Error {
    move |problem| Error::CorruptRow { field, problem: problem.to_string() }
}

pub(super) fn to_sql(field: &'static str, number: u64) -> Result<i64, Error> {
    i64::try_from(number).map_err(corrupt(field))
}

pub(super) fn from_sql(field: &'static str, number: i64) -> Result<u64, Error> {
    u64::try_from(number).map_err(corrupt(field))
}

fn small(field: &'static str, number: i64) -> Result<u32, Error> {
    u32::try_from(number).map_err(corrupt(field))
}

fn moment(field: &'static str, milliseconds: i64) -> Result<Timestamp, Error> {
    Timestamp::from_millisecond(milliseconds).map_err(corrupt(field))
}

fn hash(bytes: &[u8]) -> Result<ContentHash, Error> {
    let bytes = bytes.try_into().map_err(corrupt("security_groups.content_hash"))?;
    Ok(ContentHash(bytes))
}

fn guid(text: &str) -> Result<GroupGuid, Error> {
    GroupGuid::parse(text).map_err(corrupt("security_groups.guid"))
}

fn id(number: i64) -> Result<GroupId, Error> {
    Ok(GroupId(from_sql("security_groups.id", number)?))
}

/// The only row of `store_state`.
#[derive(Debug)]
pub(super) struct StateRow {
    pub(super) generation: i64,
    pub(super) stamp_ns: i64,
    pub(super) watermark_seconds: Option<i64>,
    pub(super) watermark_nanoseconds: Option<i64>,
    pub(super) fencing_token: Option<i64>,
    pub(super) writer: Option<String>,
    pub(super) synced_at_ms: Option<i64>,
    pub(super) last_id: i64,
    /// JSON.
    pub(super) held: Option<String>,
}

impl TryFrom<StateRow> for State {
    type Error = Error;

    fn try_from(row: StateRow) -> Result<Self, Error> {
        let watermark = match (row.watermark_seconds, row.watermark_nanoseconds) {
            (Some(seconds), Some(nanoseconds)) => Some(
                Watermark::try_new(seconds, nanoseconds)
                    .map_err(corrupt("store_state.watermark_nanoseconds"))?,
            ),
            _ => None,
        };
        let token = row.fencing_token.map(|token| from_sql("store_state.fencing_token", token));
        let writer = row.writer.map(|writer| Owner::parse(&writer)).transpose();
        let synced_at = row.synced_at_ms.map(|at| moment("store_state.synced_at_ms", at));
        let (held, rollout) =
            row.held.as_deref().map(held_text::parse).transpose()?.unwrap_or_default();
        Ok(Self {
            generation: Generation(from_sql("store_state.generation", row.generation)?),
            stamp: Stamp(row.stamp_ns),
            watermark,
            token: token.transpose()?.map(FencingToken),
            writer: writer.map_err(corrupt("store_state.writer"))?,
            synced_at: synced_at.transpose()?,
            last_id: from_sql("store_state.last_id", row.last_id)?,
            held,
            rollout,
        })
    }
}

impl TryFrom<&State> for StateRow {
    type Error = Error;

    fn try_from(state: &State) -> Result<Self, Error> {
        let State {
            generation,
            stamp,
            watermark,
            token,
            writer,
            synced_at,
            last_id,
            held,
            rollout,
        } = state;
        let token = token.map(|token| to_sql("store_state.fencing_token", token.0));
        Ok(Self {
            generation: to_sql("store_state.generation", generation.0)?,
            stamp_ns: stamp.0,
            watermark_seconds: watermark.map(Watermark::seconds),
            watermark_nanoseconds: watermark.map(|at| at.nanoseconds().into()),
            fencing_token: token.transpose()?,
            writer: writer.as_ref().map(|writer| writer.as_str().to_owned()),
            synced_at_ms: synced_at.map(Timestamp::as_millisecond),
            last_id: to_sql("store_state.last_id", *last_id)?,
            held: held_text::text(held.as_ref(), rollout.as_ref()),
        })
    }
}

/// A row of `security_groups`, without its spaces.
#[derive(Debug)]
pub(super) struct GroupRow<'a> {
    pub(super) id: i64,
    pub(super) guid: &'a str,
    pub(super) name: &'a str,
    pub(super) running_default: bool,
    pub(super) staging_default: bool,
    pub(super) rules: &'a str,
    pub(super) content_hash: &'a [u8],
}

/// Fields of a row of `security_groups` that a decision needs.
pub(super) fn known(row_id: i64, text: &str, bytes: &[u8]) -> Result<(GroupGuid, Known), Error> {
    Ok((guid(text)?, Known { id: id(row_id)?, hash: hash(bytes)? }))
}

/// Scopes of groups by id: running, staging.
#[derive(Debug, Default)]
pub(super) struct Scopes {
    scopes: HashMap<i64, (Scope, Scope)>,
    spaces: SharedSpaces,
}

impl Scopes {
    /// Adds a row of `security_group_spaces`.
    pub(super) fn bind(&mut self, group: i64, lifecycle: &str, space: &str) -> Result<(), Error> {
        let space = share(&mut self.spaces, "security_group_spaces.space_guid", space)?;
        let (running, staging) = self.scopes.entry(group).or_default();
        match lifecycle {
            RUNNING => running.spaces.insert(space),
            STAGING => staging.spaces.insert(space),
            other => return Err(corrupt("security_group_spaces.lifecycle")(other)),
        };
        Ok(())
    }

    /// Adds the defaults of a row of `security_groups`.
    pub(super) fn everywhere(&mut self, group: i64, running_default: bool, staging_default: bool) {
        let (running, staging) = self.scopes.entry(group).or_default();
        running.everywhere = running_default;
        staging.everywhere = staging_default;
    }

    pub(super) fn get(&self, group: i64, lifecycle: Lifecycle) -> Option<&Scope> {
        let (running, staging) = self.scopes.get(&group)?;
        Some(match lifecycle {
            Lifecycle::Running => running,
            Lifecycle::Staging => staging,
        })
    }

    /// The group of a row; all of its bindings must have been added before.
    pub(super) fn group(&mut self, row: &GroupRow<'_>) -> Result<Stored, Error> {
        let (mut running, mut staging) = self.scopes.remove(&row.id).unwrap_or_default();
        running.everywhere = row.running_default;
        staging.everywhere = row.staging_default;
        let rules = rules::parse(row.rules).map_err(corrupt("security_groups.rules"))?;
        let name = row.name.to_owned();
        let group = SecurityGroup { guid: guid(row.guid)?, name, rules, running, staging };
        Ok(Stored { id: id(row.id)?, group: Arc::new(group.into()), hash: hash(row.content_hash)? })
    }
}

fn share(spaces: &mut SharedSpaces, field: &'static str, text: &str) -> Result<SpaceGuid, Error> {
    Ok(spaces.share(SpaceGuid::parse(text).map_err(corrupt(field))?))
}

/// Reach of a group, in one column.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct ReachText {
    everywhere: bool,
    spaces: Vec<String>,
}

pub(super) fn reach_text(reach: &Reach) -> String {
    let spaces = reach.spaces().iter().map(|space| space.as_str().to_owned()).collect();
    let text = ReachText { everywhere: reach.is_global(), spaces };
    serde_json::to_string(&text).expect("texts and a flag")
}

/// Fields of a row of `generations` that a plan needs.
pub(super) fn weighed(generation: i64, weight: i64) -> Result<(Generation, usize), Error> {
    let generation = Generation(from_sql("generations.generation", generation)?);
    Ok((generation, usize::try_from(weight).map_err(corrupt("generations.weight"))?))
}

/// Builder of the history: generations first, then changes, both ascending.
#[derive(Debug, Default)]
pub(super) struct PastRows {
    from: Option<Point>,
    steps: Vec<Step>,
    spaces: SharedSpaces,
}

impl PastRows {
    /// Adds a row of `generations`.
    pub(super) fn generation(&mut self, generation: i64, stamp_ns: i64) -> Result<(), Error> {
        let generation = Generation(from_sql("generations.generation", generation)?);
        let point = Point { generation, stamp: Stamp(stamp_ns) };
        match self.from {
            None => self.from = Some(point),
            Some(_) => self.steps.push(Step { point, changes: Vec::new() }),
        }
        Ok(())
    }

    /// Adds a row of `group_changes`.
    pub(super) fn change(
        &mut self,
        generation: i64,
        row_id: i64,
        text: &str,
        reach: Option<&str>,
    ) -> Result<(), Error> {
        let number = Generation(from_sql("group_changes.generation", generation)?);
        let before = match reach {
            None => None,
            Some(reach) => Some(Arc::new(self.reach(reach)?)),
        };
        let change = Change { id: id(row_id)?, guid: guid(text)?, before };
        let place = self.steps.binary_search_by_key(&number, |step| step.point.generation);
        let place = place.map_err(|_| corrupt("group_changes.generation")(number))?;
        self.steps[place].changes.push(change);
        Ok(())
    }

    fn reach(&mut self, text: &str) -> Result<Reach, Error> {
        let field = "group_changes.reach_before";
        let ReachText { everywhere, spaces } =
            runtime::json::from_str(text).map_err(corrupt(field))?;
        let spaces = spaces.iter().map(|space| share(&mut self.spaces, field, space));
        Ok(Reach::new(everywhere, spaces.collect::<Result<BTreeSet<_>, _>>()?))
    }

    /// The history up to `now`.
    pub(super) fn into_past(self, now: Point) -> Past {
        Past { from: self.from.unwrap_or(now), steps: self.steps }
    }

    /// The first added generation.
    pub(super) fn from(&self) -> Option<Point> {
        self.from
    }
}

/// A row of `cell_reports`.
#[derive(Debug)]
pub(super) struct ReportRow<'a> {
    pub(super) cell_id: &'a str,
    pub(super) enforced_generation: i64,
    pub(super) containers: i64,
    pub(super) isolated_rules: i64,
    pub(super) reported_at_ms: i64,
}

impl ReportRow<'_> {
    pub(super) fn parse(&self) -> Result<(CellId, Report), Error> {
        let cell = CellId::parse(self.cell_id).map_err(corrupt("cell_reports.cell_id"))?;
        let field = "cell_reports.enforced_generation";
        let report = Report {
            enforced: Generation(from_sql(field, self.enforced_generation)?),
            containers: small("cell_reports.containers", self.containers)?,
            isolated_rules: small("cell_reports.isolated_rules", self.isolated_rules)?,
            at: moment("cell_reports.reported_at_ms", self.reported_at_ms)?,
        };
        Ok((cell, report))
    }
}

pub(super) fn report_row<'a>(cell: &'a CellId, report: &Report) -> Result<ReportRow<'a>, Error> {
    let Report { enforced, containers, isolated_rules, at } = report;
    Ok(ReportRow {
        cell_id: cell.as_str(),
        enforced_generation: to_sql("cell_reports.enforced_generation", enforced.0)?,
        containers: (*containers).into(),
        isolated_rules: (*isolated_rules).into(),
        reported_at_ms: at.as_millisecond(),
    })
}
