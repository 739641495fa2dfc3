//! Runs the story: prints every command before it runs, then the observed result; the
//! first unexpected result ends the story.

use std::net::Ipv4Addr;
use std::time::Duration;

use anyhow::{Context, bail};
use reqwest::Method;
use serde_json::Value;
use tokio::time::{Instant, sleep};

use super::log_file::{self, Line};
use crate::cloud::{Answer, curl};
use crate::container::Identity;
use crate::fixtures::Stage;
use crate::launch::Cluster;
use crate::probe::{self, Outcome, Target, probe};
use crate::terminal::say;
use crate::topology::Cell;

/// Default timeout of a change.
pub(super) const TIMEOUT: Duration = Duration::from_secs(10);

/// Limit from the Cloud Controller's response to the first packet with the new verdict, with
/// the default poll interval.
pub(super) const PROMPT: Duration = Duration::from_millis(1500);

/// The address that most of the story uses.
pub(super) const THERE: Ipv4Addr = Ipv4Addr::new(1, 2, 3, 4);

/// The state of a run.
#[derive(Debug)]
pub(super) struct Runner<'a> {
    /// The cluster that the story runs on.
    pub(super) cluster: &'a mut Cluster,
    /// Spaces, cells, and the Cloud Controller.
    pub(super) stage: Stage,
    /// The apps that must not be restarted.
    apps: Vec<(&'static str, Identity)>,
    /// Duration of each change.
    timings: Vec<(String, Duration)>,
}

impl<'a> Runner<'a> {
    /// Records the identities of the apps.
    pub(super) fn new(cluster: &'a mut Cluster, stage: Stage) -> anyhow::Result<Self> {
        let known = |name| Ok((name, cluster.identity(name)?));
        let apps = ["appA", "appB"].into_iter().map(known).collect::<anyhow::Result<_>>()?;
        Ok(Self { cluster, stage, apps, timings: Vec::new() })
    }

    /// Begins a chapter.
    pub(super) fn chapter(&self, letter: &str, title: &str) -> anyhow::Result<()> {
        say(&format!("\n== {letter}. {title}\n"))
    }

    /// Prints an announcement.
    pub(super) fn remark(&self, text: &str) -> anyhow::Result<()> {
        say(&format!("\n{text}\n"))
    }

    /// Prints a command.
    pub(super) fn command(&self, text: &str) -> anyhow::Result<()> {
        say(&format!("$ {text}\n"))
    }

    /// Prints a step without a command.
    pub(super) fn step(&self, text: &str) -> anyhow::Result<()> {
        say(&format!("* {text}\n"))
    }

    /// Prints an observation.
    pub(super) fn seen(&self, text: &str) -> anyhow::Result<()> {
        text.lines().try_for_each(|line| say(&format!("    {line}\n")))
    }

    /// Calls the Cloud Controller, and prints the call and the status.
    pub(super) async fn call(
        &self,
        method: Method,
        path: &str,
        body: Option<&Value>,
    ) -> anyhow::Result<Answer> {
        self.command(&curl(&method, path, body))?;
        let answer = self.stage.cloud.call(method, path, body).await?;
        self.seen(&answer.status.to_string())?;
        Ok(answer)
    }

    /// The GUID of a security group.
    pub(super) async fn group(&self, name: &str) -> anyhow::Result<String> {
        let path = format!("/v3/security_groups?names={name}");
        let answer = self.call(Method::GET, &path, None).await?;
        let guid = answer.body["resources"][0]["guid"].as_str().map(str::to_owned);
        guid.with_context(|| format!("not as expected: there is no security group {name}"))
    }

    /// Sends one probe, which must have this outcome.
    pub(super) async fn expect(
        &self,
        from: &str,
        target: Target,
        wanted: Outcome,
    ) -> anyhow::Result<()> {
        let container = self.cluster.container(from)?;
        self.command(&probe_command(container.attachment.namespace.name(), target))?;
        let seen = probe(container.resident(), target).await?;
        self.seen(&seen.to_string())?;
        if seen != wanted {
            bail!("not as expected: {from} to {target} is to be {wanted}, and is {seen}");
        }
        Ok(())
    }

    /// Repeats a probe until it has the wanted outcome, and records the time since the
    /// Cloud Controller's response.
    pub(super) async fn turns(
        &mut self,
        change: &str,
        from: &str,
        target: Target,
        wanted: Outcome,
        since: Instant,
    ) -> anyhow::Result<Duration> {
        self.turns_within(change, from, target, wanted, since, PROMPT).await
    }

    /// Like `turns`, with its own limit.
    pub(super) async fn turns_within(
        &mut self,
        change: &str,
        from: &str,
        target: Target,
        wanted: Outcome,
        since: Instant,
        limit: Duration,
    ) -> anyhow::Result<Duration> {
        let container = self.cluster.container(from)?;
        self.step(&format!("{from} to {target}, over and over, until {wanted}"))?;
        let wait = limit.max(TIMEOUT);
        let result = probe::until(container.resident(), target, wanted, since, wait).await?;
        let took = match result {
            Ok(took) => took,
            Err(seen) => bail!(
                "not as expected: {from} to {target} is to be {wanted}, and still is {seen} {} ms \
                 after the answer",
                since.elapsed().as_millis()
            ),
        };
        self.seen(&format!("{wanted}, {} ms after the answer", took.as_millis()))?;
        self.timings.push((format!("{change} for {from}"), took));
        if took >= limit {
            bail!(
                "not as expected: that took {} ms, and {} ms are the limit",
                took.as_millis(),
                limit.as_millis()
            );
        }
        Ok(took)
    }

    /// Runs a command on a cell, and returns its output.
    pub(super) async fn on_cell(
        &self,
        cell: Cell,
        program: &str,
        arguments: &[&str],
    ) -> anyhow::Result<String> {
        let namespace = self.cluster.options().name.cell(cell);
        self.command(&format!("ip netns exec {namespace} {program} {}", arguments.join(" ")))?;
        self.cluster.on_cell(cell, program, arguments).await
    }

    /// Runs `portcullisctl`, and prints its output.
    pub(super) async fn ctl(&self, arguments: &[&str]) -> anyhow::Result<String> {
        self.command(&format!("portcullisctl {}", arguments.join(" ")))?;
        let text = self.cluster.ctl(arguments).await?;
        self.seen(&text)?;
        Ok(text)
    }

    /// Waits until a process's log has lines that match in this order, and returns
    /// them.
    pub(super) async fn log_shows(
        &self,
        process: &str,
        what: &[&str],
        wanted: &[&dyn Fn(&Line) -> bool],
    ) -> anyhow::Result<Vec<Line>> {
        let file = self.cluster.layout().log(process);
        let since = Instant::now();
        loop {
            let lines = log_file::lines(&std::fs::read_to_string(&file)?);
            match log_file::in_order(&lines, wanted) {
                Ok(found) => return Ok(found.into_iter().cloned().collect()),
                Err(place) if since.elapsed() > TIMEOUT => bail!(
                    "not as expected: {} has no line `{}`{}",
                    file.display(),
                    what[place],
                    if place > 0 { " after the ones before it" } else { "" }
                ),
                Err(_place) => sleep(Duration::from_millis(50)).await,
            }
        }
    }

    /// Every app still has its initial process and namespace.
    pub(super) fn nobody_was_restarted(&self) -> anyhow::Result<()> {
        for (name, before) in &self.apps {
            let now = self.cluster.identity(name)?;
            if now != *before {
                bail!("not as expected: {name} was restarted: {before:?}, now {now:?}");
            }
            self.seen(&format!(
                "{name} was not restarted: process {}, namespace {}",
                now.pid, now.namespace
            ))?;
        }
        Ok(())
    }

    /// Duration of each change.
    pub(super) fn timings(&self) -> &[(String, Duration)] {
        &self.timings
    }
}

/// A shell command with the same probe.
fn probe_command(namespace: &str, target: Target) -> String {
    let exec = format!("ip netns exec {namespace}");
    match target {
        Target::Tcp(to) => {
            format!("{exec} bash -c 'exec 3<>/dev/tcp/{}/{}'", to.ip(), to.port())
        }
        Target::Udp(to) => format!(
            "{exec} bash -c 'exec 3<>/dev/udp/{}/{}; echo portcullis >&3; read -t 2 <&3'",
            to.ip(),
            to.port()
        ),
        Target::Ping(to) => format!("{exec} ping -c 1 -W 2 {to}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_probe_is_shown_as_it_is_typed() {
        let command = probe_command("p-cell-1-appA", Target::tcp(THERE, 80));
        assert_eq!(command, "ip netns exec p-cell-1-appA bash -c 'exec 3<>/dev/tcp/1.2.3.4/80'");
        let command = probe_command("p-cell-1-appA", Target::Ping(THERE));
        assert_eq!(command, "ip netns exec p-cell-1-appA ping -c 1 -W 2 1.2.3.4");
    }
}
