//! `explain` for a space, an app or a container anywhere: the verdict of the security groups, by
//! the policy store, and beside it the verdict of the cells that have the containers.

use std::time::Duration;

use futures_util::future::join_all;
use proto::{
    cell_v1,
    policy_v1::{
        Connection as Asked, ExplainRequest, ExplainResponse, Lifecycle, PlacedContainer,
        ReachRequest, SourcedRule, cell_request::Request, cell_response::Response,
        explain_response::Remark, reach_response::Group,
    },
};
use tonic::Code;

use crate::{
    asking,
    cell::Written,
    cells::{self, Seen},
    connect::Connection,
    containers::handle,
    explain,
    field::{Field, Row, Tone, instant, rows, span},
    groups,
    reach::written,
    refused::code,
    report::{Report, warn},
    stores::{foundation, settle},
    target::Target,
};

/// Exit status with `--exit-code` if the connection is denied.
const DENIED: u8 = 3;
/// Exit status with `--exit-code` if a cell contradicts the groups.
const CONTRADICTED: u8 = 6;
/// Containers whose cells are asked.
const MOST_ASKED: usize = 20;
/// Groups listed that would allow the connection in other places.
const MOST_ELSEWHERE: usize = 5;
/// Default timeout of a cell.
const CELL: Duration = Duration::from_secs(5);

/// Whose connection it is.
#[derive(Debug)]
pub(crate) enum Subject {
    Space(String),
    App(String),
    Container(String),
}

/// The answer of the store, and of the cells.
#[derive(Debug)]
pub(crate) struct Explained {
    answer: ExplainResponse,
    elsewhere: Vec<Group>,
    cells: Vec<Kernel>,
}

/// What the cell of one container answered.
#[derive(Debug, Clone)]
pub(crate) struct Kernel {
    placed: PlacedContainer,
    verdict: Option<cell_v1::explain_response::Verdict>,
    /// Whether the verdicts are the same; unknown if the cell was not asked, or security groups
    /// do not decide.
    agrees: Option<bool>,
    remark: String,
}

pub(crate) const EXPLAINED: &[Field<Explained>] = &[
    Field::toned(Field::text("verdict", |of| verdict(&of.answer).to_owned()), |of| {
        if of.answer.allowed { Tone::Good } else { Tone::Bad }
    }),
    Field::text("reason", |of| of.answer.reason.clone()),
    Field::text("rule", |of| of.answer.decisive.clone().map(line).unwrap_or_default()),
    Field::toned(Field::text("cells", |of| agreement(&of.cells)), |of| {
        let contradicted = of.cells.iter().any(|kernel| kernel.agrees == Some(false));
        if contradicted { Tone::Bad } else { Tone::Plain }
    }),
    Field::texts("not_enforced", |of| remarks(&of.answer.not_enforced)),
    Field::texts("elsewhere", |of| elsewhere(&of.elsewhere)),
    Field::texts("near_misses", |of| remarks(&of.answer.near_misses)),
    Field::text("space", |of| of.answer.space_guid.clone()),
    Field::text("lifecycle", |of| lifecycle(&of.answer).to_owned()),
    Field::integer("generation", |of| Some(of.answer.generation)),
    Field::integer("containers_total", |of| Some(of.answer.containers_total)),
    Field::rows("containers", |of| kernels(&of.cells)),
];

pub(crate) const KERNELS: &[Field<Kernel>] = &[
    Field::text("cell", |of| of.placed.cell_id.clone()),
    Field::text("container", |of| handle(&of.placed).to_owned()),
    Field::text("verdict", |of| of.verdict.map(explain::phrase).unwrap_or_default().to_owned()),
    Field::toned(
        Field::text("agrees", |of| {
            let text = match of.agrees {
                None => "unknown",
                Some(true) => "yes",
                Some(false) => "no",
            };
            text.to_owned()
        }),
        |of| match of.agrees {
            None => Tone::Warning,
            Some(true) => Tone::Good,
            Some(false) => Tone::Bad,
        },
    ),
    Field::text("remark", |of| of.remark.clone()),
];

fn kernels(cells: &[Kernel]) -> Vec<Row> {
    rows(KERNELS, cells.iter().cloned())
}

fn verdict(answer: &ExplainResponse) -> &'static str {
    match (answer.allowed, answer.logged) {
        (true, true) => "allowed and logged",
        (true, false) => "allowed",
        (false, _) => "denied",
    }
}

fn lifecycle(answer: &ExplainResponse) -> &'static str {
    match answer.lifecycle() {
        Lifecycle::Staging => "staging",
        Lifecycle::Running | Lifecycle::Unspecified => "running",
    }
}

/// `asked for 3 containers: 2 agree, 1 do not tell`.
fn agreement(cells: &[Kernel]) -> String {
    if cells.is_empty() {
        return String::new();
    }
    let count = |agrees| cells.iter().filter(|kernel| kernel.agrees == agrees).count();
    let (yes, no, unknown) = (count(Some(true)), count(Some(false)), count(None));
    let parts = [(yes, "agree"), (no, "DISAGREE"), (unknown, "do not tell")];
    let parts = parts.iter().filter(|(count, _)| *count > 0);
    let parts: Vec<String> = parts.map(|(count, word)| format!("{count} {word}")).collect();
    format!("asked for {} containers: {}", cells.len(), parts.join(", "))
}

fn line(rule: SourcedRule) -> String {
    written(rule).line()
}

fn remarks(remarks: &[Remark]) -> Vec<String> {
    let remark = |remark: &Remark| {
        format!("{}: {}", line(remark.rule.clone().unwrap_or_default()), remark.reason)
    };
    remarks.iter().map(remark).collect()
}

/// Groups that allow the connection, but do not apply here.
fn elsewhere(groups: &[Group]) -> Vec<String> {
    let place = |group: &Group| {
        let places = [
            (group.running_default, "all running apps".to_owned()),
            (group.staging_default, "all staging".to_owned()),
            (
                !group.running_space_guids.is_empty(),
                format!("running apps of {} spaces", group.running_space_guids.len()),
            ),
            (
                !group.staging_space_guids.is_empty(),
                format!("staging of {} spaces", group.staging_space_guids.len()),
            ),
        ];
        let places: Vec<String> =
            places.into_iter().filter(|(applies, _)| *applies).map(|(_, text)| text).collect();
        let places = if places.is_empty() { "nothing".to_owned() } else { places.join(", ") };
        let rule = group.rules.first().cloned().unwrap_or_default();
        let rule: Written = written(rule);
        let Group { name, guid, .. } = group;
        format!("group {name} ({guid}) is bound to {places}: {}", rule.words())
    };
    let mut lines: Vec<String> = groups.iter().take(MOST_ELSEWHERE).map(place).collect();
    if groups.len() > MOST_ELSEWHERE {
        lines.push(format!("{} more: who-can-reach", groups.len() - MOST_ELSEWHERE));
    }
    lines
}

/// Explains a connection. Also returns the exit status for the verdict.
pub(crate) async fn explain(
    connection: &Connection,
    subject: &Subject,
    staging: bool,
    target: Target,
) -> anyhow::Result<(Report, u8)> {
    let lifecycle = if staging { Lifecycle::Staging } else { Lifecycle::Unspecified };
    let mut request = ExplainRequest {
        lifecycle: lifecycle.into(),
        connection: Some(target.into()),
        ..ExplainRequest::default()
    };
    match subject {
        Subject::Space(guid) => request.space_guid.clone_from(guid),
        Subject::App(guid) => request.app_guid.clone_from(guid),
        Subject::Container(handle) => request.handle.clone_from(handle),
    }
    let answer = ask(connection, request).await?;
    if let Subject::Space(guid) = subject
        && !answer.space_known
    {
        warn(&groups::unbound(guid));
    }
    let elsewhere = if answer.allowed { Vec::new() } else { reaching(connection, target).await? };
    let asked = &answer.containers[..answer.containers.len().min(MOST_ASKED)];
    let known = if asked.iter().all(|placed| placed.connected) {
        Vec::new()
    } else {
        cells::fetch(connection, "").await?
    };
    let cells = asked.iter().map(|placed| kernel(connection, placed, &answer, target, &known));
    let cells = join_all(cells.map(Box::pin)).await;
    let contradicted = cells.iter().any(|kernel| kernel.agrees == Some(false));
    let code = match (contradicted, answer.allowed) {
        (true, _) => CONTRADICTED,
        (false, true) => 0,
        (false, false) => DENIED,
    };
    Ok((Report::brief(EXPLAINED, Explained { answer, elsewhere, cells }), code))
}

/// The answer of the instance that knows most containers. An app is known by the instances that
/// its cells watch.
async fn ask(connection: &Connection, request: ExplainRequest) -> anyhow::Result<ExplainResponse> {
    let call = async |channel| Ok(foundation(channel).explain(request.clone()).await?.into_inner());
    let answers = connection.survey("explain", call).await?;
    let known = answers.iter().any(|(_, answer)| answer.is_ok());
    let counts = |answer: &anyhow::Result<ExplainResponse>| match answer {
        Ok(_) => true,
        Err(error) => !known || code(error) != Some(Code::NotFound),
    };
    let answers = answers.into_iter().filter(|(_, answer)| counts(answer)).collect();
    let mut answers = settle(answers)?;
    answers.sort_by_key(|answer| {
        let connected = answer.containers.iter().filter(|placed| placed.connected).count();
        std::cmp::Reverse((connected, answer.containers_total))
    });
    let mut best = answers.remove(0);
    let own = |placed: &PlacedContainer| (placed.cell_id.clone(), handle(placed).to_owned());
    for other in answers {
        for placed in other.containers.into_iter().filter(|placed| placed.connected) {
            match best.containers.iter_mut().find(|known| own(known) == own(&placed)) {
                // The other instance knows of the cell only its last report.
                Some(known) if !known.connected => *known = placed,
                Some(_) => {}
                None => {
                    best.containers_total += 1;
                    best.containers.push(placed);
                }
            }
        }
    }
    Ok(best)
}

/// The groups that allow the connection somewhere.
async fn reaching(connection: &Connection, target: Target) -> anyhow::Result<Vec<Group>> {
    let call = async |channel| {
        let request = ReachRequest { connection: Some(target.into()) };
        foundation(channel).reach(request).await
    };
    let answer = connection.ask_a_store("who-can-reach", call).await?;
    Ok(answer.into_inner().groups)
}

/// Asks the cell of a container.
async fn kernel(
    connection: &Connection,
    placed: &PlacedContainer,
    answer: &ExplainResponse,
    target: Target,
    known: &[Seen],
) -> Kernel {
    if !placed.connected {
        let (placed, remark) = (placed.clone(), since(known, &placed.cell_id));
        return Kernel { placed, verdict: None, agrees: None, remark };
    }
    let Asked { protocol, destination, port, icmp_type, icmp_code } = target.into();
    let request = cell_v1::ExplainRequest {
        handle: handle(placed).to_owned(),
        protocol,
        destination,
        port,
        icmp_type,
        icmp_code,
    };
    let asked = asking::ask(connection, &placed.cell_id, Request::Explain(request), CELL).await;
    let placed = placed.clone();
    match asked {
        Ok(Response::Explain(kernel)) => {
            let verdict = kernel.verdict();
            let agrees = agrees(answer.allowed, verdict);
            let remark = if agrees == Some(true) { String::new() } else { kernel.reason };
            Kernel { placed, verdict: Some(verdict), agrees, remark }
        }
        Ok(_) => {
            let remark = "the answer is not one to explain".to_owned();
            Kernel { placed, verdict: None, agrees: None, remark }
        }
        Err(error) => {
            let remark = format!("cannot be asked: {}", error.root_cause());
            Kernel { placed, verdict: None, agrees: None, remark }
        }
    }
}

/// Since when the cell is not connected.
fn since(known: &[Seen], cell: &str) -> String {
    let seen = known.iter().find(|seen| seen.id() == cell);
    let left = seen.and_then(|seen| instant(seen.cell.connection_changed_at));
    match left.zip(seen.and_then(|seen| seen.now)) {
        Some((left, now)) => {
            let ago = u64::try_from(now.as_second() - left.as_second()).unwrap_or(0);
            format!("cannot be asked: not connected for {}", span(ago))
        }
        None => "cannot be asked: not connected".to_owned(),
    }
}

fn agrees(allowed: bool, verdict: cell_v1::explain_response::Verdict) -> Option<bool> {
    use cell_v1::explain_response::Verdict;
    match verdict {
        Verdict::Allowed | Verdict::AllowedAndLogged => Some(allowed),
        Verdict::Denied => Some(!allowed),
        Verdict::NotDecided | Verdict::Unspecified => None,
    }
}

#[cfg(test)]
mod tests {
    use proto::cell_v1::explain_response::Verdict;

    use super::*;

    #[test]
    fn verdicts_are_compared() {
        for (allowed, verdict, expected) in [
            (true, Verdict::Allowed, Some(true)),
            (true, Verdict::AllowedAndLogged, Some(true)),
            (true, Verdict::Denied, Some(false)),
            (false, Verdict::Allowed, Some(false)),
            (false, Verdict::Denied, Some(true)),
            (false, Verdict::NotDecided, None),
            (true, Verdict::Unspecified, None),
        ] {
            assert_eq!(agrees(allowed, verdict), expected, "{allowed} {verdict:?}");
        }
    }

    #[test]
    fn the_answer_begins_with_the_verdict_and_says_who_agrees() {
        let kernel = |agrees| Kernel {
            placed: PlacedContainer::default(),
            verdict: None,
            agrees,
            remark: "gone".to_owned(),
        };
        let cells = vec![kernel(Some(true)), kernel(Some(false)), kernel(None)];
        let text = "asked for 3 containers: 1 agree, 1 DISAGREE, 1 do not tell";
        assert_eq!(agreement(&cells), text);
        assert_eq!(agreement(&[]), "");
        let bound = Group {
            name: "db".to_owned(),
            guid: "g".to_owned(),
            running_space_guids: vec!["s".to_owned()],
            ..Group::default()
        };
        let elsewhere = vec![bound; 7];
        let explained = Explained { answer: ExplainResponse::default(), elsewhere, cells };
        let json = Report::brief(EXPLAINED, explained).to_json();
        assert!(
            json.starts_with("{\"verdict\":\"denied\",\"reason\":null,\"rule\":null,"),
            "{json}"
        );
        assert!(json.contains("group db (g) is bound to running apps of 1 spaces"), "{json}");
        assert!(json.contains("2 more: who-can-reach"), "{json}");
    }
}
