//! Chapters g and h: the store is down, an agent is restarted, a table is flushed.

use std::net::Ipv4Addr;
use std::time::Duration;

use anyhow::{Context, bail};
use reqwest::Method;
use serde_json::json;
use tokio::time::{Instant, sleep};

use super::opening::PRIVATE;
use super::runner::{Runner, THERE, TIMEOUT};
use crate::probe::{Outcome, Target};
use crate::settings::agent_name;
use crate::topology::Cell;

/// Another public address; no group allows it since chapter b.
const ELSEWHERE: Ipv4Addr = Ipv4Addr::new(5, 6, 7, 8);

/// A table without a change for this long has settled.
const STILL: Duration = Duration::from_millis(1500);

/// Timeout until syncer and agents have reconnected to the store.
const RECONNECTED: Duration = Duration::from_secs(20);

/// Stop the store, restart an agent, start the store.
pub(super) async fn store_away(runner: &mut Runner<'_>) -> anyhow::Result<()> {
    runner.chapter("g", "Without the policy store, and with a restarted agent")?;
    let cell = runner.stage.cell_a;
    let agent = agent_name(cell);
    stop(runner, "policy-store").await?;
    in_force(runner).await?;
    stop(runner, &agent).await?;
    runner.remark("No agent on appA's cell, and its rules still are in force:")?;
    in_force(runner).await?;
    started(runner, &agent)?;
    runner.cluster.start_again(&agent).await?;
    runner.remark("The agent is back and has no store to ask:")?;
    in_force(runner).await?;

    runner.remark("A change that the store does not hear of; then the store comes back:")?;
    let guid = runner.group("my-asg").await?;
    let destinations = [THERE, ELSEWHERE];
    let rules = destinations.map(|to| json!({ "protocol": "all", "destination": to }));
    let path = format!("/v3/security_groups/{guid}");
    runner.call(Method::PATCH, &path, Some(&json!({ "rules": rules }))).await?;
    runner.expect("appA", Target::tcp(ELSEWHERE, 80), Outcome::Refused).await?;
    started(runner, "policy-store")?;
    runner.cluster.start_again("policy-store").await?;
    let back = Instant::now();
    for app in ["appA", "appB"] {
        let change = "the store is back: open";
        let target = Target::tcp(ELSEWHERE, 80);
        runner.turns_within(change, app, target, Outcome::Open, back, RECONNECTED).await?;
    }
    runner.nobody_was_restarted()
}

pub(super) async fn stop(runner: &mut Runner<'_>, process: &str) -> anyhow::Result<()> {
    let mark = runner.cluster.processes().mark(process);
    let pid = mark.with_context(|| format!("{process} does not run"))?.pid;
    runner.command(&format!("kill {pid}     # {process}"))?;
    runner.cluster.stop_process(process).await
}

pub(super) fn started(runner: &Runner<'_>, process: &str) -> anyhow::Result<()> {
    let program = process.trim_end_matches(|c: char| c == '-' || c.is_ascii_digit());
    let config = runner.cluster.layout().config(process);
    runner.command(&format!("{program} -config-file {} &", config.display()))
}

/// The state of chapter b is in force for packets.
async fn in_force(runner: &Runner<'_>) -> anyhow::Result<()> {
    runner.expect("appA", Target::tcp(THERE, 80), Outcome::Open).await?;
    runner.expect("appA", Target::tcp(ELSEWHERE, 80), Outcome::Refused).await
}

/// Flush and delete the agent's table by hand.
pub(super) async fn flushed(runner: &mut Runner<'_>) -> anyhow::Result<()> {
    runner.chapter("h", "Flush the agent's table by hand")?;
    let cell = runner.stage.cell_a;
    for by_hand in
        [["flush", "table", "inet", "portcullis"], ["delete", "table", "inet", "portcullis"]]
    {
        let before = settled(runner, cell).await?;
        runner.on_cell(cell, "nft", &by_hand).await?;
        let since = Instant::now();
        healed(runner, cell, &before, since).await?;
        runner.expect("appA", Target::tcp(THERE, 80), Outcome::Open).await?;
        runner.expect("appA", Target::tcp(PRIVATE, 80), Outcome::Refused).await?;
    }
    runner.nobody_was_restarted()
}

/// The agent's rules after it has settled: shortly after a change it sweeps unused
/// chains.
async fn settled(runner: &Runner<'_>, cell: Cell) -> anyhow::Result<Vec<String>> {
    let since = Instant::now();
    let mut before = rules(runner, cell).await?;
    loop {
        sleep(STILL).await;
        let now = rules(runner, cell).await?;
        if now == before {
            return Ok(now);
        }
        if since.elapsed() > TIMEOUT {
            bail!("not as expected: the table of {} is to come to rest", cell.name());
        }
        before = now;
    }
}

/// Waits until the table has its previous content.
async fn healed(
    runner: &Runner<'_>,
    cell: Cell,
    before: &[String],
    since: Instant,
) -> anyhow::Result<()> {
    while rules(runner, cell).await? != before {
        if since.elapsed() > TIMEOUT {
            bail!("not as expected: the table of {} is to be as before", cell.name());
        }
        sleep(Duration::from_millis(10)).await;
    }
    let took = since.elapsed().as_millis();
    runner.seen(&format!("back after {took} ms, {} lines as before", before.len()))
}

/// The content of the cell's tables.
async fn rules(runner: &Runner<'_>, cell: Cell) -> anyhow::Result<Vec<String>> {
    Ok(comparable(&runner.cluster.on_cell(cell, "nft", &["-s", "list", "ruleset"]).await?))
}

/// Sorted lines of a listing, since chains are in creation order, without the hashes, which
/// change when a chain is recreated, and without the elements of sets, which the kernel adds.
fn comparable(listing: &str) -> Vec<String> {
    let (mut in_set, mut in_elements) = (false, false);
    let is_written = |line: &&str| {
        if !line.starts_with("\t\t") {
            in_set = line.starts_with("\tset ");
        }
        in_elements = in_set && (in_elements || line.trim_start().starts_with("elements = "));
        !in_elements
    };
    let mut lines: Vec<String> = listing
        .lines()
        .filter(is_written)
        .map(|line| line.split_whitespace().map(unhashed).collect::<Vec<_>>().join(" "))
        .collect();
    lines.sort_unstable();
    lines
}

/// `rules-3a9600df62cef5fc` without its hash.
fn unhashed(word: &str) -> &str {
    match word.rsplit_once('-') {
        Some((kind, hash)) if hash.len() == 16 && hash.chars().all(|c| c.is_ascii_hexdigit()) => {
            kind
        }
        _ => word,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_chain_that_was_made_again_is_the_same() {
        let before = "table inet t {\n\tchain rules-3a9600df62cef5fc {\n\t\taccept\n\t}\n\n\tchain a {\n\t}\n}\n";
        let after = "table inet t {\n\tchain a {\n\t}\n\n\tchain rules-f84707de5a1ee507 {\n\t\taccept\n\t}\n}\n";
        assert_eq!(comparable(before), comparable(after));
        assert_ne!(comparable(before), comparable(&after.replace("accept", "reject")));
        let set = "table inet t {\n\tset s {\n\t\ttype ipv4_addr\n\t\telements = { 10.0.0.1,\n\t\t\t10.0.0.2 }\n\t}\n}\n";
        let empty = "table inet t {\n\tset s {\n\t\ttype ipv4_addr\n\t}\n}\n";
        assert_eq!(comparable(set), comparable(empty));
        assert_ne!(comparable(before), comparable(&after.replace("chain a", "chain b")));
    }

    #[test]
    fn a_guid_is_no_hash() {
        let guid = "fe3f18e8-3353-48e9-82c3-18fca74a9aa4";
        assert_eq!(unhashed(guid), guid);
        assert_eq!(unhashed("rules-3a9600df62cef5fc"), "rules");
    }
}
