//! Output of the launcher.

use std::io::Write;

use anyhow::Context;

/// Writes to standard output and flushes.
///
/// # Errors
/// Standard output is closed.
pub(crate) fn say(text: &str) -> anyhow::Result<()> {
    let mut out = std::io::stdout().lock();
    out.write_all(text.as_bytes()).and_then(|()| out.flush()).context("cannot print")
}

/// Prints a step of the start.
///
/// # Errors
/// Standard output is closed.
pub(crate) fn progress(step: &str) -> anyhow::Result<()> {
    say(&format!("  {step} ...\n"))
}
