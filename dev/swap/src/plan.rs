//! The steps, in their order, and the load that runs through all of them.

use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, bail};
use cluster::cloud::Cloud;
use cluster::state::State;
use cluster::topology::{Cell, Name};
use originals::sql::Database;
use runtime::supervise::Tasks;
use tokio::signal::unix::{SignalKind, signal};
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep, timeout};
use tokio_util::sync::CancellationToken;

use crate::changes::Groups;
use crate::database::{self, Generations, Server};
use crate::foundation::Foundation;
use crate::front::{self, Pool};
use crate::ledger::{At, Ledger};
use crate::locks::{self, Instances};
use crate::packets::{Fate, Goal, Packet, Rules, Senders};
use crate::progress;
use crate::report::{Records, Report, Step};
use crate::site::{CELLS, INSTANCES, Job, Side, Site, local, syncer_uuid};
use crate::starts::{Outcome, Starts};
use crate::watchers::{self, Arrivals};

/// The lock of the syncers.
const LEADER: &str = "policy-server-asg-syncer";

/// How long a change may take while the leader of the syncers is replaced: the standby of the
/// original claims every 5 s and polls one interval (1 s) later; a poll of the agent (1 s);
/// the replacement of both servers; and some seconds for a busy machine.
const WINDOW: Duration = Duration::from_secs(12);
/// Every port is open for twice the window.
const CHANGES: Duration = Duration::from_secs(2);
const WIDTH: usize = 12;
/// Watchers of the policy store.
const WATCHERS: usize = 10;
/// Timeout of everything that a step waits for.
const TIMEOUT: Duration = Duration::from_secs(30);
const GLANCE: Duration = Duration::from_millis(50);

#[derive(Debug)]
pub(crate) struct Options {
    pub(crate) name: Name,
    /// Time under load after each step.
    pub(crate) seconds: u64,
    pub(crate) binaries: std::path::PathBuf,
    pub(crate) iptables: String,
}

/// Plays all steps, and stops everything.
pub(crate) async fn play(options: Options, state: State, server: Server) -> anyhow::Result<Report> {
    let Options { name, seconds, binaries, iptables } = options;
    let directory = state.directory().to_owned();
    let site = Site::write(&directory, binaries, &iptables, &server)?;
    let mut foundation = Foundation::new(name, site, state, &iptables)?;
    let (mut interrupt, mut terminate) =
        (signal(SignalKind::interrupt())?, signal(SignalKind::terminate())?);
    let outcome = tokio::select! {
        outcome = swap(&mut foundation, &server, Duration::from_secs(seconds)) => outcome,
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
) -> anyhow::Result<Report> {
    progress("a foundation of the originals");
    let mut stage = Stage::set(foundation, server, settle).await?;
    let outcome = stage.play(foundation).await;
    let Stage { tasks, shutdown, senders, starts, .. } = &mut stage;
    shutdown.cancel();
    let tasks = std::mem::replace(tasks, Tasks::new(CancellationToken::new()));
    let packets = senders.take().context("the senders run until now")?.end()?;
    let starts = std::mem::take(starts).end()?;
    outcome.and(tasks.join(Duration::from_secs(20)).await)?;
    Ok(stage.report(foundation, &packets, &starts))
}

/// The load, and what it records.
struct Stage {
    settle: Duration,
    locks: Instances,
    groups: Arc<Groups>,
    ledger: Arc<Ledger>,
    generations: Arc<Generations>,
    policies: Arc<Pool>,
    originals: Database,
    senders: Option<Senders>,
    starts: Starts,
    watching: Option<(Arrivals, JoinSet<()>)>,
    arrivals: Vec<Vec<At<u64>>>,
    no_watchers: CancellationToken,
    no_changes: CancellationToken,
    steps: Vec<Step>,
    tasks: Tasks,
    shutdown: CancellationToken,
}

impl Stage {
    /// Starts a foundation of originals, and the load.
    async fn set(
        foundation: &mut Foundation,
        server: &Server,
        settle: Duration,
    ) -> anyhow::Result<Self> {
        let shutdown = CancellationToken::new();
        let mut tasks = Tasks::new(shutdown.clone());
        foundation.raise().await?;
        let policies = fronts(foundation, &mut tasks, &shutdown).await?;
        let migrated = tokio::process::Command::from(foundation.site.migrate()).status().await?;
        if !migrated.success() {
            bail!("the tables of the groups were not created");
        }
        let originals = server.open_groups()?;
        let empty = database::originals_stamp(&originals).await?;
        foundation.start(Job::CloudController, Side::Original).await?;
        let ports = &foundation.site.ports;
        let (api, uaa) = (ports.api, ports.uaa);
        let url = |port| format!("https://{}", local(port));
        let cloud = Cloud::log_in(&url(api), &url(uaa), foundation.site.ca()).await?;
        let groups = Arc::new(Groups::create(cloud, WIDTH).await?);
        for number in 0..INSTANCES {
            foundation.start(Job::Locket(number), Side::Original).await?;
        }
        for number in 0..INSTANCES {
            foundation.start(Job::Policies(number), Side::Original).await?;
            foundation.start(Job::Syncer(number), Side::Original).await?;
        }
        until("the first sync of the original", async || {
            Ok(database::originals_stamp(&originals).await? > empty)
        })
        .await?;
        let mut senders = Senders::new(foundation.outside()?).await?;
        for cell in Cell::all(CELLS) {
            foundation.start(Job::Agent(cell), Side::Original).await?;
            for (space, details) in groups.spaces.iter().enumerate() {
                let name = format!("app{space}");
                foundation.add_container(cell, &name, (space, &details.guid)).await?;
            }
        }
        let mut starts = Starts::default();
        for (number, container) in foundation.containers.iter().enumerate() {
            let cell = foundation.network.cell(container.attachment.cell)?.resident();
            starts.add(cell, container.handle.clone()).await?;
            let newest = Arc::clone(&groups.spaces[container.space].newest);
            let inside = container.attachment.namespace.resident();
            senders.add(inside, number, newest, WIDTH).await?;
        }
        let addresses = foundation.site.ports.lockets.map(local).to_vec();
        let locks = Instances::new(addresses, foundation.site.client_tls()?);
        let ledger = Arc::new(Ledger::default());
        let generations = Arc::new(Generations::default());
        let clients = locks::start(&locks, &ledger, &shutdown)?;
        tasks.add("lock clients", async move {
            clients.join_all().await;
            Ok(())
        });
        let token = || shutdown.clone();
        tasks.add("lists", locks::witness(locks.clone(), Arc::clone(&ledger), token()));
        tasks.add("table", database::witness(server.open_locks()?, Arc::clone(&ledger), token()));
        let follow = Arc::clone(&generations).follow(server.open_groups()?, token());
        tasks.add("generations", follow);
        let (no_changes, end) = (CancellationToken::new(), token());
        let changing = Arc::clone(&groups).change(CHANGES, no_changes.clone());
        tasks.add("changes", async move {
            changing.await?;
            // The end of a task ends the others.
            end.cancelled().await;
            Ok(())
        });
        Ok(Self {
            settle,
            locks,
            groups,
            ledger,
            generations,
            policies,
            originals,
            senders: Some(senders),
            starts,
            watching: None,
            arrivals: Vec::new(),
            no_watchers: shutdown.child_token(),
            no_changes,
            steps: Vec::new(),
            tasks,
            shutdown,
        })
    }

    async fn play(&mut self, foundation: &mut Foundation) -> anyhow::Result<()> {
        self.step("originals", foundation, async |_, _| Ok(())).await?;
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
        self.update(foundation).await?;
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
        self.step("originals again", foundation, async |stage, _| {
            stage.no_changes.cancel();
            stage.until_all_is_in_force().await
        })
        .await
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
            let spaces: Vec<String> =
                self.groups.spaces.iter().map(|space| space.guid.clone()).collect();
            let address = local(foundation.site.ports.store);
            let (tls, end) = (foundation.site.cell_tls()?, &self.no_watchers);
            self.watching = Some(watchers::start(&address, &tls, &spaces, WATCHERS, end));
            return Ok(());
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
        self.no_watchers.cancel();
        if let Some((arrivals, running)) = self.watching.take() {
            running.join_all().await;
            self.arrivals = arrivals.all();
        }
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
        let last: Vec<Goal> = newest.map(|version| Goal::Port(version + WIDTH - 1)).collect();
        let all_passed = async || {
            let packets = senders.packets();
            let passed = |goal: &Goal, container: usize| {
                let is_it = |packet: &&Packet| {
                    packet.goal == *goal
                        && packet.container == container
                        && packet.fate == Fate::Passed
                };
                packets.iter().rev().any(|packet| is_it(&packet))
            };
            let containers = usize::from(CELLS) * last.len();
            Ok((0..containers).all(|at| passed(&last[at % last.len()], at)))
        };
        // What is missing is in the report.
        let _in_time = timeout(WINDOW, until("the last change", all_passed)).await;
        Ok(())
    }

    fn report(
        &self,
        foundation: &Foundation,
        packets: &[Packet],
        starts: &[At<Outcome>],
    ) -> Report {
        let spaces: Vec<usize> =
            foundation.containers.iter().map(|container| container.space).collect();
        let records = Records {
            steps: &self.steps,
            ledger: &self.ledger,
            generations: &self.generations,
            arrivals: &self.arrivals,
            histories: &self.groups.histories(),
            spaces: &spaces,
            packets,
            starts,
            rules: Rules { width: WIDTH, window: WINDOW },
        };
        records.report()
    }
}

/// Listens on the names of the services, here and in the cells.
async fn fronts(
    foundation: &Foundation,
    tasks: &mut Tasks,
    shutdown: &CancellationToken,
) -> anyhow::Result<Arc<Pool>> {
    let ports = &foundation.site.ports;
    let without_check = |ports: [u16; INSTANCES]| Pool::new(&ports.map(|port| (port, None)));
    let lockets = without_check(ports.lockets);
    let stores = without_check(ports.stores);
    let checked: Vec<_> = ports.policies.into_iter().zip(ports.healths.map(Some)).collect();
    let policies = Pool::new(&checked);
    tasks.add("health checks", Arc::clone(&policies).check(shutdown.clone()));
    let here = foundation.here();
    let mut listeners = vec![
        (front::listen(here, ports.locket).await?, lockets),
        (front::listen(here, ports.store).await?, Arc::clone(&stores)),
    ];
    for cell in Cell::all(CELLS) {
        let inside = foundation.network.cell(cell)?.resident();
        listeners.push((front::listen(inside, ports.policy).await?, Arc::clone(&policies)));
        listeners.push((front::listen(inside, ports.store).await?, Arc::clone(&stores)));
    }
    for (listener, pool) in listeners {
        tasks.add("front", front::serve(listener, pool, shutdown.clone()));
    }
    Ok(policies)
}

/// Waits, within the timeout, until it is so.
async fn until(what: &str, is_so: impl AsyncFn() -> anyhow::Result<bool>) -> anyhow::Result<()> {
    let since = Instant::now();
    while !is_so().await? {
        if since.elapsed() > TIMEOUT {
            bail!("still no {what} after {} s", TIMEOUT.as_secs());
        }
        sleep(GLANCE).await;
    }
    Ok(())
}
