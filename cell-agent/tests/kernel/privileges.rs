//! The agent as a process with few capabilities: as root, and as a user without any other
//! privilege.

use std::{
    fs::{self, File},
    os::unix::fs::{MetadataExt as _, PermissionsExt as _, chown},
    path::{Path, PathBuf},
    process::Stdio,
};

use serde_json::json;
use tokio::process::{Child, Command};

use crate::{
    agent::{Cell, all, app, bound, eventually},
    lab::Lab,
    packets::{Fate, Prober, connection},
    planes::{Plane, on_all_planes_at_once},
    stage::{C1, CLOSED, OPEN},
};

/// `nobody`.
const UNPRIVILEGED: u32 = 65_534;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum User {
    Root,
    Nobody,
}

/// The capabilities that `docs/security.md` names for a plane.
fn needed(plane: Plane) -> &'static [&'static str] {
    match plane {
        Plane::Nftables => &["net_admin"],
        Plane::Iptables(_) => &["net_admin", "net_raw"],
    }
}

/// Starts the agent with these capabilities and no way to get others; killed when dropped.
fn start(cell: &Cell, user: User, capabilities: &[&str]) -> Child {
    let directory = cell.directory.path();
    let (config, log) = (directory.join("agent.json"), directory.join("agent.log"));
    fs::write(&config, cell.config_text()).unwrap();
    let log = File::create(log).unwrap();
    let mut sets = vec!["-all".to_owned()];
    sets.extend(capabilities.iter().map(|name| format!("+{name}")));
    let sets = sets.join(",");
    let mut command = Command::new("setpriv");
    command.arg("--no-new-privs").arg(format!("--bounding-set={sets}"));
    match user {
        User::Root => command.arg("--inh-caps=-all"),
        User::Nobody => {
            own(directory);
            let ids = [format!("--reuid={UNPRIVILEGED}"), format!("--regid={UNPRIVILEGED}")];
            command.args(ids).arg("--clear-groups");
            command.args([format!("--inh-caps={sets}"), format!("--ambient-caps={sets}")])
        }
    };
    command
        .arg(env!("CARGO_BIN_EXE_cell-agent"))
        .arg("-config-file")
        .arg(config)
        // Only root may open the default lock of the iptables programs.
        .env("XTABLES_LOCKFILE", directory.join("programs.lock"))
        .stdin(Stdio::null())
        .stdout(log.try_clone().unwrap())
        .stderr(log)
        .kill_on_drop(true)
        .spawn()
        .expect("setpriv is installed (util-linux)")
}

/// Gives all files of a cell to the unprivileged user.
fn own(path: &Path) {
    chown(path, Some(UNPRIVILEGED), Some(UNPRIVILEGED)).unwrap();
    if path.is_dir() {
        fs::read_dir(path).unwrap().for_each(|entry| own(&entry.unwrap().path()));
    }
}

fn log(cell: &Cell) -> String {
    fs::read_to_string(cell.directory.path().join("agent.log")).unwrap_or_default()
}

/// A cell with a container that may connect to `OPEN`; its agent is not running.
async fn cell(lab: &Lab, plane: Plane) -> (Cell, Prober) {
    lab.container(C1);
    let mut cell = Cell::new(plane.config(json!({}))).await;
    // The original's lock, in a directory that can be given away.
    let lock = json!({"iptables_lock_file": cell.directory.path().join("xtables.lock")});
    cell.configure(lock.as_object().unwrap());
    cell.plug("c1", "10.255.1.1");
    cell.add_entry("c1", "10.255.1.1", &app("s1"));
    cell.store.set(vec![bound("g1", "s1", vec![all("10.1.0.0/16")])]);
    (cell, Prober::new(lab))
}

/// Rules are applied, changed, and repaired after a change by another process.
#[test]
fn the_named_capabilities_are_enough() {
    on_all_planes_at_once(async |plane, lab| {
        let (cell, prober) = cell(&lab, plane).await;
        let reaches = async |to| prober.probe(C1, to, connection(80)).await;
        for user in [User::Root, User::Nobody] {
            let mut agent = start(&cell, user, needed(plane));
            let process = agent.id().unwrap();
            let what = format!("{plane:?}, {user:?}");
            println!("{what}");
            cell.store.set(vec![bound("g1", "s1", vec![all("10.1.0.0/16")])]);
            eventually(&what, async || reaches(CLOSED).await == Fate::Reject).await;
            eventually(&what, async || reaches(OPEN).await == Fate::Accept).await;
            cell.store.set(vec![bound("g1", "s1", vec![all("10.9.0.0/16")])]);
            eventually(&what, async || reaches(CLOSED).await == Fate::Accept).await;
            cell.settled().await;
            plane.wreck();
            eventually(&what, async || reaches(CLOSED).await == Fate::Accept).await;
            eventually(&what, async || reaches(OPEN).await == Fate::Reject).await;
            let status = fs::read_to_string(format!("/proc/{process}/status")).unwrap();
            let effective = status.lines().find_map(|line| line.strip_prefix("CapEff:\t"));
            let all = u64::from_str_radix(effective.unwrap(), 16).unwrap();
            assert_eq!(all.count_ones() as usize, needed(plane).len(), "{what}: {status}");
            agent.kill().await.unwrap();
        }
        assert_private(&cell.directory.path().join("state"));
    });
}

/// Saved groups and sockets are the agent's own: nobody else reads them.
fn assert_private(path: &Path) {
    let metadata = fs::metadata(path).unwrap();
    assert_eq!(metadata.permissions().mode() & 0o077, 0, "{path:?} of user {}", metadata.uid());
    if path.is_dir() {
        let entries: Vec<PathBuf> =
            fs::read_dir(path).unwrap().map(|entry| entry.unwrap().path()).collect();
        assert!(!entries.is_empty(), "{path:?}");
        entries.iter().for_each(|path| assert_private(path));
    }
}

/// Without one of the capabilities nothing is in force, and the log says why.
#[test]
fn each_of_them_is_needed() {
    on_all_planes_at_once(async |plane, lab| {
        let (cell, prober) = cell(&lab, plane).await;
        for user in [User::Root, User::Nobody] {
            for missing in needed(plane) {
                // nf_tables asks for NET_ADMIN alone.
                if matches!(plane, Plane::Iptables(silk) if silk.backend == "nft")
                    && *missing == "net_raw"
                {
                    continue;
                }
                let what = format!("{plane:?}, {user:?} without {missing}");
                println!("{what}");
                let given: Vec<_> =
                    needed(plane).iter().filter(|one| *one != missing).copied().collect();
                let mut agent = start(&cell, user, &given);
                let says =
                    async || log(&cell).contains("no permission to change the packet filter");
                eventually(&what, says).await;
                let fate = prober.probe(C1, OPEN, connection(80)).await;
                let is_open = matches!(plane, Plane::Nftables);
                assert!(is_open || fate == Fate::Reject, "{what}: {fate:?}");
                agent.kill().await.unwrap();
            }
        }
    });
}
