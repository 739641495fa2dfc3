//! The transcript in `docs/operations.md`: commands of portcullisctl on a local cluster.
//!
//! `UPDATE_GOLDEN=1` writes the section. Without the variable the commands run again, and their
//! output must have the lines of the section, with any numbers, GUIDs and widths of columns.

use std::{collections::BTreeSet, fmt::Write as _, fs};

use super::local_cluster::{Cluster, run_in_shell};

const DOCUMENT: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../docs/operations.md");
const BEGIN: &str =
    "<!-- Made by: UPDATE_GOLDEN=1 cargo test -p integration-tests -- transcript -->\n";
const END: &str = "<!-- End of the transcript -->\n";

/// Variables and security groups of the transcript.
const SETUP: &str = r#"
of() { portcullisctl get containers --cell "$1" --no-headers -o "fields=$2" | head -1; }
APP_A=$(of cell-1 app) SPACE_A=$(of cell-1 space) CONTAINER_A=$(of cell-1 handle)
APP_B=$(of cell-2 app) SPACE_B=$(of cell-2 space)
NOBODY=11111111-2222-4333-8444-555555555555
new() { # NAME DESTINATION PORTS LIFECYCLE SPACE
  cf_api POST /v3/security_groups '{"name":"'$1'","rules":[{"protocol":"tcp","destination":"'$2'","ports":"'$3'"}],
    "relationships":{"'$4'_spaces":{"data":[{"guid":"'$5'"}]}}}' | guid
  portcullisctl sync >/dev/null
}
new db 10.0.11.0/24,10.0.12.5 5432,6432 running "$SPACE_A"
new db-v6 fd00:db::/64 5432 running "$SPACE_A"
new build-mirror 10.1.2.3 443 staging "$SPACE_A"
new legacy 10.9.0.0/255.255.0.0 8080 running "$SPACE_A"
for try in $(seq 300); do
  [ "$(portcullisctl get cells --no-headers -o fields=behind,enforced_generation | grep -c "^0 *5")" != 2 ] || break
  sleep 0.1
done
"#;

/// Questions of operators, and the commands that answer them.
const CHAPTERS: &[(&str, &[&str])] = &[
    ("Is everything well?", &["portcullisctl doctor", "portcullisctl top --once"]),
    (
        "Is my change live everywhere, and how long did it take?",
        &["portcullisctl trace db", "portcullisctl get changes --group db"],
    ),
    (
        "What changed when, and what exactly?",
        &[
            "portcullisctl history -o fields=generation,entry,groups,by",
            "portcullisctl history diff 1 2",
        ],
    ),
    (
        "Which cells are there, and is one behind?",
        &[
            "portcullisctl get cells",
            "portcullisctl get cells -o wide",
            "portcullisctl describe cell cell-1",
        ],
    ),
    (
        "Why can this app (not) reach an address?",
        &[
            "portcullisctl explain --app $APP_A --to 10.0.12.5:5432/tcp   # a rule with a list of destinations",
            "portcullisctl explain --app $APP_B --to 10.0.12.5:5432/tcp   # the group is bound to another space",
            "portcullisctl explain --app $APP_A --to [fd00:db::7]:5432/tcp   # IPv6",
            "portcullisctl explain --space $SPACE_A --staging --to 10.1.2.3:443/tcp",
            "portcullisctl explain --app $APP_A --to 10.9.1.1:8080/tcp   # a rule that cannot be enforced",
            "portcullisctl explain --container $CONTAINER_A --to 10.0.12.5:5433/tcp",
            "portcullisctl explain --app $NOBODY --to 10.0.12.5:5432/tcp",
        ],
    ),
    (
        "Who can reach this address? Who opened 10.0.0.0/8?",
        &["portcullisctl who-can-reach 10.0.12.5:5432/tcp"],
    ),
    (
        "Which groups are there, and which spaces use one?",
        &["portcullisctl get groups", "portcullisctl describe group db"],
    ),
    (
        "Which groups apply to a space, and which apps are in it?",
        &["portcullisctl describe space $SPACE_A"],
    ),
    (
        "Where do the containers of an app run, and which rules do they have?",
        &[
            "portcullisctl get containers --app $APP_A",
            "portcullisctl describe container $CONTAINER_A",
        ],
    ),
    (
        "Do Cloud Controller, policy store and cells agree?",
        &[
            "portcullisctl diff --cc-ca $PORTCULLIS_CA",
            "portcullisctl reconcile --cell cell-1 --yes",
        ],
    ),
    (
        "Which syncer leads, and how do I hold a lock by hand?",
        &[
            "portcullisctl get locks",
            "portcullisctl lock claim maintenance --owner me --ttl 60s --yes",
            "portcullisctl lock release maintenance --owner me --yes",
            "portcullisctl presence claim cell-under-repair --owner me --ttl 60s --yes",
            "portcullisctl get presences",
        ],
    ),
    ("Read the Cloud Controller now", &["portcullisctl sync"]),
    (
        "Output for scripts",
        &[
            "portcullisctl get cells -o json",
            "portcullisctl get cells -o yaml",
            "portcullisctl get cells --no-headers -o fields=cell,behind",
            "portcullisctl version",
        ],
    ),
    (
        "What if a cell is dead?",
        &[
            "portcullis-dev cluster --state-dir $STATE kill cell-agent-2; sleep 1",
            "portcullisctl explain --app $APP_B --to 10.0.12.5:5432/tcp   # from what the cell reported last",
            "portcullisctl doctor",
        ],
    ),
];

/// Title, command and output.
type Shown<'a> = (&'a str, &'a str, String);

fn run(cluster: &Cluster) -> Vec<Shown<'static>> {
    let state = cluster.state().display().to_string();
    let mut commands = vec![
        format!("export STATE={state} PORTCULLIS_CONTEXT={state}/context.json; . {state}/env"),
        SETUP.to_owned(),
    ];
    let shown = || {
        CHAPTERS.iter().flat_map(|(title, commands)| commands.iter().map(move |run| (*title, *run)))
    };
    commands.extend(shown().map(|(_, command)| command.to_owned()));
    let shell = tempfile::tempdir().expect("a temporary directory can be made");
    let results = run_in_shell(shell.path(), &commands);
    let (status, printed) = &results[1];
    assert_eq!(status, "0", "{printed}");
    let outputs = results.into_iter().skip(2).map(|(_, printed)| printed.replace(&state, "$STATE"));
    shown().zip(outputs).map(|((title, command), printed)| (title, command, printed)).collect()
}

/// The section of the document.
fn section(shown: &[Shown<'_>]) -> String {
    let mut text = String::new();
    let mut last = "";
    for (title, command, printed) in shown {
        if *title != last {
            write!(text, "\n### {title}\n").expect("a String takes everything");
            last = title;
        }
        let lines = printed.lines().map(str::trim_end).collect::<Vec<_>>().join("\n");
        write!(text, "\n```console\n$ {command}\n{lines}\n```\n")
            .expect("a String takes everything");
    }
    text + "\n"
}

/// The distinct lines of each command, without numbers, GUIDs and the width of columns.
fn shape(section: &str) -> Vec<BTreeSet<String>> {
    let blocks = section.split("```console\n").skip(1);
    let blocks = blocks.map(|block| block.split("\n```").next().unwrap_or_default());
    blocks.map(|block| block.lines().map(normal).collect()).collect()
}

fn normal(line: &str) -> String {
    let word = |word: &str| {
        let is_hex = |c: char| c.is_ascii_hexdigit() || c == '-';
        // GUIDs and trace ids, also in parentheses; times such as 1m2s.
        let core = word.trim_matches(|c: char| !c.is_ascii_alphanumeric());
        let is_long_hex = core.len() >= 32 && core.chars().all(is_hex);
        let is_time = core.starts_with(|c: char| c.is_ascii_digit())
            && core.chars().all(|c| c.is_ascii_digit() || ".,dhms".contains(c));
        if is_long_hex || is_time { word.replace(core, "0") } else { digits(word) }
    };
    // A counter that was not reported yet is a number a moment later.
    let line = line.replace("not counted", "0 (0/s)").replace("null", "0").replace("at least ", "");
    let words = line.split_whitespace().filter(|word| !["ms", "s"].contains(word));
    words
        .map(|part| if part == "-" { "0".to_owned() } else { word(part) })
        .collect::<Vec<_>>()
        .join(" ")
}

fn digits(word: &str) -> String {
    let mut text = String::new();
    for c in word.chars() {
        match c {
            '0'..='9' if text.ends_with('0') => {}
            '0'..='9' => text.push('0'),
            other => text.push(other),
        }
    }
    text
}

#[test]
fn the_transcript_of_the_operations_page_is_current() {
    let cluster = Cluster::start("trans", &["--apps", "3"]);
    let shown = run(&cluster);
    cluster.end();
    let new = section(&shown);
    let document = fs::read_to_string(DOCUMENT).expect("the page is there");
    let (before, rest) = document.split_once(BEGIN).expect("the page has the begin of the section");
    let (old, after) = rest.split_once(END).expect("the page has the end of the section");
    if std::env::var_os("UPDATE_GOLDEN").is_some() {
        fs::write(DOCUMENT, format!("{before}{BEGIN}{new}{END}{after}"))
            .expect("docs can be written");
        return;
    }
    let (old, new) = (shape(old), shape(&new));
    for ((_, command, printed), (old, new)) in shown.iter().zip(old.iter().zip(&new)) {
        assert_eq!(old, new, "{command}: UPDATE_GOLDEN=1 renews the page\n{printed}");
    }
    assert_eq!(old.len(), new.len(), "UPDATE_GOLDEN=1 renews the page");
}

#[test]
fn numbers_and_guids_have_no_shape() {
    let one =
        "enforced  db (fe8253c0-ec81-4349-ab99-19297184bcc8)  17.0 ms  3s ago  127.0.0.1:45  -";
    let other = "enforced db (0d2831b5-e3ab-4b6e-a811-c9ac00be10c2) 1.17 s 1m2s ago 127.0.0.1:9 7";
    assert_eq!(normal(one), normal(other));
    assert_ne!(normal(one), normal(&one.replace("enforced", "behind")));
}
