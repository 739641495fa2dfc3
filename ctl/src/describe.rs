//! `describe cell`, `describe container` and `describe space`.

use std::{collections::BTreeMap, time::Duration};

use anyhow::bail;
use proto::{
    cell_v1::EffectiveRulesRequest,
    policy_v1::{
        ContainersRequest, PlacedContainer, cell_request::Request, cell_response::Response,
    },
};

use crate::{
    asking,
    cell::{self, RULES, Written, state},
    cells::{self, Seen},
    connect::Connection,
    containers::{self, PLACED, handle},
    field::{Field, Row, instant, rows},
    groups::{self, GROUPS, Group},
    report::{Report, warn},
    store,
};

/// Default timeout of a cell.
const CELL: Duration = Duration::from_secs(10);

/// A cell with its containers.
#[derive(Debug)]
pub(crate) struct CellDetail {
    seen: Seen,
    containers: Vec<PlacedContainer>,
}

pub(crate) const CELL_FIELDS: &[Field<CellDetail>] = &[
    Field::text("cell", |of| of.seen.id().to_owned()),
    Field::toned(Field::boolean("connected", |of| of.seen.is_connected()), |of| of.seen.tone()),
    Field::time("connection_changed_at", |of| instant(of.seen.cell.connection_changed_at)),
    Field::toned(Field::integer("behind", |of| Some(of.seen.behind())), |of| of.seen.tone()),
    Field::integer("behind_seconds", |of| store::behind_seconds(&of.seen.status(), of.seen.now)),
    Field::integer("enforced_generation", |of| Some(of.seen.status().enforced_generation)),
    Field::time("enforced_at", |of| instant(of.seen.cell.enforced_at)),
    Field::time("reported_at", |of| instant(of.seen.status().reported_at)),
    Field::text("plane", |of| of.seen.cell.plane.clone()),
    Field::text("version", |of| of.seen.cell.version.clone()),
    Field::milliseconds("lag_ms", |of| crate::field::duration(of.seen.cell.lag)),
    Field::milliseconds("apply_ms", |of| crate::field::duration(of.seen.cell.apply_time)),
    Field::integer("drift_healed", |of| Some(of.seen.cell.drift_healed)),
    Field::integer("allowed_packets", |of| of.seen.cell.counters?.allowed),
    Field::integer("denied_packets", |of| of.seen.cell.counters?.denied),
    Field::integer("unattributed_packets", |of| Some(of.seen.cell.counters?.unattributed)),
    Field::text("last_error", |of| of.seen.cell.last_error.clone()),
    Field::integer("isolated_total", |of| Some(of.seen.cell.isolated.as_ref()?.total.into())),
    Field::rows("isolated_rules", |of| isolated(&of.seen)),
    Field::rows("containers", |of| rows(PLACED, of.containers.clone())),
];

fn isolated(seen: &Seen) -> Vec<Row> {
    let rules = seen.cell.isolated.iter().flat_map(|isolated| isolated.rules.clone());
    rows(RULES, rules.map(|rule| Written::new(rule.rule, rule.source, rule.reason)))
}

/// One cell.
pub(crate) async fn cell(connection: &Connection, name: &str) -> anyhow::Result<Report> {
    let mut found: Vec<Seen> = cells::fetch(connection, name).await?;
    found.retain(|seen| seen.id() == name);
    let Some(seen) = found.pop() else { bail!("no cell {name:?} is known (get cells)") };
    let selection = ContainersRequest { cell_id: name.to_owned(), ..Default::default() };
    let containers = containers::fetch(connection, &selection).await?;
    let now = seen.now;
    Ok(Report::record(CELL_FIELDS, CellDetail { seen, containers }).at(now))
}

/// A container with its rules.
#[derive(Debug)]
pub(crate) struct ContainerDetail {
    placed: PlacedContainer,
    rules: Vec<Row>,
}

pub(crate) const CONTAINER_FIELDS: &[Field<ContainerDetail>] = &[
    Field::text("handle", |of| handle(&of.placed).to_owned()),
    Field::text("app", |of| of.container().app_guid),
    Field::text("space", |of| of.container().space_guid),
    Field::text("ip", |of| of.container().ip),
    Field::text("workload", |of| of.container().workload),
    Field::text("cell", |of| of.placed.cell_id.clone()),
    Field::boolean("connected", |of| of.placed.connected),
    Field::text("state", |of| state(of.container().enforcement()).to_owned()),
    Field::text("reason", |of| of.container().reason),
    Field::integer("isolated_rules", |of| Some(of.container().isolated_rules.into())),
    Field::rows("rules", |of| of.rules.clone()),
];

impl ContainerDetail {
    fn container(&self) -> proto::cell_v1::Container {
        self.placed.container.clone().unwrap_or_default()
    }
}

/// One container; its rules come from its cell.
pub(crate) async fn container(connection: &Connection, prefix: &str) -> anyhow::Result<Report> {
    let selection = ContainersRequest { handle: prefix.to_owned(), ..Default::default() };
    let mut found = containers::fetch(connection, &selection).await?;
    if let Some(exact) = found.iter().position(|placed| handle(placed) == prefix) {
        found = vec![found.swap_remove(exact)];
    }
    if found.len() > 1 {
        let handles: Vec<&str> = found.iter().map(handle).take(5).collect();
        bail!("several containers' handles begin with {prefix:?}: {}", handles.join(", "));
    }
    let Some(placed) = found.pop() else { bail!("no cell reported a container {prefix:?}") };
    let request =
        Request::EffectiveRules(EffectiveRulesRequest { handle: handle(&placed).to_owned() });
    let rules = match asking::ask(connection, &placed.cell_id, request, CELL).await {
        Ok(Response::EffectiveRules(answer)) => rows(RULES, cell::written(answer)),
        Ok(_) => bail!("the answer of cell {:?} has no rules", placed.cell_id),
        Err(error) => {
            warn(&format!("the rules are not known: cell {:?}: {error:#}", placed.cell_id));
            Vec::new()
        }
    };
    Ok(Report::record(CONTAINER_FIELDS, ContainerDetail { placed, rules }))
}

/// A space with its groups and apps.
#[derive(Debug)]
pub(crate) struct SpaceDetail {
    space: String,
    groups: Vec<Row>,
    containers: Vec<PlacedContainer>,
}

pub(crate) const SPACE_FIELDS: &[Field<SpaceDetail>] = &[
    Field::text("space", |of| of.space.clone()),
    Field::rows("groups", |of| of.groups.clone()),
    Field::rows("apps", |of| rows(APPS, apps(&of.containers))),
];

/// An app's containers in one lifecycle.
#[derive(Debug, Clone)]
pub(crate) struct App {
    guid: String,
    workload: String,
    cells: Vec<String>,
    containers: u64,
}

pub(crate) const APPS: &[Field<App>] = &[
    Field::text("app", |of| of.guid.clone()),
    Field::text("workload", |of| of.workload.clone()),
    Field::integer("containers", |of| Some(of.containers)),
    Field::texts("cells", |of| of.cells.clone()),
];

fn apps(containers: &[PlacedContainer]) -> Vec<App> {
    let mut apps: BTreeMap<(String, String), App> = BTreeMap::new();
    for placed in containers {
        let container = placed.container.clone().unwrap_or_default();
        let (guid, workload) = (container.app_guid, container.workload);
        let app = apps.entry((guid.clone(), workload.clone())).or_insert_with(|| App {
            guid,
            workload,
            cells: Vec::new(),
            containers: 0,
        });
        app.containers += 1;
        if app.cells.last() != Some(&placed.cell_id) {
            app.cells.push(placed.cell_id.clone());
        }
    }
    apps.into_values().collect()
}

/// One space. The groups that apply to it include the global ones.
pub(crate) async fn space(connection: &Connection, guid: &str) -> anyhow::Result<Report> {
    let found: Vec<Group> = groups::fetch(connection, &[guid.to_owned()]).await?;
    if !found.iter().any(|group| groups::is_bound(group, guid)) {
        warn(&groups::unbound(guid));
    }
    let selection = ContainersRequest { space_guid: guid.to_owned(), ..Default::default() };
    let containers = containers::fetch(connection, &selection).await?;
    let (space, groups) = (guid.to_owned(), rows(GROUPS, found));
    Ok(Report::record(SPACE_FIELDS, SpaceDetail { space, groups, containers }))
}
