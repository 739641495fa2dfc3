//! Chapter j: a change waits while the cells are frozen.

use anyhow::{Context, bail};
use reqwest::Method;
use serde_json::{Value, json};
use tokio::time::{Instant, sleep};

use super::closing::GLANCE;
use super::opening::PRIVATE;
use super::runner::{Runner, TIMEOUT};
use crate::probe::{Outcome, Target};

/// Freezes the cells, changes a group, and unfreezes.
pub(super) async fn freeze(runner: &mut Runner<'_>) -> anyhow::Result<()> {
    runner.chapter("j", "Freeze: a change is stored, and reaches no cell until unfreeze")?;
    let target = Target::tcp(PRIVATE, 80);
    runner.expect("appA", target, Outcome::Refused).await?;
    runner.ctl(&["freeze", "--reason", "release", "--until", "1h", "--yes"]).await?;
    let frozen = generation(runner).await?;
    let rules = json!([{ "protocol": "tcp", "destination": PRIVATE, "ports": "80" }]);
    let running = json!({ "running": true });
    let group = json!({ "name": "held-back", "rules": rules, "globally_enabled": running });
    runner.call(Method::POST, "/v3/security_groups", Some(&group)).await?;
    let since = Instant::now();
    while generation(runner).await? <= frozen {
        if since.elapsed() > TIMEOUT {
            bail!("not as expected: the store has no generation after {frozen}");
        }
        sleep(GLANCE).await;
    }
    runner.ctl(&["status"]).await?;
    runner.expect("appA", target, Outcome::Refused).await?;
    let began = Instant::now();
    runner.ctl(&["unfreeze", "--reason", "released", "--yes"]).await?;
    runner.turns("unfreeze: open", "appA", target, Outcome::Open, began).await?;
    runner.ctl(&["history", "--last", "3"]).await?;
    Ok(())
}

/// The newest generation of the store.
async fn generation(runner: &Runner<'_>) -> anyhow::Result<u64> {
    let status = runner.cluster.ctl(&["status", "--json"]).await?;
    let status: Value = serde_json::from_str(&status).context("portcullisctl's JSON")?;
    status["generation"].as_u64().context("a status has a generation")
}
