//! Answers to the questions of the page.

use std::{collections::HashSet, net::IpAddr};

use proto::policy_v1::{
    CellsRequest, ContainersRequest, ContainersResponse, ExplainRequest, Lifecycle, ListRequest,
    ReachRequest, ReachResponse, SecurityGroup, foundation_server::Foundation as _,
    policy_store_server::PolicyStore as _,
};
use serde_json::{Value, json};
use tonic::{Code, Request, Status};

use super::{
    Services,
    json::{self, parameter},
};

/// Number of groups, cells and containers in a search result.
const FOUND: usize = 50;
/// Groups and cells per request.
const PAGE: u32 = 5_000;

/// Groups, cells and containers that fit the text `q`, or the containers and isolated rules of
/// `cell`.
pub(super) async fn search(
    services: &Services,
    parameters: &[(String, String)],
) -> Result<Value, Status> {
    match (parameter(parameters, "q"), parameter(parameters, "cell")) {
        ("", "") => Err(Status::invalid_argument("q: is missing")),
        ("", cell) => on_cell(services, cell).await,
        (text, _) => matching(services, text).await,
    }
}

async fn on_cell(services: &Services, cell: &str) -> Result<Value, Status> {
    let request = CellsRequest { cell_id: cell.to_owned(), ..CellsRequest::default() };
    let cells = services.foundation.cells(Request::new(request)).await?.into_inner().cells;
    let found = cells.first().ok_or_else(|| Status::not_found(format!("no cell {cell:?}")))?;
    let (isolated, isolated_total) = json::isolated(found.isolated.as_ref());
    let request = ContainersRequest {
        cell_id: cell.to_owned(),
        page_size: 1_000,
        ..ContainersRequest::default()
    };
    let containers = services.foundation.containers(Request::new(request)).await?.into_inner();
    Ok(json!({
        "isolated": isolated,
        "isolated_total": isolated_total,
        "containers": containers.containers.iter().map(json::container).collect::<Vec<_>>(),
        "containers_total": containers.total,
    }))
}

async fn matching(services: &Services, text: &str) -> Result<Value, Status> {
    let found = containers(services, text).await?;
    Ok(json!({
        "groups": groups(services, text).await?,
        "cells": cells(services, text).await?,
        "containers": found.containers.iter().map(json::container).collect::<Vec<_>>(),
        "containers_total": found.total,
        "unknown_cells": found.unknown_cells_total,
    }))
}

/// Containers with this app, space, address or handle.
async fn containers(services: &Services, text: &str) -> Result<ContainersResponse, Status> {
    let every = || ContainersRequest {
        page_size: u32::try_from(FOUND).unwrap_or(u32::MAX),
        ..ContainersRequest::default()
    };
    let owned = text.to_owned();
    let mut requests = vec![
        ContainersRequest { app_guid: owned.clone(), ..every() },
        ContainersRequest { space_guid: owned.clone(), ..every() },
        ContainersRequest { handle: owned.clone(), ..every() },
    ];
    if text.parse::<IpAddr>().is_ok() {
        requests.push(ContainersRequest { address: owned, ..every() });
    }
    let (mut all, mut seen) = (ContainersResponse::default(), HashSet::new());
    for request in requests {
        let answer = match services.foundation.containers(Request::new(request)).await {
            Ok(answer) => answer.into_inner(),
            // The text cannot be such an id.
            Err(status) if status.code() == Code::InvalidArgument => continue,
            Err(status) => return Err(status),
        };
        all.total = all.total.max(answer.total);
        all.unknown_cells_total = answer.unknown_cells_total;
        for placed in answer.containers {
            let handle = placed.container.as_ref().map(|container| container.handle.clone());
            if seen.insert((placed.cell_id.clone(), handle)) {
                all.containers.push(placed);
            }
        }
    }
    all.total = all.total.max(all.containers.len() as u64);
    all.containers.truncate(FOUND);
    Ok(all)
}

/// Groups whose name contains the text, or whose GUID begins with the text.
async fn groups(services: &Services, text: &str) -> Result<Vec<Value>, Status> {
    let lower = text.to_lowercase();
    let mut found = Vec::new();
    let mut request = ListRequest { all: true, page_size: PAGE, ..ListRequest::default() };
    loop {
        let page = services.store.list(Request::new(request.clone())).await?.into_inner();
        for stored in page.groups {
            let group: SecurityGroup = proto::decode_group(stored.group)
                .map_err(|error| Status::internal(error.to_string()))?;
            if group.name.to_lowercase().contains(&lower) || group.guid.starts_with(text) {
                found.push(json::group(&group));
            }
            if found.len() == FOUND {
                return Ok(found);
            }
        }
        if page.next_page_token == 0 {
            return Ok(found);
        }
        request.page_token = page.next_page_token;
    }
}

/// Ids of the cells whose id contains the text.
async fn cells(services: &Services, text: &str) -> Result<Vec<String>, Status> {
    let request = CellsRequest { page_size: PAGE, ..CellsRequest::default() };
    let cells = services.foundation.cells(Request::new(request)).await?.into_inner().cells;
    let ids = cells.into_iter().filter_map(|cell| Some(cell.status?.cell_id));
    Ok(ids.filter(|id| id.contains(text)).take(FOUND).collect())
}

/// Why a connection is allowed or denied, and the groups that allow the connection elsewhere.
pub(super) async fn explain(
    services: &Services,
    parameters: &[(String, String)],
) -> Result<Value, Status> {
    let connection = json::connection(parameters).map_err(Status::invalid_argument)?;
    let text = |name| parameter(parameters, name).to_owned();
    let lifecycle = match parameter(parameters, "staging") {
        "" => Lifecycle::Unspecified,
        _ => Lifecycle::Staging,
    };
    let request = ExplainRequest {
        space_guid: text("space_guid"),
        app_guid: text("app_guid"),
        handle: text("handle"),
        lifecycle: lifecycle.into(),
        connection: Some(connection.clone()),
    };
    let answer = services.foundation.explain(Request::new(request)).await?.into_inner();
    let elsewhere = match answer.allowed {
        true => ReachResponse::default(),
        false => {
            let request = ReachRequest { connection: Some(connection) };
            services.foundation.reach(Request::new(request)).await?.into_inner()
        }
    };
    Ok(json::explained(&answer, &elsewhere))
}
