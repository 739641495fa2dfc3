//! Finds and runs the machine's tools (`ip`, `nft` ...), and returns their error
//! messages verbatim.

use std::ffi::OsStr;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

/// A tool is missing, cannot be started, or failed.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The tool is in none of the usual directories.
    #[error("{tool} is not installed: {}", package(.tool))]
    Missing {
        /// The program's name.
        tool: &'static str,
    },
    /// The operating system did not start it.
    #[error("cannot run `{command}`")]
    Start {
        /// The command line.
        command: String,
        /// The cause.
        source: std::io::Error,
    },
    /// The tool exited with a status other than 0.
    #[error("`{command}` ended with {status}: {message}")]
    Refused {
        /// The command line.
        command: String,
        /// The exit status.
        status: std::process::ExitStatus,
        /// Its standard error.
        message: String,
    },
}

/// Search path of tools; the `PATH` of many accounts has no `sbin`.
const SEARCHED: [&str; 6] =
    ["/usr/local/sbin", "/usr/local/bin", "/usr/sbin", "/usr/bin", "/sbin", "/bin"];

/// The full path of a tool.
pub fn find(tool: &'static str) -> Result<PathBuf, Error> {
    SEARCHED
        .iter()
        .map(|directory| Path::new(directory).join(tool))
        .find(|path| path.is_file())
        .ok_or(Error::Missing { tool })
}

/// Runs a tool and returns its standard output.
pub fn run<A: AsRef<OsStr>>(
    tool: &'static str,
    arguments: impl IntoIterator<Item = A>,
) -> Result<String, Error> {
    let mut command = Command::new(find(tool)?);
    command.args(arguments);
    output(&mut command, None)
}

/// Runs a tool with `input` on its standard input.
pub fn run_with_input<A: AsRef<OsStr>>(
    tool: &'static str,
    arguments: impl IntoIterator<Item = A>,
    input: &str,
) -> Result<String, Error> {
    let mut command = Command::new(find(tool)?);
    command.args(arguments);
    output(&mut command, Some(input))
}

fn output(command: &mut Command, input: Option<&str>) -> Result<String, Error> {
    let shown = shown(command);
    let failed = |source| Error::Start { command: shown.clone(), source };
    command.stdin(if input.is_some() { Stdio::piped() } else { Stdio::null() });
    let mut child =
        command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().map_err(failed)?;
    if let (Some(text), Some(mut pipe)) = (input, child.stdin.take()) {
        // A tool that exits early closes the pipe; its exit status is the better error.
        let _ = pipe.write_all(text.as_bytes());
    }
    let output = child.wait_with_output().map_err(failed)?;
    if output.status.success() {
        return Ok(String::from_utf8_lossy(&output.stdout).into_owned());
    }
    let message = String::from_utf8_lossy(&output.stderr).trim().to_owned();
    Err(Error::Refused { command: shown, status: output.status, message })
}

fn shown(command: &Command) -> String {
    let program = Path::new(command.get_program()).file_name().unwrap_or_default();
    std::iter::once(program)
        .chain(command.get_args())
        .map(|part| part.to_string_lossy().into_owned())
        .collect::<Vec<_>>()
        .join(" ")
}

fn package(tool: &str) -> &'static str {
    match tool {
        "ip" => "install the package iproute2",
        "nft" => "install the package nftables",
        "setpriv" | "unshare" => "install the package util-linux",
        "sleep" => "install the package coreutils",
        _ => "install it",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_refusal_carries_the_tools_own_words() {
        let error = run("ip", ["nonsense"]).unwrap_err().to_string();
        assert!(error.starts_with("`ip nonsense` ended with exit status: 1: "), "{error}");
        assert!(error.contains("nonsense\" is unknown"), "{error}");
    }

    #[test]
    fn a_missing_tool_says_what_to_install() {
        let error = find("no-such-tool").unwrap_err();
        assert_eq!(error.to_string(), "no-such-tool is not installed: install it");
        assert_eq!(
            Error::Missing { tool: "nft" }.to_string(),
            "nft is not installed: install the package nftables"
        );
    }
}
