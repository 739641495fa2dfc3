//! What the policy store knows.

use jiff::Timestamp;
use proto::policy_v1::{
    ListRequest, StatusRequest, StatusResponse, StoredGroup,
    policy_store_client::PolicyStoreClient, status_response::Cell,
};
use serde_json::{Value, json};

use crate::{cli::Connection, connect::explained, report::Report};

/// A page may hold groups as large as the Cloud Controller lets them be.
const LARGEST_PAGE: usize = 64 << 20;

async fn fetch_status(connection: &Connection) -> anyhow::Result<StatusResponse> {
    let mut client = PolicyStoreClient::new(connection.to_policy_store()?);
    let answer = client.status(StatusRequest {}).await;
    Ok(answer.map_err(|status| explained("policy store status", &status))?.into_inner())
}

/// The store itself.
pub(crate) async fn status(connection: &Connection) -> anyhow::Result<Report> {
    let status = fetch_status(connection).await?;
    let now = clock(&status);
    let writer = status.writer.unwrap_or_default();
    let connected = status.cells.iter().filter(|cell| cell.connected).count();
    let behind = status.cells.iter().filter(|cell| behind(cell, status.generation) > 0).count();
    let longest =
        status.cells.iter().filter_map(|cell| behind_seconds(cell, now)).max().unwrap_or(0);
    Ok(Report::record(json!({
        "generation": status.generation,
        "groups": status.groups,
        "watermark": status.watermark.map(|at| moment(at.seconds, at.nanos)),
        "synced_at": status.synced_at.map(|at| moment(at.seconds, at.nanos)),
        "writer": writer.owner,
        "fencing_token": writer.fencing_token,
        "cells": status.cells.len(),
        "cells_connected": connected,
        "cells_behind": behind,
        "longest_behind_seconds": longest,
    })))
}

fn behind(cell: &Cell, generation: u64) -> u64 {
    generation.saturating_sub(cell.enforced_generation)
}

/// By the store's own clock; `None` where it is not behind, or nobody knows.
fn behind_seconds(cell: &Cell, now: Option<i64>) -> Option<i64> {
    Some((now? - cell.behind_since.as_ref()?.seconds).max(0))
}

/// The store's clock, in seconds since 1970.
fn clock(status: &StatusResponse) -> Option<i64> {
    status.now.as_ref().map(|now| now.seconds)
}

/// Each cell that ever reported.
pub(crate) async fn cells(connection: &Connection) -> anyhow::Result<Report> {
    let status = fetch_status(connection).await?;
    let now = clock(&status);
    Ok(Report::list(status.cells.iter().map(|cell| {
        json!({
            "cell": cell.cell_id,
            "connected": cell.connected,
            "enforced_generation": cell.enforced_generation,
            "behind": behind(cell, status.generation),
            "behind_seconds": behind_seconds(cell, now),
            "reported_at": cell.reported_at.map(|at| moment(at.seconds, at.nanos)),
            "containers": cell.containers,
            "isolated_rules": cell.isolated_rules,
        })
    })))
}

/// All groups, or those of some spaces, page by page.
pub(crate) async fn groups(connection: &Connection, spaces: Vec<String>) -> anyhow::Result<Report> {
    let client = PolicyStoreClient::new(connection.to_policy_store()?);
    let mut client = client.max_decoding_message_size(LARGEST_PAGE);
    let mut request =
        ListRequest { all: spaces.is_empty(), space_guids: spaces, page_size: 0, page_token: 0 };
    let mut rows = Vec::new();
    loop {
        let answer = client.list(request.clone()).await;
        let page = answer.map_err(|status| explained("list groups", &status))?.into_inner();
        rows.extend(page.groups.into_iter().map(group));
        match page.next_page_token {
            0 => return Ok(Report::list(rows)),
            next => request.page_token = next,
        }
    }
}

fn group(stored: StoredGroup) -> Value {
    let group = stored.group.unwrap_or_default();
    json!({
        "id": stored.id,
        "guid": group.guid,
        "name": group.name,
        "rules": group.rules.len(),
        "running": scope(group.running_default, group.running_space_guids),
        "staging": scope(group.staging_default, group.staging_space_guids),
    })
}

fn scope(everywhere: bool, spaces: Vec<String>) -> Value {
    if everywhere { "<all>".into() } else { spaces.into() }
}

/// RFC 3339, or the raw number where it is no moment.
pub(crate) fn moment(seconds: i64, nanoseconds: i32) -> String {
    Timestamp::new(seconds, nanoseconds)
        .map_or_else(|_| format!("{seconds}.{nanoseconds:09}"), |at| at.to_string())
}
