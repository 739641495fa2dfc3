//! Converts requests to model types; the only place that does.

use std::collections::HashSet;

use jiff::Timestamp;
use model::{
    generation::{Generation, Point, Stamp, Watermark},
    group::GroupId,
    ids::{CellId, SpaceGuid},
    lock::{FencingToken, Owner},
    trace::TraceContext,
};
use proto::policy_v1::{
    ListRequest,
    replace_request::Begin,
    watch_request::{Hello, Report, Subscribe},
};

use super::{
    inventory,
    status::{Error, invalid},
};
use crate::{
    feed::{
        cursor::MAX_SPACES,
        watch::{self, ClientMessage},
    },
    groups::{
        decide::Origin,
        page::{DEFAULT_SIZE, Filter, MAX_SIZE},
    },
    reports,
};

/// First message of a writer.
#[derive(Debug)]
pub(super) struct Beginning {
    pub(super) owner: Owner,
    pub(super) token: Option<FencingToken>,
    pub(super) watermark: Watermark,
    pub(super) allow_mass_removal: bool,
    pub(super) origin: Origin,
}

impl TryFrom<Begin> for Beginning {
    type Error = Error;

    fn try_from(begin: Begin) -> Result<Self, Error> {
        let moment = begin.watermark_value()?;
        let Begin {
            owner,
            fencing_token,
            watermark: _,
            allow_mass_removal,
            noticed_at,
            read_at,
            traceparent,
        } = begin;
        if i64::try_from(fencing_token).is_err() {
            return Err(invalid("fencing_token", format_args!("{fencing_token} is too large")));
        }
        Ok(Self {
            owner: Owner::parse(&owner).map_err(|error| invalid("owner", error))?,
            token: (fencing_token != 0).then_some(FencingToken(fencing_token)),
            watermark: moment,
            allow_mass_removal,
            origin: Origin {
                noticed_at: inventory::time(noticed_at),
                read_at: inventory::time(read_at),
                trace: trace(&traceparent),
            },
        })
    }
}

/// A sync without a valid trace context is as good as one with it.
fn trace(text: &str) -> Option<TraceContext> {
    let trace = TraceContext::parse(text);
    if trace.is_none() && !text.is_empty() {
        let text: String = text.chars().take(100).collect();
        tracing::debug!(traceparent = text, "invalid-traceparent");
    }
    trace
}

fn spaces<C: FromIterator<SpaceGuid>>(field: &str, texts: &[String]) -> Result<C, Error> {
    if texts.len() > MAX_SPACES {
        let problem = format_args!("has {} entries, at most {MAX_SPACES} are allowed", texts.len());
        return Err(invalid(field, problem));
    }
    let parse = |(index, text): (usize, &String)| {
        SpaceGuid::parse(text).map_err(|error| invalid(&format!("{field}[{index}]"), error))
    };
    texts.iter().enumerate().map(parse).collect()
}

/// Requested page and selection of groups.
#[derive(Debug)]
pub(super) struct Wanted {
    pub(super) filter: Filter,
    pub(super) from: GroupId,
    pub(super) size: usize,
}

impl TryFrom<ListRequest> for Wanted {
    type Error = Error;

    fn try_from(request: ListRequest) -> Result<Self, Error> {
        let ListRequest { space_guids, all, page_size, page_token } = request;
        let filter = match all {
            true if !space_guids.is_empty() => {
                return Err(invalid("space_guids", "must be empty when all is set"));
            }
            true => Filter::All,
            false => Filter::Spaces(spaces::<HashSet<_>>("space_guids", &space_guids)?),
        };
        let size = self::page_size(page_size)?;
        Ok(Self { filter, from: GroupId(page_token), size })
    }
}

pub(super) fn page_size(size: u32) -> Result<usize, Error> {
    match usize::try_from(size).unwrap_or(usize::MAX) {
        0 => Ok(DEFAULT_SIZE),
        size if size <= MAX_SIZE => Ok(size),
        size => Err(invalid("page_size", format_args!("{size} is more than {MAX_SIZE}"))),
    }
}

pub(super) fn hello(hello: &Hello) -> Result<watch::Hello, Error> {
    let Hello { cell_id, space_guids, generation, stamp, .. } = hello;
    let known = Point { generation: Generation(*generation), stamp: Stamp(*stamp) };
    Ok(watch::Hello {
        cell: CellId::parse(cell_id).map_err(|error| invalid("cell_id", error))?,
        spaces: spaces("space_guids", space_guids)?,
        known: (*generation != 0).then_some(known),
        agent: inventory::agent(hello),
    })
}

pub(super) fn subscribe(subscribe: &Subscribe) -> Result<ClientMessage, Error> {
    let Subscribe { sequence, add_space_guids, drop_space_guids } = subscribe;
    Ok(ClientMessage::Subscribe {
        sequence: *sequence,
        add: spaces("add_space_guids", add_space_guids)?,
        drop: spaces("drop_space_guids", drop_space_guids)?,
    })
}

pub(super) fn report(report: &Report, at: Timestamp) -> ClientMessage {
    let Report { enforced_generation, containers, isolated_rules, .. } = *report;
    let enforced = Generation(enforced_generation);
    let details = Box::new(inventory::details(report));
    ClientMessage::Report(reports::Report { enforced, containers, isolated_rules, at }, details)
}
