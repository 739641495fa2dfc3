//! Headless Chromium, controlled with the Chrome DevTools Protocol over a pipe
//! (<https://chromedevtools.github.io/devtools-protocol/>): JSON messages that end with a NUL byte.

use std::{
    fs,
    io::{BufRead as _, BufReader, Write as _},
    os::unix::process::CommandExt as _,
    path::{Path, PathBuf},
    process::{Child, ChildStdin, Command, Stdio},
    sync::mpsc::{Receiver, channel},
    thread,
};

use base64::{Engine as _, prelude::BASE64_STANDARD};
use nix::{
    sys::signal::{Signal, killpg},
    unistd::{Pid, Uid},
};
use serde_json::{Value, json};

use crate::{tools, wait};

/// The browser reads messages from file descriptor 3 and writes to 4.
const START: &str = r#"exec "$@" 3<&0 4>&1 >"$0" 2>&1"#;

/// A browser with one page; dropping the handle ends the browser.
#[derive(Debug)]
pub struct Browser {
    child: Child,
    requests: ChildStdin,
    messages: Receiver<Value>,
    session: Option<String>,
    next: u64,
    errors: Vec<String>,
    directory: tempfile::TempDir,
}

impl Browser {
    /// Opens a page in a window of this size.
    ///
    /// # Panics
    /// The browser is missing, or the page cannot be loaded.
    pub fn open(url: &str, width: u32, height: u32) -> Self {
        let directory = tempfile::tempdir().expect("a temporary directory can be made");
        let mut command = Command::new("/bin/sh");
        command.args(["-c", START]).arg(directory.path().join("log"));
        command.arg(tools::path("chromium-headless-shell")).args([
            "--remote-debugging-pipe",
            "--disable-gpu",
            "--disable-dev-shm-usage",
            "--disable-background-networking",
            "--force-color-profile=srgb",
            "--hide-scrollbars",
        ]);
        command.arg(format!("--user-data-dir={}", directory.path().join("profile").display()));
        if Uid::effective().is_root() {
            command.arg("--no-sandbox");
        }
        // A process group of its own, since the browser starts further processes.
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).process_group(0);
        let mut child = command.spawn().expect("/bin/sh runs");
        let requests = child.stdin.take().expect("stdin is piped");
        let messages = follow(child.stdout.take().expect("stdout is piped"));
        let (session, errors) = (None, Vec::new());
        let mut browser = Self { child, requests, messages, session, next: 0, errors, directory };
        browser.attach(width, height);
        browser.call("Page.navigate", &json!({ "url": url }));
        browser.wait_for("document.readyState === 'complete'");
        browser
    }

    fn attach(&mut self, width: u32, height: u32) {
        let target = self.call("Target.createTarget", &json!({ "url": "about:blank" }));
        let attach = json!({ "targetId": target["targetId"], "flatten": true });
        let attached = self.call("Target.attachToTarget", &attach);
        self.session = attached["sessionId"].as_str().map(str::to_owned);
        for domain in ["Page", "Runtime", "Log", "Accessibility"] {
            self.call(&format!("{domain}.enable"), &json!({}));
        }
        self.resize(width, height);
    }

    /// Changes the size of the window.
    pub fn resize(&mut self, width: u32, height: u32) {
        let size =
            json!({ "width": width, "height": height, "deviceScaleFactor": 1, "mobile": false });
        self.call("Emulation.setDeviceMetricsOverride", &size);
    }

    /// Selects the colour scheme: `light` or `dark`.
    pub fn prefer(&mut self, scheme: &str) {
        let features = json!([{ "name": "prefers-color-scheme", "value": scheme }]);
        self.call("Emulation.setEmulatedMedia", &json!({ "features": features }));
    }

    /// Calls a method of the protocol; returns its result.
    ///
    /// # Panics
    /// The browser returns an error, or nothing in time.
    pub fn call(&mut self, method: &str, params: &Value) -> Value {
        self.next += 1;
        let mut request = json!({ "id": self.next, "method": method, "params": params });
        if let Some(session) = &self.session {
            request["sessionId"] = json!(session);
        }
        let sent = write!(self.requests, "{request}\0").and_then(|()| self.requests.flush());
        sent.unwrap_or_else(|error| panic!("{method}: {error}: {}", self.log()));
        loop {
            let message = self.messages.recv_timeout(wait::LONG);
            let message =
                message.unwrap_or_else(|error| panic!("{method}: {error}: {}", self.log()));
            if message["id"] == self.next {
                assert!(message["error"].is_null(), "{method}: {message}");
                return message["result"].clone();
            }
            self.note(&message);
        }
    }

    /// Remembers errors that the page causes, such as violations of its content security policy.
    fn note(&mut self, event: &Value) {
        let params = &event["params"];
        match event["method"].as_str() {
            Some("Runtime.exceptionThrown") => self.errors.push(params.to_string()),
            Some("Log.entryAdded") if params["entry"]["level"] == "error" => {
                self.errors.push(params["entry"]["text"].to_string());
            }
            _ => {}
        }
    }

    /// Errors of the page until now.
    pub fn errors(&mut self) -> Vec<String> {
        // A call reads the events before its result.
        self.evaluate("1");
        self.errors.clone()
    }

    /// The value of a JavaScript expression; a promise is awaited.
    ///
    /// # Panics
    /// The expression throws.
    pub fn evaluate(&mut self, expression: &str) -> Value {
        let params =
            json!({ "expression": expression, "awaitPromise": true, "returnByValue": true });
        let answer = self.call("Runtime.evaluate", &params);
        assert!(answer["exceptionDetails"].is_null(), "{expression}: {answer}");
        answer["result"]["value"].clone()
    }

    /// Waits until an expression is true.
    ///
    /// # Panics
    /// The expression is not true in time.
    pub fn wait_for(&mut self, expression: &str) {
        wait::until(expression, || match self.evaluate(expression) {
            Value::Bool(true) => Ok(()),
            other => Err(format!("{other}; {}", self.evaluate("document.body.innerText"))),
        });
    }

    /// Presses a key, such as `Tab`, `Enter` or `ArrowRight`.
    pub fn press(&mut self, key: &str) {
        let (code, text) = match key {
            "Enter" => (13, "\r"),
            "Tab" => (9, ""),
            "Escape" => (27, ""),
            "ArrowLeft" => (37, ""),
            "ArrowUp" => (38, ""),
            "ArrowRight" => (39, ""),
            "ArrowDown" => (40, ""),
            other => panic!("no code for the key {other}"),
        };
        let event = |kind: &str| {
            json!({
                "type": kind, "key": key, "code": key, "text": text, "windowsVirtualKeyCode": code,
            })
        };
        self.call("Input.dispatchKeyEvent", &event("keyDown"));
        self.call("Input.dispatchKeyEvent", &event("keyUp"));
    }

    /// Types text into the focused element.
    pub fn insert(&mut self, text: &str) {
        self.call("Input.insertText", &json!({ "text": text }));
    }

    /// Names and roles of the elements of these roles, as a screen reader gets them.
    pub fn accessible(&mut self, roles: &[&str]) -> Vec<(String, String)> {
        let tree = self.call("Accessibility.getFullAXTree", &json!({}));
        let text = |value: &Value| value["value"].as_str().unwrap_or_default().to_owned();
        let nodes = tree["nodes"].as_array().expect("the tree has nodes").iter();
        let nodes = nodes.filter(|node| node["ignored"] != true);
        let named = nodes.map(|node| (text(&node["role"]), text(&node["name"])));
        named.filter(|(role, _)| roles.contains(&role.as_str())).collect()
    }

    /// A picture of the whole page as PNG.
    ///
    /// # Panics
    /// The browser sends something else.
    pub fn screenshot(&mut self) -> Vec<u8> {
        let params = json!({ "format": "png", "captureBeyondViewport": true });
        let picture = self.call("Page.captureScreenshot", &params);
        let data = picture["data"].as_str().expect("the picture is text");
        BASE64_STANDARD.decode(data).expect("the picture is base64")
    }

    fn log(&self) -> String {
        fs::read_to_string(self.directory.path().join("log")).unwrap_or_default()
    }
}

impl Drop for Browser {
    fn drop(&mut self) {
        let group = i32::try_from(self.child.id()).map(Pid::from_raw);
        let _gone = group.map(|group| killpg(group, Signal::SIGKILL));
        let _ended = self.child.wait();
    }
}

/// Messages of the browser until its end.
fn follow(from: impl std::io::Read + Send + 'static) -> Receiver<Value> {
    let (sender, receiver) = channel();
    thread::spawn(move || {
        let mut from = BufReader::new(from);
        let mut message = Vec::new();
        while from.read_until(0, &mut message).is_ok_and(|length| length > 0) {
            let parsed = serde_json::from_slice(message.strip_suffix(&[0]).unwrap_or(&message));
            if parsed.is_ok_and(|parsed| sender.send(parsed).is_err()) {
                return;
            }
            message.clear();
        }
    });
    receiver
}

/// Compares a picture with the one in `docs/screenshots`, only in size: fonts differ between
/// machines. With `UPDATE_GOLDEN=1` writes it.
///
/// # Panics
/// The picture is missing in `docs`, or cannot be written.
pub fn keep(name: &str, picture: &[u8]) {
    let path: PathBuf = [env!("CARGO_MANIFEST_DIR"), "../docs/screenshots", name].iter().collect();
    if std::env::var_os("UPDATE_GOLDEN").is_some() {
        fs::create_dir_all(path.parent().unwrap_or(Path::new("."))).expect("docs can be written");
        fs::write(&path, picture).expect("docs can be written");
    }
    assert!(path.is_file(), "{} is missing: run the test with UPDATE_GOLDEN=1", path.display());
    assert_eq!(&picture[..8], b"\x89PNG\r\n\x1a\n", "{name} is a PNG");
}
