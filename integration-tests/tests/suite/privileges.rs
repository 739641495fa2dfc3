//! The services as a user without capabilities, and all of them under the unit of
//! `docs/security.md`: its options for files with mounts, and those for system calls with the
//! filters of `integration_tests::sandbox`.

use std::{
    fs,
    os::unix::{
        fs::{MetadataExt as _, PermissionsExt as _, chown},
        process::ExitStatusExt as _,
    },
    path::Path,
};

use integration_tests::{
    binaries,
    process::Process,
    services::{ControlPlane, Site},
    wait,
};

use super::cell_agent::{self, apart};

/// The signal of a call that a filter does not allow.
const SIGSYS: i32 = 31;
/// `nobody`.
const UNPRIVILEGED: u32 = 65_534;

/// The unit in the docs, without comments.
fn unit() -> String {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../docs/security.md");
    let text = fs::read_to_string(path).expect("the docs have a page on security");
    let (_, unit) = text.split_once("```ini\n").expect("the page has a unit");
    unit.split_once("```").expect("the unit ends").0.to_owned()
}

/// The launcher for the unit: only the site and a private `/var/tmp`, which SQLite needs, are
/// writable; then the user and the capabilities, then the system calls.
fn launcher(site: &Site, user: Option<u32>, capabilities: &str) -> Vec<String> {
    let directory = site.path("");
    let unit_file = site.path("unit.service");
    fs::write(&unit_file, unit()).expect("the unit can be written");
    let directory = directory.display();
    let mounts = format!(
        "mount --bind {directory} {directory} && mount -o remount,bind,ro / && \
         mount -t tmpfs tmpfs /home && mount -t tmpfs tmpfs /var/tmp && exec \"$0\" \"$@\""
    );
    let mut words: Vec<String> = ["unshare", "--mount", "sh", "-c"].map(str::to_owned).into();
    words.push(mounts);
    words.extend(["setpriv", "--no-new-privs", "--inh-caps=-all"].map(str::to_owned));
    words.push(format!("--bounding-set=-all{capabilities}"));
    if let Some(id) = user {
        words.extend([
            format!("--reuid={id}"),
            format!("--regid={id}"),
            "--clear-groups".to_owned(),
        ]);
    }
    words.push(binaries::path("sandbox").display().to_string());
    words.push(unit_file.display().to_string());
    words
}

/// Gives all files to the unprivileged user.
fn own(path: &Path) {
    chown(path, Some(UNPRIVILEGED), Some(UNPRIVILEGED)).expect("tests run as root");
    if path.is_dir() {
        let entries = fs::read_dir(path).expect("a directory");
        entries.for_each(|entry| own(&entry.expect("an entry").path()));
    }
}

/// A field of `/proc/ID/status`.
fn status(process: &Process, field: &str) -> String {
    let path = format!("/proc/{}/status", process.id());
    let text = fs::read_to_string(path).expect("the process runs");
    let line = text.lines().find_map(|line| line.strip_prefix(field)?.strip_prefix(":\t"));
    line.unwrap_or_else(|| panic!("{field} in {text}")).to_owned()
}

fn assert_restricted(process: &Process, user: u32, capabilities: &str) {
    assert!(status(process, "Uid").starts_with(&user.to_string()), "{process:?}");
    for set in ["CapPrm", "CapEff", "CapBnd", "CapAmb"] {
        let expected = if set == "CapAmb" { "0000000000000000" } else { capabilities };
        assert_eq!(status(process, set), expected, "{set} of {process:?}");
    }
    assert_eq!(status(process, "NoNewPrivs"), "1");
    assert_eq!(status(process, "Seccomp"), "2");
}

/// A database, a saved state or a socket is readable by its owner only.
fn assert_private(path: &Path) {
    let metadata = fs::metadata(path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
    let mode = metadata.permissions().mode();
    assert_eq!(mode & 0o077, 0, "{} of {} has {mode:o}", path.display(), metadata.uid());
}

/// Lock server, policy store and syncer need no capability and no user, and do their work under
/// the unit.
#[test]
fn services_work_as_nobody_in_the_unit() {
    let mut plane = ControlPlane::start();
    plane.syncer("syncer-1").terminate();
    plane.lock_server.process.terminate();
    plane.policy_store.terminate();
    for name in ["locks", "lock-server", "policy-store"] {
        for end in ["db", "db-wal", "db-shm"] {
            drop(fs::remove_file(plane.site.path(&format!("{name}.{end}"))));
        }
    }
    let launcher = launcher(&plane.site, Some(UNPRIVILEGED), "");
    own(&plane.site.path(""));
    let start = |name: &str, flag: &str, config: &str| {
        let config = plane.site.path(config).display().to_string();
        Process::start_through(&launcher, name, &[flag, &config])
    };
    let mut services = [
        start("lock-server", "-config", "lock-server.json"),
        start("policy-store", "-config-file", "policy-store.json"),
        start("syncer", "-config-file", "syncer-1.json"),
    ];
    services[0].wait_for("locket.started");
    services[1].wait_for("policy-server-internal.started");
    let leads = || match plane.leader().as_deref() {
        Some("syncer-1") => Ok(()),
        other => Err(format!("{other:?} leads; {}", services[2].lines().join("\n"))),
    };
    wait::until("the syncer to lead", leads);
    plane.cloud.create_group("one", "10.0.0.1");
    plane.wait_until_synced();
    for service in &services {
        assert_restricted(service, UNPRIVILEGED, "0000000000000000");
    }
    for name in ["lock-server.db", "lock-server.db-wal", "policy-store.db", "policy-store.db-wal"] {
        assert_private(&plane.site.path(name));
    }
    for service in &mut services {
        assert_eq!(service.terminate().code(), Some(0), "{service:?}");
    }
}

/// The agent works in the unit with NET_ADMIN, and not without it.
#[test]
fn the_agent_works_with_net_admin_in_the_unit() {
    apart(|| {
        let site = Site::new();
        let config = cell_agent::configure(&site).display().to_string();
        let start = |capabilities: &str| {
            let launcher = launcher(&site, None, capabilities);
            Process::start_through(&launcher, "cell-agent", &["-config-file", &config])
        };
        let mut agent = start("");
        agent.wait_for_text("no permission to change the packet filter");
        agent.terminate();
        let mut agent = start(",+net_admin");
        agent.wait_for("vxlan-policy-agent.started");
        agent.wait_for("vxlan-policy-agent.rules-applied");
        // CAP_NET_ADMIN is number 12.
        assert_restricted(&agent, 0, "0000000000001000");
        for name in ["control.sock", "state", "state/applied"] {
            let path = site.path(name);
            wait::until(name, || if path.exists() { Ok(()) } else { Err("not yet".to_owned()) });
            assert_private(&path);
        }
        assert_eq!(agent.terminate().code(), Some(0));
    });
}

/// A call, a file or a memory mapping outside the unit is refused: the launcher restricts.
#[test]
fn the_unit_restricts() {
    let site = Site::new();
    let launcher = launcher(&site, None, "");
    let run = |command: &str| {
        let (program, more) = launcher.split_first().expect("a program");
        let mut run = std::process::Command::new(program);
        let output = run.args(more).args(["sh", "-c", command]).output();
        output.expect("unshare is installed (util-linux)")
    };
    assert!(run("true").status.success(), "{:?}", run("true"));
    for (command, error) in [
        ("touch /etc/x", "Read-only file system"),
        ("unshare --user true", "Operation not permitted"),
        ("unshare --net true", "Operation not permitted"),
        ("setarch i386 true", "Operation not permitted"),
    ] {
        let output = run(command);
        let text = String::from_utf8_lossy(&output.stderr);
        assert!(!output.status.success() && text.contains(error), "{command}: {output:?}");
    }
    // A call that is not in the list ends the process.
    let output = run("exec mount -t tmpfs tmpfs /mnt");
    assert_eq!(output.status.signal(), Some(SIGSYS), "{output:?}");
}
