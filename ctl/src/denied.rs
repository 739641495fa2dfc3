//! `denied`: denied connections of containers, which their cells are asked for.

use std::{collections::BTreeMap, time::Duration};

use anyhow::bail;
use futures_util::{StreamExt as _, stream};
use jiff::Timestamp;
use proto::{
    cell_v1::{Container, DeniedFlow, DeniedRequest, DeniedResponse},
    policy_v1::{ContainersRequest, cell_request::Request, cell_response::Response},
};
use tonic::Code;

use crate::{
    asking,
    cell::Written,
    cells,
    cli::DeniedSelection,
    connect::Connection,
    containers,
    escape::escape,
    field::{Field, instant},
    natural,
    output::Output,
    refused::{code, is_final},
    report::{self, Report, warn},
};

/// Number of cells that are asked at a time.
const AT_A_TIME: usize = 20;
/// Timeout for the answer of a cell.
const USUAL: Duration = Duration::from_secs(10);
/// Flows that one cell is asked for: those of a table, and those of a stream.
const LISTED: u32 = 200;
const FOLLOWED: u32 = 1_000;
/// Between two questions of `--follow`.
const INTERVAL: Duration = Duration::from_secs(1);

/// Denied packets of a container of one cell to one target.
#[derive(Debug, Clone)]
pub(crate) struct Denied {
    cell: String,
    flow: DeniedFlow,
}

impl Denied {
    fn of(&self, get: fn(&Container) -> &String) -> String {
        self.flow.container.as_ref().map(|of| get(of).clone()).unwrap_or_default()
    }

    /// As in `explain --to`.
    fn target(&self) -> String {
        let DeniedFlow { protocol, destination, port, icmp_type, icmp_code, .. } = &self.flow;
        match (protocol.as_str(), destination.contains(':')) {
            ("tcp" | "udp", true) => format!("[{destination}]:{port}/{protocol}"),
            ("tcp" | "udp", false) => format!("{destination}:{port}/{protocol}"),
            ("icmp", _) => format!("{destination}/icmp/{icmp_type}/{icmp_code}"),
            _ => format!("{destination}/{protocol}"),
        }
    }

    fn nearest(&self) -> String {
        let Some(near) = &self.flow.nearest else { return String::new() };
        let rule = near.rule.clone().unwrap_or_default();
        format!("{}: {}", Written::new(rule.rule, rule.source, String::new()).line(), near.reason)
    }

    fn port(&self) -> Option<u64> {
        let is_port = ["tcp", "udp"].contains(&self.flow.protocol.as_str());
        is_port.then(|| self.flow.port.into())
    }

    fn icmp(&self, number: u32) -> Option<u64> {
        (self.flow.protocol == "icmp").then(|| number.into())
    }

    fn last(&self) -> Option<Timestamp> {
        instant(self.flow.last)
    }
}

pub(crate) const DENIED: &[Field<Denied>] = &[
    Field::time("last_at", Denied::last),
    Field::text("app", |denied| denied.of(|container| &container.app_guid)),
    Field::text("container", |denied| denied.of(|container| &container.handle)),
    Field::text("cell", |denied| denied.cell.clone()),
    Field::text("to", Denied::target),
    Field::integer("packets", |denied| Some(denied.flow.packets)),
    Field::text("reason", |denied| denied.flow.reason.clone()),
    Field::wide(Field::text("nearest", Denied::nearest)),
    Field::wide(Field::text("space", |denied| denied.of(|container| &container.space_guid))),
    Field::wide(Field::time("first_at", |denied| instant(denied.flow.first))),
    Field::only_json(Field::text("protocol", |denied| denied.flow.protocol.clone())),
    Field::only_json(Field::text("destination", |denied| denied.flow.destination.clone())),
    Field::only_json(Field::integer("port", Denied::port)),
    Field::only_json(Field::integer("icmp_type", |denied| denied.icmp(denied.flow.icmp_type))),
    Field::only_json(Field::integer("icmp_code", |denied| denied.icmp(denied.flow.icmp_code))),
];

/// Lists denied connections, the most recent first.
pub(crate) async fn list(
    connection: &Connection,
    wanted: &DeniedSelection,
) -> anyhow::Result<Report> {
    let mut asked = Asked::default();
    let mut found = asked.all(connection, wanted, LISTED).await?;
    found.sort_by(|one, other| (other.last(), &other.cell).cmp(&(one.last(), &one.cell)));
    for (cell, packets) in &asked.not_recorded {
        if *packets > 0 {
            warn(&format!(
                "{}: {packets} more denied packets are counted in no line: they were above the \
                 rate limit, or of flows for which the record had no room",
                escape(cell)
            ));
        }
    }
    Ok(Report::list(DENIED, found))
}

/// Prints denied connections, the oldest first, and then those with further packets, until the
/// user interrupts.
pub(crate) async fn follow(
    connection: &Connection,
    wanted: &DeniedSelection,
    output: &Output,
) -> anyhow::Result<()> {
    let (mut asked, mut failing, mut first) = (Asked::default(), false, true);
    loop {
        match asked.all(connection, wanted, FOLLOWED).await {
            Err(error) if first || is_final(&error) => return Err(error),
            Err(error) => {
                if !std::mem::replace(&mut failing, true) {
                    warn(&format!("denied: {error:#}; trying again"));
                }
            }
            Ok(mut found) => {
                failing = false;
                found.sort_by_key(Denied::last);
                for denied in found {
                    let line = line(&denied);
                    report::event(DENIED, denied, output, &line)?;
                }
            }
        }
        first = false;
        tokio::time::sleep(INTERVAL).await;
    }
}

fn line(denied: &Denied) -> String {
    let parts = [
        denied.last().map(|at| at.to_string()).unwrap_or_default(),
        denied.of(|container| &container.app_guid),
        denied.of(|container| &container.handle),
        denied.target(),
        match denied.flow.packets {
            1 => "1 packet".to_owned(),
            packets => format!("{packets} packets"),
        },
        denied.flow.reason.clone(),
    ];
    parts.map(|part| escape(&part).to_string()).join("  ")
}

/// What the cells answered so far.
#[derive(Debug, Default)]
struct Asked {
    /// The cursor of each cell.
    cursors: BTreeMap<String, u64>,
    /// Packets that each cell has in no flow.
    not_recorded: BTreeMap<String, u64>,
    /// Cells that a warning has named, with its text.
    failed: BTreeMap<String, String>,
}

impl Asked {
    /// The flows with packets since the last call. A cell that does not answer is a warning,
    /// and an error if it is the only one.
    async fn all(
        &mut self,
        connection: &Connection,
        wanted: &DeniedSelection,
        limit: u32,
    ) -> anyhow::Result<Vec<Denied>> {
        let cells = of(connection, wanted).await?;
        let questions = cells.iter().map(|cell| {
            let request = DeniedRequest {
                handle: wanted.container.clone().unwrap_or_default(),
                app_guid: wanted.app.clone().unwrap_or_default(),
                space_guid: wanted.space.clone().unwrap_or_default(),
                cursor: self.cursors.get(cell).copied().unwrap_or_default(),
                limit,
            };
            Box::pin(async move { (cell, ask(connection, cell, request).await) })
        });
        let answers: Vec<_> = stream::iter(questions).buffer_unordered(AT_A_TIME).collect().await;
        let mut found = Vec::new();
        for (cell, answer) in answers {
            match answer {
                Ok(answer) => {
                    self.failed.remove(cell);
                    self.cursors.insert(cell.clone(), answer.cursor);
                    self.not_recorded.insert(cell.clone(), answer.not_recorded);
                    found.extend(
                        answer.flows.into_iter().map(|flow| Denied { cell: cell.clone(), flow }),
                    );
                }
                Err(error) if cells.len() == 1 => return Err(error),
                Err(error) => {
                    let text = format!("{}: {error:#}", escape(cell));
                    if self.failed.insert(cell.clone(), text.clone()).as_ref() != Some(&text) {
                        warn(&text);
                    }
                }
            }
        }
        if let Some(since) = wanted.since {
            let bound = Timestamp::now() - since;
            found.retain(|denied| denied.last().is_some_and(|last| last >= bound));
        }
        Ok(found)
    }
}

/// The cells of the selected containers; all connected cells without a selection, and if no
/// instance knows such a container: it may be deleted.
async fn of(connection: &Connection, wanted: &DeniedSelection) -> anyhow::Result<Vec<String>> {
    let DeniedSelection { app, space, container, cell, .. } = wanted;
    if let Some(cell) = cell {
        return Ok(vec![cell.clone()]);
    }
    if app.is_some() || space.is_some() || container.is_some() {
        let selection = ContainersRequest {
            app_guid: app.clone().unwrap_or_default(),
            space_guid: space.clone().unwrap_or_default(),
            handle: container.clone().unwrap_or_default(),
            ..ContainersRequest::default()
        };
        let placed = containers::fetch(connection, &selection).await?;
        let mut cells: Vec<String> = placed.into_iter().map(|placed| placed.cell_id).collect();
        cells.sort_by(|one, other| natural::compare(one, other));
        cells.dedup();
        if !cells.is_empty() {
            return Ok(cells);
        }
    }
    let seen = cells::fetch(connection, "").await?;
    Ok(seen.iter().filter(|seen| seen.is_connected()).map(|seen| seen.id().to_owned()).collect())
}

async fn ask(
    connection: &Connection,
    cell: &str,
    request: DeniedRequest,
) -> anyhow::Result<DeniedResponse> {
    match asking::ask(connection, cell, Request::Denied(request), USUAL).await {
        Ok(Response::Denied(answer)) => Ok(answer),
        Ok(_) => bail!("the answer of cell {cell:?} is not one to denied"),
        // A process that does not know the request receives an empty one.
        Err(error) if is_unknown(&error) => {
            bail!("its agent or its policy store is older and keeps no record of denied packets")
        }
        Err(error) => Err(error),
    }
}

fn is_unknown(error: &anyhow::Error) -> bool {
    let is_empty = format!("{error:#}").ends_with("is missing");
    matches!(code(error), Some(Code::Unimplemented))
        || (code(error) == Some(Code::InvalidArgument) && is_empty)
}

#[cfg(test)]
mod tests {
    use proto::{
        cell_v1::{EffectiveRule, NearMiss, RuleSource},
        policy_v1::Rule,
    };
    use tonic::Status;

    use super::*;
    use crate::refused::Refused;

    fn denied(protocol: &str, destination: &str) -> Denied {
        let flow = DeniedFlow {
            container: Some(Container {
                handle: "h\u{1b}".to_owned(),
                app_guid: "a".to_owned(),
                ..Container::default()
            }),
            protocol: protocol.to_owned(),
            destination: destination.to_owned(),
            port: 80,
            icmp_type: 8,
            packets: 3,
            last: Some(prost_types::Timestamp { seconds: 1, nanos: 0 }),
            reason: "no rule".to_owned(),
            ..DeniedFlow::default()
        };
        Denied { cell: "cell-1".to_owned(), flow }
    }

    #[test]
    fn a_target_is_written_as_explain_takes_it() {
        for (protocol, destination, expected) in [
            ("tcp", "10.0.0.1", "10.0.0.1:80/tcp"),
            ("udp", "fd00::1", "[fd00::1]:80/udp"),
            ("icmp", "10.0.0.1", "10.0.0.1/icmp/8/0"),
        ] {
            let target = denied(protocol, destination).target();
            assert_eq!(target, expected);
            target.parse::<crate::target::Target>().unwrap();
        }
        let other = denied("47", "10.0.0.1");
        assert_eq!((other.target().as_str(), other.port()), ("10.0.0.1/47", None));
    }

    #[test]
    fn a_line_is_escaped() {
        assert_eq!(
            line(&denied("tcp", "10.0.0.1")),
            "1970-01-01T00:00:01Z  a  h\\u{1b}  10.0.0.1:80/tcp  3 packets  no rule"
        );
    }

    #[test]
    fn the_nearest_rule_has_its_group() {
        let rule = Rule {
            protocol: "tcp".to_owned(),
            destination: "10.0.0.1".to_owned(),
            ports: "443".to_owned(),
            ..Rule::default()
        };
        let source =
            RuleSource { group_guid: "g".to_owned(), group_name: "web".to_owned(), rule_index: 2 };
        let mut denied = denied("tcp", "10.0.0.1");
        assert_eq!(denied.nearest(), "");
        let rule = EffectiveRule { rule: Some(rule), source: Some(source) };
        denied.flow.nearest = Some(NearMiss { rule: Some(rule), reason: "other ports".to_owned() });
        assert_eq!(denied.nearest(), "tcp 10.0.0.1 443 (group web g, rule 2): other ports");
    }

    #[test]
    fn an_older_process_is_recognised() {
        let refused = |status: &Status| anyhow::Error::new(Refused::new(status)).context("ask");
        assert!(is_unknown(&refused(&Status::unimplemented("no"))));
        assert!(is_unknown(&refused(&Status::invalid_argument("request is missing"))));
        assert!(!is_unknown(&refused(&Status::invalid_argument("limit: 7 is too much"))));
        assert!(!is_unknown(&refused(&Status::failed_precondition("request is missing"))));
    }
}
