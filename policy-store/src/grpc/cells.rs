//! Cells and Containers: pages of what cells reported.

use jiff::Timestamp;
use model::ids::{CellId, ContainerHandle, MAX_CHARS, SpaceGuid};
use prost::Message;
use proto::policy_v1::{
    CellsRequest, CellsResponse, ContainersRequest, ContainersResponse, cells_response,
    watch_request,
};

use super::{
    inventory::rules,
    messages::{self, timestamp},
    parse::page_size,
    status::{Error, invalid},
};
use crate::{
    feed::{
        cells::{Here, KnownCell},
        survey::{Filter, Placed, placed, unknown},
    },
    groups::{page::MAX_BYTES, snapshot::Snapshot},
    reports::{Agent, Counters, Details},
};

/// Number of cells that an answer names as unknown.
const UNKNOWN: usize = 20;

/// An optional text from outside, bounded like an identifier.
pub(super) fn text(field: &str, text: String) -> Result<Option<String>, Error> {
    let chars = text.chars().count();
    if chars > MAX_CHARS {
        let problem = format_args!("has {chars} characters, at most {MAX_CHARS} are allowed");
        return Err(invalid(field, problem));
    }
    Ok((!text.is_empty()).then_some(text))
}

fn parsed<T, E: std::fmt::Display>(
    field: &str,
    text: &str,
    parse: impl FnOnce(&str) -> Result<T, E>,
) -> Result<Option<T>, Error> {
    match text {
        "" => Ok(None),
        text => parse(text).map(Some).map_err(|error| invalid(field, error)),
    }
}

/// The first messages that fit into a page, and the first item that does not.
fn page<T: Copy, M: Message>(
    items: impl Iterator<Item = T>,
    size: usize,
    message: impl Fn(T) -> M,
) -> (Vec<M>, Option<T>) {
    let (mut taken, mut bytes) = (Vec::new(), 0);
    for item in items {
        if taken.len() == size {
            return (taken, Some(item));
        }
        let message = message(item);
        bytes += message.encoded_len() + 8;
        if bytes > MAX_BYTES && !taken.is_empty() {
            return (taken, Some(item));
        }
        taken.push(message);
    }
    (taken, None)
}

/// Answers a Cells.
pub(super) fn cells(
    snapshot: &Snapshot,
    cells: &[KnownCell],
    request: &CellsRequest,
    now: Timestamp,
) -> Result<CellsResponse, Error> {
    let CellsRequest { cell_id, page_size: size, page_token } = request;
    let only = parsed("cell_id", cell_id, CellId::parse)?;
    let from = parsed("page_token", page_token, CellId::parse)?;
    let wanted = cells.iter().filter(|cell| {
        let id = &cell.status.id;
        only.as_ref().is_none_or(|only| only == id) && from.as_ref().is_none_or(|from| id >= from)
    });
    let (cells, next) = page(wanted, page_size(*size)?, |known| cell(known, snapshot));
    Ok(CellsResponse {
        cells,
        next_page_token: next.map(|cell| cell.status.id.as_str().to_owned()).unwrap_or_default(),
        generation: snapshot.state.generation.0,
        now: Some(timestamp(now)),
    })
}

fn cell(known: &KnownCell, snapshot: &Snapshot) -> cells_response::Cell {
    let KnownCell { status, here } = known;
    let message = cells_response::Cell {
        status: Some(messages::cell(status.clone(), snapshot.history())),
        ..cells_response::Cell::default()
    };
    let Some(Here { agent, changed_at, details, lag, inventory }) = here else { return message };
    let Agent { version, plane, answers_questions } = &**agent;
    let details = details.as_deref().cloned().unwrap_or_default();
    let Details { enforced_at, apply_time, drift_healed, last_error, counters } = details;
    cells_response::Cell {
        detailed: true,
        version: version.to_string(),
        plane: plane.to_string(),
        answers_questions: *answers_questions,
        connection_changed_at: Some(timestamp(*changed_at)),
        enforced_at: enforced_at.map(timestamp),
        apply_time: apply_time.and_then(|time| time.try_into().ok()),
        lag: lag.and_then(|time| time.try_into().ok()),
        drift_healed,
        last_error: last_error.into(),
        counters: counters.map(|Counters { allowed, denied, unattributed }| {
            watch_request::Counters { allowed, denied, unattributed }
        }),
        isolated: inventory.as_deref().map(|inventory| rules(inventory.isolated())),
        ..message
    }
}

/// Answers a Containers.
pub(super) fn containers(
    cells: &[KnownCell],
    request: ContainersRequest,
) -> Result<ContainersResponse, Error> {
    let ContainersRequest {
        cell_id,
        app_guid,
        space_guid,
        handle,
        address,
        page_size: size,
        page_token,
    } = request;
    let filter = Filter {
        cell: parsed("cell_id", &cell_id, CellId::parse)?,
        app: text("app_guid", app_guid)?,
        space: parsed("space_guid", &space_guid, SpaceGuid::parse)?,
        handle: text("handle", handle)?.unwrap_or_default(),
        address: parsed("address", &address, |text| {
            text.parse().map_err(|error| format!("{text:?}: {error}"))
        })?,
    };
    let from = parsed("page_token", &page_token, parse_token)?;
    let chosen: Vec<_> = cells.iter().filter(|cell| filter.fits_cell(cell)).collect();
    let found: Vec<_> =
        placed(chosen.iter().copied()).filter(|placed| filter.fits(placed)).collect();
    let first = from.map_or(0, |(cell, handle)| {
        found.partition_point(|placed| (placed.cell, placed.handle) < (&cell, &handle))
    });
    let (containers, next) = page(found[first..].iter().copied(), page_size(size)?, Into::into);
    let unknown = unknown(chosen);
    let names = unknown.iter().take(UNKNOWN).map(|cell| cell.as_str().to_owned());
    Ok(ContainersResponse {
        containers,
        next_page_token: next.map(|next| token(&next)).unwrap_or_default(),
        total: found.len() as u64,
        unknown_cells: names.collect(),
        unknown_cells_total: u32::try_from(unknown.len()).unwrap_or(u32::MAX),
    })
}

/// The token of the page that begins here: identifiers contain no control characters.
fn token(next: &Placed<'_>) -> String {
    format!("{}\n{}", next.cell, next.handle)
}

fn parse_token(text: &str) -> Result<(CellId, ContainerHandle), String> {
    let (cell, handle) = text.split_once('\n').ok_or("is not from an answer")?;
    let cell = CellId::parse(cell).map_err(|error| error.to_string())?;
    let handle = ContainerHandle::parse(handle).map_err(|error| error.to_string())?;
    Ok((cell, handle))
}
