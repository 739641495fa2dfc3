//! Commands and flags. Every address and certificate can come from the
//! environment, so that a shell on a VM is set up once.

use std::path::PathBuf;

use clap::{Args, Parser, Subcommand, ValueEnum};

/// Looks into a running Portcullis.
#[derive(Debug, Parser)]
#[command(name = "portcullisctl", version, about)]
pub struct Cli {
    /// Where to ask, and as whom.
    #[command(flatten)]
    pub connection: Connection,

    /// Print one JSON object a line instead of a table
    #[arg(long, global = true)]
    pub json: bool,

    /// What to do.
    #[command(subcommand)]
    pub command: Command,
}

/// Addresses and certificates.
#[derive(Debug, Args)]
pub struct Connection {
    /// host:port of the lock server
    #[arg(
        long,
        global = true,
        env = "PORTCULLIS_LOCK_SERVER",
        default_value = "locket.service.cf.internal:8891"
    )]
    pub lock_server: String,

    /// host:port of the policy store
    #[arg(
        long,
        global = true,
        env = "PORTCULLIS_POLICY_STORE",
        default_value = "policy-server.service.cf.internal:4004"
    )]
    pub policy_store: String,

    /// Unix socket of the cell agent on this machine
    #[arg(
        long,
        global = true,
        env = "PORTCULLIS_CELL_SOCKET",
        default_value = "/var/vcap/data/cell-agent/control.sock"
    )]
    pub cell_socket: PathBuf,

    /// PEM file of the CA that signed the servers' certificates
    #[arg(long, global = true, env = "PORTCULLIS_CA")]
    pub ca: Option<PathBuf>,

    /// PEM file of this client's certificate
    #[arg(long, global = true, env = "PORTCULLIS_CERT")]
    pub cert: Option<PathBuf>,

    /// PEM file of this client's private key
    #[arg(long, global = true, env = "PORTCULLIS_KEY")]
    pub key: Option<PathBuf>,
}

/// What to do.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Who holds which lock, with fencing tokens (lock server)
    Locks {
        /// Presences instead of locks
        #[arg(long)]
        presences: bool,
    },
    /// Lock events as they happen, until interrupted (lock server)
    WatchLocks {
        /// Only this key; without it, all locks
        // Not `key`: the flag is named so, and is there for every command.
        #[arg(value_name = "KEY")]
        lock: Option<String>,
    },
    /// Generation, watermark and writer (policy store)
    Status,
    /// What each cell has in force, and how far it is behind (policy store)
    Cells,
    /// Security groups (policy store)
    Groups {
        /// Only groups that apply to this space; may be given again
        #[arg(long = "space", value_name = "GUID")]
        spaces: Vec<String>,
    },
    /// The containers of this cell and how they stand (cell agent)
    Containers,
    /// The rules in force for a container, and where each was written (cell agent)
    Rules {
        /// The container's handle
        handle: String,
    },
    /// What happens to a new connection of a container, and why (cell agent)
    Explain {
        /// The container's handle
        handle: String,
        /// Over what
        protocol: Protocol,
        /// ADDRESS:PORT for tcp and udp; ADDRESS or ADDRESS/TYPE/CODE for icmp (default 8/0, a ping)
        destination: String,
    },
    /// Compare the rules with the kernel and repair them now (cell agent)
    Reconcile,
    /// How the agent of this cell stands (cell agent)
    Cell,
}

/// What a connection is made over.
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

    /// With every flag, whose names are not to be those of a command's arguments.
    #[test]
    fn every_command_is_read() {
        let flags = ["--lock-server", "h:1", "--policy-store", "h:2", "--cell-socket", "/s"];
        let files = ["--ca", "/ca", "--cert", "/cert", "--key", "/key", "--json"];
        for command in [
            &["locks"][..],
            &["locks", "--presences"],
            &["watch-locks"],
            &["watch-locks", "k"],
            &["status"],
            &["cells"],
            &["groups"],
            &["groups", "--space", "s", "--space", "t"],
            &["containers"],
            &["rules", "handle"],
            &["explain", "handle", "tcp", "10.0.0.1:443"],
            &["reconcile"],
            &["cell"],
        ] {
            let bare = [&["portcullisctl"], command].concat();
            Cli::try_parse_from(&bare).unwrap_or_else(|error| panic!("{bare:?}: {error}"));
            let cli = Cli::parse_from([&bare[..], &flags, &files].concat());
            let Connection { lock_server, policy_store, cell_socket, ca, cert, key } =
                cli.connection;
            let addresses = (lock_server.as_str(), policy_store.as_str(), cell_socket);
            assert_eq!(addresses, ("h:1", "h:2", "/s".into()), "{command:?}");
            let files = [ca, cert, key].map(Option::unwrap);
            assert_eq!(files, ["/ca", "/cert", "/key"].map(PathBuf::from), "{command:?}");
        }
    }

    #[test]
    fn flags_may_follow_the_command() {
        let cli = Cli::parse_from(["portcullisctl", "locks", "--json", "--lock-server", "h:1"]);
        assert!(cli.json);
        assert_eq!(cli.connection.lock_server, "h:1");
    }
}
