//! Pauses between attempts: each twice as long as the one before, up to a bound,
//! and shortened by chance by up to half, so that processes which lost the same
//! server together do not come back together.

use std::time::Duration;

use backon::{BackoffBuilder as _, ExponentialBackoff, ExponentialBuilder};

/// The pauses of one thing that is tried.
#[derive(Debug)]
pub struct Backoff {
    settings: ExponentialBuilder,
    pauses: ExponentialBackoff,
}

impl Backoff {
    /// The first pause is at most `first`, and none is more than `most`.
    #[must_use]
    pub fn new(first: Duration, most: Duration) -> Self {
        // The crate lengthens each pause by up to itself, ours counts from the end.
        let settings = ExponentialBuilder::new()
            .with_min_delay(first / 2)
            .with_max_delay(most / 2)
            .with_factor(2.0)
            .without_max_times()
            .with_jitter();
        Self { settings, pauses: settings.build() }
    }

    /// How long to pause now that another attempt has failed.
    pub fn pause(&mut self) -> Duration {
        self.pauses.next().expect("the number of attempts has no bound")
    }

    /// An attempt succeeded: the next pause is a short one again.
    pub fn reset(&mut self) {
        self.pauses = self.settings.build();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pauses_grow_to_a_bound_and_spread() {
        let ms = Duration::from_millis;
        let mut backoff = Backoff::new(ms(100), ms(1_000));
        for full in [100, 200, 400, 800, 1_000, 1_000] {
            let pause = backoff.pause();
            assert!((ms(full / 2)..=ms(full)).contains(&pause), "{pause:?} of {full} ms");
        }
        assert!((0..100).any(|_| backoff.pause() != backoff.pause()), "they spread");
        backoff.reset();
        assert!(backoff.pause() <= ms(100));
    }
}
