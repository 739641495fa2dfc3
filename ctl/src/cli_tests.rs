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
        &["get", "containers"],
        &["get", "containers", "h", "--app", "a", "--space", "s", "--cell", "c"],
        &["get", "changes", "--last", "3", "--group", "dns"],
        &["describe", "group", "dns"],
        &["describe", "cell", "c"],
        &["describe", "container", "h"],
        &["describe", "space", "s"],
        &["trace", "12"],
        &["diff"],
        &["diff", "--cc-url", "https://api", "--cc-ca", "/ca"],
        &["doctor"],
        &["history", "--group", "dns", "--since", "2h"],
        &["history", "--last", "3"],
        &["history", "show", "12"],
        &["history", "diff", "11", "12"],
        &["lock", "claim", "k", "--owner", "o", "--value", "v", "--ttl", "5s", "--yes"],
        &["lock", "release", "k", "--owner", "o", "-y"],
        &["presence", "claim", "k", "--owner", "o"],
        &["sync", "--syncer-admin", "http://a:1", "--syncer-admin", "http://b:1"],
        &["sync", "--accept-removal", "60"],
        &["context", "use", "c"],
        &["context", "list"],
        &["context", "show"],
        &["context", "add", "c", "/f"],
        &["completion", "bash"],
        &["version"],
        &["watch", "changes"],
        &["watch", "cells"],
        &["reconcile", "--cell", "c", "--yes"],
        &["explain", "--app", "a", "--to", "10.0.0.1:443/tcp"],
        &["explain", "--app", "a", "--staging", "--to", "10.0.0.1:443/tcp"],
        &["explain", "--container", "h", "--to", "10.0.0.1:443/tcp", "--exit-code"],
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
        &["denied"],
        &["denied", "--app", "a", "--space", "s", "--container", "h", "--cell", "c"],
        &["denied", "--since", "5m", "--follow"],
        &[
            "what-if",
            "--file",
            "-",
            "--group",
            "dns",
            "--bind",
            "running,s1",
            "--unbind",
            "staging:s2",
        ],
        &["what-if", "--delete", "dns", "--wide", "16"],
        &["reconcile"],
        &["cell"],
        &["top"],
        &["top", "--once", "--interval", "500ms"],
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
        &["explain", "--space", "s", "--app", "a", "--to", "10.0.0.1:443/tcp"],
        &["reconcile", "--yes"],
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
