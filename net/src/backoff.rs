//! Exponential backoff: each pause is twice as long as the previous one, up to a maximum, minus a
//! random jitter of up to half, so that processes that lost the same server do not reconnect at the
//! same time.

use std::time::Duration;

use backon::{BackoffBuilder as _, ExponentialBackoff, ExponentialBuilder};

/// Pauses between attempts of one operation.
#[derive(Debug)]
pub struct Backoff {
    settings: ExponentialBuilder,
    pauses: ExponentialBackoff,
}

impl Backoff {
    /// The first pause is at most `first`; no pause exceeds `most`.
    #[must_use]
    pub fn new(first: Duration, most: Duration) -> Self {
        // The crate adds jitter of up to the full pause; this type subtracts it.
        let settings = ExponentialBuilder::new()
            .with_min_delay(first / 2)
            .with_max_delay(most / 2)
            .with_factor(2.0)
            .without_max_times()
            .with_jitter();
        Self { settings, pauses: settings.build() }
    }

    /// The pause after another failed attempt.
    pub fn pause(&mut self) -> Duration {
        self.pauses.next().expect("the number of attempts has no bound")
    }

    /// Resets to the first pause after a success.
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
