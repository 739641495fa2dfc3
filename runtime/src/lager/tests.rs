use std::fmt::{Debug, Formatter};
use std::io::{self, Write};

use serde::Serialize;
use serde_json::Value as Json;
use tracing_subscriber::layer::SubscriberExt;

use super::*;

fn options(source: &str, level: Level, format: TimeFormat) -> Options {
    Options { source: source.into(), level, format }
}

/// The lines that `log` writes, without their time stamps.
fn logged(level: Level, log: impl FnOnce()) -> String {
    let (capture, _control, _guard) = capture(options("locket", level, TimeFormat::Rfc3339));
    log();
    without_timestamps(&capture.text())
}

fn without_timestamps(text: &str) -> String {
    let strip = |line: &str| {
        let (start, rest) = line.split_once("\"timestamp\":\"").unwrap();
        let (_stamp, rest) = rest.split_once("\",").unwrap();
        format!("{start}{rest}\n")
    };
    text.lines().map(strip).collect()
}

#[derive(Serialize)]
struct Lock<'a> {
    key: &'a str,
    owner: &'a str,
    #[serde(rename = "type")]
    kind: &'a str,
    type_code: u8,
}

const SYNCER: &str = "cfnetworking.policy-server-asg-syncer";

/// Lines of the original, recorded during its first sync.
#[test]
fn recorded_lines_are_written_to_the_byte() {
    let source = options(SYNCER, Level::Debug, TimeFormat::Rfc3339);
    let (capture, _control, _guard) = capture(source);
    for _earlier in ["metrics", "cc", "cc-internal"] {
        let _session = tracing::info_span!("earlier");
    }
    let lock =
        Lock { key: "policy-server-asg-syncer", owner: "bench-uuid", kind: "lock", type_code: 1 };
    tracing::info!("getting db connection");
    tracing::info!(interval = 2, "starting-asg-syncer");
    let span = tracing::info_span!("locket-lock", ttl_in_seconds = 15, lock = json(&lock));
    span.in_scope(|| tracing::info!("started"));
    tracing::debug!("asg-sync-started");
    let route = "/v3/security_groups?per_page=5000&page=1";
    tracing::debug!(route, "get-security-groups-with-page-request");
    span.in_scope(|| tracing::info!("acquired-lock"));

    let expected = [
        r#"{"level":"info","source":"cfnetworking.policy-server-asg-syncer","message":"cfnetworking.policy-server-asg-syncer.getting db connection","data":{}}"#,
        r#"{"level":"info","source":"cfnetworking.policy-server-asg-syncer","message":"cfnetworking.policy-server-asg-syncer.starting-asg-syncer","data":{"interval":2}}"#,
        r#"{"level":"info","source":"cfnetworking.policy-server-asg-syncer","message":"cfnetworking.policy-server-asg-syncer.locket-lock.started","data":{"lock":{"key":"policy-server-asg-syncer","owner":"bench-uuid","type":"lock","type_code":1},"session":"4","ttl_in_seconds":15}}"#,
        r#"{"level":"debug","source":"cfnetworking.policy-server-asg-syncer","message":"cfnetworking.policy-server-asg-syncer.asg-sync-started","data":{}}"#,
        r#"{"level":"debug","source":"cfnetworking.policy-server-asg-syncer","message":"cfnetworking.policy-server-asg-syncer.get-security-groups-with-page-request","data":{"route":"/v3/security_groups?per_page=5000\u0026page=1"}}"#,
        r#"{"level":"info","source":"cfnetworking.policy-server-asg-syncer","message":"cfnetworking.policy-server-asg-syncer.locket-lock.acquired-lock","data":{"lock":{"key":"policy-server-asg-syncer","owner":"bench-uuid","type":"lock","type_code":1},"session":"4","ttl_in_seconds":15}}"#,
    ];
    assert_eq!(without_timestamps(&capture.text()), expected.join("\n") + "\n");
}

#[test]
fn time_stamps_have_nine_fractional_digits() {
    let (rfc3339, _control, guard) = capture(options("locket", Level::Info, TimeFormat::Rfc3339));
    tracing::info!("started");
    drop(guard);
    let line = rfc3339.text();
    let stamp = &line[r#"{"timestamp":""#.len()..];
    let stamp = stamp.split('"').next().unwrap();
    assert_eq!(stamp.len(), "2026-11-23T01:46:56.479512724Z".len(), "{line}");
    assert!(stamp.ends_with('Z') && stamp.as_bytes()[19] == b'.', "{line}");
    let parsed: jiff::Timestamp = stamp.parse().unwrap();
    let age = jiff::Timestamp::now().duration_since(parsed);
    assert!(age.as_secs_f64().abs() < 60.0, "{line}");
}

#[test]
fn the_legacy_form_has_its_own_order_and_numbers() {
    let (capture, _control, _guard) =
        capture(options("locket", Level::Debug, TimeFormat::UnixEpoch));
    tracing::debug!("a");
    tracing::info!("started");
    tracing::error!("c");
    tracing::error!(lager.fatal = true, "d");
    let expected = r#"{"source":"locket","message":"locket.a","log_level":0,"data":{}}
{"source":"locket","message":"locket.started","log_level":1,"data":{}}
{"source":"locket","message":"locket.c","log_level":2,"data":{}}
{"source":"locket","message":"locket.d","log_level":3,"data":{}}
"#;
    assert_eq!(without_timestamps(&capture.text()), expected);
    let stamp = capture.lines()[0]["timestamp"].as_str().unwrap().to_owned();
    let (seconds, fraction) = stamp.split_once('.').unwrap();
    assert!(seconds.parse::<u64>().unwrap() > 1_700_000_000, "{stamp}");
    assert_eq!(fraction.len(), 9, "{stamp}");
}

#[test]
fn sessions_are_numbered_and_nested() {
    let text = logged(Level::Info, || {
        let first = tracing::info_span!("first");
        let second = tracing::info_span!("second", key = "outer", only = 1);
        let child = tracing::info_span!(parent: &second, "child");
        let other = tracing::info_span!(parent: &second, "other", key = "inner");
        let grandchild = tracing::info_span!(parent: &other, "grandchild");
        first.in_scope(|| tracing::info!("a"));
        child.in_scope(|| tracing::info!("b"));
        grandchild.in_scope(|| tracing::info!("c"));
        grandchild.in_scope(|| tracing::info!(key = "innermost", "d"));
        tracing::info!("e");
        tracing::info!(parent: &child, "f");
    });
    let expected = r#"{"level":"info","source":"locket","message":"locket.first.a","data":{"session":"1"}}
{"level":"info","source":"locket","message":"locket.second.child.b","data":{"key":"outer","only":1,"session":"2.1"}}
{"level":"info","source":"locket","message":"locket.second.other.grandchild.c","data":{"key":"inner","only":1,"session":"2.2.1"}}
{"level":"info","source":"locket","message":"locket.second.other.grandchild.d","data":{"key":"innermost","only":1,"session":"2.2.1"}}
{"level":"info","source":"locket","message":"locket.e","data":{}}
{"level":"info","source":"locket","message":"locket.second.child.f","data":{"key":"outer","only":1,"session":"2.1"}}
"#;
    assert_eq!(text, expected);
}

#[test]
fn a_task_field_names_the_session_and_fields_can_come_later() {
    let text = logged(Level::Info, || {
        let id = "request_5b0f";
        let span = tracing::info_span!("request", lager.task = %id, status = tracing::field::Empty);
        span.in_scope(|| tracing::info!("serving"));
        span.record("status", 200);
        span.in_scope(|| tracing::info!("done"));
    });
    let expected = r#"{"level":"info","source":"locket","message":"locket.request_5b0f.serving","data":{"session":"1"}}
{"level":"info","source":"locket","message":"locket.request_5b0f.done","data":{"session":"1","status":200}}
"#;
    assert_eq!(text, expected);
}

#[test]
fn values_keep_their_types() {
    let (capture, _control, _guard) = capture(options("locket", Level::Info, TimeFormat::Rfc3339));
    let error = io::Error::other("no & way");
    tracing::info!(
        text = "a",
        display = %1,
        debug = ?"b",
        "type-code" = 1_u8,
        negative = -5_i64,
        huge = u128::MAX,
        float = 1.0,
        small = 0.000_000_25,
        large = 1e21,
        nan = f64::NAN,
        yes = true,
        none = Option::<u8>::None,
        some = Some(3),
        error = &error as &dyn std::error::Error,
        nested = json(&serde_json::json!({"b": [1, "<"], "a": null})),
        "values"
    );
    let line = capture.text();
    let (_, data) = line.split_once("\"data\":").unwrap();
    let expected = [
        r#""debug":"\"b\"""#,
        r#""display":"1""#,
        r#""error":"no \u0026 way""#,
        r#""float":1"#,
        r#""huge":340282366920938463463374607431768211455"#,
        r#""large":1e+21"#,
        r#""nan":null"#,
        r#""negative":-5"#,
        r#""nested":{"a":null,"b":[1,"\u003c"]}"#,
        r#""small":2.5e-7"#,
        r#""some":3"#,
        r#""text":"a""#,
        r#""type-code":1"#,
        r#""yes":true"#,
    ];
    assert_eq!(data.trim_end(), format!("{{{}}}}}", expected.join(",")));
}

#[test]
fn strings_are_escaped_as_go_does() {
    let text = logged(Level::Info, || {
        tracing::info!(
            text = "<a href=\"x\">&\u{2028}\u{2029}\\ \n\r\t\u{8}\u{c}\u{1}\u{7f}\u{e9}",
            "odd\n<action>"
        );
    });
    let expected = r#"{"level":"info","source":"locket","message":"locket.odd\n\u003caction\u003e","data":{"text":"\u003ca href=\"x\"\u003e\u0026\u2028\u2029\\ \n\r\t\b\f\u0001"#;
    assert_eq!(text, format!("{expected}\u{7f}\u{e9}\"}}}}\n"));
}

#[test]
fn text_is_never_treated_as_json() {
    struct Lying;
    impl Debug for Lying {
        fn fmt(&self, f: &mut Formatter<'_>) -> std::fmt::Result {
            f.write_str("{\"forged\":1}\n{}")
        }
    }
    let (capture, _control, _guard) = capture(options("locket", Level::Info, TimeFormat::Rfc3339));
    tracing::info!(value = ?Lying, "outer");
    let lines = capture.lines();
    assert_eq!(lines.len(), 1);
    assert_eq!(lines[0]["data"]["value"], "{\"forged\":1}\n{}");
}

#[test]
fn a_failed_json_serialization_is_reported() {
    struct Never;
    impl Serialize for Never {
        fn serialize<S: serde::Serializer>(&self, _: S) -> Result<S::Ok, S::Error> {
            Err(serde::ser::Error::custom("never"))
        }
    }
    let (capture, _control, _guard) = capture(options("locket", Level::Info, TimeFormat::Rfc3339));
    tracing::info!(value = json(&Never), "a");
    assert_eq!(capture.lines()[0]["data"]["value"], "cannot be shown as JSON: never");
}

fn log_at_each_level() {
    tracing::trace!("trace");
    tracing::debug!("debug");
    tracing::info!("info");
    tracing::warn!("warn");
    tracing::error!("error");
    tracing::error!(lager.fatal = true, "fatal");
}

fn actions(lines: &[Json]) -> Vec<String> {
    let text = |value: &Json| value.as_str().unwrap().to_owned();
    let action = |line: &Json| format!("{}:{}", text(&line["level"]), text(&line["message"]));
    lines.iter().map(action).collect()
}

#[test]
fn the_level_can_be_changed_while_running() {
    let (capture, control, _guard) = capture(options("l", Level::Info, TimeFormat::Rfc3339));
    let all = [
        "debug:l.trace",
        "debug:l.debug",
        "info:l.info",
        "info:l.warn",
        "error:l.error",
        "fatal:l.fatal",
    ];
    let mut seen = 0;
    for (level, first) in [
        (Level::Info, 2),
        (Level::Debug, 0),
        (Level::Warn, 3),
        (Level::Error, 4),
        (Level::Fatal, 5),
        (Level::Debug, 0),
    ] {
        control.set_level(level);
        assert_eq!(control.level(), level);
        log_at_each_level();
        let lines = capture.lines();
        assert_eq!(actions(&lines[seen..]), all[first..], "{level:?}");
        seen = lines.len();
    }
}

#[test]
fn the_path_of_a_message_does_not_depend_on_the_level() {
    let log = || {
        let span = tracing::info_span!("lock");
        let _entered = span.enter();
        let detail = tracing::debug_span!("detail");
        let _entered = detail.enter();
        tracing::error!("failed");
    };
    assert!(logged(Level::Error, log).contains("\"locket.lock.failed\""));
    assert!(logged(Level::Debug, log).contains("\"locket.lock.detail.failed\""));
}

#[test]
fn foreign_crates_pass_only_with_warnings() {
    let text = logged(Level::Debug, || {
        tracing::info!(target: "h2::codec", "chatter");
        let _span = tracing::info_span!(target: "h2::codec", "foreign").entered();
        tracing::warn!(target: "h2::codec", code = 7, "trouble");
        tracing::error!(target: "tonic", "worse");
        tracing::info!("ours");
    });
    let expected = r#"{"level":"info","source":"locket","message":"locket.h2::codec","data":{"code":7,"text":"trouble"}}
{"level":"info","source":"locket","message":"locket.tonic","data":{"text":"worse"}}
{"level":"info","source":"locket","message":"locket.ours","data":{}}
"#;
    assert_eq!(text, expected);
    let quiet = logged(Level::Error, || tracing::error!(target: "tonic", "worse"));
    assert_eq!(quiet, "");
}

#[test]
fn every_crate_of_the_workspace_is_logged() {
    let text = logged(Level::Info, || {
        tracing::info!(target: "a_new_crate::module", "started");
        for target in ["hyper", "hyper_util", "rustls", "tokio_postgres", "tower", "zlib_rs"] {
            assert!(layer::THIRD_PARTY.contains(&target), "{target}");
        }
        tracing::info!(target: "hyper_util::client", "chatter");
    });
    assert_eq!(text.lines().count(), 1, "{text}");
    assert!(text.contains(r#""message":"locket.started""#), "{text}");
}

#[test]
fn a_failing_log_output_is_ignored() {
    struct Closed;
    impl Write for Closed {
        fn write(&mut self, _: &[u8]) -> io::Result<usize> {
            Err(io::ErrorKind::BrokenPipe.into())
        }
        fn flush(&mut self) -> io::Result<()> {
            Err(io::ErrorKind::BrokenPipe.into())
        }
    }
    let (layer, _control) = layer(options("l", Level::Info, TimeFormat::Rfc3339), Closed);
    let subscriber = tracing_subscriber::registry().with(layer);
    tracing::subscriber::with_default(subscriber, || tracing::info!("lost"));
}

#[test]
fn lines_of_many_threads_do_not_mix() {
    let (capture, _control, _guard) = capture(options("l", Level::Info, TimeFormat::Rfc3339));
    let dispatch = tracing::dispatcher::get_default(Clone::clone);
    std::thread::scope(|scope| {
        for thread in 0..8 {
            let dispatch = dispatch.clone();
            scope.spawn(move || {
                let _guard = tracing::dispatcher::set_default(&dispatch);
                let text = "x".repeat(5_000);
                for line in 0..50 {
                    tracing::info!(thread, line, text, "many");
                }
            });
        }
    });
    // Each line parses, or `lines` panics.
    assert_eq!(capture.lines().len(), 400);
}

#[test]
fn levels_are_parsed_as_the_debug_endpoint_does() {
    for (level, forms) in [
        (Level::Debug, ["debug", "DEBUG", "d", "0", " Debug\n"]),
        (Level::Info, ["info", "Info", "I", "1", "i"]),
        (Level::Warn, ["warn", "WARN", "w", "2", "W"]),
        (Level::Error, ["error", "eRROR", "e", "3", "E"]),
        (Level::Fatal, ["fatal", "Fatal", "f", "4", "F"]),
    ] {
        for form in forms {
            assert_eq!(Level::parse_loosely(form), Ok(level), "{form}");
        }
    }
    for wrong in ["", " ", "5", "-1", "inf", "00", "verbose", "debug info"] {
        assert!(Level::parse_loosely(wrong).is_err(), "{wrong}");
    }
}

/// A call site that a peer triggers repeatedly: its bytes are limited, dropped lines are counted,
/// and no other call site is affected.
#[test]
fn a_flood_of_lines_is_bounded_and_counted() {
    const LINES: u64 = 40_000;
    let (capture, control, _guard) = capture(options("locket", Level::Info, TimeFormat::Rfc3339));
    let peer = "x".repeat(200);
    let span = tracing::info_span!("grpc-server");
    span.in_scope(|| {
        for _ in 0..LINES {
            tracing::info!(peer, "refused");
        }
    });
    tracing::info!("acquired-lock");
    control.tell_left_out();
    control.tell_left_out();
    let text = capture.text();
    assert!(text.len() < 5 << 20, "{} bytes of log", text.len());
    let lines: Vec<Json> = text.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    let of = |message: &str| lines.iter().filter(|line| line["message"] == message).count() as u64;
    let written = of("locket.grpc-server.refused");
    assert!(written > 10_000, "{written}");
    assert_eq!(of("locket.acquired-lock"), 1);
    assert_eq!(of("locket.log-lines-dropped"), 1, "told once");
    let last = &lines.last().unwrap()["data"];
    assert_eq!(last["of"], "grpc-server.refused");
    assert_eq!(last["lines"], LINES - written);
}

/// Debug lines are enabled on purpose, and have no limit.
#[test]
fn debug_lines_have_no_bound() {
    let (capture, _control, _guard) = capture(options("locket", Level::Debug, TimeFormat::Rfc3339));
    let peer = "x".repeat(2_000);
    for _ in 0..3_000 {
        tracing::debug!(peer, "started");
    }
    assert_eq!(capture.text().lines().count(), 3_000);
}
