use proptest::prelude::*;

use super::*;
use crate::lager::{Level, TimeFormat};

/// Reads a key of each kind.
#[derive(Debug)]
struct Everything {
    name: String,
    flag: bool,
    port: u16,
    count: u32,
    big: u64,
    signed: i64,
    file: Option<PathBuf>,
    names: Vec<String>,
    address: Option<HostPort>,
    timeout: GoDuration,
    interval: Seconds,
    level: Level,
    format: TimeFormat,
    section: Option<Section>,
}

#[derive(Debug)]
struct Section {
    password: String,
    size: u32,
}

impl Configure for Section {
    fn read(keys: &mut Reader<'_>) -> Option<Self> {
        let password = keys.required("password");
        let size = keys.or("size", 100);
        Some(Self { password: password?, size: size? })
    }
}

impl Configure for Everything {
    fn read(keys: &mut Reader<'_>) -> Option<Self> {
        let name = keys.required("name");
        let flag = keys.or("flag", true);
        let port = keys.or("port", 1);
        let count = keys.or("count", 2);
        let big = keys.or("big", 3);
        let signed = keys.or("signed", -4);
        let file = keys.optional("file");
        let names = keys.or("names", vec!["a".into()]);
        let address = keys.optional("address");
        let timeout = keys.or("timeout", GoDuration::from_seconds(10));
        let interval = keys.or("interval", Seconds::new(60));
        let level = keys.or("log_level", Level::Info);
        let format = keys.or("time_format", TimeFormat::UnixEpoch);
        let section = keys.section("section");
        keys.ignore(&["max_data_string_length"]);
        Some(Self {
            name: name?,
            flag: flag?,
            port: port?,
            count: count?,
            big: big?,
            signed: signed?,
            file: file?,
            names: names?,
            address: address?,
            timeout: timeout?,
            interval: interval?,
            level: level?,
            format: format?,
            section: section?,
        })
    }
}

fn problems(json: &str) -> Vec<String> {
    parse::<Everything>(json).expect_err(json).problems().to_vec()
}

/// The only problem of a configuration whose other keys are valid.
fn problem_with(key: &str, value: &str) -> String {
    let json = format!(r#"{{"name":"n","{key}":{value}}}"#);
    let problems = problems(&json);
    assert_eq!(problems.len(), 1, "{problems:?}");
    problems[0].clone()
}

#[test]
fn absent_keys_have_their_defaults() {
    let loaded = parse::<Everything>(r#"{"name":"n"}"#).unwrap();
    let Everything {
        name,
        flag,
        port,
        count,
        big,
        signed,
        file,
        names,
        address,
        timeout,
        interval,
        level,
        format,
        section,
    } = loaded.config;
    assert_eq!((name.as_str(), flag, port, count), ("n", true, 1, 2));
    assert_eq!((big, signed, file), (3, -4, None));
    assert_eq!((names, address), (vec!["a".to_owned()], None));
    assert_eq!(timeout.to_duration().as_secs(), 10);
    assert_eq!(interval.0.as_secs(), 60);
    assert_eq!((level, format), (Level::Info, TimeFormat::UnixEpoch));
    assert!(section.is_none());
    assert!(loaded.unknown.is_empty());
}

#[test]
fn every_kind_of_value_is_read() {
    let loaded = parse::<Everything>(
        r#"{"name":"n","flag":false,"port":65535,"count":0,"big":18446744073709551615,
            "signed":-9223372036854775808,"file":"/a b","names":["x","y"],"address":"[::1]:80",
            "timeout":"1m30s","interval":5,"log_level":"debug","time_format":1,
            "section":{"password":"p","size":7}}"#,
    );
    let config = loaded.unwrap().config;
    assert!(!config.flag);
    assert_eq!((config.port, config.count), (65535, 0));
    assert_eq!((config.big, config.signed), (u64::MAX, i64::MIN));
    assert_eq!(config.file.unwrap(), PathBuf::from("/a b"));
    assert_eq!(config.names, ["x", "y"]);
    assert_eq!(config.address.unwrap().as_str(), "[::1]:80");
    assert_eq!(config.timeout.to_duration().as_secs(), 90);
    assert_eq!(config.interval.0.as_secs(), 5);
    assert_eq!((config.level, config.format), (Level::Debug, TimeFormat::Rfc3339));
    let section = config.section.unwrap();
    assert_eq!((section.password.as_str(), section.size), ("p", 7));
}

#[test]
fn keys_match_in_any_case_and_the_exact_one_wins() {
    let config = parse::<Everything>(r#"{"NAME":"a","Port":7,"Section":{"PASSWORD":"p"}}"#);
    let config = config.unwrap().config;
    assert_eq!((config.name.as_str(), config.port), ("a", 7));
    assert_eq!(config.section.unwrap().password, "p");
    let both = parse::<Everything>(r#"{"NAME":"a","name":"b","nAME":"c"}"#).unwrap();
    assert_eq!(both.config.name, "b");
}

#[test]
fn null_and_empty_texts_are_absent() {
    let json = r#"{"name":"n","port":null,"file":"","address":"","timeout":"","log_level":"",
        "time_format":"","section":null}"#;
    let config = parse::<Everything>(json).unwrap().config;
    assert_eq!((config.port, config.file, config.address), (1, None, None));
    assert_eq!(config.timeout, GoDuration::from_seconds(10));
    assert_eq!(config.level, Level::Info);
    assert!(config.section.is_none());
}

#[test]
fn only_the_first_value_of_the_file_counts() {
    let config = parse::<Everything>("{\"name\":\"n\"} trailing garbage {").unwrap();
    assert_eq!(config.config.name, "n");
    assert!(problems("")[0].contains("is empty"));
    assert!(problems("  \n")[0].contains("is empty"));
    assert!(problems("[]")[0].contains("expects a JSON object, not an array"));
    assert!(problems("{\"name\":")[0].contains("is not JSON"));
}

#[test]
fn unknown_keys_are_named_with_their_path_and_tolerated() {
    let json = r#"{"name":"n","extra":1,"Max_Data_String_Length":9,
        "section":{"password":"p","Odd":null}}"#;
    let loaded = parse::<Everything>(json).unwrap();
    let mut unknown = loaded.unknown;
    unknown.sort();
    assert_eq!(unknown, ["extra", "section.Odd"]);
}

#[test]
fn all_problems_are_reported_at_once() {
    let found =
        problems(r#"{"name":"","port":70000,"flag":"yes","timeout":15,"section":{"size":-1}}"#);
    assert_eq!(
        found,
        [
            "name: must not be empty",
            "flag: expects true or false, not a string (the value is \"yes\")",
            "port: expects an integer from 0 to 65535 (the value is 70000)",
            "timeout: expects a duration in quotes such as \"15s\" or \"1m30s\", not a number (the value is 15)",
            "section.password: missing",
            "section.size: expects an integer from 0 to 4294967295 (the value is -1)",
        ]
    );
}

/// A section in the place of another value may have secrets.
#[test]
fn an_object_is_not_shown() {
    for name in [r#"{"password":"hush"}"#, r#"[[{"password":"hush"}]]"#] {
        let found = problems(&format!(r#"{{"name":{name},"section":{{"password":"p"}}}}"#));
        assert!(found[0].starts_with("name: expects a string, not a"), "{found:?}");
        assert!(!found[0].contains("hush"), "{found:?}");
    }
}

#[test]
fn a_wrong_value_is_named_with_its_key() {
    for (key, value, expected) in [
        ("name", "5", "expects a string, not a number"),
        ("count", "1.0", "not a number with a fraction or exponent"),
        ("count", "\"1\"", "expects an integer from 0 to 4294967295, not a string"),
        ("names", "\"a\"", "expects an array of strings, not a string"),
        ("names", "[1]", "expects strings in the array, not a number"),
        ("address", "\"localhost\"", "has no port"),
        ("address", "\"localhost:http\"", "a port from 0 to 65535"),
        ("address", "\"localhost:+1\"", "a port from 0 to 65535"),
        ("address", "\"::1:80\"", "in brackets"),
        ("address", "\"http://a:80\"", "scheme"),
        ("timeout", "\"15\"", "without a unit"),
        ("timeout", "\"1d\"", "unknown unit"),
        ("interval", "-1", "whole seconds from 0"),
        ("interval", "\"5s\"", "a whole number of seconds, not a string"),
        ("log_level", "\"verbose\"", "is not one of debug, info, warn, error, fatal"),
        ("log_level", "3", "is not one of debug"),
        ("time_format", "2", "is not one of unix-epoch, rfc3339"),
        ("section", "[]", "expects an object, not an array"),
    ] {
        let problem = problem_with(key, value);
        assert!(problem.starts_with(&format!("{key}: ")), "{problem}");
        assert!(problem.contains(expected), "{problem}");
    }
}

#[test]
fn secrets_are_never_printed() {
    #[derive(Debug)]
    struct Secret;
    impl Configure for Secret {
        fn read(keys: &mut Reader<'_>) -> Option<Self> {
            keys.optional::<u16>("database_connection_string");
            keys.optional::<u16>("Admin_Password");
            keys.optional::<u16>("uaa_client_secret");
            keys.problem("access_token", "is stale");
            keys.section::<Deeper>("secrets");
            None
        }
    }
    #[derive(Debug)]
    struct Deeper;
    impl Configure for Deeper {
        fn read(keys: &mut Reader<'_>) -> Option<Self> {
            keys.optional::<u16>("inner");
            None
        }
    }
    let json = r#"{"database_connection_string":"hidden","admin_password":"hidden",
        "uaa_client_secret":["hidden"],"access_token":"hidden","secrets":{"inner":"hidden"}}"#;
    let error = parse::<Secret>(json).unwrap_err();
    assert_eq!(error.problems().len(), 5, "{error}");
    assert!(!error.to_string().contains("hidden"), "{error}");
}

#[test]
fn long_values_are_cut() {
    let long = format!("\"{}\"", "\u{e9}".repeat(5_000));
    let problem = problem_with("port", &long);
    assert!(problem.len() < 400, "{problem}");
}

#[test]
fn a_refusal_without_a_reason_is_an_error() {
    #[derive(Debug)]
    struct Silent;
    impl Configure for Silent {
        fn read(_: &mut Reader<'_>) -> Option<Self> {
            None
        }
    }
    let error = parse::<Silent>("{}").unwrap_err();
    assert!(error.to_string().contains("without a stated reason"));
}

#[test]
fn a_file_that_cannot_be_read_is_named() {
    let error = load::<Everything>(Path::new("/nonexistent/lock.json")).unwrap_err();
    let text = error.to_string();
    assert!(text.starts_with("/nonexistent/lock.json: cannot be read: "), "{text}");
    let file = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(file.path(), b"{\"name\":\"\xff\"}").unwrap();
    let text = load::<Everything>(file.path()).unwrap_err().to_string();
    assert!(text.contains("is not UTF-8"), "{text}");
    std::fs::write(file.path(), "{\"name\":\"n\"}").unwrap();
    assert_eq!(load::<Everything>(file.path()).unwrap().config.name, "n");
}

/// Results of Go's `time.ParseDuration`, in nanoseconds.
#[test]
fn durations_are_read_as_go_does() {
    const SECOND: i64 = 1_000_000_000;
    for (text, expected) in [
        ("0", 0),
        ("-0", 0),
        ("+0", 0),
        ("0s", 0),
        ("5s", 5 * SECOND),
        ("+5s", 5 * SECOND),
        ("-1s", -SECOND),
        ("1h30m", 5_400 * SECOND),
        ("1.5s", SECOND / 2 * 3),
        ("1.s", SECOND),
        (".5s", SECOND / 2),
        ("-.5s", -SECOND / 2),
        ("500ms", SECOND / 2),
        ("2us", 2_000),
        ("2\u{b5}s", 2_000),
        ("2\u{3bc}s", 2_000),
        ("10ns", 10),
        ("1h15m30.918273645s", 4_530 * SECOND + 918_273_645),
        ("1m1m", 120 * SECOND),
        ("0.3333333333333333333h", 1_200 * SECOND),
        ("0.100000000000000000000h", 360 * SECOND),
        ("9007199254740993ns", (1 << 53) + 1),
        ("9223372036854775807ns", i64::MAX),
        ("9223372036854775.807us", i64::MAX),
        ("9223372036s854ms775us807ns", i64::MAX),
        ("-9223372036854775808ns", i64::MIN),
        ("-2562047h47m16.854775808s", i64::MIN),
    ] {
        let parsed: GoDuration = text.parse().expect(text);
        assert_eq!(parsed.nanoseconds(), expected, "{text}");
    }
}

#[test]
fn durations_that_go_rejects_are_rejected() {
    use ParseDurationError::{Malformed, MissingUnit, Overflow, UnknownUnit};
    for (text, expected) in [
        ("", Malformed),
        ("-", Malformed),
        ("+", Malformed),
        ("s", Malformed),
        (".", Malformed),
        (".s", Malformed),
        ("-.s", Malformed),
        ("--1s", Malformed),
        (" 1s", Malformed),
        ("3", MissingUnit),
        ("1s3", MissingUnit),
        ("1.5", MissingUnit),
        ("15 s", UnknownUnit),
        ("1d", UnknownUnit),
        ("1S", UnknownUnit),
        ("1s ", UnknownUnit),
        ("\u{0661}s", Malformed),
        ("3000000h", Overflow),
        ("9223372036854775808ns", Overflow),
        ("-9223372036854775809ns", Overflow),
        ("9223372036854775.808us", Overflow),
        ("9223372036854ms775us808ns", Overflow),
        ("99999999999999999999999999s", Overflow),
    ] {
        assert_eq!(text.parse::<GoDuration>(), Err(expected), "{text:?}");
    }
}

#[test]
fn durations_are_written_as_go_does() {
    for (nanoseconds, expected) in [
        (0, "0s"),
        (1, "1ns"),
        (1_100, "1.1\u{b5}s"),
        (2_200_000, "2.2ms"),
        (3_300_000_000, "3.3s"),
        (245_000_000_000, "4m5s"),
        (245_001_000_000, "4m5.001s"),
        (18_367_001_000_000, "5h6m7.001s"),
        (3_600_000_000_000, "1h0m0s"),
        (480_000_000_001, "8m0.000000001s"),
        (i64::MAX, "2562047h47m16.854775807s"),
        (i64::MIN, "-2562047h47m16.854775808s"),
    ] {
        let duration = GoDuration::from_nanoseconds(nanoseconds);
        assert_eq!(duration.to_string(), expected);
    }
}

#[test]
fn a_negative_duration_becomes_zero() {
    let duration: GoDuration = "-5s".parse().unwrap();
    assert_eq!(duration.to_duration(), std::time::Duration::ZERO);
    let longest = GoDuration::from(std::time::Duration::MAX);
    assert_eq!(longest.nanoseconds(), i64::MAX);
}

proptest! {
    #[test]
    fn durations_survive_formatting_and_parsing(nanoseconds: i64) {
        let duration = GoDuration::from_nanoseconds(nanoseconds);
        // Fractions are computed with a float64, so the last digits may differ.
        let read: GoDuration = duration.to_string().parse().unwrap();
        prop_assert!(read.nanoseconds().abs_diff(nanoseconds) <= 1);
    }

    #[test]
    fn no_text_makes_the_duration_parser_panic(text in "[-+0-9.a-z\u{b5}\u{3bc}\u{661}]{0,40}|.*") {
        let _either = text.parse::<GoDuration>();
    }

    #[test]
    fn no_text_makes_the_configuration_parser_panic(text in ".*", key in "[a-zA-Z_.]{0,12}") {
        let _either = parse::<Everything>(&text);
        let value = serde_json::Value::from(text);
        let _either = parse::<Everything>(&format!("{{\"name\":\"n\",{value}:{{\"{key}\":{value}}}}}"));
    }

    #[test]
    fn duration_terms_are_added(hours in 0_i64..1_000, minutes in 0_i64..1_000, milliseconds in 0_i64..10_000) {
        let text = format!("{hours}h{minutes}m{milliseconds}ms");
        let read: GoDuration = text.parse().unwrap();
        let expected = (hours * 3_600_000 + minutes * 60_000 + milliseconds) * 1_000_000;
        prop_assert_eq!(read.nanoseconds(), expected);
    }
}
