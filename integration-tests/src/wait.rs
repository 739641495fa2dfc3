//! Waiting for something to be so.

use std::{
    thread,
    time::{Duration, Instant},
};

/// The longest that anything may take on a busy machine.
pub const LONG: Duration = Duration::from_secs(30);

/// Asks until the answer is there.
///
/// # Panics
/// Nothing came within [`LONG`]; `what` and `seen` say what was waited for and
/// what was there instead.
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

/// Lets the processes of a test go on for a while, where that is what is tested.
#[expect(clippy::disallowed_methods, reason = "the rhythm of faults is real time")]
pub fn let_pass(time: Duration) {
    thread::sleep(time);
}
