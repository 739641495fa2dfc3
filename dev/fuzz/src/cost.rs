//! Time and memory that an input costs.

use std::time::{Duration, Instant};

/// Number of runs of a slow input: another process may have had the processor.
const TRIES: usize = 4;

/// Limits of the cost of one input.
#[derive(Debug, Clone, Copy)]
pub struct Bounds {
    /// Time of one input.
    pub time: Duration,
    /// Allocations: a number, and a number for each byte of the input.
    pub allocations: (u64, u64),
    /// Memory at one time in bytes: a number, and a number for each byte of the input.
    pub bytes: (u64, u64),
}

impl Default for Bounds {
    fn default() -> Self {
        let time = Duration::from_millis(500);
        Self { time, allocations: (1_000, 20), bytes: (64 << 10, 200) }
    }
}

/// The measured cost of one input, on one thread.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Cost {
    time: Duration,
    allocations: u64,
    bytes: u64,
}

impl Cost {
    pub(crate) fn magnitude(self) -> u32 {
        self.allocations.checked_ilog2().unwrap_or_default()
    }
}

impl Bounds {
    /// # Panics
    /// When the input costs more; a slow input is run again.
    pub(crate) fn check(&self, input: &[u8], cost: Cost, mut again: impl FnMut() -> Cost) {
        let length = input.len() as u64;
        let most = |(fixed, each): (u64, u64)| fixed + each * length;
        let Cost { mut time, allocations, bytes } = cost;
        let allowed = most(self.allocations);
        assert!(
            allocations <= allowed,
            "{length} bytes cost {allocations} allocations of {allowed}"
        );
        let allowed = most(self.bytes);
        assert!(bytes <= allowed, "{length} bytes cost {bytes} bytes of memory of {allowed}");
        for _ in 1..TRIES {
            if time > self.time {
                time = time.min(again().time);
            }
        }
        assert!(time <= self.time, "{length} bytes cost {time:?} of {:?}", self.time);
    }
}

pub(crate) fn measure<T>(work: impl FnOnce() -> T) -> (T, Cost) {
    let mut result = None;
    let began = now();
    let counted = allocation_counter::measure(|| result = Some(work()));
    let time = now() - began;
    let result = result.expect("the closure was called");
    (result, Cost { time, allocations: counted.count_total, bytes: counted.bytes_max })
}

#[expect(clippy::disallowed_methods, reason = "the clock of tokio may be paused")]
pub(crate) fn now() -> Instant {
    Instant::now()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(work: impl Fn()) {
        let (_, cost) = measure(&work);
        let bounds = Bounds { time: Duration::from_millis(20), ..Bounds::default() };
        bounds.check(b"input", cost, || measure(&work).1);
    }

    #[test]
    fn a_small_cost_is_allowed() {
        check(|| drop(std::hint::black_box(vec![0_u8; 1 << 10])));
    }

    #[test]
    #[should_panic(expected = "bytes of memory")]
    fn much_memory_is_not() {
        check(|| drop(std::hint::black_box(vec![0_u8; 1 << 20])));
    }

    #[test]
    #[should_panic(expected = "allocations")]
    fn many_allocations_are_not() {
        check(|| (0..2_000).for_each(|_| drop(std::hint::black_box(Box::new(1)))));
    }

    #[test]
    #[should_panic(expected = "5 bytes cost")]
    fn much_time_is_not() {
        check(|| {
            let began = now();
            while began.elapsed() < Duration::from_millis(30) {}
        });
    }
}
