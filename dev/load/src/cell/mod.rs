//! Measures a full cell: its agent, as a process, receives groups and containers, and
//! each change is timed until it is in the kernel. Then packets are timed through the
//! resulting rules.
//!
//! The tool runs in network namespaces of its own, and needs root for that.

mod data;
pub(super) mod lab;
mod packets;
mod plane;
mod report;
mod rig;

use std::path::PathBuf;
use std::time::Duration;

use anyhow::Context;
use tokio::time::sleep;

use self::lab::Lab;
use self::packets::median;
use self::plane::Plane;
use self::report::{Idle, Packets, Report, Rest, Took, Work};
use self::rig::{Agent, Rig};
use super::meter::{self, Activity};
use super::{positive_length, say};

/// Number of writes of the same rules without an agent; the fastest counts.
const RAW_ROUNDS: u32 = 3;
/// Longer than the agent's interval between two reads of the kernel.
const TWO_LOOKS: Duration = Duration::from_secs(11);
/// First number of containers that are added later.
const LATER: u32 = 1_000;

#[derive(Debug, clap::Args)]
pub(super) struct Arguments {
    /// Directory of the binaries `cell-agent` and `policy-store` [default: directory of this
    /// program]
    #[arg(long)]
    bin_dir: Option<PathBuf>,
    /// Measurements, separated by commas
    #[arg(long, value_delimiter = ',', default_value = "work,packets")]
    parts: Vec<Part>,
    /// Data planes, separated by commas: nftables, iptables-legacy, iptables-nft
    #[arg(long, value_delimiter = ',', default_value = "nftables,iptables-legacy,iptables-nft")]
    planes: Vec<Plane>,
    /// Numbers of rules per container, separated by commas
    #[arg(long, value_delimiter = ',', default_value = "50,500")]
    rules: Vec<u32>,
    /// Number of containers on the cell
    #[arg(long, default_value_t = 250, value_parser = clap::value_parser!(u32).range(1..=900))]
    containers: u32,
    /// Number of changed rules, and of added containers
    #[arg(long, default_value_t = 9, value_parser = clap::value_parser!(u32).range(1..))]
    changes: u32,
    /// Pause after each change
    #[arg(long, default_value = "500ms", value_parser = positive_length)]
    pause: Duration,
    /// Time without changes in which the idle agent is measured
    #[arg(long, default_value = "30s", value_parser = positive_length)]
    idle: Duration,
    /// Numbers of rules before the rule that allows the measured packets, separated by commas
    #[arg(long, value_delimiter = ',', default_value = "10,100,1000,10000")]
    packet_rules: Vec<u32>,
    /// PNG file for a plot of apply time over rules
    #[arg(long)]
    plot_work: Option<PathBuf>,
    /// PNG file for a plot of packet latency over rules
    #[arg(long)]
    plot_packets: Option<PathBuf>,
    /// Print the result as JSON
    #[arg(long)]
    json: bool,
}

/// What can be measured.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
enum Part {
    /// Changes, an idle agent, and its memory
    Work,
    /// Packet latency
    Packets,
}

pub(super) async fn run(arguments: Arguments) -> anyhow::Result<()> {
    let mut report = Report::default();
    if arguments.parts.contains(&Part::Work) {
        for &plane in &arguments.planes {
            for &rules in &arguments.rules {
                let work = work(&arguments, plane, rules).await;
                let work = work.with_context(|| format!("{plane}, {rules} rules"))?;
                report.work.push(work);
            }
        }
    }
    if arguments.parts.contains(&Part::Packets) {
        let lab = Lab::raise().await?;
        let latency = packets::measure(&lab).await.context("without rules")?;
        report.packets.push(Packets { rules: "none".to_owned(), plane: None, count: 0, latency });
        for &plane in &arguments.planes {
            let packets = timed_packets(&arguments, plane, &lab).await;
            report.packets.extend(packets.with_context(|| format!("packets through {plane}"))?);
        }
    }
    if let Some(path) = &arguments.plot_work {
        report.work_chart().write(path)?;
    }
    if let Some(path) = &arguments.plot_packets {
        report.packets_chart().write(path)?;
    }
    if arguments.json {
        return say(&format!("{}\n", serde_json::to_string_pretty(&report)?));
    }
    say(&report.text())
}

/// Measures one cell from the start of its agent to its end.
async fn work(arguments: &Arguments, plane: Plane, rules: u32) -> anyhow::Result<Work> {
    let containers = data::containers(arguments.containers);
    let (mut rig, confirmed) = Rig::new(arguments.bin_dir.clone(), data::groups(rules)).await?;
    let mut agent = rig.agent(plane, containers.clone()).await?;
    let applied = agent.applied(confirmed.generation).await?;
    let first = Took::between(agent.began, applied);
    sleep(arguments.pause).await;
    let cell = Cell { arguments, plane };
    let change = cell.changes(&mut rig, &mut agent).await?;
    let rest = Rest {
        container_ms: cell.add(&mut agent).await?,
        container_meanwhile_ms: cell.add_meanwhile(&mut rig, &mut agent).await?,
        idle: cell.idle(&agent).await?,
        peak: meter::usage(&agent.pid().to_string())?.peak,
        raw: plane.raw(&containers, RAW_ROUNDS).await?,
    };
    agent.end().await?;
    rig.end().await?;
    plane.clear()?;
    Ok(Work::new(plane, rules, first, change, rest))
}

/// A cell with its first rules.
struct Cell<'a> {
    arguments: &'a Arguments,
    plane: Plane,
}

impl Cell<'_> {
    /// Changes one rule of the group that all containers have.
    async fn changes(&self, rig: &mut Rig, agent: &mut Agent) -> anyhow::Result<Took> {
        let mut all = Vec::new();
        for _ in 0..self.arguments.changes {
            let confirmed = rig.change().await?;
            let applied = agent.applied(confirmed.generation).await?;
            all.push(Took::between(confirmed.at, applied));
            sleep(self.arguments.pause).await;
        }
        Took::median(&all)
    }

    /// Adds containers one by one. Returns the median in milliseconds.
    async fn add(&self, agent: &mut Agent) -> anyhow::Result<f64> {
        let mut all = Vec::new();
        for number in 0..self.arguments.changes {
            all.push(self.add_one(agent, LATER + number).await?);
            sleep(self.arguments.pause).await;
        }
        agent.skip_log()?;
        median(all)
    }

    /// Adds containers, each right after a change for all others.
    async fn add_meanwhile(&self, rig: &mut Rig, agent: &mut Agent) -> anyhow::Result<f64> {
        let mut all = Vec::new();
        for number in 0..self.arguments.changes {
            let entry = data::another(2 * LATER + number);
            self.plane.prepare(std::slice::from_ref(&entry))?;
            let confirmed = rig.change().await?;
            all.push(agent.add(entry).await?.as_secs_f64() * 1e3);
            agent.applied(confirmed.generation).await?;
            sleep(self.arguments.pause).await;
        }
        median(all)
    }

    async fn add_one(&self, agent: &Agent, number: u32) -> anyhow::Result<f64> {
        let entry = data::another(number);
        self.plane.prepare(std::slice::from_ref(&entry))?;
        Ok(agent.add(entry).await?.as_secs_f64() * 1e3)
    }

    async fn idle(&self, agent: &Agent) -> anyhow::Result<Idle> {
        sleep(TWO_LOOKS).await;
        let before = Activity::of(agent.pid())?;
        sleep(self.arguments.idle).await;
        let (on_cpu, no_process) = Activity::of(agent.pid())?.since(&before);
        let looks = self.arguments.idle.div_duration_f64(self.plane.look_interval());
        Ok(Idle { ms_a_look: on_cpu.as_secs_f64() * 1e3 / looks, no_process })
    }
}

/// Packets from one container through an increasing number of rules.
async fn timed_packets(
    arguments: &Arguments,
    plane: Plane,
    lab: &Lab,
) -> anyhow::Result<Vec<Packets>> {
    let most = arguments.packet_rules.iter().max().copied().unwrap_or(10);
    // Fewer than in any measurement, so that each set differs from the previous one.
    let groups = data::probed(0, None);
    let (mut rig, confirmed) = Rig::new(arguments.bin_dir.clone(), groups).await?;
    let mut agent = rig.agent(plane, data::containers(1)).await?;
    agent.applied(confirmed.generation).await?;
    let mut all = Vec::new();
    let shapes = arguments.packet_rules.iter().map(|&rules| (rules, None));
    for (count, port_ranges) in shapes.chain([(most, Some(200))]) {
        let confirmed = rig.set(data::probed(count, port_ranges)).await?;
        agent.applied(confirmed.generation).await?;
        sleep(arguments.pause).await;
        let latency = packets::measure(lab).await?;
        let rules = match port_ranges {
            None => count.to_string(),
            Some(ranges) => format!("{count}, {ranges} port ranges"),
        };
        let count = port_ranges.map_or(count, |_| 0);
        all.push(Packets { rules, plane: Some(plane), count, latency });
    }
    if plane == Plane::Nftables {
        for number in 2..=arguments.containers {
            agent.add(data::another(number)).await?;
        }
        let latency = packets::measure(lab).await?;
        let rules = format!("{most}, 200 port ranges, {} containers", arguments.containers);
        all.push(Packets { rules, plane: Some(plane), count: 0, latency });
    }
    agent.end().await?;
    rig.end().await?;
    plane.clear()?;
    Ok(all)
}
