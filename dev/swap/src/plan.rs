//! The steps, in their order.

use std::time::Duration;

use anyhow::{Context, bail};
use cluster::state::State;
use cluster::topology::{Cell, Name};
use runtime::supervise::Tasks;
use tokio::signal::unix::{SignalKind, signal};
use tokio::time::{Instant, sleep, timeout};
use tokio_util::sync::CancellationToken;

use crate::database::{self, Server};
use crate::foundation::Foundation;
use crate::progress;
use crate::report::{Report, Step};
use crate::site::{CELLS, INSTANCES, Job, Side, Site, syncer_uuid};
use crate::stage::{Stage, WIDTH, WINDOW, until};

/// The lock of the syncers.
const LEADER: &str = "policy-server-asg-syncer";

#[derive(Debug)]
pub(crate) struct Options {
    pub(crate) name: Name,
    /// Time under load after each step.
    pub(crate) seconds: u64,
    /// How often the foundation is swapped and rolled back.
    pub(crate) rounds: u64,
    pub(crate) binaries: std::path::PathBuf,
    pub(crate) iptables: String,
}

/// Plays all steps, and stops everything.
pub(crate) async fn play(options: Options, state: State, server: Server) -> anyhow::Result<Report> {
    let Options { name, seconds, rounds, binaries, iptables } = options;
    let settle = Duration::from_secs(seconds);
    let directory = state.directory().to_owned();
    let site = Site::write(&directory, binaries, &iptables, &server)?;
    let mut foundation = Foundation::new(name, site, state, &iptables)?;
    let (mut interrupt, mut terminate) =
        (signal(SignalKind::interrupt())?, signal(SignalKind::terminate())?);
    let outcome = tokio::select! {
        outcome = swap(&mut foundation, &server, settle, rounds) => outcome,
        _signal = interrupt.recv() => Err(anyhow::anyhow!("interrupted")),
        _signal = terminate.recv() => Err(anyhow::anyhow!("interrupted")),
    };
    let deaths = foundation.deaths();
    let ended = foundation.end().await;
    let mut report = outcome?;
    ended?;
    report.faults.extend(deaths);
    Ok(report)
}

async fn swap(
    foundation: &mut Foundation,
    server: &Server,
    settle: Duration,
    rounds: u64,
) -> anyhow::Result<Report> {
    progress("a foundation of the originals");
    let mut stage = Stage::set(foundation, server, settle).await?;
    let outcome = stage.play(foundation, rounds).await;
    let Stage { tasks, shutdown, senders, starts, .. } = &mut stage;
    shutdown.cancel();
    let tasks = std::mem::replace(tasks, Tasks::new(CancellationToken::new()));
    let packets = senders.take().context("the senders run until now")?.end()?;
    let starts = std::mem::take(starts).end()?;
    outcome.and(tasks.join(Duration::from_secs(20)).await)?;
    Ok(stage.report(foundation, &packets, &starts))
}

impl Stage {
    async fn play(&mut self, foundation: &mut Foundation, rounds: u64) -> anyhow::Result<()> {
        self.step("originals", foundation, async |_, _| Ok(())).await?;
        for _round in 0..rounds {
            self.forward(foundation).await?;
            self.update(foundation).await?;
            self.back(foundation).await?;
        }
        self.step("originals again", foundation, async |stage, _| {
            stage.no_changes.cancel();
            stage.until_all_is_in_force().await
        })
        .await
    }

    /// From the originals to ours.
    async fn forward(&mut self, foundation: &mut Foundation) -> anyhow::Result<()> {
        for number in 0..INSTANCES {
            let name = format!("locket/{number} → ours");
            self.step(&name, foundation, async |_, foundation| {
                foundation.replace(Job::Locket(number), Side::Ours).await
            })
            .await?;
        }
        for number in 0..INSTANCES {
            let name = format!("api/{number}: syncer, policies → ours");
            self.step(&name, foundation, async |stage, foundation| {
                stage.api_to_ours(foundation, number).await
            })
            .await?;
        }
        for cell in Cell::all(CELLS) {
            let name = format!("agent of {} → ours", cell.name());
            self.step(&name, foundation, async |_, foundation| {
                foundation.replace(Job::Agent(cell), Side::Ours).await
            })
            .await?;
        }
        Ok(())
    }

    /// From ours to the originals.
    async fn back(&mut self, foundation: &mut Foundation) -> anyhow::Result<()> {
        let cells: Vec<Cell> = Cell::all(CELLS).collect();
        for cell in cells.into_iter().rev() {
            let name = format!("agent of {} → original", cell.name());
            self.step(&name, foundation, async |_, foundation| {
                foundation.replace(Job::Agent(cell), Side::Original).await
            })
            .await?;
        }
        self.step("api/0: syncer → original", foundation, async |stage, foundation| {
            stage.stop_as_standby(foundation, 0).await?;
            foundation.start(Job::Syncer(0), Side::Original).await
        })
        .await?;
        let name = "api/1: syncer; api/0, api/1: policies → originals";
        self.step(name, foundation, async |stage, foundation| stage.api_back(foundation).await)
            .await?;
        for number in (0..INSTANCES).rev() {
            let name = format!("locket/{number} → original");
            self.step(&name, foundation, async |_, foundation| {
                foundation.replace(Job::Locket(number), Side::Original).await
            })
            .await?;
        }
        Ok(())
    }

    /// Every job of ours is replaced by ours, as in an update to the next version.
    async fn update(&mut self, foundation: &mut Foundation) -> anyhow::Result<()> {
        for number in 0..INSTANCES {
            let name = format!("lock-server/{number} updated");
            self.step(&name, foundation, async |_, foundation| {
                foundation.replace(Job::Locket(number), Side::Ours).await
            })
            .await?;
        }
        for number in 0..INSTANCES {
            let name = format!("api/{number}: syncer, policy-store updated");
            self.step(&name, foundation, async |stage, foundation| {
                foundation.stop(Job::Syncer(number)).await?;
                stage.replace_policies(foundation, number, Side::Ours).await?;
                foundation.start(Job::Syncer(number), Side::Ours).await?;
                stage.until_healthy(number).await
            })
            .await?;
        }
        self.step("agents of all cells updated", foundation, async |_, foundation| {
            for cell in Cell::all(CELLS) {
                foundation.replace(Job::Agent(cell), Side::Ours).await?;
            }
            Ok(())
        })
        .await
    }

    /// Runs a step, and then the time under load.
    async fn step(
        &mut self,
        name: &str,
        foundation: &mut Foundation,
        work: impl AsyncFnOnce(&mut Self, &mut Foundation) -> anyhow::Result<()>,
    ) -> anyhow::Result<()> {
        let began = self.steps.last().map_or_else(Instant::now, |step| step.ended);
        let broken = self.shutdown.clone();
        let settle = self.settle;
        let step = async {
            work(self, foundation).await.with_context(|| name.to_owned())?;
            sleep(settle).await;
            anyhow::Ok(())
        };
        tokio::select! {
            outcome = step => outcome?,
            () = broken.cancelled() => bail!("a part of the load has ended: {name}"),
        }
        let step = Step { name: name.to_owned(), began, ended: Instant::now() };
        progress(&format!("{name}: {:.1} s", (step.ended - step.began).as_secs_f64()));
        self.steps.push(step);
        Ok(())
    }

    /// Replaces the syncer and the server of the groups of one virtual machine.
    ///
    /// While an original leads, our store is empty; while ours leads, the tables of the
    /// originals are old. So the syncer of the first machine must not lead when it is
    /// replaced, and the server of the last one is replaced right after its syncer.
    async fn api_to_ours(
        &mut self,
        foundation: &mut Foundation,
        number: usize,
    ) -> anyhow::Result<()> {
        let is_first = number == 0;
        self.stop_as_standby(foundation, number).await?;
        if !is_first {
            // The store that was empty has the groups now.
            self.until_healthy(0).await?;
        }
        self.replace_policies(foundation, number, Side::Ours).await?;
        foundation.start(Job::Syncer(number), Side::Ours).await?;
        if is_first {
            return self.watch(foundation);
        }
        self.until_healthy(number).await
    }

    /// Replaces a server of the groups. The name's health checks notice its end before the
    /// next one starts, as during the update of a virtual machine.
    async fn replace_policies(
        &self,
        foundation: &mut Foundation,
        number: usize,
        side: Side,
    ) -> anyhow::Result<()> {
        foundation.stop(Job::Policies(number)).await?;
        until("end in the health checks", async || Ok(!self.policies.is_healthy(number))).await?;
        foundation.start(Job::Policies(number), side).await
    }

    /// Waits until clients are sent to that server of the groups.
    async fn until_healthy(&self, number: usize) -> anyhow::Result<()> {
        until("healthy server of the groups", async || Ok(self.policies.is_healthy(number))).await
    }

    /// Stops a syncer; the other one leads afterwards.
    async fn stop_as_standby(
        &self,
        foundation: &mut Foundation,
        number: usize,
    ) -> anyhow::Result<()> {
        foundation.stop(Job::Syncer(number)).await?;
        let other = syncer_uuid(1 - number);
        until("the lead of the other syncer", async || {
            Ok(self.locks.owner(LEADER).await?.as_ref() == Some(&other))
        })
        .await
    }

    /// Back to the originals: the original syncers lead and have written their tables, before
    /// an original server of the groups starts.
    async fn api_back(&mut self, foundation: &mut Foundation) -> anyhow::Result<()> {
        let before = database::originals_stamp(&self.originals).await?;
        foundation.replace(Job::Syncer(1), Side::Original).await?;
        let originals = &self.originals;
        until("the tables of the originals", async || {
            Ok(database::originals_stamp(originals).await? > before)
        })
        .await?;
        // From here on the stores get no changes.
        self.watch_no_more().await;
        for number in 0..INSTANCES {
            self.replace_policies(foundation, number, Side::Original).await?;
            self.until_healthy(number).await?;
        }
        Ok(())
    }

    /// Waits until the last change is in force everywhere, or should be.
    async fn until_all_is_in_force(&self) -> anyhow::Result<()> {
        let senders = self.senders.as_ref().context("the senders run until the end")?;
        let histories = self.groups.histories();
        let newest = histories.iter().filter_map(|history| history.newest());
        let last: Vec<usize> = newest.map(|version| version + WIDTH - 1).collect();
        let containers = usize::from(CELLS) * last.len();
        let all_passed =
            async || Ok((0..containers).all(|at| senders.has_passed(at, last[at % last.len()])));
        // What is missing is in the report.
        let _in_time = timeout(WINDOW, until("the last change", all_passed)).await;
        Ok(())
    }
}
