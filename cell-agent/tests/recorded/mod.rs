//! Reads the recorded cases of the original.

use std::{collections::BTreeMap, fs, path::PathBuf};

use serde_json::Value;

fn fixtures() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures")
}

/// The names of all cases.
pub(crate) fn names() -> Vec<String> {
    let files = fs::read_dir(fixtures().join("cases")).unwrap();
    let name = |file: fs::DirEntry| Some(file.file_name().to_str()?.strip_suffix(".json")?.into());
    let mut names: Vec<String> = files.filter_map(|file| name(file.unwrap())).collect();
    names.sort();
    assert!(names.len() >= 20, "{names:?}");
    names
}

/// The operations of a case, and the recording with one of the programs called
/// iptables.
pub(crate) fn case(name: &str, backend: &str) -> (Value, String) {
    let read = |suffix: &str| {
        let path = fixtures().join("cases").join(format!("{name}{suffix}"));
        fs::read_to_string(path).unwrap()
    };
    let case = serde_json::from_str(&read(".json")).unwrap();
    (case, read(&format!(".{backend}.txt")))
}

/// The recording of an operation, below its heading.
pub(crate) fn section<'a>(recorded: &'a str, number: usize, op: &str) -> &'a str {
    let start = format!("## {number} {op} ");
    let section = recorded.split("\n\n").find(|section| section.trim_start().starts_with(&start));
    section.unwrap_or_else(|| panic!("no section {start}")).trim()
}

/// The expected chains of the agent and their parents at a snapshot: as recorded, or
/// from the file whose first line says why ours differ.
pub(crate) fn table(name: &str, number: usize, recorded: &str) -> Vec<String> {
    let file = fixtures().join("differences").join(format!("{name}.{number}.txt"));
    match fs::read_to_string(file) {
        Ok(ours) => chains(ours.lines().map(str::to_owned)),
        Err(_) => chains(section(recorded, number, "snapshot").lines().map(str::to_owned)),
    }
}

/// The agent's part of a table: its chains, and the parents' rules.
pub(crate) fn chains(lines: impl Iterator<Item = String>) -> Vec<String> {
    let ours = |line: &String| {
        let chain = line.strip_prefix("-A ").or_else(|| line.strip_prefix(':'));
        let name = chain.and_then(|rest| rest.split(' ').next()).unwrap_or_default();
        let asg = name.starts_with("asg-") || name.starts_with("casg-");
        asg || line.starts_with("-A netout--") && !name.ends_with("log")
    };
    let declared = |line: String| match line.starts_with(':') {
        true => line.split(' ').next().unwrap().to_owned(),
        false => line,
    };
    // The order within a chain matters; that of the chains does not.
    let mut by_chain = BTreeMap::<String, Vec<String>>::new();
    for line in lines.filter(ours).map(declared) {
        let name = line.trim_start_matches("-A ").trim_start_matches(':');
        let name = name.split(' ').next().unwrap().to_owned();
        by_chain.entry(name).or_default().push(line);
    }
    by_chain.into_values().flatten().collect()
}
