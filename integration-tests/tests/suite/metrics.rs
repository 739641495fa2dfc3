//! The metrics that each service's process serves: declared, documented in docs/metrics.md,
//! and accepted by a real promtool.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt::Write as _,
    fs,
};

use integration_tests::{process::Process, services::ControlPlane, tools, wait};
use runtime::metrics::{FAMILIES, Family, Label, PROCESS};

use super::cell_agent::{apart, watching};

const PAGE: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../docs/metrics.md");
/// The tables follow this line of the page.
const MARK: &str =
    "<!-- The tables are generated: UPDATE_GOLDEN=1 cargo test -p integration-tests -- metrics -->";

/// The values of the label `server`.
const SERVERS: [&str; 6] = ["grpc", "http", "admin", "health", "control", "cell"];

/// The address in a log line that a service writes at its start.
pub(crate) fn address(process: &Process, message: &str, key: &str) -> String {
    let line = process.wait_for(message);
    line["data"][key].as_str().unwrap_or_else(|| panic!("no {key} in {line}")).to_owned()
}

/// The metrics of the service at this address.
pub(crate) fn scrape(address: &str) -> String {
    let url = format!("http://{address}/metrics");
    wait::until(&url, || {
        let answer = reqwest::blocking::get(&url).and_then(reqwest::blocking::Response::text);
        answer.map_err(|error| error.to_string())
    })
}

fn services() -> [(&'static str, &'static [Family]); 4] {
    [
        ("lock-server", lock_server::metrics::FAMILIES),
        ("policy-store", policy_store::metrics::FAMILIES),
        ("syncer", syncer::metrics::FAMILIES),
        ("cell-agent", cell_agent::metrics::FAMILIES),
    ]
}

/// A scraped family.
#[derive(Debug, Default)]
struct Scraped {
    help: String,
    kind: String,
    /// The labels of each series.
    labels: BTreeSet<BTreeMap<String, String>>,
}

fn parse(text: &str) -> BTreeMap<String, Scraped> {
    let mut families: BTreeMap<String, Scraped> = BTreeMap::new();
    for line in text.lines().filter(|line| !line.is_empty()) {
        if let Some(rest) = line.strip_prefix("# HELP ") {
            let (name, help) = rest.split_once(' ').expect("a name and its help");
            families.entry(name.to_owned()).or_default().help = help.to_owned();
        } else if let Some(rest) = line.strip_prefix("# TYPE ") {
            let (name, kind) = rest.split_once(' ').expect("a name and its kind");
            families.entry(name.to_owned()).or_default().kind = kind.to_owned();
        } else {
            let (series, _value) = line.rsplit_once(' ').expect("a series and its value");
            let (name, labels) = series.split_once('{').unwrap_or((series, ""));
            let histogram = ["_bucket", "_sum", "_count"].iter().find_map(|suffix| {
                name.strip_suffix(suffix).filter(|name| families.contains_key(*name))
            });
            let pairs = labels.trim_end_matches('}').split("\",").filter(|pair| !pair.is_empty());
            let pairs = pairs.filter_map(|pair| pair.split_once("=\""));
            let labels = pairs.map(|(name, value)| (name.into(), value.trim_matches('"').into()));
            let labels = labels.filter(|(name, _): &(String, String)| name != "le").collect();
            let family = families.entry(histogram.unwrap_or(name).to_owned()).or_default();
            family.labels.insert(labels);
        }
    }
    families
}

/// All scraped families agree with their declarations, and all families without a condition
/// exist from the start.
fn compare(service: &str, own: &[Family], text: &str) {
    let scraped = parse(text);
    let declared: BTreeMap<_, _> =
        [FAMILIES, PROCESS, own].concat().into_iter().map(|family| (family.name, family)).collect();
    for (name, Scraped { help, kind, labels }) in &scraped {
        let family = declared.get(&**name).unwrap_or_else(|| panic!("{service}: {name}: {text}"));
        assert_eq!((&**help, &**kind), (family.help, family.kind_name()), "{service}: {name}");
        let names: BTreeSet<_> = family.labels.iter().map(|label| label.name).collect();
        for labels in labels {
            let found: BTreeSet<_> = labels.keys().map(String::as_str).collect();
            assert_eq!(found, names, "{service}: {name}");
            if let Some(server) = labels.get("server") {
                assert!(SERVERS.contains(&&**server), "{service}: {name}: {server}");
            }
        }
    }
    for (name, family) in declared {
        assert!(scraped.contains_key(name) || !family.when.is_empty(), "{service}: no {name}");
    }
}

#[test]
fn every_service_shows_what_it_declares_and_promtool_accepts_it() {
    apart(|| {
        let plane = ControlPlane::start();
        let leader = plane.syncer("syncer-1");
        plane.cloud.create_group("first", "10.1.0.0/16");
        plane.wait_until_synced();
        let standby = plane.syncer("syncer-2");
        let agent = watching(&plane);
        agent.wait_for("rules-applied");
        let debug = |syncer| address(syncer, "debug-server-bound", "address");
        let store = address(&plane.policy_store, "policy-server-internal.started", "admin-address");
        let [of_lock_server, of_store, of_syncer, of_agent] = services();
        let scrapes = [
            (of_lock_server, plane.lock_server.debug_address()),
            (of_store, store),
            (of_syncer, debug(&leader)),
            (of_syncer, debug(&standby)),
            (of_agent, address(&agent, "vxlan-policy-agent.started", "debug")),
        ];
        for ((service, families), address) in scrapes {
            let text = scrape(&address);
            tools::promtool(&text).unwrap_or_else(|said| panic!("{service}: {said}"));
            compare(service, families, &text);
        }
        // `increase()` needs the zero before the first failure.
        let text = scrape(&debug(&standby));
        for series in [r#"syncer_failures_total{cause="store"}"#, "syncer_lost_locks_total"] {
            let line = format!("{series} 0");
            assert!(text.lines().any(|found| found == line), "{line} in {text}");
        }
    });
}

fn labels(labels: &[Label]) -> String {
    let label = |Label { name, values }: &Label| match values.is_empty() {
        true => format!("`{name}`"),
        false => format!("`{name}`: {}", values.join(", ")),
    };
    labels.iter().map(label).collect::<Vec<_>>().join("; ")
}

fn table(title: &str, families: &[Family]) -> String {
    let mut families = families.to_vec();
    families.sort_by_key(|family| family.name);
    let mut text =
        format!("\n## {title}\n\n| name | type | unit | labels | what |\n|---|---|---|---|---|\n");
    for family in families {
        let when = match family.when {
            "" => String::new(),
            when => format!(" Only when {when}."),
        };
        let (name, kind, unit) = (family.name, family.kind_name(), family.unit());
        let (labels, help) = (labels(family.labels), family.help);
        writeln!(text, "| `{name}` | {kind} | {unit} | {labels} | {help}{when} |")
            .expect("writing to a String");
    }
    text
}

/// `UPDATE_GOLDEN=1` rewrites the tables.
#[test]
fn the_page_on_metrics_lists_all_of_them() {
    let mut page = fs::read_to_string(PAGE).expect("docs/metrics.md is there");
    let (head, _) = page.split_once(MARK).expect("the page has the mark");
    let mut text = format!("{head}{MARK}\n");
    text.push_str(&table("Every process", &[FAMILIES, PROCESS].concat()));
    for (service, families) in services() {
        text.push_str(&table(service, families));
    }
    if std::env::var_os("UPDATE_GOLDEN").is_some() {
        fs::write(PAGE, &text).expect("docs/metrics.md can be written");
        page.clone_from(&text);
    }
    assert!(page == text, "docs/metrics.md is out of date; UPDATE_GOLDEN=1 writes it anew");
}

/// Includes the families with a condition.
#[test]
fn promtool_accepts_every_declared_name() {
    let own = services().map(|(_, families)| families).concat();
    let mut text = String::new();
    for family in [FAMILIES, PROCESS, &own].concat() {
        let Family { name, help, .. } = family;
        let kind = match family.kind_name() {
            "histogram" => "untyped",
            kind => kind,
        };
        writeln!(text, "# HELP {name} {help}\n# TYPE {name} {kind}\n{name} 0")
            .expect("writing to a String");
    }
    tools::promtool(&text).unwrap_or_else(|said| panic!("{said}"));
}

/// An undeclared family would have no HELP, and no zero at the start.
#[test]
fn metrics_are_counted_through_their_declarations() {
    let root = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
    let mut found = Vec::new();
    for service in services().map(|(service, _)| service) {
        let mut directories = vec![root.join(service).join("src")];
        while let Some(directory) = directories.pop() {
            for entry in fs::read_dir(directory).expect("the sources are readable") {
                let path = entry.expect("the sources are readable").path();
                if path.is_dir() {
                    directories.push(path);
                    continue;
                }
                let text = fs::read_to_string(&path).unwrap_or_default();
                let macros = ["counter!(", "gauge!(", "histogram!("];
                if macros.iter().any(|name| text.contains(name)) {
                    found.push(path);
                }
            }
        }
    }
    assert!(found.is_empty(), "use the constants of metrics.rs: {found:?}");
}
