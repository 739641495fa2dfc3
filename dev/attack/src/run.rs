//! Runs attacks on a door, one after another, on the same processes.

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering::Relaxed};
use std::thread;
use std::time::Duration;

use tokio::time::{Instant, sleep, sleep_until};

use super::attacks::{self, Attack};
use super::context::Context;
use super::got::Got;
use super::honest::{APART, Honest};
use super::judge::{Bounds, Row};
use super::measure::{self, Usage};
use super::target::{self, Door, Running};

/// Growth of the memory that any attack may cause: twice the budget for unfinished messages,
/// since buffers grow by copying.
const MEMORY: u64 = 128 << 20;
/// The same of a policy store, whose budget is larger.
const STORE_MEMORY: u64 = 256 << 20;
/// Additional memory of each idle connection.
const CONNECTION: u64 = 64 << 10;
/// Additional memory of each lock key.
const KEY: u64 = 2 << 10;
/// Time in which memory and descriptors must be as before: jemalloc returns memory 10 s after it
/// was freed, a handshake may take 10 s.
const SETTLES: Duration = Duration::from_secs(40);
/// Time after the start of an honest client that does not count.
const WARM_UP: Duration = Duration::from_millis(700);
const GLANCE: Duration = Duration::from_millis(100);

/// What the command line selects.
#[derive(Debug, Clone)]
pub(crate) struct Options {
    pub(crate) duration: Duration,
    /// In milliseconds; `None` does not judge latency.
    pub(crate) floor: Option<f64>,
    pub(crate) divisor: u32,
    pub(crate) keys: u64,
    pub(crate) binaries: Option<PathBuf>,
}

/// A row with its bounds and problems.
#[derive(Debug)]
pub(crate) struct Judged {
    pub(crate) row: Row,
    pub(crate) bounds: Bounds,
    pub(crate) problems: Vec<String>,
}

/// Runs these attacks on a door; `done` gets each row.
pub(crate) async fn door(
    door: Door,
    attacks: &[&Attack],
    options: &Options,
    mut done: impl FnMut(Judged) -> anyhow::Result<()>,
) -> anyhow::Result<()> {
    let mut running = target::start(door, options.binaries.clone()).await?;
    for attack in attacks {
        let bounds = bounds(door, attack, options);
        let row = match one(&running, attack, options, &bounds).await {
            Ok(row) => row,
            Err(error) => Row {
                door: door.name().to_owned(),
                attack: attack.name.to_owned(),
                breaches: vec![format!("{error:#}")],
                ..Row::default()
            },
        };
        let problems = row.problems(&bounds);
        done(Judged { row, bounds, problems })?;
        if measure::usage(running.server.pid()).is_err() {
            running = target::start(door, options.binaries.clone()).await?;
        }
    }
    Ok(())
}

fn bounds(door: Door, attack: &Attack, options: &Options) -> Bounds {
    let base = match door {
        Door::PolicyStore | Door::PolicyStoreHttp | Door::Admin => STORE_MEMORY,
        _ => MEMORY,
    };
    let memory = base
        + match attack.name {
            "idle" => 5_000 * CONNECTION,
            "keys" => options.keys * KEY,
            _ => 0,
        };
    Bounds { floor: options.floor, memory }
}

async fn one(
    running: &Running,
    attack: &Attack,
    options: &Options,
    bounds: &Bounds,
) -> anyhow::Result<Row> {
    let pid = running.server.pid();
    let honest = Honest::start(&running.honest);
    sleep(WARM_UP.min(options.duration)).await;
    honest.period(0);
    sleep(options.duration).await;
    let before = measure::usage(pid)?;
    measure::forget_peak(pid)?;

    let got = Got::default();
    let files = Most::start(pid);
    honest.period(1);
    let outcome = run_attack(running, attack, options, &got).await;
    let files = files.end();
    let during = measure::usage(pid);
    honest.period(APART);
    let after = settle(pid, &before, bounds).await;
    honest.period(2);
    sleep(options.duration).await;

    let figures = honest.end()?;
    let mut breaches = got.breaches();
    breaches.extend(outcome.err().map(|error| format!("the attack failed: {error:#}")));
    Ok(Row {
        door: running.target.door.name().to_owned(),
        attack: attack.name.to_owned(),
        honest: figures,
        usage: [before, during?, after?],
        files,
        got: got.text(),
        breaches,
    })
}

/// Returns at the end of the attack's time.
async fn run_attack(
    running: &Running,
    attack: &Attack,
    options: &Options,
    got: &Got,
) -> anyhow::Result<()> {
    let ramp = Duration::from_secs(attack.ramp) / options.divisor;
    let of_keys = Duration::from_secs(options.keys / attacks::KEYS_A_SECOND + 1);
    let length = match attack.name {
        "keys" => options.duration.max(of_keys / options.divisor),
        _ => ramp + options.duration,
    };
    let door = running.target.door;
    let Some(protocol) = (attack.on)(door) else { return Ok(()) };
    let context = Context {
        target: Arc::clone(&running.target),
        protocol,
        until: Instant::now() + length,
        got: got.clone(),
        divisor: options.divisor,
        keys: options.keys,
    };
    let until = context.until;
    (attack.run)(context).await?;
    sleep_until(until).await;
    Ok(())
}

/// Waits until the usage is as before, at most for [`SETTLES`].
async fn settle(pid: u32, before: &Usage, bounds: &Bounds) -> anyhow::Result<Usage> {
    let deadline = Instant::now() + SETTLES;
    loop {
        let now = measure::usage(pid)?;
        if Row::is_settled(before, &now, bounds) || Instant::now() > deadline {
            return Ok(now);
        }
        sleep(GLANCE).await;
    }
}

/// Samples the number of descriptors.
struct Most {
    most: Arc<AtomicUsize>,
    is_over: Arc<AtomicBool>,
    thread: thread::JoinHandle<()>,
}

impl Most {
    fn start(pid: u32) -> Self {
        let (most, is_over) = (Arc::<AtomicUsize>::default(), Arc::<AtomicBool>::default());
        let (shared, end) = (Arc::clone(&most), Arc::clone(&is_over));
        let thread = thread::spawn(move || {
            while !end.load(Relaxed) {
                let files = measure::usage(pid).map_or(0, |usage| usage.files);
                shared.fetch_max(files, Relaxed);
                thread::park_timeout(GLANCE);
            }
        });
        Self { most, is_over, thread }
    }

    fn end(self) -> usize {
        self.is_over.store(true, Relaxed);
        self.thread.thread().unpark();
        let _sampled = self.thread.join();
        self.most.load(Relaxed)
    }
}
