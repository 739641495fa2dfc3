//! The commands of the policy store.

use jiff::Timestamp;
use proto::policy_v1::{
    StatusRequest, StatusResponse, policy_store_client::PolicyStoreClient, status_response::Cell,
};

use tonic::{Status, transport::Channel};

use crate::{
    connect::Connection,
    field::{Field, instant},
    freeze::{released, sentence},
    report::Report,
    rollout,
};

/// Size limit of a status, which has all cells.
const LARGEST_STATUS: usize = 64 << 20;

/// The status by one instance.
pub(crate) async fn status_of(channel: Channel) -> Result<StatusResponse, Status> {
    let client = PolicyStoreClient::new(channel);
    let mut client = client.max_decoding_message_size(LARGEST_STATUS);
    Ok(client.status(StatusRequest {}).await?.into_inner())
}

/// The status by all instances together: a cell is connected if it watches one of them.
pub(crate) async fn fetch_status(connection: &Connection) -> anyhow::Result<StatusResponse> {
    let answers = connection.ask_stores("policy store status", status_of).await?;
    let connected: Vec<String> = answers
        .iter()
        .flat_map(|answer| &answer.cells)
        .filter(|cell| cell.connected)
        .map(|cell| cell.cell_id.clone())
        .collect();
    let newest = answers.into_iter().max_by_key(|answer| answer.generation);
    let mut status = newest.unwrap_or_default();
    for cell in &mut status.cells {
        cell.connected = connected.contains(&cell.cell_id);
    }
    Ok(status)
}

/// The store's clock.
fn clock(status: &StatusResponse) -> Option<Timestamp> {
    instant(status.now)
}

pub(crate) const STATUS: &[Field<StatusResponse>] = &[
    Field::integer("generation", |status| Some(status.generation)),
    Field::integer("groups", |status| Some(status.groups)),
    Field::time("watermark", |status| instant(status.watermark)),
    Field::time("synced_at", |status| instant(status.synced_at)),
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
        let behind = status.cells.iter().filter(|cell| behind(cell, released(status)) > 0);
        Some(behind.count() as u64)
    }),
    Field::integer("longest_behind_seconds", |status| {
        let now = clock(status);
        Some(status.cells.iter().filter_map(|cell| behind_seconds(cell, now)).max().unwrap_or(0))
    }),
    Field::text("frozen", |status| sentence(status.release.as_ref()).unwrap_or_default()),
    Field::text("rollout", |status| rollout::sentence(status.release.as_ref()).unwrap_or_default()),
];

/// The status of the store.
pub(crate) async fn status(connection: &Connection) -> anyhow::Result<Report> {
    let status = fetch_status(connection).await?;
    let now = clock(&status);
    Ok(Report::record(STATUS, status).at(now))
}

pub(crate) fn behind(cell: &Cell, generation: u64) -> u64 {
    generation.saturating_sub(cell.enforced_generation)
}

/// Seconds by the store's clock; `None` if the cell is up to date, or the store does
/// not know since when it is behind.
pub(crate) fn behind_seconds(cell: &Cell, now: Option<Timestamp>) -> Option<u64> {
    let since = cell.behind_since.as_ref()?.seconds;
    Some(u64::try_from(now?.as_second() - since).unwrap_or(0))
}
