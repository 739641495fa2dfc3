//! Bounded waits for a condition.

use std::{
    thread,
    time::{Duration, Instant},
};

/// Timeout of a wait, on a busy machine.
pub const LONG: Duration = Duration::from_secs(30);

/// Polls until `ask` succeeds.
///
/// # Panics
/// No success within [`LONG`]; the message has `what` and the last error.
#[expect(
    clippy::disallowed_methods,
    reason = "a test waits for other processes, in real time, and asks again after a pause"
)]
pub fn until<T>(what: &str, mut ask: impl FnMut() -> Result<T, String>) -> T {
    let deadline = Instant::now() + LONG;
    loop {
        match ask() {
            Ok(answer) => return answer,
            Err(seen) if Instant::now() >= deadline => {
                panic!("waited {LONG:?} for {what}; seen: {seen}")
            }
            Err(_) => thread::sleep(Duration::from_millis(10)),
        }
    }
}

/// Lets the processes of a test run for some time, where the test is about that time.
#[expect(clippy::disallowed_methods, reason = "the rhythm of faults is real time")]
pub fn let_pass(time: Duration) {
    thread::sleep(time);
}
