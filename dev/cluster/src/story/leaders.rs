//! Chapters c and d: the logs of leader and standby, and the failover after the leader
//! is killed.

use std::time::Duration;

use anyhow::{Context, bail};
use reqwest::Method;
use serde_json::{Value, json};
use tokio::time::{Instant, sleep};

use super::log_file::{Line, shortened};
use super::opening::PRIVATE;
use super::runner::Runner;
use crate::operator::{Held, LOCK};
use crate::ports::SYNCERS;
use crate::probe::{Outcome, Target};
use crate::settings::syncer_name;

/// The lock's TTL, the standby's next attempt, and a margin for a busy machine.
const TAKEOVER: Duration = Duration::from_secs(40);

/// Maximum length of a printed log line.
const SHOWN: usize = 400;

const COLLISION: &str = "rpc error: code = AlreadyExists desc = lock-collision";

/// Shows the logs of both syncers.
pub(super) async fn logs(runner: &mut Runner<'_>) -> anyhow::Result<()> {
    runner.chapter("c", "The leader's log and the standby's")?;
    let leader = runner.stage.leader.owner.clone();
    let standby = standby_of(&leader)?;
    let what = [
        "get-security-groups-last-update-response",
        "get-security-groups-retry-loop-succeeded",
        "skipping-update",
    ];
    let has_group = |line: &Line| line.data["security-groups"].to_string().contains("my-asg");
    let looked = |line: &Line| line.task.ends_with(what[0]) && !line.data["last_update"].is_null();
    let fetched = |line: &Line| line.task == what[1] && has_group(line);
    let skipped = |line: &Line| line.task == what[2];
    let log = runner.cluster.layout().log(&leader);
    runner.command(&format!("grep -E '{}' {}", what.join("|"), log.display()))?;
    for line in runner.log_shows(&leader, &what, &[&looked, &fetched, &skipped]).await? {
        runner.seen(&shortened(&line.text, SHOWN))?;
    }
    let line = collision(runner, &standby).await?;
    runner.seen(&shortened(&line.text, SHOWN))
}

/// The standby's log line about the lock of the leader.
async fn collision(runner: &Runner<'_>, standby: &str) -> anyhow::Result<Line> {
    let task = "locket-lock.failed-to-acquire-lock";
    let log = runner.cluster.layout().log(standby);
    runner.command(&format!("grep {task} {}", log.display()))?;
    let failed = |line: &Line| line.task == task;
    let mut found = runner.log_shows(standby, &[task], &[&failed]).await?;
    let line = found.pop().context("one line was asked for")?;
    let lock = json!({ "key": LOCK, "owner": standby, "type": "lock", "type_code": 1 });
    let as_told = line.data["error"] == COLLISION && holds(&line.data["lock"], &lock);
    if !as_told {
        bail!(
            "not as expected: data.error is to be {COLLISION:?} and data.lock {lock}, and the line is {}",
            line.text
        );
    }
    Ok(line)
}

/// Whether every member of `wanted` is in `seen`.
fn holds(seen: &Value, wanted: &Value) -> bool {
    wanted.as_object().is_some_and(|wanted| wanted.iter().all(|(key, value)| seen[key] == *value))
}

/// Kill the leader; the standby takes over.
pub(super) async fn takeover(runner: &mut Runner<'_>) -> anyhow::Result<()> {
    runner.chapter("d", "Kill the leader: the standby takes the lock, the next change arrives")?;
    let before = runner.stage.leader.clone();
    runner.ctl(&["locks"]).await?;
    let mark = runner.cluster.processes().mark(&before.owner);
    let pid = mark.with_context(|| format!("{} does not run", before.owner))?.pid;
    runner.command(&format!("kill -9 {pid}     # {}", before.owner))?;
    let killed = Instant::now();
    runner.cluster.kill_process(&before.owner).await?;

    runner.remark("A change, while nobody leads:")?;
    let private = Target::tcp(PRIVATE, 80);
    let rules = json!([{ "protocol": "tcp", "destination": PRIVATE, "ports": "80" }]);
    let group = json!({
        "name": "after-the-kill", "rules": rules, "globally_enabled": { "running": true }
    });
    let answer = runner.call(Method::POST, "/v3/security_groups", Some(&group)).await?;
    let guid = answer.body["guid"].as_str().context("the new group has a guid")?.to_owned();
    let change = "create after-the-kill while nobody leads: open";
    runner.turns_within(change, "appA", private, Outcome::Open, answer.at, TAKEOVER).await?;

    let after = new_leader(runner, &before, killed).await?;
    runner.ctl(&["locks"]).await?;
    if after.fencing_token <= before.fencing_token {
        bail!(
            "not as expected: the fencing token is to be higher than {}, and is {}",
            before.fencing_token,
            after.fencing_token
        );
    }
    runner.seen(&format!(
        "{} leads with fencing token {}; {} had {}",
        after.owner, after.fencing_token, before.owner, before.fencing_token
    ))?;
    runner.stage.leader = after;

    runner.remark("The killed one comes back as standby, and a group that is deleted is gone:")?;
    runner.cluster.start_process(&before.owner).await?;
    collision_again(runner, &before.owner).await?;
    let path = format!("/v3/security_groups/{guid}");
    let answer = runner.call(Method::DELETE, &path, None).await?;
    let change = "delete after-the-kill: closed";
    runner.turns(change, "appA", private, Outcome::Refused, answer.at).await?;
    runner.nobody_was_restarted()
}

/// The lock's new owner, from the lock server.
async fn new_leader(runner: &Runner<'_>, before: &Held, killed: Instant) -> anyhow::Result<Held> {
    loop {
        let leader = runner.cluster.leader().await?;
        if let Some(leader) = leader.filter(|leader| leader.owner != before.owner) {
            return Ok(leader);
        }
        if killed.elapsed() > TAKEOVER {
            bail!("not as expected: nobody took the lock within {} s", TAKEOVER.as_secs());
        }
        sleep(Duration::from_millis(100)).await;
    }
}

/// The new process appends to the same log file: the collision must be in a line of the
/// new process.
async fn collision_again(runner: &Runner<'_>, standby: &str) -> anyhow::Result<()> {
    let acquired = |line: &Line| line.task == "locket-lock.acquired-lock";
    let failed = |line: &Line| {
        line.task == "locket-lock.failed-to-acquire-lock" && line.data["error"] == COLLISION
    };
    let what = ["locket-lock.acquired-lock", "locket-lock.failed-to-acquire-lock"];
    let log = runner.cluster.layout().log(standby);
    runner.command(&format!("tail -f {}", log.display()))?;
    let found = runner.log_shows(standby, &what, &[&acquired, &failed]).await?;
    runner.seen(&shortened(&found[1].text, SHOWN))
}

fn standby_of(leader: &str) -> anyhow::Result<String> {
    let mut all = (1..=SYNCERS).map(syncer_name);
    all.find(|name| name != leader).context("a cluster has a standby")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_standby_is_the_other_one() {
        assert_eq!(standby_of("syncer-1").unwrap(), "syncer-2");
        assert_eq!(standby_of("syncer-2").unwrap(), "syncer-1");
    }

    #[test]
    fn a_lock_may_carry_more_than_is_told() {
        let wanted = json!({"key": "k", "type_code": 1});
        assert!(holds(&json!({"key": "k", "type_code": 1, "value": ""}), &wanted));
        assert!(!holds(&json!({"key": "k", "type_code": 2}), &wanted));
        assert!(!holds(&Value::Null, &wanted));
    }
}
