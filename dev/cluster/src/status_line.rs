//! The live status of a running cluster: the status lines of `portcullisctl top`, each in
//! place of the one before. Nothing is shown if standard output is not a terminal.

use std::future::pending;
use std::io::IsTerminal as _;
use std::process::Stdio;

use tokio::io::{AsyncBufReadExt as _, BufReader, Lines};
use tokio::process::{Child, ChildStdout};

use super::launch::Cluster;
use super::terminal::say;

/// Clears the line of the cursor.
const CLEAR: &str = "\r\x1b[K";

/// The status and the process that prints it.
pub(crate) struct StatusLine {
    source: Option<(Child, Lines<BufReader<ChildStdout>>)>,
    is_shown: bool,
}

impl StatusLine {
    /// Starts `portcullisctl top`. Without it the cluster runs all the same.
    pub(crate) fn start(cluster: &Cluster) -> Self {
        let source = std::io::stdout().is_terminal().then(|| {
            let mut command = cluster.ctl_command(&["top", "--interval", "1s"]);
            // Ctrl-C reaches only the launcher.
            command.process_group(0).stdin(Stdio::null()).stdout(Stdio::piped());
            let mut child = command.stderr(Stdio::null()).spawn().ok()?;
            let lines = BufReader::new(child.stdout.take()?).lines();
            Some((child, lines))
        });
        Self { source: source.flatten(), is_shown: false }
    }

    /// The next status; never without a source.
    pub(crate) async fn next(&mut self) -> String {
        while let Some((_child, lines)) = &mut self.source {
            match lines.next_line().await {
                // The status has the last change, too.
                Ok(Some(line)) if line.starts_with("change ") => {}
                Ok(Some(line)) => return line,
                Ok(None) | Err(_) => self.source = None,
            }
        }
        pending().await
    }

    /// Shows a status, cut at the edge of the terminal.
    ///
    /// # Errors
    /// Standard output is closed.
    pub(crate) fn show(&mut self, line: &str) -> anyhow::Result<()> {
        self.is_shown = true;
        say(&in_place(line))
    }

    /// Prints text that stays, in place of the status.
    ///
    /// # Errors
    /// Standard output is closed.
    pub(crate) fn say(&mut self, text: &str) -> anyhow::Result<()> {
        let clear = if self.is_shown { CLEAR } else { "" };
        self.is_shown = false;
        say(&format!("{clear}{text}"))
    }
}

/// The line in place of the present one, without automatic line break.
fn in_place(line: &str) -> String {
    format!("{CLEAR}\x1b[?7l{line}\x1b[?7h")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn without_a_source_there_is_no_status() {
        let mut status = StatusLine { source: None, is_shown: false };
        let next = tokio::time::timeout(std::time::Duration::from_millis(1), status.next());
        assert!(next.await.is_err());
        assert_eq!(in_place("generation 1"), "\r\x1b[K\x1b[?7lgeneration 1\x1b[?7h");
    }
}
