//! The commands of the policy store.

use jiff::Timestamp;
use proto::policy_v1::{
    StatusRequest, StatusResponse, policy_store_client::PolicyStoreClient, status_response::Cell,
};

use crate::{
    connect::Connection,
    field::{Field, moment},
    natural,
    report::Report,
};

async fn fetch_status(connection: &Connection) -> anyhow::Result<StatusResponse> {
    let mut client = PolicyStoreClient::new(connection.to_policy_store()?);
    let call = client.status(StatusRequest {});
    Ok(connection.ask("policy store status", call).await?.into_inner())
}

/// The store's clock.
fn clock(status: &StatusResponse) -> Option<Timestamp> {
    status.now.and_then(|at| moment(at.seconds, at.nanos))
}

pub(crate) const STATUS: &[Field<StatusResponse>] = &[
    Field::integer("generation", |status| Some(status.generation)),
    Field::integer("groups", |status| Some(status.groups)),
    Field::time("watermark", |status| status.watermark.and_then(|at| moment(at.seconds, at.nanos))),
    Field::time("synced_at", |status| status.synced_at.and_then(|at| moment(at.seconds, at.nanos))),
    Field::text("writer", |status| {
        status.writer.as_ref().map(|writer| writer.owner.clone()).unwrap_or_default()
    }),
    Field::integer("fencing_token", |status| {
        status.writer.as_ref().map(|writer| writer.fencing_token)
    }),
    Field::integer("cells", |status| Some(status.cells.len() as u64)),
    Field::integer("cells_connected", |status| {
        Some(status.cells.iter().filter(|cell| cell.connected).count() as u64)
    }),
    Field::integer("cells_behind", |status| {
        let behind = status.cells.iter().filter(|cell| behind(cell, status.generation) > 0);
        Some(behind.count() as u64)
    }),
    Field::integer("longest_behind_seconds", |status| {
        let now = clock(status);
        Some(status.cells.iter().filter_map(|cell| behind_seconds(cell, now)).max().unwrap_or(0))
    }),
];

/// The status of the store.
pub(crate) async fn status(connection: &Connection) -> anyhow::Result<Report> {
    let status = fetch_status(connection).await?;
    let now = clock(&status);
    Ok(Report::record(STATUS, status).at(now))
}

fn behind(cell: &Cell, generation: u64) -> u64 {
    generation.saturating_sub(cell.enforced_generation)
}

/// Seconds by the store's clock; `None` if the cell is up to date, or the store does
/// not know since when it is behind.
fn behind_seconds(cell: &Cell, now: Option<Timestamp>) -> Option<u64> {
    let since = cell.behind_since.as_ref()?.seconds;
    Some(u64::try_from(now?.as_second() - since).unwrap_or(0))
}

/// A cell's report compared with the store's state.
#[derive(Debug)]
pub(crate) struct Seen {
    cell: Cell,
    generation: u64,
    now: Option<Timestamp>,
}

pub(crate) const CELLS: &[Field<Seen>] = &[
    Field::text("cell", |seen| seen.cell.cell_id.clone()),
    Field::boolean("connected", |seen| seen.cell.connected),
    Field::integer("behind", |seen| Some(behind(&seen.cell, seen.generation))),
    Field::integer("behind_seconds", |seen| behind_seconds(&seen.cell, seen.now)),
    Field::time("reported_at", |seen| {
        seen.cell.reported_at.and_then(|at| moment(at.seconds, at.nanos))
    }),
    Field::integer("containers", |seen| Some(seen.cell.containers.into())),
    Field::integer("isolated_rules", |seen| Some(seen.cell.isolated_rules.into())),
    Field::integer("enforced_generation", |seen| Some(seen.cell.enforced_generation)),
];

/// Each cell that ever reported.
pub(crate) async fn cells(connection: &Connection) -> anyhow::Result<Report> {
    let mut status = fetch_status(connection).await?;
    let (generation, now) = (status.generation, clock(&status));
    let mut cells = std::mem::take(&mut status.cells);
    cells.sort_by(|one, other| natural::compare(&one.cell_id, &other.cell_id));
    let seen = cells.into_iter().map(|cell| Seen { cell, generation, now });
    Ok(Report::list(CELLS, seen).at(now))
}
