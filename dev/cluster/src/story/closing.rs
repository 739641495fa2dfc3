//! The last chapter: explanations of connections, durations of changes, and memory of
//! the processes.

use std::time::Duration;

use anyhow::{Context, bail};
use reqwest::Method;
use serde_json::{Value, json};
use tokio::time::{Instant, sleep};

use super::opening::PRIVATE;
use super::runner::{Runner, THERE};
use crate::probe::{Outcome, Target};
use crate::process;

/// Maximum memory of a process, in KiB.
const MOST_MEMORY: u64 = 64 * 1024;

/// Longest time until a denied connection is recorded, and the pause between two questions.
const RECORDED: Duration = Duration::from_secs(10);
pub(super) const GLANCE: Duration = Duration::from_millis(50);

/// Asks the agent about an allowed, a denied and a logged destination.
pub(super) async fn why(runner: &mut Runner<'_>) -> anyhow::Result<()> {
    runner
        .chapter("i", "Why: an allowed, a denied and a logged destination, and what was denied")?;
    let logged = Target::tcp(PRIVATE, 443);
    let rules = json!([{ "protocol": "tcp", "destination": PRIVATE, "ports": "443", "log": true }]);
    let running = json!({ "running": true });
    let group = json!({ "name": "audited", "rules": rules, "globally_enabled": running });
    let answer = runner.call(Method::POST, "/v3/security_groups", Some(&group)).await?;
    runner.turns("create audited: open", "appA", logged, Outcome::Open, answer.at).await?;
    for (to, verdict) in [
        (format!("{THERE}:80"), "allowed"),
        (format!("{PRIVATE}:80"), "denied"),
        (format!("{PRIVATE}:443"), "allowed and logged"),
    ] {
        explain(runner, &to, verdict).await?;
    }
    denied(runner).await
}

/// Asks the policy store for the denied connections of a container.
async fn denied(runner: &Runner<'_>) -> anyhow::Result<()> {
    let closed = Target::tcp(PRIVATE, 80);
    runner.expect("appA", closed, Outcome::Refused).await?;
    let refused = Instant::now();
    let handle = runner.cluster.container("appA")?.handle.clone();
    let arguments = ["denied", "--container", &handle, "--since", "10s"];
    let expected = format!("{PRIVATE}:80/tcp");
    while !runner.cluster.ctl(&arguments).await?.contains(&expected) {
        if refused.elapsed() > RECORDED {
            bail!("not as expected: no {expected} in portcullisctl denied after {RECORDED:?}");
        }
        sleep(GLANCE).await;
    }
    runner.seen(&format!("recorded within {} ms", refused.elapsed().as_millis()))?;
    runner.ctl(&arguments).await?;
    Ok(())
}

async fn explain(runner: &Runner<'_>, to: &str, verdict: &str) -> anyhow::Result<()> {
    let container = runner.cluster.container("appA")?;
    let (cell, handle) = (container.wanted.cell, container.handle.clone());
    let arguments = ["explain", &handle, "tcp", to];
    let socket = runner.cluster.layout().agent_socket(cell);
    runner.command(&format!(
        "portcullisctl --cell-socket {} {}",
        socket.display(),
        arguments.join(" ")
    ))?;
    runner.seen(&runner.cluster.ctl_on(cell, &arguments).await?)?;
    let json: Vec<&str> = arguments.into_iter().chain(["--json"]).collect();
    let answer: Value = serde_json::from_str(&runner.cluster.ctl_on(cell, &json).await?)
        .context("portcullisctl's JSON")?;
    let seen = answer["verdict"].as_str().unwrap_or_default().replace('_', " ").to_lowercase();
    if seen != verdict {
        bail!("not as expected: tcp {to} is to be {verdict}, and is {seen:?}");
    }
    Ok(())
}

/// Prints the durations of the changes, and the memory of every process.
pub(super) fn account(runner: &mut Runner<'_>) -> anyhow::Result<()> {
    runner
        .remark("== From the Cloud Controller's answer to the first packet treated the new way")?;
    for (change, took) in runner.timings() {
        runner.seen(&format!("{:>6} ms  {change}", took.as_millis()))?;
    }
    runner.remark("== Peak memory")?;
    let mut peaks = runner.cluster.processes().peaks().clone();
    peaks.extend(process::peak(std::process::id()).map(|own| ("this launcher".to_owned(), own)));
    for (name, peak) in &peaks {
        runner.seen(&format!("{:>6.1} MiB  {name}", mebibytes(*peak)))?;
    }
    match peaks.iter().find(|(_name, peak)| **peak > MOST_MEMORY) {
        None => Ok(()),
        Some((name, peak)) => {
            bail!(
                "not as expected: {name} held {:.1} MiB, and 64 MiB are the limit",
                mebibytes(*peak)
            )
        }
    }
}

#[expect(clippy::cast_precision_loss, reason = "for people, with one digit")]
fn mebibytes(kibibytes: u64) -> f64 {
    kibibytes as f64 / 1024.0
}
