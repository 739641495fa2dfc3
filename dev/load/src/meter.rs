//! Resource usage of a process, from the kernel (proc(5)).

use std::collections::BTreeSet;
use std::fs;
use std::time::Duration;

use anyhow::{Context, ensure};
use serde::Serialize;

/// The unit of CPU times in `/proc`: the same on all machines with Linux.
const TICK: Duration = Duration::from_millis(10);

/// Usage of a process at one moment.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Usage {
    /// CPU time of all its threads since its start.
    pub cpu: Duration,
    /// Resident memory in bytes.
    pub resident: u64,
    /// Peak memory in bytes.
    pub peak: u64,
}

/// Resource usage of a run.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Cost {
    /// CPU cores used by the server.
    pub server_cores: Option<f64>,
    /// CPU microseconds of the server per call.
    pub server_micros_per_call: Option<f64>,
    /// Resident memory of the server at the end, in bytes.
    pub server_resident: Option<u64>,
    /// Peak memory of the server, in bytes.
    pub server_peak: Option<u64>,
    /// CPU cores used by the load tool itself.
    pub load_cores: f64,
    /// CPU cores used by all other processes.
    pub other_cores: f64,
}

/// Usage of the server, of this tool and of the machine at one moment.
#[derive(Debug, Clone, Copy)]
pub struct Reading {
    server: Option<Usage>,
    own: Usage,
    machine: Duration,
}

impl Reading {
    /// Reads the current usage.
    pub fn take(server: Option<u32>) -> anyhow::Result<Self> {
        let server = server.map(|pid| usage(&pid.to_string())).transpose()?;
        let own = usage("self")?;
        let text = read("/proc/stat")?;
        let machine = busy(&text).context("/proc/stat does not begin with cpu")?;
        Ok(Self { server, own, machine })
    }

    /// Usage since `before`, divided among the calls.
    pub fn since(&self, before: &Self, elapsed: Duration, calls: u64) -> Cost {
        let spent = self.server.zip(before.server).map(|(now, then)| now.cpu - then.cpu);
        let own = self.own.cpu - before.own.cpu;
        let others = (self.machine.saturating_sub(before.machine))
            .saturating_sub(own)
            .saturating_sub(spent.unwrap_or_default());
        let cores = |time: Duration| time.as_secs_f64() / elapsed.as_secs_f64().max(1e-9);
        #[expect(clippy::cast_precision_loss, reason = "a figure for people")]
        let for_each = |time: Duration| time.as_secs_f64() * 1e6 / calls.max(1) as f64;
        Cost {
            server_cores: spent.map(cores),
            server_micros_per_call: spent.map(for_each),
            server_resident: self.server.map(|usage| usage.resident),
            server_peak: self.server.map(|usage| usage.peak),
            load_cores: cores(own),
            other_cores: cores(others),
        }
    }
}

/// Usage of a process: its ID, or `self`.
pub fn usage(process: &str) -> anyhow::Result<Usage> {
    let stat = read(&format!("/proc/{process}/stat"))?;
    let cpu = cpu(&stat).with_context(|| format!("/proc/{process}/stat has another form"))?;
    let status = read(&format!("/proc/{process}/status"))?;
    let memory = |name| {
        memory(&status, name).with_context(|| format!("/proc/{process}/status has no {name}"))
    };
    Ok(Usage { cpu, resident: memory("VmRSS")?, peak: memory("VmHWM")? })
}

/// Activity of an idle process.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Activity {
    /// CPU time of its living threads, to the nanosecond.
    on_cpu: Duration,
    /// Its children, and the page faults of exited children: each exited process had
    /// some.
    children: BTreeSet<String>,
    ended: u64,
}

impl Activity {
    /// Activity of a process until now.
    pub fn of(process: u32) -> anyhow::Result<Self> {
        let stat = read(&format!("/proc/{process}/stat"))?;
        let ended = faults_of_ended(&stat).context("/proc/PID/stat has another form")?;
        let (mut on_cpu, mut children) = (Duration::ZERO, BTreeSet::new());
        for task in fs::read_dir(format!("/proc/{process}/task")).context("reading the threads")? {
            let task = task?.path();
            let file = |name| read(&task.join(name).display().to_string());
            let (Ok(schedstat), Ok(list)) = (file("schedstat"), file("children")) else {
                ensure!(!task.exists(), "reading {}", task.display());
                continue; // the thread ended after it was listed
            };
            let time = schedstat.split(' ').next().and_then(|time| time.parse().ok());
            on_cpu += Duration::from_nanos(time.context("a schedstat has another form")?);
            children.extend(list.split_ascii_whitespace().map(str::to_owned));
        }
        Ok(Self { on_cpu, children, ended })
    }

    /// CPU time since `before`, and whether no process was started.
    pub fn since(&self, before: &Self) -> (Duration, bool) {
        let none = self.children == before.children && self.ended == before.ended;
        (self.on_cpu.saturating_sub(before.on_cpu), none)
    }
}

/// cminflt: minor faults of reaped children.
fn faults_of_ended(stat: &str) -> Option<u64> {
    let (_, fields) = stat.rsplit_once(')')?;
    fields.split_ascii_whitespace().nth(8)?.parse().ok()
}

fn read(path: &str) -> anyhow::Result<String> {
    fs::read_to_string(path).with_context(|| format!("reading {path}"))
}

fn ticks(count: u64) -> Duration {
    TICK * u32::try_from(count).unwrap_or(u32::MAX)
}

/// utime and stime; the name before them is in brackets and may hold any character.
fn cpu(stat: &str) -> Option<Duration> {
    let (_, fields) = stat.rsplit_once(')')?;
    let mut times = fields.split_ascii_whitespace().skip(11).map(str::parse::<u64>);
    Some(ticks(times.next()?.ok()? + times.next()?.ok()?))
}

fn memory(status: &str, name: &str) -> Option<u64> {
    let line = status.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'))?;
    let kilobytes: u64 = line.trim().strip_suffix(" kB")?.parse().ok()?;
    Some(kilobytes << 10)
}

/// CPU time of all processes: user, nice, system, irq, softirq; not idle or stolen.
fn busy(stat: &str) -> Option<Duration> {
    let line = stat.lines().next()?.strip_prefix("cpu ")?;
    let fields: Vec<u64> =
        line.split_ascii_whitespace().map(str::parse).collect::<Result<_, _>>().ok()?;
    let [user, nice, system, _idle, _iowait, irq, softirq, ..] = fields.as_slice() else {
        return None;
    };
    Some(ticks(user + nice + system + irq + softirq))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_kernels_files_are_read_as_they_are() {
        let stat = "77 (a ) b) S 1 77 77 0 -1 4194560 1 0 0 0 250 50 0 0 20 0 9 0 1 2 3";
        assert_eq!(cpu(stat), Some(Duration::from_secs(3)));
        assert_eq!(cpu("77 (x) S 1"), None);
        let status = "Name:\tx\nVmHWM:\t  2048 kB\nVmRSS:\t  1024 kB\n";
        assert_eq!(memory(status, "VmRSS"), Some(1 << 20));
        assert_eq!(memory(status, "VmHWM"), Some(2 << 20));
        assert_eq!(memory(status, "VmSwap"), None);
        assert_eq!(busy("cpu  1 2 3 1000 1000 4 5 900 0 0\n"), Some(Duration::from_millis(150)));
        assert_eq!(busy("cpu 1 2\n"), None);
    }

    #[test]
    fn costs_are_differences() {
        let usage = |seconds| Usage { cpu: Duration::from_secs(seconds), resident: 7, peak: 9 };
        let reading = |server, own, machine| Reading {
            server: Some(usage(server)),
            own: usage(own),
            machine: Duration::from_secs(machine),
        };
        let cost = reading(12, 6, 120).since(&reading(10, 5, 115), Duration::from_secs(4), 1_000);
        let near = |found: f64, expected: f64| (found - expected).abs() < 1e-6;
        assert!(near(cost.server_cores.unwrap(), 0.5));
        assert!(near(cost.server_micros_per_call.unwrap(), 2_000.0));
        assert!(near(cost.load_cores, 0.25) && near(cost.other_cores, 0.5));
        assert_eq!((cost.server_resident, cost.server_peak), (Some(7), Some(9)));
    }

    #[test]
    fn a_process_that_was_started_is_noticed() {
        let own = std::process::id();
        let before = Activity::of(own).unwrap();
        assert!(before.since(&before).1);
        assert!(std::process::Command::new("true").status().unwrap().success());
        let (_, none) = Activity::of(own).unwrap().since(&before);
        assert!(!none, "a child ended");
    }

    #[test]
    fn this_process_can_be_measured() {
        let usage = usage("self").unwrap();
        assert!(usage.resident > 0 && usage.peak >= usage.resident);
        assert!(Reading::take(Some(std::process::id())).is_ok());
        let error = Reading::take(Some(u32::MAX)).unwrap_err();
        assert!(error.to_string().contains(&u32::MAX.to_string()), "{error}");
    }
}
