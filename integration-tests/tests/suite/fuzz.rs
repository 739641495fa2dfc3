//! Fuzz test of the configuration files of all services.

use ::fuzz::{Bounds, Fuzz, Language};
use runtime::config::{Configure, parse};
use serde_json::Value;

/// The secret in the inputs.
const SECRET: &str = "hush-hush";

fn outcome<T: Configure>(json: &str) -> String {
    match parse::<T>(json) {
        Ok(loaded) => format!("ok, {} unknown keys", loaded.unknown.len()),
        Err(error) => error.to_string(),
    }
}

/// Whether the secret is only in values of keys that are secret.
fn is_secret(value: &Value, path: &str) -> bool {
    const NAMES: [&str; 4] = ["password", "secret", "token", "connection_string"];
    if NAMES.iter().any(|name| path.contains(name)) {
        return true;
    }
    match value {
        Value::String(text) => !text.contains(SECRET),
        Value::Array(values) => values.iter().all(|value| is_secret(value, path)),
        Value::Object(fields) => fields.iter().all(|(key, value)| {
            !key.contains(SECRET) && is_secret(value, &format!("{path}.{}", key.to_lowercase()))
        }),
        _ => true,
    }
}

/// No error has the value of a secret key.
#[test]
fn configuration_files() {
    let bounds = Bounds { allocations: (3_000, 40), ..Bounds::default() };
    let fuzz = Fuzz::new(env!("CARGO_MANIFEST_DIR"), "config", Language::Json).bounds(bounds);
    let fuzz = fuzz.tokens(&[
        SECRET,
        "password",
        "15s",
        "1h",
        "127.0.0.1:80",
        "[::1]:1",
        "10.0.0.0/8",
        "cn=a",
        "info",
        "postgres://u:hush-hush@h/d",
        "u:hush-hush@tcp(h:1)/d",
        "user=u password=hush-hush host=h",
        "sqlite",
        "mysql",
        "iptables",
        "uuid",
        "database_connection_string",
        "uaa_client_secret",
    ]);
    fuzz.expects(&["cell-agent ok", "lock-server ok", "policy-store ok", "syncer ok"]).run(
        |input| {
            let text = String::from_utf8_lossy(input);
            let outcomes = [
                ("cell-agent", outcome::<cell_agent::config::Config>(&text)),
                ("lock-server", outcome::<lock_server::config::Config>(&text)),
                ("policy-store", outcome::<policy_store::config::Config>(&text)),
                ("syncer", outcome::<syncer::config::Config>(&text)),
            ];
            let value: Option<Value> = serde_json::from_str(&text).ok();
            if value.is_some_and(|value| is_secret(&value, "")) {
                for (service, outcome) in &outcomes {
                    assert!(!outcome.contains(SECRET), "{service}: {outcome}");
                }
            }
            let accepted = outcomes.iter().find(|(_, outcome)| outcome.starts_with("ok"));
            let (service, outcome) = accepted.unwrap_or(&outcomes[input.len() % 4]);
            format!("{service} {outcome}")
        },
    );
}
