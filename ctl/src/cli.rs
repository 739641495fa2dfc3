//! Commands and their arguments.

use std::{path::PathBuf, time::Duration};

use clap::{Args, Parser, Subcommand, ValueEnum};

use crate::{
    binding::Bound,
    flags::{Flags, duration},
    freeze::{Freeze, Unfreeze},
    history::History,
    output::OutputFlags,
    rollout::RolloutCommand,
    target::Target,
    unused::Unused,
};

/// Inspect and control a running Portcullis
///
/// Exit status: 0 success, 1 error, 2 invalid command line. Further statuses are in the help of
/// the commands that have them, and in docs/portcullisctl.md.
#[derive(Debug, Parser)]
#[command(name = "portcullisctl", version, about, args_override_self = true)]
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
    /// Explain whether a connection is allowed, and by which rule
    ///
    /// With --app, --space or --container and --to: the verdict of the security groups in the
    /// policy store, and beside it what the kernels of the cells have. With HANDLE PROTOCOL
    /// DESTINATION: what the agent of this cell enforces.
    Explain(Explain),
    /// List security groups that allow a connection, with rules, spaces and apps (policy stores)
    WhoCanReach {
        /// ADDRESS:PORT/tcp, ADDRESS:PORT/udp, ADDRESS/icmp or ADDRESS/icmp/TYPE/CODE
        #[arg(value_name = "DESTINATION")]
        to: Target,
    },
    /// List denied connections of containers with the reason, the latest first (policy stores)
    ///
    /// The cells of the containers are asked; without --app, --space, --container and --cell all
    /// connected cells. A cell keeps a connection for an hour after its last packet.
    Denied(DeniedSelection),
    /// Show what a change of a security group would open and close (policy stores)
    ///
    /// Nothing is changed. Other groups that allow the same are taken into account. Rules that
    /// other rules cover, that overlap, that are wide or cannot be enforced are named.
    ///
    /// Exit status: 0 if no connection is opened or closed, 2 if some are, 1 after an error. A wrong
    /// command line also has status 2, and prints nothing to standard output.
    WhatIf(WhatIf),
    /// Show the way of a change from the Cloud Controller to the cells, with times (policy stores)
    Trace {
        /// Generation, or name or GUID of a group, whose last change is shown
        #[arg(value_name = "CHANGE|GROUP")]
        change: String,
    },
    /// Print events until interrupted; reconnects after a lost connection
    #[command(subcommand)]
    Watch(Watch),
    /// Compare Cloud Controller, policy store and cells
    ///
    /// The Cloud Controller needs --cc-url and a token from the variable CF_TOKEN or from `cf
    /// oauth-token`; without --cc-url, and without one in the context, only policy store and cells
    /// are compared. Exit status 3 if there are differences.
    Diff {
        /// URL of the Cloud Controller, such as `https://api.example.com`
        #[arg(long, value_name = "URL", env = "CF_API")]
        cc_url: Option<String>,
        /// PEM file of the CA of its certificate [default: the CAs of this machine]
        #[arg(long, value_name = "FILE")]
        cc_ca: Option<PathBuf>,
    },
    /// List the changes that the policy store remembers, and decisions of operators, oldest first
    /// (policy store)
    #[command(args_conflicts_with_subcommands = true)]
    History(History),
    /// List groups, rules and ports that no new connection used; exit status 3: not all uses are known
    Unused(Unused),
    /// Check the whole foundation: each line ok, warn or fail, with what to do
    ///
    /// Exit status 1 if a check fails; warnings do not count.
    Doctor,
    /// Claim or release a lock (lock server)
    #[command(subcommand)]
    Lock(LockCommand),
    /// Claim a presence (lock server)
    #[command(subcommand)]
    Presence(PresenceCommand),
    /// Make the leading syncer read the Cloud Controller's groups now
    Sync {
        /// First let the removal of NUMBER groups pass that the policy store refused (`doctor` shows
        /// it): once, within ten minutes, and only if exactly these groups would be removed. Without
        /// the address of a syncer, its next poll applies the removal
        #[arg(long, value_name = "NUMBER")]
        accept_removal: Option<u64>,
        /// Admin URL of a syncer, such as http://127.0.0.1:17019; repeatable: the one that leads
        /// does it [default: those of the context]
        #[arg(long, value_name = "URL", env = "PORTCULLIS_SYNCER_ADMIN", value_delimiter = ',')]
        syncer_admin: Vec<String>,
    },
    /// Let cells keep the security groups that they have, until unfreeze (policy store)
    ///
    /// Changes of the Cloud Controller are still read and stored. New containers get the groups of
    /// the frozen generation. `history` lists freezes, `doctor`, `top` and the page show them.
    Freeze(Freeze),
    /// Send the newest security groups to the cells again (policy store)
    Unfreeze(Unfreeze),
    /// A generation that reaches the cells in steps (policy store)
    #[command(subcommand)]
    Rollout(RolloutCommand),
    /// Select a foundation by name
    #[command(subcommand)]
    Context(ContextCommand),
    /// Print the completion script of a shell
    Completion {
        /// The shell
        shell: Shell,
    },
    /// Print candidates for the last word
    #[command(name = "__complete", hide = true)]
    Complete {
        /// The words of the command line after the program's name
        #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
        words: Vec<String>,
    },
    /// Show the version of this program
    Version,
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
    /// Watch leader, changes and cells live (lock server, policy stores)
    ///
    /// Without a terminal, prints a status line each interval, and a line for each change that
    /// all cells enforce.
    Top {
        /// Time between two requests, at least 100ms
        #[arg(long, value_name = "TIME", default_value = "1s", value_parser = duration)]
        interval: Duration,
        /// Print one status line and exit
        #[arg(long)]
        once: bool,
    },
    /// Compare kernel and desired rules, and CHANGE the kernel where they differ
    ///
    /// Without --cell on the cell of this machine (cell agent), with --cell on any cell (policy
    /// stores).
    Reconcile {
        /// The cell
        #[arg(long)]
        cell: Option<String>,
        /// Confirm
        #[arg(long, short, requires = "cell")]
        yes: bool,
    },
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

/// What to do with a lock.
#[derive(Debug, Subcommand)]
pub enum LockCommand {
    /// Claim a lock until its time to live ends
    Claim(Claim),
    /// Release a lock, so that another instance can take it
    Release {
        /// Key of the lock
        // Not `key`: that is the name of a global flag.
        #[arg(value_name = "KEY")]
        lock: String,
        /// Owner of the lock [default: its present owner]
        #[arg(long)]
        owner: Option<String>,
        /// Confirm
        #[arg(long, short)]
        yes: bool,
    },
}

/// What to do with a presence.
#[derive(Debug, Subcommand)]
pub enum PresenceCommand {
    /// Claim a presence until its time to live ends
    Claim(Claim),
}

/// A lock or presence to claim.
#[derive(Debug, Args)]
pub struct Claim {
    /// Key
    #[arg(value_name = "KEY")]
    pub claimed: String,
    /// Owner
    #[arg(long)]
    pub owner: String,
    /// Value to store
    #[arg(long, default_value = "")]
    pub value: String,
    /// Time to live in whole seconds, such as 30s
    #[arg(long, value_name = "TIME", default_value = "60s", value_parser = duration)]
    pub ttl: Duration,
    /// Confirm
    #[arg(long, short)]
    pub yes: bool,
}

/// What to do with contexts.
#[derive(Debug, Subcommand)]
pub enum ContextCommand {
    /// Use a context from now on
    Use {
        /// Name of the context
        name: String,
    },
    /// List the contexts
    List,
    /// Show a context
    Show {
        /// Name of the context [default: the context in use]
        name: Option<String>,
    },
    /// Add a context from a file, or replace it
    Add {
        /// Name of the context
        name: String,
        /// JSON file (docs/portcullisctl.md)
        file: PathBuf,
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
    /// List containers of all cells (policy stores)
    #[command(visible_alias = "container")]
    Containers(ContainerSelection),
    /// List the last changes of the set of security groups, oldest first (policy stores)
    #[command(visible_alias = "change")]
    Changes {
        /// Number of changes
        #[arg(long, default_value_t = 20)]
        last: u32,
        /// Only changes of the group with this name or GUID
        #[arg(long, value_name = "NAME")]
        group: Option<String>,
    },
}

/// Which containers.
#[derive(Debug, Args)]
pub struct ContainerSelection {
    /// Only containers whose handle begins like this
    pub handle: Option<String>,
    /// Only containers of this app
    #[arg(long, value_name = "GUID")]
    pub app: Option<String>,
    /// Only containers of this space
    #[arg(long, value_name = "GUID")]
    pub space: Option<String>,
    /// Only containers on this cell
    #[arg(long)]
    pub cell: Option<String>,
    /// Only the container with this address
    #[arg(long)]
    pub address: Option<String>,
}

/// Which denied connections.
#[derive(Debug, Args)]
pub struct DeniedSelection {
    /// Only containers of this app
    #[arg(long, value_name = "GUID")]
    pub app: Option<String>,
    /// Only containers of this space
    #[arg(long, value_name = "GUID")]
    pub space: Option<String>,
    /// Only the container with this handle, or the beginning of one
    #[arg(long, value_name = "HANDLE")]
    pub container: Option<String>,
    /// Only containers on this cell
    #[arg(long)]
    pub cell: Option<String>,
    /// Only connections with a packet within this time, such as 5m
    #[arg(long, value_name = "TIME", value_parser = duration)]
    pub since: Option<Duration>,
    /// Print further connections until interrupted, the oldest first
    #[arg(long, short)]
    pub follow: bool,
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
    /// Show a cell with its isolated rules and containers (policy stores)
    Cell {
        /// Id of the cell
        name: String,
    },
    /// Show a container with its rules, which its cell is asked for (policy stores)
    Container {
        /// Handle, or a unique prefix of it
        handle: String,
    },
    /// Show a space with the groups that apply to it, and its apps (policy stores)
    Space {
        /// GUID of the space
        guid: String,
    },
}

/// A kind of events.
#[derive(Debug, Subcommand)]
pub enum Watch {
    /// Print lock events (lock server)
    Locks(WatchLocks),
    /// Print changes of security groups, and again while cells enforce them (policy stores)
    Changes,
    /// Print the cells, then what changes about them (policy stores)
    Cells,
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
    /// GUID of the app
    #[arg(long, value_name = "GUID", requires = "to", conflicts_with_all = ["space", "container", "handle"])]
    pub app: Option<String>,
    /// GUID of the space
    #[arg(long, value_name = "GUID", requires = "to", conflicts_with_all = ["container", "handle"])]
    pub space: Option<String>,
    /// Handle of a container on any cell, or a unique prefix of it
    #[arg(long, value_name = "HANDLE", requires = "to", conflicts_with = "handle")]
    pub container: Option<String>,
    /// Containers that build an app, instead of apps and tasks
    #[arg(long, conflicts_with_all = ["container", "handle"])]
    pub staging: bool,
    /// Destination: ADDRESS:PORT/tcp, ADDRESS:PORT/udp, ADDRESS/icmp or ADDRESS/icmp/TYPE/CODE
    #[arg(long, value_name = "DESTINATION", conflicts_with = "handle")]
    pub to: Option<Target>,
    /// Handle of the container, or a unique prefix of it
    #[arg(required_unless_present_any = ["app", "space", "container"])]
    pub handle: Option<String>,
    /// Protocol of the connection
    #[arg(required_unless_present_any = ["app", "space", "container"])]
    pub protocol: Option<Protocol>,
    /// ADDRESS:PORT for tcp and udp; ADDRESS or ADDRESS/TYPE/CODE for icmp [default
    /// TYPE/CODE: 8/0, echo request]
    #[arg(required_unless_present_any = ["app", "space", "container"])]
    pub destination: Option<String>,
    /// Exit status by verdict: 0 allowed, 3 denied, 4 not decided by security groups, 5 unknown,
    /// 6 a cell contradicts the groups
    #[arg(long)]
    pub exit_code: bool,
}

/// A change of a security group.
#[derive(Debug, Args)]
#[group(id = "change", required = true, multiple = true, args = ["file", "bind", "unbind", "delete"])]
pub struct WhatIf {
    /// New rules of the group: a JSON file as for `cf create-security-group`, or an object with
    /// name and rules as in the API v3 of the Cloud Controller; `-` is standard input
    #[arg(long)]
    pub file: Option<PathBuf>,
    /// Name or GUID of the group, or the name of a new one [default: the name in the file]
    #[arg(long, value_name = "NAME")]
    pub group: Option<String>,
    /// Where the group is bound in addition; repeatable: `running` or `staging` for all spaces,
    /// the GUID of a space, or `staging:GUID`
    #[arg(long, value_name = "PLACE", value_delimiter = ',')]
    pub bind: Vec<Bound>,
    /// Where the group is unbound; repeatable, as --bind
    #[arg(long, value_name = "PLACE", value_delimiter = ',')]
    pub unbind: Vec<Bound>,
    /// The group is deleted
    #[arg(long, value_name = "GROUP", conflicts_with_all = ["file", "group", "bind", "unbind"])]
    pub delete: Option<String>,
    /// A rule is wide if it allows more addresses than this prefix of IPv4 has; for IPv6, the
    /// prefix is four times as long
    #[arg(long, value_name = "PREFIX", default_value_t = 8, value_parser = clap::value_parser!(u8).range(1..=32))]
    pub wide: u8,
}

/// A shell.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Shell {
    /// GNU bash
    Bash,
    /// Z shell
    Zsh,
    /// fish
    Fish,
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
#[path = "cli_tests.rs"]
mod tests;
