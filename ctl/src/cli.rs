//! Commands and their arguments.

use clap::{Args, Parser, Subcommand, ValueEnum};

use crate::{flags::Flags, output::OutputFlags, target::Target};

/// Inspect and control a running Portcullis
///
/// Exit status: 0 success, 1 error, 2 invalid command line. Further statuses are in the help of
/// the commands that have them, and in docs/portcullisctl.md.
#[derive(Debug, Parser)]
#[command(name = "portcullisctl", version, about)]
pub struct Cli {
    /// Server addresses and client certificate.
    #[command(flatten)]
    pub flags: Flags,

    /// How results are printed.
    #[command(flatten)]
    pub output: OutputFlags,

    /// The command.
    #[command(subcommand)]
    pub command: Command,
}

/// The command.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// List resources of the whole foundation
    #[command(subcommand)]
    Get(Get),
    /// Show one resource with everything known about it
    #[command(subcommand)]
    Describe(Describe),
    /// Explain whether a connection is allowed: for a space (policy store), or for a container on
    /// this cell (cell agent)
    ///
    /// With --space and --to the security groups in the policy store decide; with a container,
    /// what the agent of this cell enforces.
    Explain(Explain),
    /// List security groups that allow a connection, with their rules and spaces (policy store)
    WhoCanReach {
        /// ADDRESS:PORT/tcp, ADDRESS:PORT/udp, ADDRESS/icmp or ADDRESS/icmp/TYPE/CODE
        #[arg(value_name = "DESTINATION")]
        to: Target,
    },
    /// Print events until interrupted; reconnects after a lost connection
    #[command(subcommand)]
    Watch(Watch),
    /// Show generation, watermark and writer (policy store)
    Status,
    /// List containers on this cell with their enforcement state (cell agent)
    Containers,
    /// List rules of a container, enforced or not, with their security groups (cell agent)
    Rules {
        /// Handle of the container, or a unique prefix of it
        handle: String,
    },
    /// Show the status of this cell's agent (cell agent)
    Cell,
    /// Compare kernel and desired rules, and CHANGE the kernel where they differ (cell agent)
    Reconcile,
    /// Old name of `get locks` and `get presences`
    #[command(hide = true)]
    Locks {
        /// List presences instead of locks
        #[arg(long)]
        presences: bool,
    },
    /// Old name of `watch locks`
    #[command(hide = true)]
    WatchLocks(WatchLocks),
    /// Old name of `get cells`
    #[command(hide = true)]
    Cells,
    /// Old name of `get groups`; with a name, shows its rules as `describe group` does
    #[command(hide = true)]
    Groups {
        /// Show the rules of the group with this name, GUID, or unique prefix of a GUID
        name: Option<String>,
        /// The groups.
        #[command(flatten)]
        selection: GroupSelection,
    },
}

/// A kind of resource.
#[derive(Debug, Subcommand)]
pub enum Get {
    /// List locks with their owners and fencing tokens (lock server)
    #[command(visible_alias = "lock")]
    Locks,
    /// List presences with their owners (lock server)
    #[command(visible_alias = "presence")]
    Presences,
    /// List security groups (policy store)
    ///
    /// Exit status 3, with a warning, if no group is bound to a space given with --space: the
    /// GUID may be wrong.
    #[command(visible_alias = "group")]
    Groups(GroupSelection),
    /// List cells with enforced generation, and how far each cell is behind (policy store)
    #[command(visible_alias = "cell")]
    Cells,
}

/// Which groups.
#[derive(Debug, Args)]
pub struct GroupSelection {
    /// Only groups that apply to this space; repeatable
    #[arg(long = "space", value_name = "GUID")]
    pub spaces: Vec<String>,
}

/// One resource.
#[derive(Debug, Subcommand)]
pub enum Describe {
    /// Show a security group with its rules (policy store)
    Group {
        /// Name, GUID, or unique prefix of a GUID
        name: String,
    },
}

/// A kind of events.
#[derive(Debug, Subcommand)]
pub enum Watch {
    /// Print lock events (lock server)
    Locks(WatchLocks),
}

/// Which lock events.
#[derive(Debug, Args)]
pub struct WatchLocks {
    /// Only events of this key [default: all keys]
    // Not `key`: that is the name of a global flag.
    #[arg(value_name = "KEY")]
    pub lock: Option<String>,
}

/// A connection to explain.
#[derive(Debug, Args)]
pub struct Explain {
    /// GUID of the space
    #[arg(long, value_name = "GUID", requires = "to", conflicts_with = "handle")]
    pub space: Option<String>,
    /// Containers that build an app, instead of apps and tasks
    #[arg(long, requires = "space")]
    pub staging: bool,
    /// Destination: ADDRESS:PORT/tcp, ADDRESS:PORT/udp, ADDRESS/icmp or ADDRESS/icmp/TYPE/CODE
    #[arg(long, value_name = "DESTINATION", requires = "space")]
    pub to: Option<Target>,
    /// Handle of the container, or a unique prefix of it
    #[arg(required_unless_present_any = ["space", "to"])]
    pub handle: Option<String>,
    /// Protocol of the connection
    #[arg(required_unless_present_any = ["space", "to"])]
    pub protocol: Option<Protocol>,
    /// ADDRESS:PORT for tcp and udp; ADDRESS or ADDRESS/TYPE/CODE for icmp [default
    /// TYPE/CODE: 8/0, echo request]
    #[arg(required_unless_present_any = ["space", "to"])]
    pub destination: Option<String>,
    /// Exit status by verdict: 0 allowed, 3 denied, 4 not decided by security groups, 5 unknown
    #[arg(long)]
    pub exit_code: bool,
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
    use std::{path::PathBuf, time::Duration};

    use clap::CommandFactory as _;

    use super::*;
    use crate::output::Output;

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
            &["get", "locks"][..],
            &["get", "presences"],
            &["get", "groups"],
            &["get", "groups", "--space", "s", "--space", "t"],
            &["get", "cells"],
            &["describe", "group", "dns"],
            &["watch", "locks"],
            &["watch", "locks", "k"],
            &["locks"],
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
            assert!(Output::new(&cli.output).is_json(), "{command:?}");
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
        assert!(Output::new(&cli.output).is_json());
        assert_eq!(cli.flags.lock_server.as_deref(), Some("h:1"));
    }
}
