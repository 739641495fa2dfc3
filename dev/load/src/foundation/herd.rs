//! All cells connect at once: at the start of the foundation, and after the stores were killed.

use std::time::Duration;

use anyhow::Context;
use jiff::Timestamp;
use tokio::time::{Instant, sleep};

use super::agents::{Plan, all_logged};
use super::ground::Place;
use super::progress;
use super::report::{Figures, Herd, millis};
use super::simulated::{Connected, Simulated};
use super::system::System;

/// Timeout until all cells have their state.
const WAIT: Duration = Duration::from_secs(900);
/// After the last cell has its state, before memory and CPU time are read: reports and
/// containers of the cells arrive.
const SETTLE: Duration = Duration::from_secs(3);
/// An agent applied rules for the first time.
const APPLIED: &str = ".rules-applied";
/// An agent has the state of its store again.
const WATCHED: &str = ".policy-store-watched";

/// Starts all agents, and lets the simulated cells connect.
pub(super) async fn start(
    system: &mut System,
    simulated: &mut Simulated,
    plans: &[Plan],
    places: &[Place],
    within: Duration,
) -> anyhow::Result<Herd> {
    let before = system.snapshot()?;
    let (began, at) = (Instant::now(), Timestamp::now());
    simulated.open(within);
    let agents = async {
        for (plan, place) in plans.iter().zip(places) {
            let agent = plan.start(&mut system.site, place).await?;
            system.agents.push(agent);
        }
        all_logged(&mut system.agents, APPLIED, WAIT).await
    };
    let (applied, connected) = tokio::try_join!(agents, simulated.all_connected(WAIT))?;
    sleep(SETTLE).await;
    let costs = system.snapshot()?.since(&before);
    Ok(herd(None, (began, at), &connected, &applied, costs))
}

/// Kills all stores, starts them again, and lets the simulated cells connect; agents connect
/// when they choose to.
pub(super) async fn restart(
    system: &mut System,
    simulated: &mut Simulated,
    within: Duration,
) -> anyhow::Result<Herd> {
    for agent in &mut system.agents {
        agent.skip_log()?;
    }
    simulated.close();
    let killed = Instant::now();
    system.kill_stores().await?;
    let before = system.snapshot()?;
    let listening = system.start_stores().await.context("starting the stores again")?;
    simulated.open(within);
    let at = Timestamp::now().checked_sub(listening.elapsed()).context("a time in the past")?;
    progress(&format!("the stores listen after {:.0} ms", millis(listening - killed)));
    let watched = all_logged(&mut system.agents, WATCHED, WAIT);
    let (watched, connected) = tokio::try_join!(watched, simulated.all_connected(WAIT))?;
    sleep(SETTLE).await;
    let costs = system.snapshot()?.since(&before);
    Ok(herd(Some(listening - killed), (listening, at), &connected, &watched, costs))
}

fn herd(
    listening: Option<Duration>,
    (began, at): (Instant, Timestamp),
    connected: &[Connected],
    real: &[Timestamp],
    costs: super::costs::Costs,
) -> Herd {
    let states: Vec<Duration> =
        connected.iter().map(|cell| cell.whole.saturating_duration_since(began)).collect();
    let attempts = connected.iter().map(|cell| cell.whole - cell.began);
    let real: Vec<Duration> =
        real.iter().map(|time| time.duration_since(at).try_into().unwrap_or_default()).collect();
    let all = states.iter().chain(&real).copied();
    Herd {
        listening_ms: listening.map(millis),
        cells: states.len() + real.len(),
        from_attempt_ms: Figures::of(attempts),
        all_ms: Figures::of(all.clone()),
        real_ms: Figures::of(real.iter().copied()),
        most_in_a_second: most_within(all.collect(), Duration::from_secs(1)),
        failed_attempts: connected.iter().map(|cell| cell.failed).sum(),
        state_bytes: connected.iter().map(|cell| cell.bytes).sum(),
        costs,
    }
}

/// The largest number of times within a period.
fn most_within(mut times: Vec<Duration>, period: Duration) -> usize {
    times.sort_unstable();
    let until = |from: &Duration| times.partition_point(|time| *time < *from + period);
    times.iter().enumerate().map(|(index, from)| until(from) - index).max().unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_most_times_within_a_second_are_counted() {
        let times = [0, 900, 1_000, 1_100, 1_899, 5_000].map(Duration::from_millis);
        assert_eq!(most_within(times.to_vec(), Duration::from_secs(1)), 4);
        assert_eq!(most_within(vec![], Duration::from_secs(1)), 0);
    }
}
