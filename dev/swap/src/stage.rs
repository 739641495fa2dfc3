//! The foundation of originals at the beginning, and the load that runs through all steps.

use std::sync::Arc;
use std::time::Duration;

use anyhow::bail;
use cluster::cloud::Cloud;
use cluster::topology::Cell;
use originals::sql::Database;
use runtime::supervise::Tasks;
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep};
use tokio_util::sync::CancellationToken;

use crate::changes::Groups;
use crate::database::{self, Generations, Server};
use crate::foundation::Foundation;
use crate::front::{self, Pool};
use crate::ledger::{At, Ledger};
use crate::locks::{self, Instances};
use crate::packets::{Packet, Plan, Rules, Senders};
use crate::report::{Records, Report, Step};
use crate::site::{CELLS, INSTANCES, Job, Side, local};
use crate::starts::{Outcome, Starts};
use crate::watchers::{self, Arrivals, Watched};

/// How long a change may take while the leader of the syncers is replaced: the standby of the
/// original claims every 5 s and polls one interval (1 s) later; a poll of the agent (1 s);
/// the replacement of both servers; and some seconds for a busy machine.
pub(crate) const WINDOW: Duration = Duration::from_secs(12);
/// Ports that each version of a changing group allows.
pub(crate) const WIDTH: usize = 12;
/// Timeout of everything that a step waits for.
const TIMEOUT: Duration = Duration::from_secs(30);
const GLANCE: Duration = Duration::from_millis(50);
/// Interval of the changes: every port is open for twice the window.
const CHANGES: Duration = Duration::from_secs(2);
/// Pause between two packets of a container.
const PACKETS: Duration = Duration::from_millis(8);
/// Watchers of the policy store.
const WATCHERS: usize = 10;

/// The load, and what it records.
pub(crate) struct Stage {
    /// Time under load after each step.
    pub(crate) settle: Duration,
    pub(crate) locks: Instances,
    pub(crate) groups: Arc<Groups>,
    ledger: Arc<Ledger>,
    generations: Arc<Generations>,
    /// The servers of the groups behind their name.
    pub(crate) policies: Arc<Pool>,
    /// The tables of the originals' groups.
    pub(crate) originals: Database,
    pub(crate) senders: Option<Senders>,
    pub(crate) starts: Starts,
    watching: Option<Watching>,
    watched: Vec<Watched>,
    pub(crate) no_changes: CancellationToken,
    pub(crate) steps: Vec<Step>,
    pub(crate) tasks: Tasks,
    pub(crate) shutdown: CancellationToken,
}

/// The running watchers.
struct Watching {
    from: Instant,
    arrivals: Arrivals,
    running: JoinSet<()>,
    end: CancellationToken,
}

impl Stage {
    /// Starts a foundation of originals, and the load.
    pub(crate) async fn set(
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
        let groups = Arc::new(create_groups(foundation).await?);
        start_originals(foundation).await?;
        until("the first sync of the original", async || {
            Ok(database::originals_stamp(&originals).await? > empty)
        })
        .await?;
        let mut senders = Senders::new(foundation.outside()?).await?;
        let starts = start_cells(foundation, &groups, &mut senders).await?;
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
            watched: Vec::new(),
            no_changes,
            steps: Vec::new(),
            tasks,
            shutdown,
        })
    }

    /// Starts watchers of the policy stores.
    pub(crate) fn watch(&mut self, foundation: &Foundation) -> anyhow::Result<()> {
        let spaces: Vec<String> =
            self.groups.spaces.iter().map(|space| space.guid.clone()).collect();
        let address = local(foundation.site.ports.store);
        let (tls, end) = (foundation.site.cell_tls()?, self.shutdown.child_token());
        let from = Instant::now();
        let (arrivals, running) = watchers::start(&address, &tls, &spaces, WATCHERS, &end);
        self.watching = Some(Watching { from, arrivals, running, end });
        Ok(())
    }

    /// Ends the watchers.
    pub(crate) async fn watch_no_more(&mut self) {
        if let Some(Watching { from, arrivals, running, end }) = self.watching.take() {
            end.cancel();
            running.join_all().await;
            let (to, by_watcher) = (Instant::now(), arrivals.all());
            self.watched.push(Watched { from, to, by_watcher });
        }
    }

    pub(crate) fn report(
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
            watched: &self.watched,
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
pub(crate) async fn until(
    what: &str,
    is_so: impl AsyncFn() -> anyhow::Result<bool>,
) -> anyhow::Result<()> {
    let since = Instant::now();
    while !is_so().await? {
        if since.elapsed() > TIMEOUT {
            bail!("still no {what} after {} s", TIMEOUT.as_secs());
        }
        sleep(GLANCE).await;
    }
    Ok(())
}

/// Starts the Cloud Controller, and creates the groups of the load.
async fn create_groups(foundation: &mut Foundation) -> anyhow::Result<Groups> {
    foundation.start(Job::CloudController, Side::Original).await?;
    let ports = &foundation.site.ports;
    let url = |port| format!("https://{}", local(port));
    let cloud = Cloud::log_in(&url(ports.api), &url(ports.uaa), foundation.site.ca()).await?;
    Groups::create(cloud, WIDTH).await
}

/// Starts the originals beside the cells.
async fn start_originals(foundation: &mut Foundation) -> anyhow::Result<()> {
    for number in 0..INSTANCES {
        foundation.start(Job::Locket(number), Side::Original).await?;
    }
    for number in 0..INSTANCES {
        foundation.start(Job::Policies(number), Side::Original).await?;
        foundation.start(Job::Syncer(number), Side::Original).await?;
    }
    Ok(())
}

/// Starts the cells with an app of each space, and packets from each container.
async fn start_cells(
    foundation: &mut Foundation,
    groups: &Groups,
    senders: &mut Senders,
) -> anyhow::Result<Starts> {
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
        let plan = Plan { newest, width: WIDTH, pause: PACKETS };
        senders.add(inside, number, plan).await?;
    }
    Ok(starts)
}
