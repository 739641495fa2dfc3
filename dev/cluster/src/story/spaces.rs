//! Chapters e and f: a group for one space, and the effect of its removal on open
//! connections.

use std::net::{Ipv4Addr, SocketAddrV4};
use std::time::Duration;

use anyhow::{Context, bail};
use reqwest::Method;
use serde_json::{Value, json};
use tokio::time::{Instant, sleep};

use super::runner::{Runner, THERE, TIMEOUT};
use crate::container::Workload;
use crate::probe::{Kept, Outcome, Target};

const DATABASE: SocketAddrV4 = SocketAddrV4::new(Ipv4Addr::new(10, 0, 11, 12), 5432);
const STAGING: &str = "stagingB";

/// Bind to space s2, as running group; then unbind.
pub(super) async fn one_space(runner: &mut Runner<'_>) -> anyhow::Result<()> {
    runner.chapter("e", "Bind a group to space s2 only")?;
    let database = Target::Tcp(DATABASE);
    runner.expect("appB", database, Outcome::Refused).await?;
    let wanted =
        runner.stage.wanted(STAGING, runner.stage.cell_b, &runner.stage.s2, Workload::Staging);
    runner.remark("A staging container in s2, added as the CNI plugin does:")?;
    runner.cluster.add_container(wanted).await?;
    let staging = runner.cluster.container(STAGING)?;
    runner
        .seen(&format!("{STAGING}: {}, handle {}", staging.attachment.address, staging.handle))?;

    let (address, port) = (DATABASE.ip(), DATABASE.port().to_string());
    let rules = json!([{ "protocol": "tcp", "destination": address, "ports": port }]);
    let group = json!({ "name": "database", "rules": rules });
    let made = runner.call(Method::POST, "/v3/security_groups", Some(&group)).await?;
    let guid = made.body["guid"].as_str().context("the new group has a guid")?;
    let spaces = json!({ "data": [{ "guid": runner.stage.s2 }] });
    let path = format!("/v3/security_groups/{guid}/relationships/running_spaces");
    let answer = runner.call(Method::POST, &path, Some(&spaces)).await?;
    runner.turns("bind database to s2: open", "appB", database, Outcome::Open, answer.at).await?;
    all_cells_follow(runner).await?;
    runner.expect("appA", database, Outcome::Refused).await?;
    runner.expect(STAGING, database, Outcome::Refused).await?;
    runner.remark("public_networks still is bound to staging, so this one reaches 1.2.3.4:")?;
    runner.expect(STAGING, Target::tcp(THERE, 80), Outcome::Open).await?;
    runner.nobody_was_restarted()?;
    unbind(runner, &path).await
}

/// Waits until every cell has reported the latest generation.
async fn all_cells_follow(runner: &Runner<'_>) -> anyhow::Result<()> {
    let since = Instant::now();
    loop {
        let text = runner.cluster.ctl(&["cells", "--json"]).await?;
        let cells = text.lines().map(serde_json::from_str::<Value>);
        let cells = cells.collect::<Result<Vec<_>, _>>().context("portcullisctl's JSON")?;
        if !cells.is_empty() && cells.iter().all(|cell| cell["behind"] == 0) {
            break;
        }
        if since.elapsed() > TIMEOUT {
            bail!("not as expected: a cell is behind: {text}");
        }
        sleep(Duration::from_millis(50)).await;
    }
    runner.ctl(&["cells"]).await.map(drop)
}

async fn unbind(runner: &mut Runner<'_>, path: &str) -> anyhow::Result<()> {
    runner.chapter("f", "Unbind it: closed for new connections, open ones go on")?;
    let database = Target::Tcp(DATABASE);
    runner.remark(&format!("A connection from appB to {DATABASE} that stays open:"))?;
    let mut kept = Kept::open(runner.cluster.container("appB")?.resident(), DATABASE).await?;
    echo(runner, &mut kept).await?;
    let path = format!("{path}/{}", runner.stage.s2);
    let answer = runner.call(Method::DELETE, &path, None).await?;
    let change = "unbind database from s2: closed";
    runner.turns(change, "appB", database, Outcome::Refused, answer.at).await?;
    echo(runner, &mut kept).await?;
    runner.remark(
        "That is as in the original: packets of established connections are accepted before any\n\
         rule is looked at, so a connection ends with its app or its peer, not with its rule.",
    )?;
    drop(kept);
    runner.remark(&format!("{STAGING} is removed as the CNI plugin does."))?;
    runner.cluster.remove_container(STAGING).await?;
    runner.nobody_was_restarted()
}

async fn echo(runner: &Runner<'_>, kept: &mut Kept) -> anyhow::Result<()> {
    runner.step("a word over the open connection")?;
    if !kept.echoes().await {
        bail!("not as expected: the open connection is to go on, and nothing came back");
    }
    runner.seen("came back")
}
