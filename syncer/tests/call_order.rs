//! Order of the calls: the sequences of
//! docs/compatibility/asg-syncer.md#uaa, #cloud-controller-calls, and the reaction to each
//! fault.

use std::time::Duration;

use runtime::lager::{self, Level};
use serde_json::{Value, json};
use syncer::cloud_controller::listing::Moved;
use tokio::time::Instant;

use crate::support::{
    cloud::{Cloud, EARLY, LATE, Reply, STAMP, TOKEN, counted, group, groups, page, stamp, token},
    leader::Leader,
    log_options,
    store::PolicyStoreTwin,
    until,
};

/// Expected calls, writes and log lines of one scenario.
struct Case {
    name: &'static str,
    script: fn(&Cloud),
    /// The first calls, one character each: T token, S stamp, 1 to 9 a page.
    calls: &'static str,
    /// Guids of each write so far.
    writes: &'static [&'static [&'static str]],
    /// Log at info so far, without the lines that announce each call.
    log: &'static [&'static str],
}

const FETCHED: &str = "info successfully-fetched-security-groups";
const APPLIED: &str = "info applied-security-groups";
const REFUSED: &str = "error cc-json-client.http-client";
const REFUSED_STAMP: &str = "error cc-internal-json-client.http-client";
const FAILED: &str = "error asg-sync-cycle";
const NO_STAMP: &str = "info get-security-groups-last-update-not-found";

/// Lines of every call; `log_lines` tests them.
const ROUTINE: [&str; 4] = [
    "info get-security-groups",
    "info get-security-groups-attempt-pagination",
    "info get-security-groups-last-update",
    "info get-security-groups-with-page",
];

fn one_page(cloud: &Cloud) {
    cloud.on(STAMP, [stamp(EARLY)]);
    cloud.on(&page(1), [groups(&[group("a", "10.0.0.1")], false)]);
}

fn list(first: impl IntoIterator<Item = Reply>) -> impl FnOnce(&Cloud) {
    let mut replies: Vec<_> = first.into_iter().collect();
    replies.push(groups(&[group("a", "10.0.0.1")], false));
    move |cloud| {
        cloud.on(STAMP, [stamp(EARLY)]);
        cloud.on(&page(1), replies);
    }
}

const CASES: &[Case] = &[
    Case {
        name: "first sync, then no change",
        script: one_page,
        calls: "TSS1SSSSS",
        writes: &[&["a"]],
        log: &[FETCHED, APPLIED],
    },
    Case {
        name: "three pages: k list calls and k + 2 stamps",
        script: |cloud| {
            cloud.on(STAMP, [stamp(EARLY)]);
            cloud.on(&page(1), [groups(&[group("a", "10.0.0.1")], true)]);
            cloud.on(&page(2), [groups(&[group("b", "10.0.0.1")], true)]);
            cloud.on(&page(3), [groups(&[group("c", "10.0.0.1")], false)]);
        },
        calls: "TSS1S2S3SSS",
        writes: &[&["a", "b", "c"]],
        log: &[FETCHED, APPLIED],
    },
    Case {
        name: "a change",
        script: |cloud| {
            cloud.on(STAMP, [EARLY, EARLY, EARLY, EARLY, LATE].map(stamp));
            let lists = ["a", "b"].map(|guid| groups(&[group(guid, "10.0.0.1")], false));
            cloud.on(&page(1), lists);
        },
        calls: "TSS1SSSS1SSS",
        writes: &[&["a"], &["b"]],
        log: &[FETCHED, APPLIED, FETCHED, APPLIED],
    },
    Case {
        name: "a change while paging: another attempt at once",
        script: |cloud| {
            // Poll, before, after: changed. Before, after: unchanged.
            cloud.on(STAMP, [EARLY, EARLY, LATE].map(stamp));
            cloud.on(&page(1), [groups(&[group("a", "10.0.0.1")], false)]);
        },
        // The stamp of the poll is remembered, so the change is synced as well.
        calls: "TSS1SS1SSS1SSS",
        writes: &[&["a"], &["a"]],
        log: &[FETCHED, APPLIED, FETCHED, APPLIED],
    },
    Case {
        name: "a change while paging, three times: the poll ends, the next one goes on",
        script: |cloud| {
            let stamps = (0..7).map(|second| stamp(&format!("2026-11-23T01:53:{second:02}.5Z")));
            cloud.on(STAMP, stamps);
            cloud.on(&page(1), [groups(&[group("a", "10.0.0.1")], false)]);
        },
        calls: "TSS1SS1SS1SSS1SSS",
        writes: &[&["a"]],
        log: &["info security-groups-list-unstable", FETCHED, APPLIED],
    },
    Case {
        name: "401: a new token, once, and the call again",
        script: |cloud| {
            cloud.on(TOKEN, [token("t1"), token("t2")]);
            list([Reply::text(401, r#"{"error":"invalid_token"}"#)])(cloud);
        },
        calls: "TSS1T1SSS",
        writes: &[&["a"]],
        log: &[REFUSED, FETCHED, APPLIED],
    },
    Case {
        name: "401 that stays: three attempts with a new token each, then a pause",
        script: |cloud| list(vec![Reply::text(401, "{}"); 6])(cloud),
        calls: "TSS1T1S1T1S1T1SS1SSS",
        writes: &[&["a"]],
        log: &[REFUSED, REFUSED, REFUSED, REFUSED, REFUSED, REFUSED, FAILED, FETCHED, APPLIED],
    },
    Case {
        name: "403: a new token, once, and the call again",
        script: |cloud| {
            cloud.on(TOKEN, [token("t1"), token("t2")]);
            list([Reply::text(403, r#"{"errors":[{"detail":"not authorized"}]}"#)])(cloud);
        },
        calls: "TSS1T1SSS",
        writes: &[&["a"]],
        log: &[REFUSED, FETCHED, APPLIED],
    },
    Case {
        name: "a list that is not whole: three attempts, then a pause",
        script: |cloud| list(vec![counted(&[group("a", "10.0.0.1")], false, 2, 1); 3])(cloud),
        calls: "TSS1SS1SS1SSS1SSS",
        writes: &[&["a"]],
        log: &[FAILED, FETCHED, APPLIED],
    },
    Case {
        name: "500: three attempts, then a pause",
        script: |cloud| list(vec![Reply::text(500, "oops"); 3])(cloud),
        calls: "TSS1S1S1SS1SSS",
        writes: &[&["a"]],
        log: &[REFUSED, REFUSED, REFUSED, FAILED, FETCHED, APPLIED],
    },
    Case {
        name: "500 once: another attempt at once",
        script: |cloud| list([Reply::text(500, "oops")])(cloud),
        calls: "TSS1S1SSS",
        writes: &[&["a"]],
        log: &[REFUSED, FETCHED, APPLIED],
    },
    Case {
        name: "500 of the stamp: the poll ends",
        script: |cloud| {
            one_page(cloud);
            cloud.on(STAMP, [Reply::text(500, "oops"), stamp(EARLY)]);
        },
        calls: "TSSS1SSS",
        writes: &[&["a"]],
        log: &[REFUSED_STAMP, FAILED, FETCHED, APPLIED],
    },
    Case {
        name: "500 of the stamp within a list: another attempt at once",
        script: |cloud| {
            one_page(cloud);
            let [early, broken] = [stamp(EARLY), Reply::text(500, "oops")];
            cloud.on(STAMP, [early.clone(), early.clone(), broken, early]);
        },
        calls: "TSS1SS1SSS",
        writes: &[&["a"]],
        log: &[REFUSED_STAMP, FETCHED, APPLIED],
    },
    Case {
        name: "401 of the stamp: a new token",
        script: |cloud| {
            one_page(cloud);
            cloud.on(TOKEN, [token("t1"), token("t2")]);
            cloud.on(STAMP, [Reply::text(401, "{}"), stamp(EARLY)]);
        },
        calls: "TSTSS1SSS",
        writes: &[&["a"]],
        log: &[REFUSED_STAMP, FETCHED, APPLIED],
    },
    Case {
        name: "429 of the stamp, and of UAA: they wait as well",
        script: |cloud| {
            one_page(cloud);
            let busy = || Reply::text(429, "{}").header("retry-after", "1");
            cloud.on(TOKEN, [busy(), token("t1")]);
            cloud.on(STAMP, [busy(), stamp(EARLY)]);
        },
        calls: "TTSSS1SSS",
        writes: &[&["a"]],
        log: &[FAILED, REFUSED_STAMP, FAILED, FETCHED, APPLIED],
    },
    Case {
        name: "429 without a wish: as any failure",
        script: |cloud| list([Reply::text(429, "{}")])(cloud),
        calls: "TSS1S1SSS",
        writes: &[&["a"]],
        log: &[REFUSED, FETCHED, APPLIED],
    },
    Case {
        name: "429: no attempt before the server wants it",
        script: |cloud| list([Reply::text(429, "{}").header("retry-after", "1")])(cloud),
        calls: "TSS1SS1SSS",
        writes: &[&["a"]],
        log: &[REFUSED, FAILED, FETCHED, APPLIED],
    },
    Case {
        name: "no answer in time counts as a failure",
        script: |cloud| list(vec![Reply::text(200, "{}").after(Duration::from_secs(60)); 3])(cloud),
        calls: "TSS1S1S1SS1SSS",
        writes: &[&["a"]],
        log: &[FAILED, FETCHED, APPLIED],
    },
    Case {
        name: "no answer about the stamp, or from UAA, in time: the poll ends",
        script: |cloud| {
            one_page(cloud);
            let never = || Reply::text(200, "{}").after(Duration::from_secs(60));
            cloud.on(TOKEN, [never(), token("t1")]);
            cloud.on(STAMP, [never(), stamp(EARLY)]);
        },
        calls: "TTSSS1SSS",
        writes: &[&["a"]],
        log: &[FAILED, FAILED, FETCHED, APPLIED],
    },
    Case {
        name: "bad JSON: three attempts",
        script: |cloud| list(vec![Reply::text(200, r#"{"resources":[{"#); 3])(cloud),
        calls: "TSS1S1S1SS1SSS",
        writes: &[&["a"]],
        log: &[FAILED, FETCHED, APPLIED],
    },
    Case {
        name: "an empty list is read again before it is believed",
        script: |cloud| list([groups(&[], false)])(cloud),
        calls: "TSS1STS1SSS",
        writes: &[&["a"]],
        log: &[FETCHED, "info reading-empty-list-again", FETCHED, APPLIED],
    },
    Case {
        name: "an empty list twice goes to the store",
        script: |cloud| {
            cloud.on(STAMP, [stamp(EARLY)]);
            cloud.on(&page(1), [groups(&[], false)]);
        },
        calls: "TSS1STS1SSSS",
        writes: &[&[]],
        log: &[FETCHED, "info reading-empty-list-again", FETCHED, APPLIED],
    },
    Case {
        name: "no list at all is read again at once",
        script: |cloud| list([Reply::text(200, "{}")])(cloud),
        calls: "TSS1S1SSS",
        writes: &[&["a"]],
        log: &[FETCHED, APPLIED],
    },
    Case {
        name: "no list at all, three times, deletes nothing",
        script: |cloud| list(vec![Reply::text(200, r#"{"resources":null}"#); 3])(cloud),
        calls: "TSS1S1S1SS1SSS",
        writes: &[&["a"]],
        log: &[FAILED, FETCHED, APPLIED],
    },
    Case {
        name: "a later page without a list is no end of the list",
        script: |cloud| {
            cloud.on(STAMP, [stamp(EARLY)]);
            cloud.on(&page(1), [groups(&[group("a", "10.0.0.1")], true)]);
            let second = groups(&[group("b", "10.0.0.1")], false);
            cloud.on(&page(2), [Reply::text(200, r#"{"resources":null}"#), second]);
        },
        calls: "TSS1S2S1S2SSS",
        writes: &[&["a", "b"]],
        log: &[FETCHED, APPLIED],
    },
    Case {
        name: "a group without a guid does not hold up the others",
        script: |cloud| {
            cloud.on(STAMP, [stamp(EARLY)]);
            let nameless = json!({"name": "nobody"});
            cloud.on(&page(1), [groups(&[nameless, group("a", "10.0.0.1")], false)]);
        },
        calls: "TSS1SSS",
        writes: &[&["a"]],
        log: &[FETCHED, "error malformed-security-group", APPLIED],
    },
    Case {
        name: "a space without a guid does not hold up the other groups",
        script: |cloud| {
            cloud.on(STAMP, [stamp(EARLY)]);
            let mut broken = group("b", "10.0.0.1");
            broken["relationships"]["running_spaces"]["data"] = json!([{}]);
            cloud.on(&page(1), [groups(&[broken, group("a", "10.0.0.1")], false)]);
        },
        calls: "TSS1SSS",
        writes: &[&["a"]],
        log: &[FETCHED, "error malformed-security-group", APPLIED],
    },
    Case {
        name: "404 of the stamp: a list, and then not at every poll",
        script: |cloud| {
            one_page(cloud);
            cloud.on(STAMP, [Reply::text(404, "Unknown request")]);
        },
        calls: "TSS1SSSSS",
        writes: &[&["a"]],
        log: &[NO_STAMP, FETCHED, APPLIED],
    },
    Case {
        name: "a stamp that is no moment fails the poll",
        script: |cloud| {
            one_page(cloud);
            cloud.on(STAMP, [stamp("yesterday"), stamp(EARLY)]);
        },
        calls: "TSSS1SSS",
        writes: &[&["a"]],
        log: &[FAILED, FETCHED, APPLIED],
    },
    Case {
        name: "UAA refuses: no other call",
        script: |cloud| {
            one_page(cloud);
            cloud.on(TOKEN, [Reply::text(401, "{}"), token("t1")]);
        },
        calls: "TTSS1SSS",
        writes: &[&["a"]],
        log: &[FAILED, FETCHED, APPLIED],
    },
    Case {
        name: "UAA answers nonsense: no other call",
        script: |cloud| {
            one_page(cloud);
            let empty = Reply::json(&json!({"access_token": ""}));
            cloud.on(TOKEN, [Reply::text(200, "<html>"), empty, token("t1")]);
        },
        calls: "TTTSS1SSS",
        writes: &[&["a"]],
        log: &[FAILED, FAILED, FETCHED, APPLIED],
    },
    Case {
        name: "a token that has ended is replaced without being refused",
        script: |cloud| {
            one_page(cloud);
            let brief = json!({"access_token": "t1", "expires_in": 0});
            cloud.on(TOKEN, [Reply::json(&brief)]);
        },
        calls: "TSTST1TSTSTS",
        writes: &[&["a"]],
        log: &[FETCHED, APPLIED],
    },
];

fn letter(call: &str) -> char {
    match call {
        TOKEN => 'T',
        STAMP => 'S',
        call => call
            .strip_prefix("GET /v3/security_groups?per_page=5000&page=")
            .and_then(|number| number.parse().ok())
            .unwrap_or_else(|| panic!("a call that nobody expects: {call}")),
    }
}

async fn check(case: &Case) {
    let (log, _control, _guard) = lager::capture(log_options(Level::Info));
    let cloud = Cloud::start().await;
    let store = PolicyStoreTwin::start().await;
    (case.script)(&cloud);
    let client = cloud.client_with_timeout(Duration::from_millis(400));
    let leader = Leader::start(client, store.client("me"), 1);
    until(case.name, || cloud.lines().len() >= case.calls.len()).await;
    until(case.name, || store.writes().len() >= case.writes.len()).await;
    until(case.name, || told(&log).len() >= case.log.len()).await;
    drop(leader);
    let calls: String = cloud.lines().iter().map(|call| letter(call)).collect();
    assert!(calls.starts_with(case.calls), "{}: {calls} instead of {}", case.name, case.calls);
    let writes: Vec<_> = store.writes().into_iter().map(|write| write.guids).collect();
    assert_eq!(writes, case.writes, "{}", case.name);
    assert!(
        told(&log).iter().map(String::as_str).take(case.log.len()).eq(case.log.iter().copied()),
        "{}: {:#?}",
        case.name,
        told(&log)
    );
}

/// Level and message of each line that is not in the list above.
fn told(log: &lager::Capture) -> Vec<String> {
    let lines = log.lines().into_iter().map(|line| {
        let message = line["message"].as_str().unwrap();
        let action = message.strip_prefix("cfnetworking.policy-server-asg-syncer.").unwrap();
        format!("{} {action}", line["level"].as_str().unwrap())
    });
    lines.filter(|line| !ROUTINE.contains(&line.as_str())).collect()
}

/// Runs each scenario on a thread of its own, which log capturing requires.
#[test]
fn calls_and_log_lines_are_those_of_the_contract() {
    let run = |case| {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
        runtime.unwrap().block_on(check(case));
    };
    let checks = CASES.iter().map(|case| std::thread::spawn(move || run(case)));
    let failed = checks.collect::<Vec<_>>().into_iter().filter_map(|check| check.join().err());
    assert_eq!(failed.count(), 0, "see above");
}

#[tokio::test]
async fn requests_have_the_originals_habits() {
    let cloud = Cloud::start().await;
    one_page(&cloud);
    let client = cloud.client();
    client.list(&Default::default(), Moved::Refused).await.unwrap();
    let calls = cloud.calls();
    let header = |call: usize, name: &str| calls[call].headers[name].to_str().unwrap().to_owned();
    assert_eq!(calls[0].line, "POST /oauth/token");
    // base64 of network-policy:se:cret, not url-encoded first.
    assert_eq!(header(0, "authorization"), "Basic bmV0d29yay1wb2xpY3k6c2U6Y3JldA==");
    assert_eq!(header(0, "content-type"), "application/x-www-form-urlencoded");
    assert_eq!(calls[0].body, "client_id=network-policy&grant_type=client_credentials");
    assert_eq!(calls[2].line, "GET /v3/security_groups?per_page=5000&page=1");
    for call in 1..calls.len() {
        assert_eq!(header(call, "authorization"), "bearer t1");
        assert_eq!(header(call, "accept-encoding"), "gzip");
        assert_eq!(header(call, "user-agent"), "test-agent/1");
    }
}

#[tokio::test]
async fn a_wish_to_be_left_alone_is_kept() {
    let cloud = Cloud::start().await;
    let store = PolicyStoreTwin::start().await;
    list([Reply::text(503, "{}").header("retry-after", "2")])(&cloud);
    let began = Instant::now();
    let _leader = Leader::start(cloud.client(), store.client("me"), 1);
    until("a write", || store.writes().len() == 1).await;
    assert!(began.elapsed() >= Duration::from_secs(2));
    assert_eq!(cloud.count(&page(1)), 2);
}

#[tokio::test]
async fn errors_say_which_call_and_why() {
    let cloud = Cloud::start().await;
    one_page(&cloud);
    let failing = [
        (TOKEN, Reply::text(401, "no"), "getting a token from uaa: bad uaa response: 401: no"),
        (
            STAMP,
            stamp("soon"),
            "getting the last update of the security groups: \
             failed parsing last_update from cloud controller: 'soon'",
        ),
        (
            "GET /v3/security_groups?per_page=5000&page=1",
            Reply::text(500, r#"{"errors":[{"detail":"it is broken"}]}"#),
            "getting the security groups: http status 500: it is broken",
        ),
    ];
    for (call, reply, expected) in failing {
        let client = cloud.client();
        cloud.on(call, [reply]);
        let err = client.list(&Default::default(), Moved::Refused).await.unwrap_err();
        let text = format!("{:#}", anyhow::Error::from(err));
        assert!(text.starts_with(expected), "{text}");
        one_page(&cloud);
        cloud.on(TOKEN, [token("t1")]);
    }
    let nobody = Value::Null;
    cloud.on(STAMP, [Reply::json(&nobody)]);
    let err = cloud.client().last_update().await.unwrap_err();
    assert!(format!("{:#}", anyhow::Error::from(err)).contains("unmarshal json"));
}
