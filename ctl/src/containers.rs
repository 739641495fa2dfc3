//! The containers of the foundation, as cells reported them to the policy stores.

use proto::policy_v1::{ContainersRequest, ContainersResponse, PlacedContainer};
use tonic::{Status, transport::Channel};

use crate::{
    cell::state,
    connect::Connection,
    field::{Field, Tone},
    natural,
    report::{Report, warn},
    stores::foundation,
};

pub(crate) const PLACED: &[Field<PlacedContainer>] = &[
    Field::text("handle", |of| get(of, |container| &container.handle)),
    Field::text("app", |of| get(of, |container| &container.app_guid)),
    Field::text("space", |of| get(of, |container| &container.space_guid)),
    Field::text("ip", |of| get(of, |container| &container.ip)),
    Field::text("workload", |of| get(of, |container| &container.workload)),
    Field::text("cell", |of| of.cell_id.clone()),
    Field::toned(Field::boolean("connected", |of| of.connected), |of| {
        if of.connected { Tone::Plain } else { Tone::Bad }
    }),
    Field::text("state", |of| {
        of.container.as_ref().map(|of| state(of.enforcement()).to_owned()).unwrap_or_default()
    }),
    Field::wide(Field::integer("rules", |of| Some(of.container.as_ref()?.rules.into()))),
    Field::wide(Field::integer("isolated_rules", |of| {
        Some(of.container.as_ref()?.isolated_rules.into())
    })),
    Field::wide(Field::text("reason", |of| get(of, |container| &container.reason))),
];

fn get(placed: &PlacedContainer, get: fn(&proto::cell_v1::Container) -> &String) -> String {
    placed.container.as_ref().map(|container| get(container).clone()).unwrap_or_default()
}

pub(crate) fn handle(placed: &PlacedContainer) -> &str {
    placed.container.as_ref().map_or("", |container| container.handle.as_str())
}

/// The selected containers; a warning names cells whose containers no instance knows.
pub(crate) async fn fetch(
    connection: &Connection,
    selection: &ContainersRequest,
) -> anyhow::Result<Vec<PlacedContainer>> {
    let call = async |channel| pages(channel, selection.clone()).await;
    let (containers, unknown) = merge(connection.ask_stores("containers", call).await?);
    if !unknown.is_empty() {
        warn(&format!(
            "the containers of these cells are not known, since the cells have not reported them: \
             {}",
            unknown.join(", ")
        ));
    }
    Ok(containers)
}

async fn pages(
    channel: Channel,
    mut request: ContainersRequest,
) -> Result<ContainersResponse, Status> {
    let mut client = foundation(channel);
    let mut whole = ContainersResponse::default();
    loop {
        let page = client.containers(request.clone()).await?.into_inner();
        whole.containers.extend(page.containers);
        whole.unknown_cells = page.unknown_cells;
        if page.next_page_token.is_empty() {
            return Ok(whole);
        }
        request.page_token = page.next_page_token;
    }
}

/// Each container once, as the instance that its cell watches knows it; and the cells that no
/// instance knows.
fn merge(answers: Vec<ContainersResponse>) -> (Vec<PlacedContainer>, Vec<String>) {
    let unknown = answers.first().map(|answer| answer.unknown_cells.clone()).unwrap_or_default();
    let everywhere = |cell: &String| answers.iter().all(|other| other.unknown_cells.contains(cell));
    let unknown = unknown.into_iter().filter(everywhere).collect();
    let connected: Vec<Vec<String>> = answers
        .iter()
        .map(|answer| {
            let placed = answer.containers.iter().filter(|placed| placed.connected);
            let mut cells: Vec<_> = placed.map(|placed| placed.cell_id.clone()).collect();
            cells.dedup();
            cells
        })
        .collect();
    let mut containers: Vec<PlacedContainer> = Vec::new();
    for (n, answer) in answers.into_iter().enumerate() {
        // What another instance knows of a cell that watches this one is old.
        let is_old = |placed: &PlacedContainer| {
            let mut others = connected.iter().enumerate().filter(|(other, _)| *other != n);
            !placed.connected && others.any(|(_, cells)| cells.contains(&placed.cell_id))
        };
        containers.extend(answer.containers.into_iter().filter(|placed| !is_old(placed)));
    }
    containers.sort_by(|one, other| {
        let order = natural::compare(&one.cell_id, &other.cell_id);
        let order = order.then_with(|| handle(one).cmp(handle(other)));
        order.then(other.connected.cmp(&one.connected))
    });
    containers.dedup_by(|one, other| one.cell_id == other.cell_id && handle(one) == handle(other));
    (containers, unknown)
}

/// The list of containers.
pub(crate) async fn list(
    connection: &Connection,
    selection: &ContainersRequest,
) -> anyhow::Result<Report> {
    Ok(Report::list(PLACED, fetch(connection, selection).await?))
}

#[cfg(test)]
mod tests {
    use proto::cell_v1::Container;

    use super::*;

    #[test]
    fn the_instance_that_a_cell_watches_counts() {
        let answer = |of: &[(&str, &str, bool)], unknown: &[&str]| ContainersResponse {
            containers: of
                .iter()
                .map(|(cell, handle, connected)| PlacedContainer {
                    cell_id: (*cell).to_owned(),
                    container: Some(Container {
                        handle: (*handle).to_owned(),
                        ..Container::default()
                    }),
                    connected: *connected,
                })
                .collect(),
            unknown_cells: unknown.iter().map(|&cell| cell.to_owned()).collect(),
            ..ContainersResponse::default()
        };
        let old =
            answer(&[("cell-1", "gone", false), ("cell-2", "b", true)], &["cell-3", "cell-4"]);
        let new = answer(&[("cell-1", "a", true), ("cell-2", "b", false)], &["cell-3"]);
        for answers in [vec![old.clone(), new.clone()], vec![new, old]] {
            let (containers, unknown) = merge(answers);
            let found: Vec<_> = containers
                .iter()
                .map(|of| (of.cell_id.as_str(), handle(of), of.connected))
                .collect();
            assert_eq!(found, [("cell-1", "a", true), ("cell-2", "b", true)]);
            assert_eq!(unknown, ["cell-3"]);
        }
    }
}
