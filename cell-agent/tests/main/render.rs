//! `cell-agent render` as a process: input files and printed tables.

use std::{
    fs,
    os::unix::fs::PermissionsExt as _,
    process::{Command, Output},
};

use cell_agent::plane::iptables::chains::Names;
use model::ids::ContainerHandle;
use serde_json::{Map, Value, json};

use crate::recorded::{self, chains};

const BINARY: &str = env!("CARGO_BIN_EXE_cell-agent");
const PLANES: [&str; 2] = ["iptables", "nftables"];

/// The three input files of a case.
struct Files {
    directory: tempfile::TempDir,
    config: Map<String, Value>,
    store: Map<String, Value>,
    groups: Value,
}

impl Files {
    fn new(config: &Value) -> Self {
        Self {
            directory: tempfile::tempdir().unwrap(),
            config: config.as_object().unwrap().clone(),
            store: Map::new(),
            groups: json!([]),
        }
    }

    fn one(rules: &Value) -> Self {
        let mut files = Self::new(&json!({}));
        files.add("c1", "10.255.1.1");
        files.groups = json!([group("g1", rules)]);
        files
    }

    fn add(&mut self, handle: &str, ip: &str) {
        let metadata =
            json!({"policy_group_id": "app", "space_id": "s1", "container_workload": "app"});
        self.store.insert(handle.into(), json!({"handle": handle, "ip": ip, "metadata": metadata}));
    }

    fn write(&self) {
        let write = |name: &str, value: &Value| {
            fs::write(self.directory.path().join(name), value.to_string()).unwrap();
        };
        write("agent.json", &Value::Object(self.config.clone()));
        write("store.json", &Value::Object(self.store.clone()));
        write("groups.json", &self.groups);
    }

    fn command(&self, plane: &str, more: &[&str]) -> Command {
        self.write();
        let mut command = Command::new(BINARY);
        command.current_dir(self.directory.path()).args(arguments(plane)).args(more);
        command
    }

    /// Standard output and standard error.
    fn render(&self, plane: &str, more: &[&str]) -> (String, String) {
        let output = self.command(plane, more).output().unwrap();
        assert!(output.status.success(), "{output:?}");
        texts(&output)
    }
}

fn arguments(plane: &str) -> Vec<&str> {
    vec![
        "render",
        "--plane",
        plane,
        "--config-file",
        "agent.json",
        "--store",
        "store.json",
        "--security-groups",
        "groups.json",
    ]
}

fn group(guid: &str, rules: &Value) -> Value {
    json!({"guid": guid, "name": guid, "rules": rules.to_string(), "running_default": true,
           "staging_default": false, "staging_space_guids": [], "running_space_guids": []})
}

fn texts(Output { stdout, stderr, .. }: &Output) -> (String, String) {
    let text = |bytes: &Vec<u8>| String::from_utf8(bytes.clone()).unwrap();
    (text(stdout), text(stderr))
}

/// The original's tables at every snapshot, from the inputs of that moment.
#[test]
fn every_recorded_table_comes_out() {
    let (mut compared, mut wrong) = (0, Vec::new());
    for name in recorded::names() {
        let (case, recorded) = recorded::case(&name, "legacy");
        let mut files = Files::new(&case["agent_config"]);
        let (mut server, mut gone) = (json!([]), Vec::new());
        let mut reachable = true;
        for (number, op) in (1..).zip(case["ops"].as_array().unwrap()) {
            let handle = || op["handle"].as_str().unwrap().to_owned();
            match op["op"].as_str().unwrap() {
                "asgs" => server = op["value"].clone(),
                "control" => reachable = op["value"] == json!({}),
                "cni_add" => {
                    let keys =
                        ["handle", "ip", "metadata"].map(|key| (key.to_owned(), op[key].clone()));
                    files.store.insert(handle(), Value::Object(keys.into_iter().collect()));
                }
                "cni_del" | "store_delete" => {
                    files.store.remove(&handle());
                    gone.push(handle());
                }
                "restart_agent" => {
                    files
                        .config
                        .extend(op["agent_config"].as_object().cloned().unwrap_or_default());
                }
                "snapshot" => {
                    let (found, _) = files.render("iptables", &[]);
                    let found = chains(found.lines().map(str::to_owned));
                    let expected = agents_own(recorded::table(&name, number, &recorded), &gone);
                    if found != expected {
                        wrong.push(format!(
                            "{name} {number}: {expected:#?} expected, {found:#?} found"
                        ));
                    }
                    compared += 1;
                }
                _ => {}
            }
            if reachable {
                files.groups.clone_from(&server);
            }
        }
    }
    assert!(wrong.is_empty(), "{} differ:\n{}", wrong.len(), wrong.join("\n"));
    assert!(compared >= 45, "only {compared} tables were compared");
}

/// Removes the parents that only the plugin fills, and the chains of deleted containers
/// that stay in the kernel.
fn agents_own(table: Vec<String>, gone: &[String]) -> Vec<String> {
    let gone: Vec<Names> = gone
        .iter()
        .map(|handle| Names::of(&ContainerHandle::parse(handle).unwrap()).unwrap())
        .collect();
    let chain = |line: &str| {
        let name = line.trim_start_matches("-A ").trim_start_matches(':');
        name.split(' ').next().unwrap().to_owned()
    };
    let jumps: Vec<String> =
        table.iter().filter(|line| line.contains(" -j asg-")).map(|line| chain(line)).collect();
    let keep = |line: &String| {
        let chain = chain(line);
        let of_gone = gone.iter().any(|names| names.asg == chain || names.netout == chain);
        !of_gone && (chain.starts_with("asg-") || jumps.contains(&chain))
    };
    table.into_iter().filter(keep).collect()
}

#[test]
fn neither_root_nor_a_cell_is_needed() {
    let files =
        Files::one(&json!([{"protocol": "tcp", "destination": "10.1.0.0/16", "ports": "443"}]));
    files.write();
    let directory = files.directory.path();
    for (path, mode) in [(directory.to_owned(), 0o755), (directory.join("store.json"), 0o644)] {
        fs::set_permissions(path, fs::Permissions::from_mode(mode)).unwrap();
    }
    // The build directory may be inaccessible.
    let program = directory.join("cell-agent");
    fs::copy(BINARY, &program).unwrap();
    for plane in PLANES {
        let as_root = files.render(plane, &[]).0;
        let mut command = match nix::unistd::geteuid().is_root() {
            true => {
                let mut command = Command::new("setpriv");
                command.args(["--reuid=65534", "--regid=65534", "--clear-groups"]);
                command.args(["--inh-caps=-all", "--bounding-set=-all"]).arg(&program);
                command
            }
            false => Command::new(&program),
        };
        command.current_dir(directory).args(arguments(plane)).env_clear();
        let output = command.output().expect("setpriv is installed (util-linux)");
        assert!(output.status.success(), "{output:?}");
        assert_eq!(texts(&output), (as_root, String::new()));
    }
}

#[test]
fn equal_inputs_give_equal_text_in_whatever_form_and_order_they_come() {
    let rules = json!([{"protocol": "all", "destination": "10.1.0.0/16"}]);
    let mut files = Files::one(&rules);
    files.add("c2", "10.255.1.2");
    let groups = json!([
        group("g1", &rules),
        group(
            "g2",
            &json!([{"protocol": "icmp",
        "destination": "10.2.0.0/16", "type": 8, "code": 0}])
        )
    ]);
    for plane in PLANES {
        files.groups = groups.clone();
        let expected = files.render(plane, &[]);
        assert_eq!(expected.1, "");
        files.groups = json!({"next": 0, "security_groups": groups});
        assert_eq!(files.render(plane, &[]), expected);
        let mut plain = groups.clone();
        for group in plain.as_array_mut().unwrap() {
            group["rules"] = serde_json::from_str(group["rules"].as_str().unwrap()).unwrap();
        }
        files.groups = plain;
        assert_eq!(files.render(plane, &[]), expected);
        // Page by page, with the plugin's keys in another order.
        files.groups = json!({"next": 2, "security_groups": [groups[0]]});
        let second = json!({"next": 0, "security_groups": [groups[1]]});
        fs::write(files.directory.path().join("second.json"), second.to_string()).unwrap();
        assert_eq!(files.render(plane, &["--security-groups", "second.json"]), expected);
        let (first, second) = (&files.store["c1"], &files.store["c2"]);
        let turned = format!("{{\"c2\":{second},\"c1\":{first}}}");
        files.write();
        fs::write(files.directory.path().join("turned.json"), turned).unwrap();
        let mut command = files.command(plane, &["--security-groups", "second.json"]);
        let arguments: Vec<String> = command
            .get_args()
            .map(|argument| argument.to_str().unwrap().replace("store.json", "turned.json"))
            .collect();
        command = Command::new(BINARY);
        let output = command.current_dir(files.directory.path()).args(arguments).output().unwrap();
        assert_eq!(texts(&output), expected);
    }
}

#[test]
fn both_families_and_both_formats_are_printed() {
    let mut files = Files::one(&json!([
        {"protocol": "tcp", "destination": "10.1.0.1,2001:db8::1", "ports": "443"},
        {"protocol": "icmpv6", "destination": "2001:db8::/32", "type": 128, "code": 0},
    ]));
    files.add("c6", "fd00::6");
    let (text, notes) = files.render("iptables", &[]);
    assert_eq!(notes, "");
    let expected = "\
# iptables
*filter
:asg-c1 - [0:0]
:netout--c1 - [0:0]
-A asg-c1 -m state --state RELATED,ESTABLISHED -j ACCEPT
-A asg-c1 -p tcp -m state --state INVALID -j DROP
-A asg-c1 -p tcp -m iprange --dst-range 10.1.0.1-10.1.0.1 -m tcp --dport 443 -j ACCEPT
-A asg-c1 -j REJECT --reject-with icmp-port-unreachable
-A netout--c1 -j asg-c1
-A netout--c1 -j REJECT --reject-with icmp-port-unreachable
COMMIT
# ip6tables
*filter
:asg-c6 - [0:0]
:netout--c6 - [0:0]
-A asg-c6 -m state --state RELATED,ESTABLISHED -j ACCEPT
-A asg-c6 -p tcp -m state --state INVALID -j DROP
-A asg-c6 -p ipv6-icmp -m iprange --dst-range 2001:db8::-2001:db8:ffff:ffff:ffff:ffff:ffff:ffff -m icmp6 --icmpv6-type 128/0 -j ACCEPT
-A asg-c6 -p tcp -m iprange --dst-range 2001:db8::1-2001:db8::1 -m tcp --dport 443 -j ACCEPT
-A asg-c6 -j REJECT --reject-with icmp6-port-unreachable
-A netout--c6 -j asg-c6
-A netout--c6 -j REJECT --reject-with icmp6-port-unreachable
COMMIT
";
    assert_eq!(text, expected);
    let (text, _) = files.render("iptables", &["--format", "rules", "--family", "ipv6"]);
    assert!(text.starts_with("# ip6tables\n-N asg-c1\n-N asg-c6\n-N netout--c1\n"), "{text}");
    assert!(!text.contains("COMMIT") && !text.contains("10.1.0.1"), "{text}");
    let (text, _) = files.render("nftables", &["--underlay-interface", "eth7"]);
    let elements = "add element inet portcullis policies_v6 { fd00::6 : jump policy-";
    assert!(text.starts_with("table inet portcullis {\n") && text.contains(elements), "{text}");
    assert!(text.contains("oifname \"eth7\" ip saddr 10.255.0.0/16 jump egress"), "{text}");
}

#[test]
fn isolated_rules_are_reported_and_affect_nothing_else() {
    let mut files = Files::one(&json!([
        {"protocol": "all", "destination": "10.9.0.0/255.255.0.0"},
        {"protocol": "all", "destination": "10.1.0.0/16", "log": "yes"},
        {"protocol": "all", "destination": "10.2.0.0/16"},
    ]));
    files.store.insert("c2".into(), json!({"ip": "10.255.1.300"}));
    files.store.insert("c3".into(), json!(7));
    for plane in PLANES {
        let (text, notes) = files.render(plane, &[]);
        assert!(text.contains("10.2.0.0") && !text.contains("10.1.0.0"), "{text}");
        for told in [
            "groups.json: group \"g1\": rule 1: log: \"yes\" is not true or false",
            "group \"g1\" (g1): rule 0: destination \"10.9.0.0/255.255.0.0\" ",
            "store.json: entry \"c3\": it is not an object",
            "store.json: container c2: denied: the address \"10.255.1.300\" is not an IP address",
        ] {
            assert!(notes.contains(told), "{told} in {notes}");
        }
    }
    files.config.insert("enable_asg_syncing".into(), json!(false));
    assert_eq!(files.render("nftables", &[]).0, "");
    let (text, notes) = files.render("iptables", &[]);
    assert!(!text.contains("asg-") && notes.contains("enable_asg_syncing"), "{text} {notes}");
}

/// Unusual rules, with the original's output for each (contract 2.4): nothing, or these
/// arguments.
const ODD: &[(&str, &[&str])] = &[
    (
        r#"{"protocol": "icmp", "destination": "10.1.0.1", "type": -1, "code": 0}"#,
        &["-p icmp -m iprange --dst-range 10.1.0.1-10.1.0.1 -m icmp --icmp-type any"],
    ),
    // Different arguments, so a different rule, though the printed form is equal.
    (
        r#"{"protocol": "icmp", "destination": "10.1.0.1", "type": 255, "code": -1}"#,
        &["-p icmp -m iprange --dst-range 10.1.0.1-10.1.0.1 -m icmp --icmp-type any"],
    ),
    (r#"{"protocol": "icmp", "destination": "10.1.0.1/32", "type": 511, "code": 255}"#, &[]),
    (
        r#"{"protocol": "icmp", "destination": "10.1.0.2", "type": 264, "code": -256}"#,
        &["-p icmp -m iprange --dst-range 10.1.0.2-10.1.0.2 -m icmp --icmp-type 8/0"],
    ),
    (r#"{"protocol": "all", "destination": "010.0.0.0/8"}"#, &[]),
    (r#"{"protocol": "all", "destination": "00.0.0.0/0"}"#, &[]),
    (r#"{"protocol": "all", "destination": "10.0.0.0/+8"}"#, &[]),
    (
        r#"{"protocol": "all", "destination": "10.2.3.4/0016"}"#,
        &["-m iprange --dst-range 10.2.0.0-10.2.255.255"],
    ),
    (
        r#"{"protocol": "all", "destination": "::ffff:10.3.0.0/112"}"#,
        &["-m iprange --dst-range 10.3.0.0-10.3.255.255"],
    ),
    // A reversed port range still counts as ports.
    (r#"{"protocol": "all", "destination": "10.4.0.0/16", "ports": "9-1"}"#, &[]),
    (r#"{"protocol": "icmp", "destination": "10.4.0.0/16", "ports": "x,80"}"#, &[]),
    (
        r#"{"protocol": "all", "destination": "10.5.0.0/16", "ports": "x,1-2-3,-80,1_0"}"#,
        &["-m iprange --dst-range 10.5.0.0-10.5.255.255"],
    ),
    (
        r#"{"protocol": "tcp", "destination": "10.6.0.1", "ports": "65616-+90,\t7 ,x"}"#,
        &[
            "-p tcp -m iprange --dst-range 10.6.0.1-10.6.0.1 -m tcp --dport 80:90",
            "-p tcp -m iprange --dst-range 10.6.0.1-10.6.0.1 -m tcp --dport 7",
        ],
    ),
];

#[test]
fn odd_rules_mean_what_they_mean_to_the_original() {
    let rules: Vec<Value> =
        ODD.iter().map(|(rule, _)| serde_json::from_str(rule).unwrap()).collect();
    let (text, notes) = Files::one(&json!(rules)).render("iptables", &["--format", "rules"]);
    let permits: Vec<&str> = text
        .lines()
        .filter_map(|line| line.strip_prefix("-A asg-c1 ")?.strip_suffix(" -j ACCEPT"))
        .filter(|rule| rule.contains("iprange"))
        .collect();
    let expected: Vec<&str> = ODD.iter().flat_map(|(_, rules)| *rules).rev().copied().collect();
    assert_eq!(permits, expected, "{notes}");
}

/// Runs with one file replaced; must fail.
fn refused(files: &Files, file: &str, content: Option<&str>) -> String {
    let mut command = files.command("iptables", &[]);
    let path = files.directory.path().join(file);
    match content {
        Some(content) => fs::write(path, content).unwrap(),
        None => fs::remove_file(path).unwrap(),
    }
    let output = command.output().unwrap();
    let (stdout, stderr) = texts(&output);
    assert_eq!((output.status.code(), stdout.as_str()), (Some(1), ""), "{stderr}");
    stderr
}

#[test]
fn the_error_for_an_unusable_file_has_field_and_value() {
    let files = Files::one(&json!([]));
    for (file, content, told) in [
        (
            "agent.json",
            Some(r#"{"overlay_network":"10.255.0.0"}"#),
            "overlay_network: is not an address with a prefix length (the value is \"10.255.0.0\")",
        ),
        (
            "agent.json",
            Some(r#"{"deny_networks":{"always":["x"]}}"#),
            "deny_networks.always: \"x\" is not",
        ),
        ("agent.json", None, "cannot be read: No such file"),
        ("store.json", Some("[]"), "it is not a JSON object"),
        ("store.json", Some(r#"{"c1":{"#), "EOF while parsing"),
        ("store.json", None, "cannot be read: No such file"),
        ("groups.json", Some(r#"{"security_groups":null}"#), "security_groups: null is not a list"),
        (
            "groups.json",
            Some(r#"{"next":"x","security_groups":[]}"#),
            "next: \"x\" is not a number",
        ),
        ("groups.json", None, "cannot be read: No such file"),
    ] {
        let stderr = refused(&files, file, content);
        let line = format!("cell-agent render: {file}: {told}");
        assert!(stderr.contains(&line), "{line} in {stderr}");
    }
}

#[test]
fn a_wrong_command_line_ends_with_2() {
    let files = Files::one(&json!([]));
    let code = |command: &mut Command| command.output().unwrap().status.code();
    assert_eq!(code(&mut files.command("ebtables", &[])), Some(2));
    assert_eq!(code(&mut files.command("iptables", &["--format", "xml"])), Some(2));
    assert_eq!(code(&mut files.command("iptables", &["--nonsense"])), Some(2));
    let run = |arguments: &[&str]| Command::new(BINARY).args(arguments).output().unwrap();
    assert_eq!(run(&["render"]).status.code(), Some(2));
    let help = run(&["render", "-help"]);
    assert!(help.status.success() && texts(&help).0.contains("iptables-save"), "{help:?}");
    assert!(texts(&run(&["-help"])).1.contains("render  Print the table"));
}

/// The configuration selects the plane if the command line does not.
#[test]
fn the_plane_may_be_that_of_the_configuration() {
    let mut files = Files::one(&json!([]));
    let render = |files: &Files| {
        files.write();
        let arguments =
            arguments("iptables").into_iter().filter(|a| !["--plane", "iptables"].contains(a));
        let mut command = Command::new(BINARY);
        let output = command.current_dir(files.directory.path()).args(arguments).output().unwrap();
        texts(&output).0
    };
    assert!(render(&files).starts_with("table inet portcullis"));
    files.config.insert("data_plane".into(), json!("iptables"));
    assert!(render(&files).starts_with("# iptables\n*filter\n"));
}
