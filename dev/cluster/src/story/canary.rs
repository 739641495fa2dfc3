//! Chapter k: a bad change stops at the canary, and its correction reaches all cells.

use anyhow::{Context, bail};
use reqwest::Method;
use serde_json::{Value, json};
use tokio::time::{Instant, sleep};

use super::closing::GLANCE;
use super::faults::{started, stop};
use super::opening::PRIVATE;
use super::runner::{Runner, TIMEOUT};
use crate::probe::{Outcome, Target};

const STORE: &str = "policy-store";

/// Rolls out a group with a rule that no agent can enforce, then without that rule.
pub(super) async fn canary(runner: &mut Runner<'_>) -> anyhow::Result<()> {
    runner.chapter("k", "Roll out in steps: a bad change stops at the canary")?;
    let canary = runner.cluster.container("appB")?.wanted.cell.name();
    let rollout = json!({ "canary_cells": [canary], "pause_seconds": 1 });
    configure(runner, Some(rollout)).await?;

    let target = Target::Ping(PRIVATE);
    for app in ["appA", "appB"] {
        runner.expect(app, target, Outcome::Refused).await?;
    }
    let good = json!({ "protocol": "icmp", "destination": PRIVATE, "type": -1, "code": -1 });
    let bad = json!({ "protocol": "tcp", "destination": "10.9.0.0/255.255.0.0", "ports": "80" });
    let group = json!({
        "name": "typo", "rules": [good, bad], "globally_enabled": { "running": true },
    });
    let answer = runner.call(Method::POST, "/v3/security_groups", Some(&group)).await?;
    runner.turns("on the canary: open", "appB", target, Outcome::Open, answer.at).await?;
    until_stopped(runner).await?;
    runner.ctl(&["rollout", "status"]).await?;
    runner.expect("appA", target, Outcome::Refused).await?;

    runner.remark("The rule is corrected: the canary has it first, and then all cells:")?;
    let guid = runner.group("typo").await?;
    let path = format!("/v3/security_groups/{guid}");
    let answer = runner.call(Method::PATCH, &path, Some(&json!({ "rules": [good] }))).await?;
    runner
        .turns_within("after the canary: open", "appA", target, Outcome::Open, answer.at, TIMEOUT)
        .await?;
    runner.expect("appB", target, Outcome::Open).await?;
    runner.ctl(&["history", "--last", "5"]).await?;
    configure(runner, None).await?;
    runner.nobody_was_restarted()
}

/// Restarts the policy store with this section `rollout`, or without.
async fn configure(runner: &mut Runner<'_>, rollout: Option<Value>) -> anyhow::Result<()> {
    let file = runner.cluster.layout().config(STORE);
    let text = std::fs::read(&file).with_context(|| format!("reading {}", file.display()))?;
    let mut config: Value = serde_json::from_slice(&text)?;
    match &rollout {
        Some(rollout) => runner.step(&format!("{}: \"rollout\": {rollout}", file.display()))?,
        None => runner.step(&format!("{}: without \"rollout\"", file.display()))?,
    }
    config["rollout"] = rollout.into();
    std::fs::write(&file, config.to_string())?;
    stop(runner, STORE).await?;
    started(runner, STORE)?;
    runner.cluster.start_again(STORE).await?;
    let since = Instant::now();
    let cells = runner.cluster.options().cells;
    loop {
        let status = status(runner).await?;
        if status["cells_connected"].as_u64() == Some(u64::from(cells)) {
            return Ok(());
        }
        if since.elapsed() > TIMEOUT {
            bail!("not as expected: the cells are not connected again: {status}");
        }
        sleep(GLANCE).await;
    }
}

async fn until_stopped(runner: &Runner<'_>) -> anyhow::Result<()> {
    let since = Instant::now();
    loop {
        let status = runner.cluster.ctl(&["rollout", "status", "--json"]).await?;
        let status: Value = serde_json::from_str(&status).context("portcullisctl's JSON")?;
        let reason = status["stopped"].as_str().unwrap_or_default();
        if reason.contains("does not enforce rule 1 of group \"typo\"") {
            let milliseconds = since.elapsed().as_millis();
            return runner
                .seen(&format!("the roll-out stopped, {milliseconds} ms after the packet"));
        }
        if since.elapsed() > TIMEOUT {
            bail!("not as expected: the roll-out does not stop: {status}");
        }
        sleep(GLANCE).await;
    }
}

async fn status(runner: &Runner<'_>) -> anyhow::Result<Value> {
    let status = runner.cluster.ctl(&["status", "--json"]).await?;
    serde_json::from_str(&status).context("portcullisctl's JSON")
}
