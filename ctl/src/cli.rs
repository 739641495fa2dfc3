//! Commands and flags. Addresses and certificates can come from environment variables
//! and from a context file.

use std::{path::PathBuf, time::Duration};

use clap::{
    Args, Parser, Subcommand, ValueEnum,
    builder::{OsStringValueParser, TypedValueParser},
};
use jiff::SignedDuration;

use crate::target::Target;

/// Inspect and control a running Portcullis
///
/// Exit status: 0 success, 1 error, 2 invalid command line. `explain --exit-code` and
/// `groups --space` have further statuses.
#[derive(Debug, Parser)]
#[command(name = "portcullisctl", version, about)]
pub struct Cli {
    /// Server addresses and client certificate.
    #[command(flatten)]
    pub flags: Flags,

    /// Print one JSON object per line instead of a table
    #[arg(long, global = true)]
    pub json: bool,

    /// The command.
    #[command(subcommand)]
    pub command: Command,
}

/// Addresses and certificates. An empty value counts as not set. A flag or variable
/// precedes the context file.
#[derive(Debug, Args)]
pub struct Flags {
    /// JSON file with addresses and certificates (docs/portcullisctl.md)
    #[arg(long, global = true, env = "PORTCULLIS_CONTEXT", value_name = "FILE", value_parser = maybe_empty())]
    pub context: Option<PathBuf>,

    /// Address of the lock server, host:port [default: locket.service.cf.internal:8891]
    #[arg(long, global = true, env = "PORTCULLIS_LOCK_SERVER")]
    pub lock_server: Option<String>,

    /// Address of the policy store, host:port [default: policy-server.service.cf.internal:4004]
    #[arg(long, global = true, env = "PORTCULLIS_POLICY_STORE")]
    pub policy_store: Option<String>,

    /// Unix socket of the cell agent on this machine [default:
    /// /var/vcap/data/cell-agent/control.sock]
    #[arg(long, global = true, env = "PORTCULLIS_CELL_SOCKET", value_parser = maybe_empty())]
    pub cell_socket: Option<PathBuf>,

    /// PEM file of the CA that signed the servers' certificates
    #[arg(long, global = true, env = "PORTCULLIS_CA", value_parser = maybe_empty())]
    pub ca: Option<PathBuf>,

    /// PEM file of this client's certificate
    #[arg(long, global = true, env = "PORTCULLIS_CERT", value_parser = maybe_empty())]
    pub cert: Option<PathBuf>,

    /// PEM file of this client's private key
    #[arg(long, global = true, env = "PORTCULLIS_KEY", value_parser = maybe_empty())]
    pub key: Option<PathBuf>,

    /// Timeout of each request, such as 30s or 2m [default: 10s; reconcile: 60s]
    #[arg(long, global = true, value_name = "TIME", value_parser = duration)]
    pub timeout: Option<Duration>,
}

/// Unlike the usual parser of paths, accepts an empty path; commands that need the path
/// report it.
fn maybe_empty() -> impl TypedValueParser<Value = PathBuf> {
    OsStringValueParser::new().map(PathBuf::from)
}

fn duration(text: &str) -> Result<Duration, String> {
    let seconds = text.parse::<i64>().map(SignedDuration::from_secs);
    let duration = seconds.or_else(|_| text.parse::<SignedDuration>());
    let duration = duration.map_err(|_| "not a time such as 10s or 2m".to_owned())?;
    let duration = Duration::try_from(duration).map_err(|_| "negative".to_owned())?;
    if duration.is_zero() { Err("must be more than zero".to_owned()) } else { Ok(duration) }
}

/// The command.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// List locks with their owners and fencing tokens (lock server)
    Locks {
        /// List presences instead of locks
        #[arg(long)]
        presences: bool,
    },
    /// Print lock events until interrupted; reconnects after a lost connection (lock server)
    WatchLocks {
        /// Only events of this key [default: all keys]
        // Not `key`: that is the name of a global flag.
        #[arg(value_name = "KEY")]
        lock: Option<String>,
    },
    /// Show generation, watermark and writer (policy store)
    Status,
    /// List cells with enforced generation, and how far each cell is behind (policy store)
    Cells,
    /// List security groups, or show the rules of one (policy store)
    ///
    /// Exit status 3, with a warning, if no group is bound to a space given with --space: the
    /// GUID may be wrong.
    Groups {
        /// Show the rules of the group with this name, GUID, or unique prefix of a GUID
        name: Option<String>,
        /// Only groups that apply to this space; repeatable
        #[arg(long = "space", value_name = "GUID")]
        spaces: Vec<String>,
    },
    /// List containers on this cell with their enforcement state (cell agent)
    Containers,
    /// List rules of a container, enforced or not, with their security groups (cell agent)
    Rules {
        /// Handle of the container, or a unique prefix of it
        handle: String,
    },
    /// Explain whether a connection is allowed: for a space (policy store), or for a container on
    /// this cell (cell agent)
    ///
    /// With --space and --to the security groups in the policy store decide; with a container,
    /// what the agent of this cell enforces.
    Explain {
        /// GUID of the space
        #[arg(long, value_name = "GUID", requires = "to", conflicts_with = "handle")]
        space: Option<String>,
        /// Containers that build an app, instead of apps and tasks
        #[arg(long, requires = "space")]
        staging: bool,
        /// Destination: ADDRESS:PORT/tcp, ADDRESS:PORT/udp, ADDRESS/icmp or ADDRESS/icmp/TYPE/CODE
        #[arg(long, value_name = "DESTINATION", requires = "space")]
        to: Option<Target>,
        /// Handle of the container, or a unique prefix of it
        #[arg(required_unless_present_any = ["space", "to"])]
        handle: Option<String>,
        /// Protocol of the connection
        #[arg(required_unless_present_any = ["space", "to"])]
        protocol: Option<Protocol>,
        /// ADDRESS:PORT for tcp and udp; ADDRESS or ADDRESS/TYPE/CODE for icmp [default
        /// TYPE/CODE: 8/0, echo request]
        #[arg(required_unless_present_any = ["space", "to"])]
        destination: Option<String>,
        /// Exit status by verdict: 0 allowed, 3 denied, 4 not decided by security groups, 5 unknown
        #[arg(long)]
        exit_code: bool,
    },
    /// List security groups that allow a connection, with their rules and spaces (policy store)
    WhoCanReach {
        /// ADDRESS:PORT/tcp, ADDRESS:PORT/udp, ADDRESS/icmp or ADDRESS/icmp/TYPE/CODE
        #[arg(value_name = "DESTINATION")]
        to: Target,
    },
    /// Compare kernel and desired rules, and CHANGE the kernel where they differ (cell agent)
    Reconcile,
    /// Show the status of this cell's agent (cell agent)
    Cell,
}

/// Protocol of a connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Protocol {
    /// TCP
    Tcp,
    /// UDP
    Udp,
    /// ICMP
    Icmp,
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory as _;

    use super::*;

    #[test]
    fn the_command_line_is_consistent() {
        Cli::command().debug_assert();
    }

    /// With every flag, whose names must differ from those of a command's arguments.
    #[test]
    fn every_command_is_read() {
        let flags = ["--context", "/c", "--lock-server", "h:1", "--policy-store", "h:2"];
        let files = ["--cell-socket", "/s", "--ca", "/ca", "--cert", "/cert", "--key", "/key"];
        let others = ["--json", "--timeout", "3s"];
        for command in [
            &["locks"][..],
            &["locks", "--presences"],
            &["watch-locks"],
            &["watch-locks", "k"],
            &["status"],
            &["cells"],
            &["groups"],
            &["groups", "--space", "s", "--space", "t"],
            &["groups", "dns"],
            &["containers"],
            &["rules", "handle"],
            &["explain", "handle", "tcp", "10.0.0.1:443"],
            &["explain", "handle", "tcp", "10.0.0.1:443", "--exit-code"],
            &["explain", "--space", "s", "--to", "10.0.0.1:443/tcp"],
            &["explain", "--space", "s", "--staging", "--to", "10.0.0.1/icmp", "--exit-code"],
            &["who-can-reach", "10.0.0.1:443/tcp"],
            &["reconcile"],
            &["cell"],
        ] {
            let bare = [&["portcullisctl"], command].concat();
            Cli::try_parse_from(&bare).unwrap_or_else(|error| panic!("{bare:?}: {error}"));
            let cli = Cli::parse_from([&bare[..], &flags, &files, &others].concat());
            assert!(cli.json, "{command:?}");
            let Flags { context, lock_server, policy_store, cell_socket, ca, cert, key, timeout } =
                cli.flags;
            assert_eq!(timeout, Some(Duration::from_secs(3)), "{command:?}");
            let addresses = [lock_server, policy_store].map(Option::unwrap);
            assert_eq!(addresses, ["h:1", "h:2"], "{command:?}");
            let files = [context, cell_socket, ca, cert, key].map(Option::unwrap);
            assert_eq!(files, ["/c", "/s", "/ca", "/cert", "/key"].map(PathBuf::from));
        }
    }

    #[test]
    fn explain_needs_a_container_or_a_space() {
        for command in [
            &["explain"][..],
            &["explain", "handle", "tcp"],
            &["explain", "--space", "s"],
            &["explain", "--to", "10.0.0.1:443/tcp"],
            &["explain", "--space", "s", "--to", "10.0.0.1:443/tcp", "handle"],
            &["explain", "--staging", "handle", "tcp", "10.0.0.1:443"],
        ] {
            Cli::try_parse_from([&["portcullisctl"], command].concat()).unwrap_err();
        }
    }

    #[test]
    fn flags_may_follow_the_command() {
        let cli = Cli::parse_from(["portcullisctl", "locks", "--json", "--lock-server", "h:1"]);
        assert!(cli.json);
        assert_eq!(cli.flags.lock_server.as_deref(), Some("h:1"));
    }

    #[test]
    fn times_have_units_or_are_seconds() {
        for (text, seconds) in [("10", 10), ("30s", 30), ("2m", 120), ("1h", 3_600)] {
            assert_eq!(duration(text), Ok(Duration::from_secs(seconds)), "{text}");
        }
        for text in ["", "0", "-3s", "soon", "0s"] {
            duration(text).unwrap_err();
        }
    }
}
