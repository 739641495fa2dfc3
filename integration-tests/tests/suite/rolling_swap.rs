//! A foundation of the originals is swapped to ours and back, one job at a time, under load
//! (docs/rolling-swap.md). Needs root.

use std::{
    process::Command,
    sync::{Mutex, PoisonError},
};

use integration_tests::binaries;

/// One swap at a time: each needs the whole machine.
static MACHINE: Mutex<()> = Mutex::new(());

/// The cells of a row of a Markdown table.
fn cells(row: &str) -> Vec<&str> {
    row.trim_matches('|').split('|').map(str::trim).collect()
}

fn swap(database: &str) {
    let _alone = MACHINE.lock().unwrap_or_else(PoisonError::into_inner);
    let directory = tempfile::tempdir().expect("a temporary directory can be made");
    let (state, report) = (directory.path().join("state"), directory.path().join("report.md"));
    let name = format!("s{}-{database}", std::process::id());
    let output = Command::new(binaries::path("portcullis-dev"))
        .args(["swap", "--database", database, "--seconds", "1", "--name", &name])
        .arg("--state-dir")
        .arg(state)
        .arg("--report")
        .arg(&report)
        .output()
        .expect("portcullis-dev can be run");
    let told = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{told}\n{}", String::from_utf8_lossy(&output.stdout));
    let table = std::fs::read_to_string(&report).expect("the report is there");
    assert_eq!(table, String::from_utf8_lossy(&output.stdout));
    let rows: Vec<Vec<&str>> = table.lines().map(cells).collect();
    let (header, total) = (&rows[0], rows.last().expect("there is a last row"));
    let value = |column: &str| {
        let place = header.iter().position(|name| *name == column);
        let text = total[place.unwrap_or_else(|| panic!("no {column} in {header:?}"))];
        let number = text.split(['(', ' ']).next().unwrap_or_default();
        number.parse::<f64>().unwrap_or_else(|error| panic!("{column} {text:?}: {error}"))
    };
    // Nothing was lost, of enough to lose.
    for column in ["locks lost", "held twice", "presences lost", "token faults, stuck"] {
        assert_eq!(value(column), 0.0, "{column}");
    }
    assert_eq!((value("wrong"), value("refused")), (0.0, 0.0));
    assert_eq!(value("changes"), value("in force"));
    assert!(value("lock calls") > 400.0 && value("changes") > 10.0, "{table}");
    assert!(value("packets (judged)") > 4_000.0 && value("container syncs") > 100.0, "{table}");
    assert!(value("watcher behind, max s") < 5.0, "{table}");
    let left = Command::new("ip").args(["netns", "list"]).output().expect("ip can be run");
    let left = String::from_utf8_lossy(&left.stdout).into_owned();
    assert!(!left.contains(&name), "{left}");
}

#[test]
fn nothing_is_lost_on_postgresql() {
    swap("postgres");
}

#[test]
fn nothing_is_lost_on_mariadb() {
    swap("mysql");
}
