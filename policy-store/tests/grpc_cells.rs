//! Watch, and the cells in the status.

use proto::policy_v1::watch_request;
use tonic::Code;

use crate::{
    grpc::{assert_status, status},
    support::{
        client::{Cell, replace},
        sets::{bound, global, named, replacement, set},
        site::Served,
        until,
    },
};

#[tokio::test]
async fn a_cell_is_kept_up_to_date() {
    let served = Served::start().await;
    let writer = served.writer();
    let mut cell = Cell::hello(&served.cell("cell-1"), "cell-1", &["s1"]).await;
    let first = set([global("all", "1"), bound("one", "1", &["s1"]), bound("two", "1", &["s2"])]);
    replace(&writer, &replacement(&first)).await.unwrap();
    cell.until(1).await;
    let guids = |cell: &Cell| cell.mirror.groups.keys().cloned().collect::<Vec<_>>();
    assert_eq!(guids(&cell), ["all", "one"]);

    cell.subscribe(1, &["s2"], &["s1"]).await;
    cell.whole().await.unwrap();
    assert_eq!((guids(&cell), cell.mirror.sequence), (vec!["all".into(), "two".into()], 1));

    cell.subscribe(2, &[], &[]).await;
    cell.whole().await.unwrap();
    assert_eq!(cell.mirror.sequence, 2, "acknowledged though nothing changed");

    // It has half-closed its stream, and still gets the updates of its subscription.
    cell.fall_silent();
    replace(&writer, &replacement(&set([bound("two", "2", &["s2"])]))).await.unwrap();
    cell.until(2).await;
    assert_eq!(guids(&cell), ["two"]);
    served.stop().await;
}

#[tokio::test]
async fn a_cell_that_breaks_the_rules_is_told_so() {
    let served = Served::start().await;
    let client = served.cell("cell-1");
    let hello = |id: &str, spaces: &[&str]| {
        let space_guids = spaces.iter().map(|&text| text.to_owned()).collect();
        watch_request::Step::Hello(watch_request::Hello {
            cell_id: id.to_owned(),
            space_guids,
            ..watch_request::Hello::default()
        })
    };
    let report = watch_request::Step::Report(watch_request::Report::default());
    for (first, then, problem) in [
        (None, None, "the first request must be Hello"),
        (Some(report), None, "the first request must be Hello"),
        (Some(hello("", &[])), None, "cell_id: cell id is empty"),
        (Some(hello("cell-1", &["\n"])), None, "space_guids[0]: space guid \"\\n\" holds a"),
        (Some(hello("cell-1", &[])), Some(hello("cell-1", &[])), "Hello came twice"),
    ] {
        let mut cell = Cell::open(&client, first).await;
        if let Some(step) = then {
            cell.say(step).await;
        }
        assert_status(&cell.end().await, Code::InvalidArgument, problem);
    }
    let mut cell = Cell::hello(&client, "cell-1", &[]).await;
    cell.subscribe(2, &[], &[]).await;
    cell.subscribe(1, &[], &[]).await;
    let text = "subscription sequence 1 does not rise above 2";
    assert_status(&cell.end().await, Code::InvalidArgument, text);
    served.stop().await;
}

#[tokio::test]
async fn the_status_tells_what_cells_have_in_force() {
    let served = Served::start().await;
    let (writer, operator) = (served.writer(), served.operator());
    replace(&writer, &replacement(&named(2, "1"))).await.unwrap();
    let mut one = Cell::hello(&served.cell("cell-1"), "cell-1", &[]).await;
    let mut two = Cell::hello(&served.cell("cell-2"), "cell-2", &[]).await;
    one.until(1).await;
    two.until(1).await;
    one.report(1).await;
    until("cell-1 reported", async || {
        status(&operator).await.cells.iter().any(|cell| cell.enforced_generation == 1)
    })
    .await;
    let cells = status(&operator).await.cells;
    let ids: Vec<_> = cells.iter().map(|cell| (cell.cell_id.as_str(), cell.connected)).collect();
    assert_eq!(ids, [("cell-1", true), ("cell-2", true)]);
    assert_eq!((cells[0].containers, cells[0].isolated_rules), (3, 1));
    assert!(cells[0].reported_at.is_some());
    assert_eq!((cells[1].enforced_generation, cells[1].reported_at), (0, None));

    // A second stream of the same cell opens, and then the first ends.
    let mut again = Cell::hello(&served.cell("cell-1"), "cell-1", &[]).await;
    again.until(1).await;
    drop(one);
    drop(two);
    until("cell-2 has gone", async || {
        status(&operator)
            .await
            .cells
            .iter()
            .all(|cell| cell.connected == (cell.cell_id == "cell-1"))
    })
    .await;
    drop(again);
    until("cell-1 has gone", async || {
        status(&operator).await.cells.iter().all(|cell| !cell.connected)
    })
    .await;

    // Its report survives a restart.
    let site = served.stop().await;
    let served = Served::start_at(site).await;
    let cells = status(&served.operator()).await.cells;
    let reported: Vec<_> =
        cells.iter().map(|cell| (cell.cell_id.as_str(), cell.enforced_generation)).collect();
    assert_eq!(reported, [("cell-1", 1)]);
    served.stop().await;
}
