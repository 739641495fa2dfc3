//! Test network in which `localhost` has three addresses that can be cut off.
//!
//! The network is a network namespace of one thread and its child threads and processes, with its
//! own `/etc/hosts`. The namespace ends with them.

#![expect(clippy::missing_panics_doc, reason = "a test fails where its network cannot be made")]

use std::{
    collections::BTreeSet,
    fs::Permissions,
    io::Write as _,
    net::{IpAddr, ToSocketAddrs as _},
    os::unix::fs::PermissionsExt as _,
    panic::resume_unwind,
    process::{Command, Stdio},
    thread,
};

use nix::{
    mount::{MsFlags, mount},
    sched::{CloneFlags, unshare},
};

/// The addresses of `localhost`, not in resolver order.
pub const ADDRESSES: [&str; 3] = ["10.71.0.1", "10.71.0.2", "10.71.0.3"];

/// Runs a test in its own network, in which `localhost` is [`ADDRESSES`].
pub fn with_three_addresses(test: impl FnOnce() + Send + 'static) {
    let thread = thread::spawn(move || {
        unshare(CloneFlags::CLONE_NEWNET | CloneFlags::CLONE_NEWNS)
            .expect("namespaces can be made: run as root");
        let private = MsFlags::MS_REC | MsFlags::MS_PRIVATE;
        mount(None::<&str>, "/", None::<&str>, private, None::<&str>).expect("private mounts");
        let hosts = tempfile::NamedTempFile::new().expect("a temporary file can be made");
        // Database servers run as another user.
        let readable = Permissions::from_mode(0o644);
        hosts.as_file().set_permissions(readable).expect("it is ours");
        for address in ADDRESSES {
            writeln!(hosts.as_file(), "{address} localhost").expect("it can be written");
            run("ip", &["address", "add", &format!("{address}/32"), "dev", "lo"]);
        }
        let bind = MsFlags::MS_BIND;
        mount(Some(hosts.path()), "/etc/hosts", None::<&str>, bind, None::<&str>)
            .expect("/etc/hosts can be replaced");
        run("ip", &["link", "set", "lo", "up"]);
        test();
    });
    if let Err(panic) = thread.join() {
        resume_unwind(panic);
    }
}

fn run(program: &str, args: &[&str]) {
    let status = Command::new(program).args(args).status();
    assert!(status.unwrap_or_else(|error| panic!("{program}: {error}")).success(), "{args:?}");
}

/// From now on silently drops the packets to and from exactly these addresses.
pub fn drop_only(addresses: &[IpAddr]) {
    drop_by(&["daddr", "saddr"], addresses);
}

/// Drops packets from these addresses only; packets to them still arrive.
pub fn drop_from(addresses: &[IpAddr]) {
    drop_by(&["saddr"], addresses);
}

fn drop_by(sides: &[&str], addresses: &[IpAddr]) {
    let mut rules = String::new();
    for address in addresses {
        for side in sides {
            rules.push_str(&format!("ip {side} {address} drop\n"));
        }
    }
    let table = format!(
        "table inet dead {{ }}\ndelete table inet dead\ntable inet dead {{\n\
         chain input {{ type filter hook input priority -300\n{rules}}}\n}}\n"
    );
    let mut nft = Command::new("nft")
        .args(["-f", "-"])
        .stdin(Stdio::piped())
        .spawn()
        .expect("nft is installed (nftables)");
    let mut input = nft.stdin.take().expect("it is piped");
    input.write_all(table.as_bytes()).expect("nft reads");
    drop(input);
    assert!(nft.wait().expect("nft ends").success(), "{table}");
}

/// The addresses in resolver order.
pub fn resolved() -> Vec<IpAddr> {
    let all: Vec<IpAddr> =
        ("localhost", 1).to_socket_addrs().expect("it resolves").map(|at| at.ip()).collect();
    let expected: BTreeSet<IpAddr> = ADDRESSES.map(|text| text.parse().expect("an address")).into();
    assert_eq!(all.iter().copied().collect::<BTreeSet<_>>(), expected, "{all:?}");
    all
}
