//! Server-sent events of the live view: first everything, then differences.

use std::{
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use bytes::Bytes;
use futures_util::{Stream, StreamExt as _, stream};
use proto::policy_v1::{
    CellsRequest, ChangesRequest, ChangesResponse, StatusRequest,
    foundation_server::Foundation as _, policy_store_server::PolicyStore as _,
};
use serde_json::{Value, json};
use tokio::time::{Instant, Interval, MissedTickBehavior, interval};
use tonic::{Request, Status};

use super::{
    Services,
    json::{self, Sent},
};

/// Limit of open live views.
const MAX_VIEWS: usize = 32;
/// Shortest time between two events.
const EVERY: Duration = Duration::from_millis(500);
/// An event is sent at least this often, so that the browser notices a dead connection.
const SILENCE: Duration = Duration::from_secs(5);
/// Cells per request.
const PAGE: u32 = 5_000;

type Changes = Pin<Box<dyn Stream<Item = Result<ChangesResponse, Status>> + Send>>;

/// Starts a live view.
///
/// # Errors
/// Too many views are open.
pub(super) async fn events(
    services: &Services,
    open: &Arc<AtomicUsize>,
) -> Result<impl Stream<Item = Result<Bytes, Status>> + Send + 'static, Status> {
    let place = Place::take(open)?;
    let follow = ChangesRequest { follow: true, ..ChangesRequest::default() };
    let changes = services.foundation.changes(Request::new(follow)).await?.into_inner();
    let mut ticks = interval(EVERY);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let view = View {
        services: services.clone(),
        changes,
        ticks,
        pending: Vec::new(),
        cells: Sent::default(),
        summary: Value::Null,
        last: None,
        _place: place,
    };
    Ok(stream::unfold(view, async |mut view| {
        let event = view.next().await;
        Some((event.transpose()?, view))
    }))
}

/// One of the open views.
#[derive(Debug)]
struct Place(Arc<AtomicUsize>);

impl Place {
    fn take(open: &Arc<AtomicUsize>) -> Result<Self, Status> {
        let place = Self(Arc::clone(open));
        if open.fetch_add(1, Ordering::Relaxed) >= MAX_VIEWS {
            let problem = format!("{MAX_VIEWS} live views are open already");
            return Err(Status::resource_exhausted(problem));
        }
        Ok(place)
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

struct View {
    services: Services,
    changes: Changes,
    ticks: Interval,
    /// Changes since the last event.
    pending: Vec<Value>,
    cells: Sent,
    summary: Value,
    /// Time of the last event.
    last: Option<Instant>,
    _place: Place,
}

impl View {
    /// The next event; `None` when the store shuts down.
    async fn next(&mut self) -> Result<Option<Bytes>, Status> {
        loop {
            tokio::select! {
                change = self.changes.next() => match change {
                    Some(change) => self.pending.extend(change?.change.as_ref().map(json::change)),
                    None => return Ok(None),
                },
                now = self.ticks.tick() => {
                    let event = self.event(now).await?;
                    if event.is_some() {
                        return Ok(event);
                    }
                }
            }
        }
    }

    /// The differences since the last event; `None` when there are none.
    async fn event(&mut self, now: Instant) -> Result<Option<Bytes>, Status> {
        let status = self.services.store.status(Request::new(StatusRequest {})).await?.into_inner();
        let summary = json::summary(&status);
        let (cells, gone) = self.cells.difference(cells(&self.services).await?);
        let is_silent = self.last.is_some_and(|last| now.duration_since(last) < SILENCE);
        let is_same = cells.is_empty() && gone.is_empty() && self.pending.is_empty();
        if is_silent && is_same && summary == self.summary {
            return Ok(None);
        }
        let event = json!({
            "reset": self.last.is_none(),
            "now": json::moment(status.now.as_ref()),
            "summary": summary,
            "cells": cells,
            "gone": gone,
            "changes": std::mem::take(&mut self.pending),
        });
        self.summary = summary;
        self.last = Some(now);
        Ok(Some(format!("data: {event}\n\n").into()))
    }
}

/// All cells by id.
async fn cells(services: &Services) -> Result<Vec<(String, Value)>, Status> {
    let mut all = Vec::new();
    let mut request = CellsRequest { page_size: PAGE, ..CellsRequest::default() };
    loop {
        let page = services.foundation.cells(Request::new(request.clone())).await?;
        let page = page.into_inner();
        for cell in &page.cells {
            let id = cell.status.as_ref().map_or("", |status| &status.cell_id);
            all.push((id.to_owned(), json::cell(cell, page.generation)));
        }
        if page.next_page_token.is_empty() {
            return Ok(all);
        }
        request.page_token = page.next_page_token;
    }
}
