//! Confirmation of commands that change something.

use std::io::{IsTerminal as _, Write as _};

use anyhow::{bail, ensure};

use crate::escape::escape;

/// Asks the user on the terminal. With `--yes` the answer is given; without a terminal nobody can
/// be asked.
///
/// # Errors
/// The answer is no, or there is no terminal.
pub(crate) fn confirm(question: &str, yes: bool) -> anyhow::Result<()> {
    if yes {
        return Ok(());
    }
    let input = std::io::stdin();
    ensure!(
        input.is_terminal(),
        "{question} Nothing is changed: standard input is not a terminal, so --yes is needed"
    );
    let mut output = std::io::stderr().lock();
    write!(output, "{} [y/N] ", escape(question))?;
    output.flush()?;
    let mut answer = String::new();
    input.read_line(&mut answer)?;
    match answer.trim() {
        "y" | "Y" | "yes" => Ok(()),
        _ => bail!("not confirmed; nothing is changed"),
    }
}
