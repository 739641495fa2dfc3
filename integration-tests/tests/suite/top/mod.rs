//! `portcullisctl top` in a real terminal, with a real lock server, syncer and policy store,
//! and simulated cells.

mod cells;
mod picture;
mod pty;

use std::{path::Path, process::Command};

use integration_tests::{
    binaries,
    process::Process,
    services::{ControlPlane, Site},
};
use nix::sys::signal::Signal;
use serde_json::{Value, json};

use self::{cells::Cells, pty::Pty};
use super::citations::root;

fn top() -> String {
    binaries::path("portcullisctl").display().to_string()
}

/// Writes the screen, into `docs` with `UPDATE_GOLDEN=1`.
fn picture(pty: &Pty, site: &Site, name: &str) {
    let path = site.path(name);
    pty.with(|screen| picture::write(screen, &path));
    let bytes = std::fs::read(&path).expect("the picture was written");
    assert!(bytes.starts_with(b"\x89PNG") && bytes.len() > 2_000, "{name}: {}", bytes.len());
    if std::env::var_os("UPDATE_GOLDEN").is_some() {
        let directory = root().join("docs/screenshots");
        std::fs::create_dir_all(&directory).expect("the directory can be made");
        std::fs::write(directory.join(name), bytes).expect("the picture can be copied");
    }
}

/// A control plane whose store accepts the simulated cells.
fn control_plane() -> ControlPlane {
    let mut plane = ControlPlane::start();
    let path = plane.site.path("policy-store.json");
    let text = std::fs::read_to_string(&path).expect("the configuration was written");
    let mut config: Value = serde_json::from_str(&text).expect("it is JSON");
    config["cell_id_from"] = json!("any");
    plane.policy_store.terminate();
    std::fs::write(&path, config.to_string()).expect("the configuration can be written");
    plane.restart_store();
    plane
}

fn flags(plane: &ControlPlane) -> Vec<String> {
    let files = [&plane.operator.ca, &plane.operator.cert, &plane.operator.key];
    let [ca, cert, key] = files.map(|path| path.display().to_string());
    let (locks, store) = (plane.lock_server.address.clone(), plane.store_address.clone());
    let flags = [("--ca", ca), ("--cert", cert), ("--key", key), ("--lock-server", locks)];
    let flags = flags.into_iter().chain([("--policy-store", store)]);
    flags.flat_map(|(flag, value)| [flag.to_owned(), value]).collect()
}

/// The first number after a word on the screen.
fn number_after(screen: &str, word: &str) -> Option<u64> {
    let rest = &screen[screen.find(word)? + word.len()..];
    let digits: String = rest.chars().take_while(char::is_ascii_digit).collect();
    digits.parse().ok()
}

#[test]
fn the_view_shows_changes_and_cells_at_2_20_and_1000_cells() {
    let mut plane = control_plane();
    let _syncer = plane.syncer("syncer-1");
    plane.cloud.create_group("public-networks", "0.0.0.0/0");
    plane.wait_until_synced();
    let mut cells = Cells::new(&plane.store_address, &plane.site.cell_certificate("cells"));
    let arguments = flags(&plane);
    let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
    let view = [&["top", "--interval", "200ms"], &arguments[..]].concat();
    let mut pty = Pty::start(&top(), &view, &[]);
    pty.wait_for("leader    syncer-1 (token ");
    let lines = Process::start("portcullisctl", &view);

    for count in [2, 20, 1_000_u32] {
        cells.grow(count);
        let connected = |count: u32| match count {
            1_000 => "of 1,000 connected, 0 behind".to_owned(),
            count => format!("{count} of {count} connected, 0 behind"),
        };
        pty.wait_for(&connected(count));
        let before = number_after(&pty.text(), "generation ").expect("a generation is shown");
        plane.cloud.create_group(&format!("database-{count}"), "10.0.0.5/32");
        let enforced = pty.wait("the change on the screen", |screen| {
            number_after(screen, "generation ").is_some_and(|after| after > before)
        });
        assert!(!enforced.contains('\u{1b}'), "{enforced}");
        // All of few cells enforce it; of many, some are stuck or leave.
        let progress = if count < 1_000 { format!(" {count}/{count} ") } else { "/1000 ".into() };
        pty.wait("the bar of the change", |screen| {
            screen.lines().any(|line| line.contains(&progress) && line.contains('█'))
        });
        picture(&pty, &plane.site, &format!("top-{count}.png"));
    }
    cells.check();

    pty.press("\r");
    pty.wait_for("cell-1: ");
    pty.press("\u{1b}");
    pty.wait_for("cells  ");
    pty.resize(40, 120);
    pty.wait("the rows of the larger terminal", |screen| screen.lines().count() >= 40);

    // The last data stays while the store is away.
    plane.policy_store.kill();
    let lost = pty.wait_for("policy store: ");
    assert!(lost.contains("of 1,000 connected") && lost.contains("retrying"), "{lost}");
    plane.restart_store();
    pty.wait("the store is back", |screen| !screen.contains("policy store: "));
    pty.press("q");
    assert_eq!(pty.ended().code(), Some(0));
    assert!(!pty.with(vt100::Screen::alternate_screen), "{}", pty.text());
    check_lines(&lines, &arguments);
}

fn check_lines(lines: &Process, arguments: &[&str]) {
    let printed = lines.lines();
    let status = printed.iter().find(|line| line.contains("cells 2/2 connected"));
    assert!(status.is_some_and(|line| line.contains(" | leader syncer-1 (token ")), "{printed:?}");
    let change = printed.iter().find(|line| line.starts_with("change "));
    let has_hops = |line: &String| ["noticed ", "total "].iter().all(|word| line.contains(word));
    assert!(change.is_some_and(has_hops), "{printed:?}");
    assert!(!printed.iter().any(|line| line.contains('\u{1b}')), "{printed:?}");
    let mut once = Command::new(top());
    let once = once.args(["top", "--once"]).args(arguments).output().expect("it can be run");
    let text = String::from_utf8_lossy(&once.stdout).into_owned();
    assert!(once.status.success() && text.lines().count() == 1, "{once:?}");
    assert!(text.starts_with("generation ") && text.contains("leader syncer-1"), "{text}");
}

/// A shell in a terminal, with the flags of a view whose servers are away.
fn shell(site: &Site) -> (Pty, String) {
    let files = site.certificate("operator");
    let path = |path: &Path| path.display().to_string();
    let variables = [
        ("PORTCULLIS_CA", path(&files.ca)),
        ("PORTCULLIS_CERT", path(&files.cert)),
        ("PORTCULLIS_KEY", path(&files.key)),
        ("PORTCULLIS_LOCK_SERVER", "127.0.0.1:1".to_owned()),
        ("PORTCULLIS_POLICY_STORE", "127.0.0.1:1".to_owned()),
        ("PS1", "ready> ".to_owned()),
    ];
    let variables: Vec<_> = variables.iter().map(|(name, value)| (*name, &**value)).collect();
    let pty = Pty::start("bash", &["--norc", "--noprofile", "-i"], &variables);
    pty.wait_for("ready> ");
    (pty, format!("{} top\n", top()))
}

/// The terminal is on its main screen, echoes, and edits lines.
fn is_restored(pty: &Pty) {
    pty.wait("the main screen", |_| {
        pty.with(|screen| !screen.alternate_screen() && !screen.hide_cursor())
    });
    pty.press("clear; stty -a | grep -ow -e '-*icanon' -e '-*echo' | paste -sd,\n");
    let shown = pty.wait("the modes of the terminal", |screen| {
        screen.lines().any(|line| line.ends_with("echo"))
    });
    assert!(shown.lines().any(|line| line == "icanon,echo"), "{shown}");
}

#[test]
fn the_terminal_is_restored_at_each_end() {
    let site = Site::new();
    let (pty, command) = shell(&site);
    let begin = |how: &str| {
        pty.press(how);
        pty.wait_for("portcullis 127.0.0.1:1");
        pty.wait_for("lock server: ");
        assert!(pty.with(vt100::Screen::alternate_screen));
    };

    begin(&command);
    pty.press("\u{1a}");
    pty.wait_for("Stopped");
    is_restored(&pty);
    begin("fg\n");
    pty.press("?");
    pty.wait_for("Ctrl-Z suspends");
    pty.press("qq");
    is_restored(&pty);

    for (signal, code) in [(Signal::SIGTERM, 143), (Signal::SIGINT, 130), (Signal::SIGHUP, 129)] {
        begin(&format!("{}; echo code=$?\n", command.trim_end()));
        pty.signal_child(signal);
        pty.wait_for(&format!("code={code}"));
        is_restored(&pty);
    }

    begin(&command);
    pty.signal_child(Signal::SIGTSTP);
    pty.wait_for("Stopped");
    is_restored(&pty);
    begin("fg\n");
    pty.press("\u{3}");
    is_restored(&pty);
}

#[test]
fn a_lost_connection_ends_the_view() {
    let site = Site::new();
    let (mut pty, command) = shell(&site);
    pty.press(&format!("exec {command}"));
    pty.wait_for("portcullis 127.0.0.1:1");
    pty.hang_up();
    pty.ended();
}
