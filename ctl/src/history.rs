//! `history`: the generations that the policy store remembers, and what changed between two.

use std::collections::HashMap;

use anyhow::Context as _;
use clap::{Args, Subcommand};
use jiff::Timestamp;
use proto::policy_v1::{
    Change, Decision, DifferenceRequest, HistoryEntry, HistoryRequest, Rule, SecurityGroup,
    difference_response::Group,
    history_entry::{Entry, Progress},
};
use tonic::Code;

use crate::{
    cell::service,
    changes::{STAGES, Stage, hops, names, stages, trace_id},
    connect::Connection,
    field::{Field, Row, Tone, duration, instant, rows},
    refused::code,
    report::{Report, warn},
    stores::foundation,
    time_point::TimePoint,
};

/// Size limit of a page, which may hold groups as large as the Cloud Controller allows.
const LARGEST_PAGE: usize = 64 << 20;
/// Number of entries of a page.
const PAGE: u32 = 1_000;

/// Which part of the history.
#[derive(Debug, Args)]
pub struct History {
    /// Only changes of the group with this GUID, or that had this name after the change
    #[arg(long, value_name = "NAME")]
    pub group: Option<String>,
    /// Only entries since a time, such as 2026-11-29T12:00:00Z, or 30m, 2h or 7d ago
    #[arg(long, value_name = "TIME")]
    pub since: Option<TimePoint>,
    /// Number of entries
    #[arg(long, default_value_t = 20, conflicts_with = "since", value_parser = 1..)]
    pub last: i64,
    /// One generation, or the difference of two.
    #[command(subcommand)]
    pub command: Option<HistoryCommand>,
}

/// A part of the history.
#[derive(Debug, Subcommand)]
pub enum HistoryCommand {
    /// Show a generation: times, cells, and what changed in each group
    Show {
        /// Number of the generation
        generation: u64,
    },
    /// Compare the groups of two generations: - is only in the first, + only in the second
    Diff {
        /// The first generation
        from: u64,
        /// The second generation
        to: u64,
    },
}

/// An entry, as a change or as a decision.
#[derive(Debug, Clone, Default)]
pub(crate) struct Listed {
    change: Option<Change>,
    decision: Decision,
    progress: Vec<Progress>,
}

impl From<HistoryEntry> for Listed {
    fn from(entry: HistoryEntry) -> Self {
        let HistoryEntry { entry, progress } = entry;
        match entry {
            Some(Entry::Change(change)) => {
                Self { change: Some(change), decision: Decision::default(), progress }
            }
            Some(Entry::Decision(decision)) => Self { change: None, decision, progress },
            None => Self::default(),
        }
    }
}

impl Listed {
    fn at(&self) -> Option<Timestamp> {
        instant(self.change.as_ref().map_or(self.decision.at, |change| change.committed_at))
    }

    fn of_change<T>(&self, get: impl FnOnce(&Change) -> T) -> Option<T> {
        self.change.as_ref().map(get)
    }

    /// Cells count once all have the generation, or ten minutes have passed.
    fn of_cells<T>(&self, get: impl FnOnce(&Change) -> T) -> Option<T> {
        self.change.as_ref().filter(|change| change.cells > 0).map(get)
    }
}

fn tone(listed: &Listed) -> Tone {
    match listed.of_cells(|change| change.cells_enforced < change.cells) {
        Some(true) => Tone::Warning,
        Some(false) => Tone::Good,
        None => Tone::Plain,
    }
}

pub(crate) const HISTORY: &[Field<Listed>] = &[
    Field::integer("generation", |of| {
        Some(of.change.as_ref().map_or(of.decision.generation, |change| change.generation))
    }),
    Field::time("at", Listed::at),
    Field::text("entry", |of| match &of.change {
        Some(_) => "change".to_owned(),
        None => of.decision.action.clone(),
    }),
    Field::texts("groups", |of| of.of_change(names).unwrap_or_default()),
    Field::text("reason", |of| of.decision.reason.clone()),
    Field::text("by", |of| match &of.change {
        Some(change) => change.owner.clone(),
        None => of.decision.by.clone(),
    }),
    Field::milliseconds("enforce_ms", |of| of.of_change(|change| duration(change.slowest))?),
    Field::integer("cells", |of| of.of_cells(|change| change.cells.into())),
    Field::toned(
        Field::integer("cells_enforced", |of| of.of_cells(|change| change.cells_enforced.into())),
        tone,
    ),
    Field::wide(Field::milliseconds("notice_ms", |of| {
        of.of_change(|change| hops(change).notice)?
    })),
    Field::wide(Field::milliseconds("read_ms", |of| of.of_change(|change| hops(change).read)?)),
    Field::wide(Field::integer("added", |of| of.of_change(|change| change.added))),
    Field::wide(Field::integer("changed", |of| of.of_change(|change| change.changed))),
    Field::wide(Field::integer("removed", |of| of.of_change(|change| change.removed))),
    Field::wide(Field::text("trace_id", |of| of.of_change(trace_id).unwrap_or_default())),
];

pub(crate) const REACHED: &[Field<Progress>] = &[
    Field::milliseconds("after_commit_ms", |progress| duration(progress.after_commit)),
    Field::integer("cells", |progress| Some(progress.cells.into())),
];

/// A generation with what it changed.
#[derive(Debug, Default)]
pub(crate) struct Shown {
    listed: Listed,
    lines: Vec<Line>,
}

impl Shown {
    fn change(&self) -> Change {
        self.listed.change.clone().unwrap_or_default()
    }
}

pub(crate) const SHOWN: &[Field<Shown>] = &[
    Field::integer("generation", |of| Some(of.change().generation)),
    Field::time("committed_at", |of| instant(of.change().committed_at)),
    Field::texts("groups", |of| names(&of.change())),
    Field::text("syncer", |of| of.change().owner),
    Field::time("watermark", |of| instant(of.change().watermark)),
    Field::text("trace_id", |of| trace_id(&of.change())),
    Field::integer("cells", |of| of.listed.of_cells(|change| change.cells.into())),
    Field::toned(
        Field::integer("cells_enforced", |of| {
            of.listed.of_cells(|change| change.cells_enforced.into())
        }),
        |of| tone(&of.listed),
    ),
    Field::rows("stages", |of| hops_of(&of.change())),
    Field::rows("reached", |of| rows(REACHED, of.listed.progress.clone())),
    Field::rows("difference", |of| rows(DIFFERENCE, of.lines.clone())),
];

/// The stages whose time is known.
fn hops_of(change: &Change) -> Vec<Row> {
    let known = stages(change).into_iter().filter(|stage: &Stage| stage.at.is_some());
    rows(STAGES, known)
}

/// One difference of a group.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Line {
    group: String,
    guid: String,
    /// `+`, `-`, or `~` for another order.
    sign: &'static str,
    part: &'static str,
    text: String,
}

pub(crate) const DIFFERENCE: &[Field<Line>] = &[
    Field::text("group", |line| line.group.clone()),
    Field::toned(Field::text("sign", |line| line.sign.to_owned()), |line| match line.sign {
        "+" => Tone::Good,
        "-" => Tone::Bad,
        _ => Tone::Warning,
    }),
    Field::text("part", |line| line.part.to_owned()),
    Field::text("text", |line| line.text.clone()),
    Field::wide(Field::text("guid", |line| line.guid.clone())),
];

/// The parts of a group, as texts: name, rules, bindings.
fn parts(group: Option<&SecurityGroup>) -> Vec<(&'static str, Vec<String>)> {
    let Some(group) = group else { return Vec::new() };
    let SecurityGroup {
        guid: _,
        name,
        rules,
        running_default,
        staging_default,
        running_space_guids,
        staging_space_guids,
    } = group;
    let spaces = |everywhere: bool, guids: &[String]| {
        let all = everywhere.then(|| "all spaces".to_owned());
        all.into_iter().chain(guids.iter().map(|guid| format!("space {guid}"))).collect()
    };
    vec![
        ("name", vec![name.clone()]),
        ("rule", rules.iter().map(rule).collect()),
        ("running", spaces(*running_default, running_space_guids)),
        ("staging", spaces(*staging_default, staging_space_guids)),
    ]
}

/// `tcp 10.0.0.0/8 443 log "description"`.
fn rule(rule: &Rule) -> String {
    let mut words = vec![rule.protocol.clone(), rule.destination.clone(), service(rule)];
    if rule.log {
        words.push("log".to_owned());
    }
    if !rule.description.is_empty() {
        words.push(format!("\"{}\"", rule.description));
    }
    words.retain(|word| !word.is_empty());
    words.join(" ")
}

/// The lines of all groups.
fn lines_of(groups: Vec<Group>) -> anyhow::Result<Vec<Line>> {
    // In Rust an absent group is an empty one.
    let group = |encoded: Vec<u8>| match encoded.is_empty() {
        true => Ok(None),
        false => proto::decode_group(encoded.into()).map(Some),
    };
    let mut lines = Vec::new();
    for Group { id: _, before, after } in groups {
        let before = group(before).context("history diff")?;
        let after = group(after).context("history diff")?;
        lines.extend(compare(before.as_ref(), after.as_ref()));
    }
    Ok(lines)
}

/// The differences of a group, part by part: first what is gone.
fn compare(before: Option<&SecurityGroup>, after: Option<&SecurityGroup>) -> Vec<Line> {
    let named = after.or(before);
    let (name, guid) = named.map(|of| (of.name.clone(), of.guid.clone())).unwrap_or_default();
    let line =
        |sign, part, text| Line { group: name.clone(), guid: guid.clone(), sign, part, text };
    let (before, after) = (parts(before), parts(after));
    let mut lines = Vec::new();
    for part in ["name", "rule", "running", "staging"] {
        let of = |parts: &[(&str, Vec<String>)]| -> Vec<String> {
            let found = parts.iter().find(|(name, _)| *name == part);
            found.map(|(_, texts)| texts.clone()).unwrap_or_default()
        };
        let (old, new) = (of(&before), of(&after));
        let first = lines.len();
        lines.extend(lacking(&old, &new).map(|text| line("-", part, text)));
        lines.extend(lacking(&new, &old).map(|text| line("+", part, text)));
        if lines.len() == first && old != new {
            lines.push(line("~", part, "the same in another order".to_owned()));
        }
    }
    lines
}

/// The texts that `other` lacks; a text that is there twice counts twice.
fn lacking<'a>(texts: &'a [String], other: &[String]) -> impl Iterator<Item = String> + use<'a> {
    let mut there: HashMap<String, usize> = HashMap::new();
    for text in other {
        *there.entry(text.clone()).or_default() += 1;
    }
    texts.iter().filter_map(move |text| match there.get_mut(text) {
        Some(count) if *count > 0 => {
            *count -= 1;
            None
        }
        _ => Some(text.clone()),
    })
}

/// The entries of the history, the oldest first as in `get changes`.
pub(crate) async fn list(
    connection: &Connection,
    group: Option<String>,
    since: Option<TimePoint>,
    last: usize,
) -> anyhow::Result<Report> {
    let group = group.unwrap_or_default();
    let mut request = HistoryRequest { group, ..HistoryRequest::default() };
    let (mut found, mut now): (Vec<Listed>, _) = (Vec::new(), None);
    let most = if since.is_some() { usize::MAX } else { last };
    loop {
        let left = u32::try_from(most - found.len()).unwrap_or(u32::MAX);
        request.page_size = left.min(PAGE);
        let page = page(connection, request.clone()).await?;
        now = now.or(instant(page.now));
        let from = since.map(|since| since.before(now.unwrap_or_else(Timestamp::now)));
        let is_old = |listed: &Listed| from.is_some_and(|from| listed.at() < Some(from));
        let entries: Vec<Listed> = page.entries.into_iter().map(Listed::from).collect();
        // Entries have the order of their times: the first that is too old ends the list.
        let first_old = entries.iter().position(is_old);
        let taken = first_old.unwrap_or(entries.len());
        found.extend(entries.into_iter().take(taken));
        request.page_token = page.next_page_token;
        if request.page_token == 0 || found.len() >= most || first_old.is_some() {
            break;
        }
    }
    found.reverse();
    Ok(Report::list(HISTORY, found).at(now))
}

async fn page(
    connection: &Connection,
    request: HistoryRequest,
) -> anyhow::Result<proto::policy_v1::HistoryResponse> {
    let call = async |channel| {
        let mut client = foundation(channel).max_decoding_message_size(LARGEST_PAGE);
        Ok(client.history(request.clone()).await?.into_inner())
    };
    connection.ask_a_store("history", call).await
}

/// One generation with what it changed.
pub(crate) async fn show(connection: &Connection, generation: u64) -> anyhow::Result<Report> {
    let request = HistoryRequest { generation, ..HistoryRequest::default() };
    let page = page(connection, request).await?;
    let now = instant(page.now);
    let Some(entry) = page.entries.into_iter().next() else {
        anyhow::bail!("history show: the policy store does not remember generation {generation}");
    };
    let groups = match generation.checked_sub(1) {
        None | Some(0) => Ok(Vec::new()),
        Some(before) => groups(connection, before, generation).await,
    };
    let lines = match groups {
        Ok(groups) => lines_of(groups)?,
        Err(error) if code(&error) == Some(Code::NotFound) => {
            warn(&format!("the contents of this change are not remembered: {error:#}"));
            Vec::new()
        }
        Err(error) => return Err(error),
    };
    Ok(Report::record(SHOWN, Shown { listed: entry.into(), lines }).at(now))
}

/// What changed between two generations.
pub(crate) async fn diff(connection: &Connection, from: u64, to: u64) -> anyhow::Result<Report> {
    let groups = groups(connection, from, to).await?;
    Ok(Report::list(DIFFERENCE, lines_of(groups)?))
}

async fn groups(connection: &Connection, from: u64, to: u64) -> anyhow::Result<Vec<Group>> {
    let mut request = DifferenceRequest {
        from_generation: from,
        to_generation: to,
        page_size: PAGE,
        page_token: 0,
    };
    let mut groups = Vec::new();
    loop {
        let call = async |channel| {
            let mut client = foundation(channel).max_decoding_message_size(LARGEST_PAGE);
            Ok(client.difference(request).await?.into_inner())
        };
        let page = connection.ask_a_store("history diff", call).await?;
        groups.extend(page.groups);
        match page.next_page_token {
            0 => return Ok(groups),
            next => request.page_token = next,
        }
    }
}

#[cfg(test)]
#[path = "history_tests.rs"]
mod tests;
