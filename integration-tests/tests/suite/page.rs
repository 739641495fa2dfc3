//! The web page of the policy store in headless Chromium.

use integration_tests::{
    browser::{Browser, keep},
    process::Process,
    services::{ControlPlane, Site, free_port},
};
use serde_json::{Value, json};

/// A group name that would run a script if the page parsed texts as HTML.
const HOSTILE: &str = "<img src=x onerror=\"window.hacked=1\"><script>window.hacked=1</script>";

/// Roles of elements that a keyboard user can operate.
const OPERABLE: [&str; 5] = ["button", "textbox", "searchbox", "combobox", "checkbox"];

fn page_of(store: &Process) -> String {
    let started = store.wait_for("policy-server-internal.started");
    let address = started["data"]["admin-address"].as_str().expect("an address").to_owned();
    format!("http://{address}/")
}

/// A policy store that accepts simulated cells, and the cells with a writer that changes a group
/// every two seconds.
struct Foundation {
    store: Process,
    _cells: Process,
    _site: Site,
}

impl Foundation {
    fn start(cells: usize, containers: usize) -> Self {
        let site = Site::new();
        let files = site.certificate("policy-store");
        let address = format!("127.0.0.1:{}", free_port());
        let config = json!({
            "grpc_listen_address": address,
            "admin_listen_address": "127.0.0.1:0",
            "ca_cert_file": files.ca, "server_cert_file": files.cert, "server_key_file": files.key,
            "database": { "type": "sqlite", "path": site.path("policy-store.db") },
            "cell_id_from": "any",
            "web_page": true,
        });
        let config = site.config("policy-store", &config);
        let store = Process::serve("policy-store", "-config-file", &config);
        store.wait_for("policy-server-internal.started");
        let (writer, cell) = (site.certificate("syncer"), site.cell_certificate("cells"));
        let text = |path: &std::path::Path| path.display().to_string();
        let certificates = [
            ("--ca", &writer.ca),
            ("--writer-cert", &writer.cert),
            ("--writer-key", &writer.key),
            ("--cell-cert", &cell.cert),
            ("--cell-key", &cell.key),
        ];
        let mut arguments: Vec<String> =
            ["load", "store", "--groups", "300", "--rules", "5", "--spaces", "100"]
                .iter()
                .chain(&["--cell-spaces", "5", "--changes", "100000", "--pause", "2s"])
                .map(|&argument| argument.to_owned())
                .collect();
        for (flag, path) in certificates {
            arguments.extend([flag.to_owned(), text(path)]);
        }
        arguments.extend(["--address".to_owned(), address]);
        arguments.extend(["--watchers".to_owned(), cells.to_string()]);
        arguments.extend(["--containers".to_owned(), containers.to_string()]);
        let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
        let cells = Process::start("portcullis-dev", &arguments);
        Self { store, _cells: cells, _site: site }
    }

    /// Opens the page, and waits until all cells are there and a change is in force.
    fn open(&self, cells: usize) -> Browser {
        let mut browser = Browser::open(&page_of(&self.store), 1200, 900);
        browser.wait_for(&format!("document.querySelectorAll('#cells button').length === {cells}"));
        browser.wait_for("document.querySelectorAll('#changes tbody tr').length > 1");
        browser.wait_for(&format!(
            "[...document.querySelectorAll('#changes td:nth-child(5)')]\
             .some((cell) => cell.textContent.replaceAll(',', '') === '{cells} of {cells}')"
        ));
        browser
    }
}

#[test]
fn the_page_shows_cells_and_answers_questions_by_keyboard() {
    let foundation = Foundation::start(20, 10);
    let mut browser = foundation.open(20);
    let shown = browser.evaluate("document.body.innerText");
    let shown = shown.as_str().expect("a text");
    for missing in ["NaN", "undefined", "null"] {
        assert!(!shown.contains(missing), "{shown}");
    }
    keep("page-20-cells.png", &browser.screenshot());
    browser.prefer("dark");
    keep("page-20-cells-dark.png", &browser.screenshot());
    browser.prefer("light");

    for (role, name) in browser.accessible(&OPERABLE) {
        assert!(!name.trim().is_empty(), "a {role} has no name for a screen reader");
    }
    // One of the cells is in the tab order; arrow keys reach the others.
    browser.evaluate("document.querySelector('#cells button[tabindex=\"0\"]').focus()");
    browser.press("ArrowRight");
    let focused = browser.evaluate("document.activeElement.dataset.id");
    assert_eq!(focused, "cell-1");
    browser.press("Enter");
    browser.wait_for(
        "document.querySelectorAll('#details-body table:last-of-type tbody tr').length === 10",
    );
    assert_eq!(browser.evaluate("document.getElementById('details-title').textContent"), "cell-1");
    browser.press("Escape");
    browser.wait_for("!document.getElementById('details').open");

    let text = |browser: &mut Browser, id: &str| {
        let text = browser.evaluate(&format!("document.getElementById('{id}').innerText"));
        text.as_str().expect("a text").to_owned()
    };
    let handle = "00000003-0000-4000-8000-000000000000";
    browser.evaluate("document.querySelector('#explain select[name=kind]').value = 'handle'");
    for (name, value) in [("subject", handle), ("destination", "192.0.2.1"), ("port", "443")] {
        browser.evaluate(&format!("document.querySelector('#explain input[name={name}]').focus()"));
        browser.insert(value);
    }
    browser.press("Enter");
    browser.wait_for("document.querySelector('#explained .denied') !== null");
    assert!(text(&mut browser, "explained").contains(handle));
    browser.evaluate("document.getElementById('q').focus()");
    browser.insert("10.100.0.2");
    browser.press("Enter");
    browser.wait_for(&format!("document.getElementById('found').innerText.includes('{handle}')"));
    assert_eq!(browser.errors(), Vec::<String>::new());
}

#[test]
fn texts_of_users_are_never_html() {
    let mut plane = ControlPlane::start();
    let page = page_of(&plane.policy_store);
    let closed = reqwest::blocking::get(&page).expect("the admin address answers");
    assert_eq!(closed.status(), 404, "the page is off by default");
    plane.policy_store.kill();
    let path = plane.site.path("policy-store.json");
    let config = std::fs::read_to_string(&path).expect("the configuration is there");
    let mut config: Value = serde_json::from_str(&config).expect("the configuration is JSON");
    config["web_page"] = json!(true);
    plane.site.config("policy-store", &config);
    plane.restart_store();

    let _syncer = plane.syncer("syncer-1");
    plane.cloud.create_group("first", "10.1.0.0/16");
    plane.wait_until_synced();
    let mut browser = Browser::open(&page_of(&plane.policy_store), 800, 900);
    browser.wait_for("document.getElementById('connection').className === 'live'");
    plane.cloud.create_group(HOSTILE, "10.2.0.0/16");
    let is_shown =
        format!("document.getElementById('changes').innerText.includes({})", json!(HOSTILE));
    browser.wait_for(&is_shown);
    browser.evaluate("document.getElementById('q').focus()");
    browser.insert(HOSTILE);
    browser.press("Enter");
    browser.wait_for("document.querySelector('#found h3') !== null");
    let heading = browser.evaluate("document.querySelector('#found h3').textContent");
    assert_eq!(heading, format!("Group {HOSTILE}"));
    assert_eq!(browser.evaluate("document.querySelectorAll('img').length"), 0);
    assert_eq!(browser.evaluate("window.hacked === undefined"), true);
    assert_eq!(browser.errors(), Vec::<String>::new());

    // An inline script, as an injected text would be, does not run.
    browser.evaluate(
        "{ const script = document.createElement('script'); script.textContent = 'window.hacked=1';
           document.body.append(script); }",
    );
    assert_eq!(browser.evaluate("window.hacked === undefined"), true);
    assert!(browser.errors().iter().any(|error| error.contains("Content Security Policy")));
    browser.wait_for("document.querySelectorAll('#summary div').length === 12");
}

#[test]
#[ignore = "takes a minute: UPDATE_GOLDEN=1 renews the pictures in docs"]
fn small_and_large_foundations_fit_on_the_page() {
    for (cells, containers) in [(2, 10), (1_000, 250)] {
        let foundation = Foundation::start(cells, containers);
        let mut browser = foundation.open(cells);
        keep(&format!("page-{cells}-cells.png"), &browser.screenshot());
        assert_eq!(browser.errors(), Vec::<String>::new());
    }
}
