//! portcullisctl with real servers: its output for people and programs, and its exit status.

use std::process::Command;

use integration_tests::{
    binaries,
    process::Process,
    services::{ControlPlane, LockServer, Site},
    wait,
};
use nix::sys::signal::Signal;
use serde_json::{Value, json};

use super::cell_agent::{APP, HANDLE, start};

/// Exit status and output of a command.
#[derive(Debug)]
struct Ended {
    code: Option<i32>,
    out: String,
    err: String,
}

fn run(args: &[&str]) -> Ended {
    run_with(args, &[])
}

/// Runs portcullisctl without the user's contexts.
fn run_with(args: &[&str], variables: &[(&str, &str)]) -> Ended {
    let mut command = Command::new(binaries::path("portcullisctl"));
    command.args(args).env("PORTCULLIS_CA", "").env("PORTCULLIS_CONTEXT", "");
    command.env("XDG_CONFIG_HOME", "/nowhere");
    let output = command.envs(variables.iter().copied()).output();
    let output = output.expect("portcullisctl can be run");
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    let (out, err) = (text(&output.stdout), text(&output.stderr));
    Ended { code: output.status.code(), out, err }
}

/// Whether line feeds are the only control characters.
fn is_safe(text: &str) -> bool {
    !text.chars().any(|c| (c.is_control() && c != '\n') || c == '\u{202e}')
}

#[test]
fn texts_of_peers_do_not_reach_the_terminal_raw() {
    let site = Site::new();
    let _agent = start(&site);
    let socket = site.path("control.sock").display().to_string();
    let ask = |args: &[&str]| run(&[&["--cell-socket", &socket], args].concat());

    let table = ask(&["containers"]);
    assert!(is_safe(&table.out) && table.out.contains("app\\u{1b}[31m"), "{table:?}");
    assert_eq!(table.out.lines().count(), 2, "{table:?}");
    let json = ask(&["containers", "--json"]);
    assert!(is_safe(&json.out), "{json:?}");
    let container: Value = serde_json::from_str(&json.out).expect("one object");
    assert_eq!(container["app"], APP, "JSON has the whole text");
    assert_eq!(container["rules"], 0);

    let error = ask(&["rules", "nobody\u{202e}\u{7f}"]);
    assert_eq!(error.code, Some(1), "{error:?}");
    assert!(is_safe(&error.err), "{error:?}");
}

#[test]
fn explain_accepts_a_prefix_and_exits_with_the_verdict() {
    let site = Site::new();
    let agent = start(&site);
    let socket = site.path("control.sock").display().to_string();
    let ask = |args: &[&str]| run(&[&["--cell-socket", &socket], args].concat());

    let denied = ask(&["explain", &HANDLE[..4], "tcp", "1.2.3.4:80", "--exit-code"]);
    assert_eq!(denied.code, Some(3), "{denied:?}");
    assert!(denied.out.starts_with("verdict    denied\nreason     "), "{denied:?}");
    let loopback = ask(&["explain", &HANDLE[..4], "tcp", "127.0.0.1:80", "--exit-code", "--json"]);
    assert_eq!(loopback.code, Some(4), "{loopback:?}");
    let verdict = "{\"verdict\":\"not decided by security groups\",";
    assert!(loopback.out.starts_with(verdict), "{loopback:?}");
    assert_eq!(ask(&["explain", HANDLE, "tcp", "1.2.3.4:80"]).code, Some(0));

    // The sentence precedes the gRPC code.
    let sentence = "rules: there is no container nobody on this cell";
    let error = ask(&["rules", "nobody"]);
    let expected = format!("portcullisctl: {sentence} (rpc error: code = NotFound)\n");
    assert_eq!((error.code, error.err), (Some(1), expected));
    let error = ask(&["rules", "nobody", "--json"]);
    let object: Value = serde_json::from_str(&error.err).expect("one object");
    assert_eq!(object, json!({ "error": sentence, "code": "NotFound" }));

    agent.signal(Signal::SIGSTOP);
    let late = ask(&["cell", "--timeout", "300ms"]);
    agent.signal(Signal::SIGCONT);
    assert_eq!(late.code, Some(1));
    assert!(late.err.contains("cell status: no answer within 300ms (--timeout)"), "{late:?}");
}

#[test]
fn a_control_plane_is_shown_and_changed() {
    let mut plane = ControlPlane::start();
    let syncer = plane.syncer("syncer-1");
    let guid = plane.cloud.create_group("first", "10.1.0.0/16");
    let evil = "evil\u{202e}gnp.exe";
    plane.cloud.create_group(evil, "10.2.0.0/16");
    plane.wait_until_synced();
    let files = plane.site.certificate("operator");
    let [ca, cert, key] =
        [&files.ca, &files.cert, &files.key].map(|path| path.display().to_string());
    let store = plane.store_address.clone();
    let store = store.as_str();
    let flags = ["--ca", &ca, "--cert", &cert, "--key", &key, "--policy-store", store];
    let ask = |args: &[&str]| run(&[&flags[..], args].concat());

    for name in ["first", &guid, &guid[..13]] {
        let json = ask(&["groups", name, "--json"]);
        let rule: Value = serde_json::from_str(&json.out).expect("one rule");
        assert_eq!(rule["destination"], "10.1.0.0/16");
        assert_eq!((&rule["group"], &rule["group_guid"]), (&json!("first"), &json!(guid)));
        let text = ask(&["groups", name]);
        assert!(text.out.starts_with("name                first\n"), "{text:?}");
        assert!(text.out.contains("10.1.0.0/16"), "{text:?}");
    }
    let none = ask(&["groups", "no-such-group"]);
    assert_eq!((none.code, none.out.as_str()), (Some(1), ""), "{none:?}");

    let all = ask(&["groups", "--json"]);
    let groups = all.out.lines().map(|line| {
        let group: Value = serde_json::from_str(line).expect("an object");
        assert!(group["running"].is_array() && group["running_everywhere"].is_boolean(), "{line}");
        group["name"].clone()
    });
    assert_eq!(groups.filter(|name| name == evil).count(), 1, "JSON has the whole name");
    let table = ask(&["groups"]);
    assert!(is_safe(&all.out) && is_safe(&table.out), "{table:?}");
    assert_eq!(table.out.lines().count(), all.out.lines().count() + 1, "{table:?}");
    let typo = ask(&["groups", "--space", "typo"]);
    assert_eq!(typo.code, Some(3), "{typo:?}");
    assert!(typo.err.contains("no security group is bound to the space \"typo\""), "{typo:?}");
    assert!(typo.out.contains("first"), "the global groups apply: {typo:?}");
    let status: Value = serde_json::from_str(&ask(&["status", "--json"]).out).expect("an object");
    assert!(status["synced_at"].as_str().is_some_and(|at| at.ends_with('Z')), "{status}");

    let lock_server = plane.lock_server.address.clone();
    let flags = [&flags[..], &["--lock-server", &lock_server]].concat();
    output_has_formats(&flags);
    locks_are_claimed_and_released(&flags);
    one_of_two_stores_is_sufficient(&flags, store);
    the_leader_syncs_and_nothing_differs(&flags, &plane, &syncer);
    contexts_replace_flags(&plane);
    names_are_completed_in_bash(&flags);
    a_change_is_shown_before_it_is_made(&flags, &plane);
    a_refused_removal_passes_when_it_is_accepted(&flags, &plane, &syncer);
    a_freeze_survives_kill_9_of_the_store(&flags, &mut plane);
}

fn a_freeze_survives_kill_9_of_the_store(flags: &[&str], plane: &mut ControlPlane) {
    let ask = |args: &[&str]| run(&[flags, args].concat());
    let object = |args: &[&str]| {
        let answer = ask(args);
        let object = serde_json::from_str::<Value>(&answer.out);
        object.unwrap_or_else(|_| panic!("{args:?}: {answer:?}"))
    };
    let asked = ask(&["freeze", "--reason", "release"]);
    assert!(asked.err.contains("--yes"), "without a terminal nobody confirms: {asked:?}");
    let past = ask(&["freeze", "--reason", "x", "--until", "2020-01-01T00:00:00Z", "--yes"]);
    assert!(past.err.contains("until: 2020-01-01T00:00:00Z is not in the future"), "{past:?}");
    let frozen = object(&["freeze", "--reason", "release", "--until", "2h", "--yes", "--json"]);
    assert_eq!((&frozen["frozen"], &frozen["reason"]), (&json!(true), &json!("release")));
    assert_eq!(frozen["by"], "cn=operator,dns=localhost", "{frozen}");
    plane.cloud.create_group("while-frozen", "10.3.0.0/16");
    plane.wait_until_synced();
    plane.policy_store.kill();
    plane.restart_store();
    let status = object(&["status", "--json"]);
    let generation = &frozen["generation"];
    assert!(status["generation"].as_u64() > generation.as_u64(), "{status} {frozen}");
    let sentence = status["frozen"].as_str().unwrap_or_default();
    let begin = format!("cells keep generation {generation} since ");
    assert!(sentence.starts_with(&begin) && sentence.ends_with(": release"), "{status}");
    assert!(ask(&["doctor", "--no-headers"]).out.contains(sentence), "{sentence}");
    let open = object(&["unfreeze", "--reason", "released", "--yes", "--json"]);
    let shown = (&open["generation"], &open["frozen"]);
    assert_eq!(shown, (&status["generation"], &json!(false)), "{open}");
    let history = ask(&["history", "--no-headers", "-o", "fields=entry,reason"]).out;
    let entries: Vec<Vec<&str>> =
        history.lines().map(|line| line.split_whitespace().collect()).collect();
    for entry in [["freeze", "release"], ["unfreeze", "released"]] {
        assert!(entries.iter().any(|found| found[..] == entry), "{history}");
    }
}

fn a_change_is_shown_before_it_is_made(flags: &[&str], plane: &ControlPlane) {
    let ask = |args: &[&str]| run(&[flags, &["what-if"], args].concat());
    let rules = json!([
        { "protocol": "tcp", "destination": "10.1.0.0/17", "ports": "443" },
        { "protocol": "tcp", "destination": "10.1.2.0/24", "ports": "443" },
        { "protocol": "tcp", "destination": "10.8.0.0/24", "ports": "80-82" },
    ]);
    let file = plane.site.config("rules", &rules).display().to_string();
    let answer = ask(&["--file", &file, "--group", "first", "--json"]);
    let object: Value = serde_json::from_str(&answer.out).unwrap_or_else(|_| panic!("{answer:?}"));
    assert_eq!(answer.code, Some(2), "{answer:?}");
    assert_eq!(object["result"], "opens and closes connections");
    assert_eq!(object["places"][0]["all_other_spaces"], true, "{object}");
    let areas = object["areas"].as_array().expect("a list");
    let opens = json!(["+ opens", "tcp", "10.8.0.0/24", "80-82"]);
    let shown = |area: &Value| {
        json!([area["change"], area["protocol"], area["destination"], area["ports"]])
    };
    assert!(areas.iter().any(|area| shown(area) == opens), "{object}");
    assert_eq!(object["remarks"][0]["finding"], "covered", "{object}");
    let table = ask(&["--delete", "first"]);
    assert_eq!(table.code, Some(2), "{table:?}");
    assert!(table.out.contains("\nareas:\n") && table.out.contains("- closes"), "{table:?}");
    let same = ask(&["--group", "first", "--bind", "running", "-o", "yaml"]);
    assert_eq!(same.code, Some(0), "{same:?}");
    let none = ask(&["--delete", "no-such-group"]);
    assert!(none.code == Some(1) && none.err.contains("no-such-group"), "{none:?}");
    assert_eq!(ask(&[]).code, Some(2), "nothing to compute");
}

fn a_refused_removal_passes_when_it_is_accepted(
    flags: &[&str],
    plane: &ControlPlane,
    syncer: &Process,
) {
    let bound = syncer.wait_for("debug-server-bound");
    let admin = format!("http://{}", bound["data"]["address"].as_str().expect("an address"));
    let groups: Vec<String> =
        (0..60).map(|n| plane.cloud.create_group(&format!("many-{n}"), "10.4.0.0/16")).collect();
    plane.wait_until_synced();
    let stored = plane.stored_names().len();
    // The list shrinks at once for the syncer.
    syncer.signal(Signal::SIGSTOP);
    groups.iter().for_each(|guid| plane.cloud.delete_group(guid));
    syncer.signal(Signal::SIGCONT);
    let fails = wait::until("the removal is refused", || {
        let doctor = run(&[flags, &["doctor", "-o", "fields=state,check,detail"]].concat());
        let line = doctor.out.lines().find(|line| line.contains("mass removal refused"));
        line.map(str::to_owned).ok_or(doctor.out.clone())
    });
    let text = format!("would remove 60 of {stored} groups");
    assert!(fails.starts_with("fail") && fails.contains(&text), "{fails}");
    let sync = |number: &str| {
        let args = ["sync", "--accept-removal", number, "--syncer-admin", &admin, "--json"];
        run(&[flags, &args].concat())
    };
    let wrong = sync("59");
    assert!(wrong.code == Some(1) && wrong.err.contains("59 groups"), "{wrong:?}");
    let passed = sync("60");
    let object: Value = serde_json::from_str(&passed.out).unwrap_or_else(|_| panic!("{passed:?}"));
    assert_eq!(object["accepted_removal"], 60, "{object}");
    plane.wait_until_synced();
    assert_eq!(plane.stored_names().len(), stored - 60);
    let doctor = run(&[flags, &["doctor"]].concat());
    assert!(!doctor.out.contains("mass removal"), "{doctor:?}");
}

fn output_has_formats(flags: &[&str]) {
    let ask = |args: &[&str]| run(&[flags, args].concat());
    let names = ask(&["get", "groups", "-o", "fields=name", "--no-headers"]);
    assert!(names.out.lines().any(|line| line == "first"), "{names:?}");
    let group = ask(&["describe", "group", "first", "-o", "json"]);
    let group: Value = serde_json::from_str(&group.out).expect("one object");
    assert_eq!(group["rules"][0]["destination"], "10.1.0.0/16");
    let yaml = ask(&["describe", "group", "first", "-o", "yaml"]).out;
    assert!(yaml.starts_with("name: \"first\"\n") && yaml.contains("\n- group: "), "{yaml}");
    let wrong = ask(&["get", "groups", "-o", "fields=nmae"]);
    assert!(wrong.code == Some(1) && wrong.err.contains("\"nmae\""), "{wrong:?}");
    let cells = ask(&["get", "cells", "-o", "wide"]);
    assert_eq!((cells.code, cells.out.as_str()), (Some(0), "none\n"), "{cells:?}");
    let colored = ask(&["explain", "--space", "s", "--to", "10.1.2.3:80/tcp", "--color", "always"]);
    assert!(
        colored.out.starts_with("verdict  ") && colored.out.contains("\u{1b}[32mallowed"),
        "{colored:?}"
    );
    let denied = ask(&["explain", "--space", "s", "--to", "10.9.9.9:80/tcp", "--exit-code"]);
    assert_eq!(denied.code, Some(3), "{denied:?}");
    let reach = ask(&["who-can-reach", "10.1.2.3:80/tcp", "-o", "fields=name", "--no-headers"]);
    assert!(reach.out.lines().any(|line| line == "first"), "{reach:?}");
    let nobody = ask(&["explain", "--app", "nobody", "--to", "10.1.2.3:80/tcp"]);
    assert!(nobody.code == Some(1) && nobody.err.contains("nobody"), "{nobody:?}");
}

fn locks_are_claimed_and_released(flags: &[&str]) {
    let ask = |args: &[&str]| run(&[flags, args].concat());
    let held = |kind: &str| ask(&["get", kind, "-o", "fields=key,owner", "--no-headers"]).out;
    let claim = ["lock", "claim", "by-hand", "--owner", "me", "--ttl", "60s"];
    let refused = ask(&claim);
    assert!(refused.code == Some(1) && refused.err.contains("--yes is needed"), "{refused:?}");
    assert!(!held("locks").contains("by-hand"));
    let claimed = ask(&[&claim[..], &["--yes", "--json"]].concat());
    let claimed: Value = serde_json::from_str(&claimed.out).expect("an object");
    assert_eq!((&claimed["fencing_token"], &claimed["ttl_seconds"]), (&json!(1), &json!(60)));
    assert!(held("locks").contains("by-hand"), "{}", held("locks"));
    let released = ask(&["lock", "release", "by-hand", "--yes", "--json"]);
    assert_eq!(released.out, "{\"key\":\"by-hand\",\"owner\":\"me\"}\n", "{released:?}");
    assert!(!held("locks").contains("by-hand"));
    let presence = ask(&["presence", "claim", "here", "--owner", "me", "--yes"]);
    assert_eq!(presence.code, Some(0), "{presence:?}");
    assert!(held("presences").contains("here"), "{}", held("presences"));
}

fn one_of_two_stores_is_sufficient(flags: &[&str], store: &str) {
    let both = format!("127.0.0.1:1,{store}");
    let ask = |args: &[&str]| run(&[flags, &["--policy-store", &both], args].concat());
    for (command, kind) in [("groups", "groups"), ("cells", "cells")] {
        let answer = ask(&["get", command]);
        assert_eq!(answer.code, Some(0), "{kind}: {answer:?}");
        assert!(answer.err.contains("127.0.0.1:1"), "{kind}: {answer:?}");
    }
    let none =
        run(&[flags, &["--policy-store", "127.0.0.1:1,127.0.0.1:2", "get", "cells"]].concat());
    assert_eq!((none.code, none.out.as_str()), (Some(1), ""), "{none:?}");
}

fn the_leader_syncs_and_nothing_differs(flags: &[&str], plane: &ControlPlane, syncer: &Process) {
    let bound = syncer.wait_for("debug-server-bound");
    let admin = format!("http://{}", bound["data"]["address"].as_str().expect("an address"));
    let dead = "http://127.0.0.1:1";
    let synced =
        run(&[flags, &["sync", "--syncer-admin", dead, "--syncer-admin", &admin, "--json"]]
            .concat());
    let object: Value = serde_json::from_str(&synced.out).unwrap_or_else(|_| panic!("{synced:?}"));
    assert_eq!(object["syncer"], admin, "{object}");
    let none = run(&[flags, &["sync", "--syncer-admin", dead]].concat());
    assert!(none.code == Some(1) && none.err.contains(dead), "{none:?}");

    let diff = [flags, &["diff", "--cc-url", plane.cloud.api(), "--json"]].concat();
    let token = [("CF_TOKEN", plane.cloud.token())];
    let same = run_with(&diff, &token);
    assert_eq!((same.code, same.out.as_str()), (Some(0), ""), "{same:?}");
    let refused = run_with(&diff, &[("CF_TOKEN", "nonsense")]);
    assert!(refused.code == Some(1) && refused.err.contains("HTTP 401"), "{refused:?}");
    syncer.signal(Signal::SIGSTOP);
    plane.cloud.create_group("late", "10.3.0.0/16");
    let differs = run_with(&diff, &token);
    syncer.signal(Signal::SIGCONT);
    let difference: Value = serde_json::from_str(&differs.out).expect("one difference");
    assert_eq!(differs.code, Some(3), "{differs:?}");
    assert_eq!(
        (&difference["name"], &difference["difference"]),
        (&json!("late"), &json!("only in the Cloud Controller"))
    );

    plane.wait_until_synced();
    let doctor = run(&[flags, &["doctor", "--json"]].concat());
    let checks: Vec<Value> =
        doctor.out.lines().map(|line| serde_json::from_str(line).expect("an object")).collect();
    assert!(checks.len() > 10 && checks.iter().all(|check| check["state"] != "fail"), "{doctor:?}");
    assert_eq!(doctor.code, Some(0), "{doctor:?}");
    let sick =
        run(&[flags, &["doctor", "--policy-store", "127.0.0.1:1", "-o", "fields=state,check"]]
            .concat());
    assert_eq!(sick.code, Some(1), "{sick:?}");
    assert!(sick.out.lines().any(|line| line == "fail   policy store 127.0.0.1:1"), "{sick:?}");
}

fn contexts_replace_flags(plane: &ControlPlane) {
    let files = &plane.operator;
    let server = |address: &str| json!({ "address": address, "ca": files.ca, "cert": files.cert, "key": files.key });
    let context = json!({
        "lock_server": server(&plane.lock_server.address),
        "policy_store": server(&plane.store_address),
    });
    let file = plane.site.config("context", &context).display().to_string();
    let home = plane.site.path("home").display().to_string();
    let ask = |args: &[&str]| run_with(args, &[("XDG_CONFIG_HOME", &home)]);
    let added = ask(&["context", "add", "here", &file]);
    assert_eq!(added.code, Some(0), "{added:?}");
    for args in [
        &["get", "locks"][..],
        &["--context", "here", "get", "groups"],
        &["--context", &file, "status"],
    ] {
        assert_eq!(ask(args).code, Some(0), "{args:?}: {:?}", ask(args));
    }
    let names = ask(&["context", "list", "-o", "fields=name,current", "--no-headers"]).out;
    assert_eq!(names, "here  true\n");
    let missing = ask(&["context", "use", "there"]);
    assert!(missing.code == Some(1) && missing.err.contains("\"there\""), "{missing:?}");
}

/// In a real bash, with the words as its line editor gives them.
fn names_are_completed_in_bash(flags: &[&str]) {
    let program = binaries::path("portcullisctl");
    let flags = flags.join(" ");
    let complete = |words: &str| {
        let script = format!(
            "source <({program} completion bash) && COMP_LINE='{program} {flags} {words}' && \
             COMP_POINT=${{#COMP_LINE}} && complete -p portcullisctl >/dev/null && \
             _portcullisctl && printf '%s\\n' \"${{COMPREPLY[@]}}\"",
            program = program.display(),
        );
        let output = Command::new("bash").args(["-c", &script]).output().expect("bash can be run");
        String::from_utf8_lossy(&output.stdout).into_owned()
    };
    assert_eq!(complete("describe group fi"), "first\n");
    assert!(complete("describe ").contains("space\n"));
    assert!(complete("watch locks policy-server").contains("policy-server-asg-syncer\n"));
}

#[test]
fn watch_locks_continues_after_an_outage_of_the_server() {
    let site = Site::new();
    let mut server = LockServer::start(&site);
    server.lock("one", "owner-1");
    let files = [&server.files.ca, &server.files.cert, &server.files.key];
    let [ca, cert, key] = files.map(|path| path.display().to_string());
    let address = server.address.clone();
    let flags = ["--ca", &ca, "--cert", &cert, "--key", &key, "--lock-server", &address];
    let mut watch =
        Process::start("portcullisctl", &[&flags[..], &["watch-locks", "--json"]].concat());
    seen(&watch, "one");
    server.process.kill();
    wait::until("the loss to be told", || {
        let lines = watch.lines();
        let told = lines.iter().any(|line| line.ends_with("; reconnecting"));
        if told { Ok(()) } else { Err(lines.join("\n")) }
    });
    server.restart();
    server.lock("two", "owner-2");
    seen(&watch, "two");
    assert!(watch.is_running());
    watch.kill();
}

/// Waits for an event of the key, from the initial state or later.
fn seen(watch: &Process, key: &str) {
    wait::until(&format!("an event of {key}"), || {
        let found = watch.log().iter().any(|event| event["key"] == key);
        if found { Ok(()) } else { Err(watch.lines().join("\n")) }
    });
}
