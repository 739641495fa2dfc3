//! Prometheus text. Code counts through [`Family`] constants; this module holds the recorder behind
//! them, and adds the kernel's figures of the process. A value that would lag behind its source is
//! set at each scrape ([`Handle::at_scrape`]).
//!
//! Histograms whose name ends in `_seconds` have fixed buckets from 0.5 ms to 30 s, so that they
//! can be aggregated over instances.

mod family;
pub mod own;

use std::fs;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use metrics_exporter_prometheus::{
    Matcher, PrometheusBuilder, PrometheusHandle, PrometheusRecorder,
};
use tokio_util::sync::CancellationToken;

pub use family::{Family, Kind, Label};
pub use own::{FAMILIES, PROCESS};

/// Interval at which histograms are compacted, so that they do not grow between two scrapes.
const UPKEEP: Duration = Duration::from_secs(5);

const SECONDS_BUCKETS: [f64; 15] =
    [0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0];

/// Kernel clock ticks in a second as /proc shows them: 100 on every Linux
/// architecture that we build for.
const TICKS: f64 = 100.0;

/// Callback that sets metrics at a scrape.
type ScrapeHook = Box<dyn Fn() + Send>;

/// Renders the metrics of this process.
#[derive(Clone)]
pub struct Handle {
    recorder: PrometheusHandle,
    /// The labels of the build.
    build: String,
    looks: Arc<Mutex<Vec<ScrapeHook>>>,
}

impl std::fmt::Debug for Handle {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Handle").finish_non_exhaustive()
    }
}

impl Handle {
    /// Registers `look`, which is called before each rendering to set metrics. `look` must not
    /// block or render.
    pub fn at_scrape(&self, look: impl Fn() + Send + 'static) {
        self.looks.lock().unwrap_or_else(PoisonError::into_inner).push(Box::new(look));
    }

    /// All metrics as Prometheus text.
    pub fn render(&self) -> String {
        for look in &*self.looks.lock().unwrap_or_else(PoisonError::into_inner) {
            look();
        }
        let mut text = self.recorder.render();
        own::BUILD.push(&mut text, &self.build, 1.0);
        push_process_metrics(&mut text);
        text
    }

    /// Bounds the memory of histograms until shutdown.
    pub(crate) async fn upkeep(&self, shutdown: &CancellationToken) {
        while shutdown.run_until_cancelled(tokio::time::sleep(UPKEEP)).await.is_some() {
            self.recorder.run_upkeep();
        }
    }
}

/// Creates a recorder and its handle, without installing the recorder.
pub(crate) fn recorder(name: &str, version: &str) -> (PrometheusRecorder, Handle) {
    let recorder = PrometheusBuilder::new()
        .set_buckets_for_metric(Matcher::Suffix("_seconds".into()), &SECONDS_BUCKETS)
        .expect("the buckets are not empty")
        .build_recorder();
    let handle = Handle {
        recorder: recorder.handle(),
        build: format!("{{service=\"{name}\",version=\"{version}\"}}"),
        looks: Arc::default(),
    };
    (recorder, handle)
}

/// Memory of the process in bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Memory {
    /// Private resident memory: heap and stacks.
    pub private: u64,
    /// The stack of the main thread.
    pub stack: u64,
}

/// Current memory of the process; 0 where the kernel gives no number.
pub fn memory() -> Memory {
    let status = fs::read_to_string("/proc/self/status").unwrap_or_default();
    let bytes = |key| field_of(&status, key).map_or(0, |kilobytes| kilobytes as u64 * 1024);
    Memory { private: bytes("RssAnon:"), stack: bytes("VmStk:") }
}

fn push_process_metrics(text: &mut String) {
    let status = fs::read_to_string("/proc/self/status").unwrap_or_default();
    let kilobytes = |key| field_of(&status, key).map(|value| value * 1024.0);
    let stat = fs::read_to_string("/proc/self/stat").unwrap_or_default();
    let limits = fs::read_to_string("/proc/self/limits").unwrap_or_default();
    for (family, value) in [
        (own::RESIDENT, kilobytes("VmRSS:")),
        (own::PEAK, kilobytes("VmHWM:")),
        (own::VIRTUAL, kilobytes("VmSize:")),
        (own::THREADS, field_of(&status, "Threads:")),
        (own::CPU, cpu_seconds(&stat)),
        (own::STARTED, start_time(&stat)),
        (own::OPEN_FILES, open_files().map(|count| count as f64)),
        (own::MAX_FILES, field_of(&limits, "Max open files")),
    ] {
        if let Some(value) = value {
            family.push(text, "", value);
        }
    }
}

/// Number of open files. Since Linux 6.2 it is the size of the directory: listing thousands of
/// entries takes milliseconds.
fn open_files() -> Option<u64> {
    let directory = "/proc/self/fd";
    match fs::metadata(directory).ok()?.len() {
        0 => Some(fs::read_dir(directory).ok()?.count() as u64),
        count => Some(count),
    }
}

/// The number after `key` at the beginning of a line.
fn field_of(text: &str, key: &str) -> Option<f64> {
    let rest = text.lines().find_map(|line| line.strip_prefix(key))?;
    rest.split_whitespace().next()?.parse().ok()
}

/// Field `number`, counted from 1 as in proc(5), of /proc/self/stat. The second field is a name in
/// parentheses that may contain any characters.
fn stat_field(stat: &str, number: usize) -> Option<f64> {
    let (_, rest) = stat.rsplit_once(')')?;
    rest.split_whitespace().nth(number - 3)?.parse().ok()
}

fn cpu_seconds(stat: &str) -> Option<f64> {
    Some((stat_field(stat, 14)? + stat_field(stat, 15)?) / TICKS)
}

fn start_time(stat: &str) -> Option<f64> {
    let system = fs::read_to_string("/proc/stat").ok()?;
    Some(field_of(&system, "btime")? + stat_field(stat, 22)? / TICKS)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn value(text: &str, name: &str) -> f64 {
        let value = field_of(text, &format!("{name} "));
        value.unwrap_or_else(|| panic!("no {name} in:\n{text}"))
    }

    #[test]
    fn counters_and_process_metrics_are_rendered() {
        let (recorder, handle) = recorder("lock-server", "1.2.3");
        metrics::with_local_recorder(&recorder, || {
            metrics::counter!("lock_server_requests_total").increment(3);
            metrics::histogram!("lock_server_request_seconds").record(0.002);
        });
        let text = handle.render();
        assert_eq!(value(&text, "lock_server_requests_total") as u64, 3);
        assert!(text.contains("lock_server_request_seconds_bucket{le=\"0.0025\"} 1\n"), "{text}");
        assert!(text.contains("service=\"lock-server\",version=\"1.2.3\"} 1\n"), "{text}");
        let resident = value(&text, "process_resident_memory_bytes");
        assert!(resident > 1e6, "{resident}");
        assert!(value(&text, "process_resident_memory_peak_bytes") >= resident);
        assert!(value(&text, "process_virtual_memory_bytes") >= resident);
        assert!(value(&text, "process_open_fds") >= 3.0);
        assert!(value(&text, "process_max_fds") >= value(&text, "process_open_fds"));
        assert!(value(&text, "process_threads") >= 1.0);
        assert!(value(&text, "process_cpu_seconds_total") >= 0.0);
        let now = jiff::Timestamp::now().as_second() as f64;
        let age = now - value(&text, "process_start_time_seconds");
        assert!((-2.0..3_600.0).contains(&age), "started {age} s ago");
    }

    #[test]
    fn scrape_callbacks_set_metrics() {
        let (recorder, handle) = recorder("test", "1");
        let counted = Arc::new(std::sync::atomic::AtomicU32::new(0));
        let gauge = metrics::with_local_recorder(&recorder, || metrics::gauge!("test_cells"));
        handle.clone().at_scrape({
            let counted = Arc::clone(&counted);
            move || gauge.set(counted.load(std::sync::atomic::Ordering::Relaxed))
        });
        assert_eq!(value(&handle.render(), "test_cells") as u64, 0);
        counted.store(7, std::sync::atomic::Ordering::Relaxed);
        assert_eq!(value(&handle.render(), "test_cells") as u64, 7);
    }

    #[test]
    fn the_process_knows_its_memory() {
        let Memory { private, stack } = memory();
        assert!(private > 100_000 && private < 1 << 40, "{private}");
        assert!(stack > 4_096 && stack < 1 << 32, "{stack}");
    }

    #[test]
    fn the_name_of_a_process_does_not_confuse_its_statistics() {
        let stat = "7 (a) b ) S 1 7 7 0 -1 0 10 0 0 0 250 150 0 0 20 0 4 0 12345 1000 100";
        assert_eq!(stat_field(stat, 3), None); // the state is not a number
        assert_eq!(cpu_seconds(stat), Some(4.0));
        assert_eq!(stat_field(stat, 22), Some(12_345.0));
        assert_eq!(cpu_seconds(""), None);
    }
}
