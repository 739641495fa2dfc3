//! Log lines of the servers. Pure.

use std::net::SocketAddr;

use serde_json::Value;

/// The data of a log line whose message has this suffix.
pub(super) fn data_of(line: &str, message: &str) -> Option<Value> {
    let mut line: Value = serde_json::from_str(line).ok()?;
    let logged = line["message"].as_str()?;
    let is_it = logged.strip_suffix(message).is_some_and(|rest| rest.ends_with('.'));
    is_it.then(|| line["data"].take())
}

/// The gRPC listen address in a log line, if any.
pub(super) fn listens_by_log(line: &str) -> Option<String> {
    let line: Value = serde_json::from_str(line).ok()?;
    let is_started = line["message"].as_str()?.ends_with(".started");
    let address = line["data"]["address"].as_str()?;
    let _well_formed: SocketAddr = address.parse().ok()?;
    is_started.then(|| address.to_owned())
}

/// The address of a policy store's HTTP API of the original in a log line, if any.
pub(super) fn serves_http_by_log(line: &str) -> Option<String> {
    let line: Value = serde_json::from_str(line).ok()?;
    let is_it = line["message"].as_str()?.ends_with(".starting internal server");
    let host = line["data"]["listen-address"].as_str()?;
    let port = line["data"]["port"].as_u64()?;
    is_it.then(|| format!("{host}:{port}"))
}

/// The address of an agent's control endpoints in a log line, if any.
pub(super) fn controls_by_log(line: &str) -> Option<String> {
    let line: Value = serde_json::from_str(line).ok()?;
    let is_started = line["message"].as_str()?.ends_with(".started");
    let address = line["data"]["control"].as_str()?;
    is_started.then(|| address.to_owned())
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_message_is_known_by_its_last_word() {
        let line = r#"{"message":"a.b.applied","data":{"added":7}}"#;
        assert_eq!(data_of(line, "applied"), Some(json!({ "added": 7 })));
        assert_eq!(data_of(line, "b.applied"), Some(json!({ "added": 7 })));
        assert_eq!(data_of(line, "lied"), None);
        assert_eq!(data_of("not JSON", "applied"), None);
    }

    #[test]
    fn the_log_says_where_http_is_served() {
        let line = r#"{"message":"x.policy-server-internal.starting internal server","data":{"listen-address":"127.0.0.1","port":7}}"#;
        assert_eq!(serves_http_by_log(line).as_deref(), Some("127.0.0.1:7"));
        assert_eq!(serves_http_by_log(r#"{"message":"x.started","data":{"port":7}}"#), None);
    }

    #[test]
    fn the_log_says_where_a_service_listens() {
        let line = r#"{"message":"locket.grpc-server.started","data":{"address":"127.0.0.1:7"}}"#;
        assert_eq!(listens_by_log(line).as_deref(), Some("127.0.0.1:7"));
        for other in [
            r#"{"message":"locket.debug-server.bound","data":{"address":"127.0.0.1:7"}}"#,
            r#"{"message":"locket.started","data":{}}"#,
            "thread panicked",
        ] {
            assert_eq!(listens_by_log(other), None, "{other}");
        }
    }
}
