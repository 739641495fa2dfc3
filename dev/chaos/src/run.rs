//! A run: starts the foundation, the load and the observers, plays the faults, and waits until
//! all parts agree.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, anyhow, bail};
use cluster::cloud::Cloud;
use cluster::network::Network;
use cluster::process::{Death, Processes};
use cluster::state::State;
use cluster::topology::Name;
use cni::namespace::Resident;
use runtime::supervise::Tasks;
use storage::server::Dialect;
use swap::front;
use swap::packets::Senders;
use tokio::net::TcpListener;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::{Mutex, mpsc};
use tokio::time::{Instant, sleep, sleep_until};
use tokio_util::sync::CancellationToken;

use crate::changes::{BAD, Groups};
use crate::churn::Churn;
use crate::database::{Database, Replication};
use crate::fault::Fault;
use crate::foundation::Foundation;
use crate::history::{Begin, Bounds, Event};
use crate::owners::{KEYS, OWNERS, Owner};
use crate::part::{Part, Shape};
use crate::progress;
use crate::record::Record;
use crate::site::{API, Binaries, Plane, Site, UAA};
use crate::stores::{self, Store};

/// Timeout of the start, on a busy machine.
const START: Duration = Duration::from_secs(60);
const GLANCE: Duration = Duration::from_millis(200);
/// How long a supervisor waits before it starts a process again.
const RESPAWN: Duration = Duration::from_millis(500);
/// The most containers of a cell.
const CONTAINERS: usize = 10;
/// Packets and observations go on for this long after all parts agree.
const AFTERMATH: Duration = Duration::from_secs(2);
const GRACE: Duration = Duration::from_secs(20);

/// The stated bounds.
pub(crate) const BOUNDS: Bounds =
    Bounds { recovery: 40_000_000, change: 5_000_000, heal: 10_000_000, late: 2_000_000 };

/// What to run.
#[derive(Debug, Clone)]
pub(crate) struct Options {
    pub(crate) name: Name,
    pub(crate) seed: u64,
    pub(crate) backend: String,
    pub(crate) dialect: Option<Dialect>,
    pub(crate) replication: Replication,
    pub(crate) plane: Plane,
    pub(crate) shape: Shape,
    pub(crate) binaries: Binaries,
}

/// Runs in the router's namespace, and removes everything.
pub(crate) async fn play(
    options: Options,
    history: &Path,
    network: Network,
    state: State,
    database: Option<Database>,
    faults: &[Fault],
) -> anyhow::Result<()> {
    let Options { name, plane, shape, binaries, .. } = &options;
    let directory = state.directory().to_owned();
    let site = Site::write(&directory, binaries.clone(), *plane, *shape, database.as_ref())?;
    let site = Arc::new(site);
    let (sender, deaths) = mpsc::channel(16);
    let processes = Processes::new(sender);
    let database = database.map(Arc::new);
    let foundation =
        Foundation::new(name.clone(), Arc::clone(&site), network, state, processes, database);
    let foundation = Arc::new(Mutex::new(foundation));
    let record = Record::create(history).context("the history")?;
    record.note(Event::Begin(Begin {
        seed: options.seed,
        backend: options.backend.clone(),
        plane: plane.name().to_owned(),
        cells: (1..=shape.cells).map(|cell| format!("cell-{cell}")).collect(),
        bad_group: Some(BAD.to_owned()),
        loses_commits: options.replication == Replication::Asynchronous,
        bounds: BOUNDS,
    }));
    let kinds = [SignalKind::interrupt(), SignalKind::terminate(), SignalKind::hangup()];
    let [interrupt, terminate, hangup] = kinds.map(signal);
    let (mut interrupt, mut terminate, mut hangup) = (interrupt?, terminate?, hangup?);
    let outcome = tokio::select! {
        outcome = run(&options, faults, &site, &foundation, &record, deaths) => outcome,
        _signal = interrupt.recv() => Err(anyhow!("interrupted")),
        _signal = terminate.recv() => Err(anyhow!("interrupted")),
        _signal = hangup.recv() => Err(anyhow!("interrupted")),
    };
    record.finish().context("the history")?;
    // Tasks that the outcome cancelled may still share the foundation.
    let ended = foundation.lock().await.end().await;
    outcome.and(ended)
}

async fn run(
    options: &Options,
    faults: &[Fault],
    site: &Arc<Site>,
    foundation: &Arc<Mutex<Foundation>>,
    record: &Record,
    deaths: mpsc::Receiver<Death>,
) -> anyhow::Result<()> {
    let shutdown = CancellationToken::new();
    let mut tasks = Tasks::new(shutdown.clone());
    progress("starting all parts");
    tasks.add("delays", foundation.lock().await.delaying(shutdown.clone()));
    for (address, pool) in foundation.lock().await.database_addresses()? {
        let listener = TcpListener::bind(address).await?;
        tasks.add("database", front::serve(listener, pool, shutdown.clone()));
    }
    foundation.lock().await.start_all().await?;
    let supervised = supervise(Arc::clone(foundation), record.clone(), deaths, shutdown.clone());
    tasks.add("supervisor", supervised);
    let cloud = Cloud::log_in(&site.url(API), &site.url(UAA), &site.ca()).await?;
    let groups = Arc::new(Groups::create(cloud, record).await?);
    let senders = Senders::new(foundation.lock().await.outside()?).await?;
    let churn = Churn {
        foundation: Arc::clone(foundation),
        groups: Arc::clone(&groups),
        senders: Arc::new(Mutex::new(senders)),
        names: Arc::default(),
        record: record.clone(),
        shutdown: shutdown.clone(),
    };
    let outcome = trouble(options, faults, site, &churn, tasks, record).await;
    shutdown.cancel();
    let Churn { senders, .. } = &churn;
    let packets = senders.lock().await.take();
    churn.note(&packets)?;
    record.note(Event::End);
    outcome
}

async fn trouble(
    options: &Options,
    faults: &[Fault],
    site: &Arc<Site>,
    churn: &Churn,
    mut tasks: Tasks,
    record: &Record,
) -> anyhow::Result<()> {
    let Churn { foundation, groups, shutdown, .. } = churn;
    let observed = observe(site, churn, &mut tasks, record)?;
    let sockets: Vec<_> = (1..=site.shape.cells).map(|cell| site.socket(cell)).collect();
    until_equal(&observed, &sockets, groups, START).await.context("the start")?;
    for cell in 1..=site.shape.cells {
        let namespace = options.name.cell(site.place(Part::Agent(cell))?);
        let inside = Resident::of(&namespace)?;
        tasks.add("containers", churn.clone().on_cell(cell, inside, CONTAINERS, options.seed));
    }
    let end_of_changes = CancellationToken::new();
    let changing = Arc::clone(groups).change(end_of_changes.clone());
    let end = shutdown.clone();
    tasks.add("changes", async move {
        changing.await?;
        // The end of a task ends the others.
        end.cancelled().await;
        Ok(())
    });
    record.note(Event::Trouble);
    faults_in_turn(faults, foundation, record, shutdown).await?;
    end_of_changes.cancel();
    groups.finish().await?;
    record.note(Event::Calm);
    let since = Instant::now();
    let limit = Duration::from_micros(BOUNDS.recovery + BOUNDS.change);
    // A cell that differs is a violation, which the checker names.
    let agreed = until_equal(&observed, &sockets, groups, limit).await;
    let took = since.elapsed().as_secs_f64();
    progress(&match agreed {
        Ok(()) => format!("all parts agree after {took:.1} s"),
        Err(error) => format!("{error:#}"),
    });
    sleep(AFTERMATH).await;
    shutdown.cancel();
    tasks.join(GRACE).await
}

/// Starts the owners, witnesses and observers. Returns the policy stores.
fn observe(
    site: &Arc<Site>,
    churn: &Churn,
    tasks: &mut Tasks,
    record: &Record,
) -> anyhow::Result<Vec<Store>> {
    let Churn { foundation, groups, shutdown, .. } = churn;
    let servers = site.lock_servers();
    let tls = site.operator_tls()?;
    for key in KEYS {
        for number in 0..OWNERS {
            let owner = format!("owner-{number}");
            let owner = Owner::new(&servers, &tls, record, key, owner, shutdown)?;
            tasks.add("owner", owner.compete());
        }
    }
    for server in servers {
        let witness = Owner::new(&[server], &tls, record, KEYS[0], "witness".to_owned(), shutdown)?;
        tasks.add("witness", witness.witness());
    }
    let spaces: Vec<String> = groups.spaces.iter().map(|space| space.guid.clone()).collect();
    let mut observed = Vec::new();
    for (name, address) in site.policy_stores() {
        let (record, shutdown) = (record.clone(), shutdown.clone());
        let newest = Arc::default();
        let store = Store { name, address, tls: tls.clone(), record, shutdown, newest };
        tasks.add("store", store.clone().follow());
        let watcher = Store { tls: site.watcher_tls()?, ..store.clone() };
        tasks.add("watcher", watcher.watch(spaces.clone()));
        observed.push(store);
    }
    for cell in 1..=site.shape.cells {
        let (record, shutdown) = (record.clone(), shutdown.clone());
        tasks.add("cell", stores::follow_cell(Arc::clone(foundation), cell, record, shutdown));
    }
    tasks.add("packets", churn.clone().drain());
    Ok(observed)
}

/// Plays the faults; each begins and ends at its time.
async fn faults_in_turn(
    faults: &[Fault],
    foundation: &Arc<Mutex<Foundation>>,
    record: &Record,
    shutdown: &CancellationToken,
) -> anyhow::Result<()> {
    let begins = faults.iter().map(|fault| (fault.from, true, fault));
    let ends = faults.iter().map(|fault| (fault.to, false, fault));
    let mut steps: Vec<_> = begins.chain(ends).collect();
    steps.sort_by_key(|(at, begins, fault)| (*at, *begins, fault.number));
    progress(&format!("{} faults", faults.len()));
    let since = Instant::now();
    for (at, begins, fault) in steps {
        if shutdown.run_until_cancelled(sleep_until(since + at)).await.is_none() {
            bail!("a task of the run ended");
        }
        let (number, what) = (fault.number, fault.kind.to_string());
        let event =
            Event::Fault { number, what: what.clone(), begins, flushed: fault.kind.flushed() };
        let mut foundation = foundation.lock().await;
        // The trouble begins after the first entry, and ends before the second.
        if begins {
            progress(&format!("{:7.1} s  {what}", at.as_secs_f64()));
            record.note(event);
            foundation.harm(fault).await.with_context(|| what.clone())?;
        } else {
            foundation.mend(fault).await.with_context(|| format!("the end of: {what}"))?;
            record.note(event);
        }
    }
    Ok(())
}

/// Starts processes again that ended by themselves.
async fn supervise(
    foundation: Arc<Mutex<Foundation>>,
    record: Record,
    mut deaths: mpsc::Receiver<Death>,
    shutdown: CancellationToken,
) -> anyhow::Result<()> {
    while let Some(Some(death)) = shutdown.run_until_cancelled(deaths.recv()).await {
        let process = death.name.clone();
        let expected = foundation.lock().await.is_excused(&process);
        progress(&death.report());
        record.note(Event::Ended { process, how: death.status(), expected });
        sleep(RESPAWN).await;
        foundation.lock().await.start_again(&death).await?;
    }
    Ok(())
}

/// Waits until all cells have what all stores have.
async fn until_equal(
    observed: &[Store],
    sockets: &[PathBuf],
    groups: &Groups,
    limit: Duration,
) -> anyhow::Result<()> {
    let since = Instant::now();
    while !stores::all_equal(observed, sockets, groups).await {
        if since.elapsed() > limit {
            bail!("the parts do not agree after {} s", limit.as_secs());
        }
        sleep(GLANCE).await;
    }
    Ok(())
}
