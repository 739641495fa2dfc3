//! Law 1 on the syncer's side: its lease ends before the lock server can grant the lock
//! to another owner.

use std::time::{Duration, Instant};

use model::lock::FencingToken;
use proptest::prelude::*;
use syncer::lease::{Granted, Lease, Times};

const TTL: u64 = 15_000;
const TIMES: Times =
    Times { ttl: Duration::from_millis(TTL), retry_interval: Duration::from_secs(5) };

fn start() -> Instant {
    tokio::time::Instant::now().into_std()
}

fn ms(milliseconds: u64) -> Duration {
    Duration::from_millis(milliseconds)
}

const ONE: FencingToken = FencingToken(1);
const TWO: FencingToken = FencingToken(2);

#[test]
fn a_lease_is_counted_from_the_sending() {
    let t = start();
    let mut lease = Lease::new(TIMES);
    let ends = t + ms(12_000);
    // The response took four seconds, which the lease loses.
    assert_eq!(
        lease.granted(t, t + ms(4_000), ONE),
        Granted::Began { token: ONE, ends, broke: false }
    );
    assert!(lease.holds(t + ms(11_999)));
    assert!(!lease.holds(ends));
    assert!(!lease.expire(t + ms(11_999)));
    assert!(lease.expire(ends));
    assert!(!lease.expire(ends), "it ends once");
}

#[test]
fn renewals_prolong_and_never_shorten() {
    let t = start();
    let mut lease = Lease::new(TIMES);
    lease.granted(t, t, ONE);
    let later = t + ms(5_000);
    assert_eq!(lease.granted(later, later, ONE), Granted::Kept { ends: later + ms(12_000) });
    // The delayed response of an older attempt.
    let kept = lease.granted(t + ms(1_000), later, ONE);
    assert_eq!(kept, Granted::Kept { ends: later + ms(12_000) });
    assert_eq!(lease.since(), Some(t));
}

/// The server may have applied a request whose response was lost.
#[test]
fn a_request_with_a_shorter_time_to_live_bounds_the_lease() {
    let t = start();
    let mut lease = Lease::new(TIMES);
    lease.granted(t, t, ONE);
    assert_eq!(lease.asked(t + ms(1_000)), Some(t + ms(12_000)), "the same time to live");
    lease.set_times(Times { ttl: ms(5_000), retry_interval: ms(1_000) });
    assert_eq!(lease.ends(), Some(t + ms(12_000)), "no request was sent yet");
    assert_eq!(lease.asked(t + ms(2_000)), Some(t + ms(6_000)));
    assert!(lease.expire(t + ms(6_000)));
    assert_eq!(lease.asked(t + ms(7_000)), None);
}

#[test]
fn another_token_is_another_term() {
    let t = start();
    let mut lease = Lease::new(TIMES);
    lease.granted(t, t, ONE);
    let later = t + ms(5_000);
    assert_eq!(
        lease.granted(later, later, TWO),
        Granted::Began { token: TWO, ends: later + ms(12_000), broke: true }
    );
}

#[test]
fn a_renewal_after_the_end_is_another_term() {
    let t = start();
    let mut lease = Lease::new(TIMES);
    lease.granted(t, t, ONE);
    let sent = t + ms(11_000);
    let read = t + ms(12_000);
    assert_eq!(
        lease.granted(sent, read, ONE),
        Granted::Began { token: ONE, ends: sent + ms(12_000), broke: true }
    );
}

#[test]
fn an_answer_that_took_a_lease_is_worth_nothing() {
    let t = start();
    let mut lease = Lease::new(TIMES);
    assert_eq!(lease.granted(t, t + ms(12_000), ONE), Granted::TooLate { broke: false });
    assert!(!lease.holds(t + ms(12_000)));
}

#[test]
fn attempts_follow_the_interval_and_hurry_when_a_renewal_fails() {
    let t = start();
    let mut lease = Lease::new(TIMES);
    let now = t + ms(300);
    assert_eq!(lease.next_attempt(t, now, false), t + ms(5_000));
    assert_eq!(lease.next_attempt(t, now, true), t + ms(5_000), "a standby has time");
    assert_eq!(lease.patience(now), ms(5_000));
    lease.granted(t, t, ONE);
    assert_eq!(lease.next_attempt(t, now, false), t + ms(5_000));
    assert_eq!(lease.next_attempt(t, now, true), now + ms(1_000));
    assert_eq!(lease.patience(t + ms(5_000)), ms(5_000));
    assert_eq!(lease.patience(t + ms(10_000)), ms(2_000), "not beyond the end");
    lease.end();
    assert_eq!(lease.patience(t + ms(10_000)), ms(5_000));
}

/// A request in flight: sent, arrived, answered, or its response lost.
#[derive(Debug, Clone)]
struct Attempt {
    sent: u64,
    out: u64,
    back: Option<u64>,
}

fn attempts() -> impl Strategy<Value = Attempt> {
    (0_u64..120_000, 0_u64..20_000, prop::option::weighted(0.8, 0_u64..20_000))
        .prop_map(|(sent, out, back)| Attempt { sent, out, back })
}

enum Event {
    /// At the server.
    Arrives(Attempt),
    /// At the syncer: time of sending, and the granted token, if any.
    Answers(u64, Option<FencingToken>),
    /// Another owner claims the lock.
    Rival,
}

proptest! {
    /// With any delays, losses and reordering, while rivals claim at random: when the server
    /// grants the lock to a rival, the lease has ended at least the margin before.
    #[test]
    fn nobody_else_gets_the_lock_while_we_believe(
        attempts in prop::collection::vec(attempts(), 0..40),
        rivals in prop::collection::vec(0_u64..160_000, 0..40),
    ) {
        let t = start();
        let mut events: Vec<(u64, Event)> = rivals.into_iter().map(|at| (at, Event::Rival)).collect();
        events.extend(attempts.into_iter().map(|it| (it.sent + it.out, Event::Arrives(it))));
        let mut lease = Lease::new(TIMES);
        // Owner, deadline and token at the server.
        let (mut ours, mut expires, mut token) = (false, 0, 0);
        let mut believed_until = t;
        while !events.is_empty() {
            let first = (0..events.len()).min_by_key(|index| events[*index].0).unwrap();
            let (now, event) = events.swap_remove(first);
            match event {
                Event::Arrives(Attempt { sent, out: _, back }) => {
                    let granted = ours || now >= expires;
                    if granted {
                        token += u64::from(!(ours && now < expires));
                        (ours, expires) = (true, now + TTL);
                    }
                    let answer = granted.then_some(FencingToken(token));
                    events.extend(back.map(|back| (now + back, Event::Answers(sent, answer))));
                }
                Event::Answers(sent, Some(token)) => {
                    let granted = lease.granted(t + ms(sent), t + ms(now), token);
                    if let Granted::Began { ends, .. } | Granted::Kept { ends } = granted {
                        prop_assert!(ends <= t + ms(sent + TTL) - TIMES.margin() || ends == believed_until);
                        believed_until = ends;
                    }
                }
                Event::Answers(_, None) => _ = lease.end(),
                Event::Rival if now >= expires => {
                    prop_assert!(!lease.holds(t + ms(now)));
                    prop_assert!(!lease.holds(t + ms(now) - TIMES.margin()) || now < 3_000);
                    token += 1;
                    (ours, expires) = (false, now + TTL);
                }
                Event::Rival => {}
            }
        }
    }
}
