//! A real grpcurl, as operators use it.

use std::{
    path::Path,
    process::{Child, Command, Output, Stdio},
};

use certificates::Files;

use crate::tools;

/// Address and credentials.
#[derive(Debug)]
pub enum Target<'a> {
    /// host:port over mutual TLS.
    Tls(&'a str, &'a Files),
    /// host:port over TLS, without a client certificate.
    TlsWithoutClient(&'a str, &'a Files),
    /// A Unix socket in plaintext.
    Unix(&'a Path),
}

/// Result of grpcurl.
#[derive(Debug)]
pub struct Answer {
    /// Whether it exited with 0.
    pub success: bool,
    /// Standard output.
    pub stdout: String,
    /// Standard error.
    pub stderr: String,
}

/// Runs `grpcurl <target> <args>`, with `data` as the request if given.
///
/// # Panics
/// grpcurl is not installed.
pub fn run(target: &Target<'_>, data: Option<&str>, args: &[&str]) -> Answer {
    run_for(20, target, data, args)
}

/// Like [`run`], and ends grpcurl after this many seconds: for endless streams.
///
/// # Panics
/// grpcurl is not installed.
pub fn run_for(seconds: u32, target: &Target<'_>, data: Option<&str>, args: &[&str]) -> Answer {
    let output = command(seconds, target, data, args).output();
    let Output { status, stdout, stderr } = output.expect("grpcurl can be run");
    Answer {
        success: status.success(),
        stdout: String::from_utf8_lossy(&stdout).into_owned(),
        stderr: String::from_utf8_lossy(&stderr).into_owned(),
    }
}

/// Starts grpcurl for up to a minute, as a client that can be stopped; discards the output.
///
/// # Panics
/// grpcurl is not installed.
pub fn begin(target: &Target<'_>, data: Option<&str>, args: &[&str]) -> Child {
    let mut command = command(60, target, data, args);
    command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
    command.spawn().expect("grpcurl can be run")
}

fn command(seconds: u32, target: &Target<'_>, data: Option<&str>, args: &[&str]) -> Command {
    let mut command = Command::new(tools::path("grpcurl"));
    command.args(["-max-time", &seconds.to_string()]);
    if let Some(data) = data {
        command.args(["-d", data]);
    }
    match target {
        Target::Tls(address, files) => {
            command.arg("-cacert").arg(&files.ca).arg("-cert").arg(&files.cert);
            command.arg("-key").arg(&files.key).arg(address)
        }
        Target::TlsWithoutClient(address, files) => {
            command.arg("-cacert").arg(&files.ca).args(["-connect-timeout", "5"]).arg(address)
        }
        // grpcurl would send the path as `:authority`, which HTTP/2 forbids.
        Target::Unix(path) => {
            command.args(["-plaintext", "-authority", "localhost", "-unix"]).arg(path)
        }
    };
    command.args(args);
    command
}
