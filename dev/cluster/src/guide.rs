//! Help for users of a running cluster: an `env` file with addresses, certificates and
//! two shell functions, and example commands.
//!
//! The `env` file exports no variable that compilers, curl or make read (`CC`, `CA` ...).

use std::path::{Path, PathBuf};

use serde_json::json;

use super::cloud::quoted;
use super::container::Container;
use super::fixtures::Stage;
use super::launch::Cluster;
use super::live;
use super::rootless::Footing;
use super::settings::{self, ADMIN, OPERATOR};
use super::terminal::say;

/// Set by `scripts/up`: the cluster becomes a context in the user's list of contexts.
const ADD_CONTEXT: &str = "PORTCULLIS_UP_ADD_CONTEXT";

/// Writes the file with addresses, certificates and a token for a shell, and returns
/// its path. Also writes the context file of `portcullisctl`.
///
/// # Errors
/// A file cannot be written.
pub(crate) fn write_env(cluster: &Cluster) -> anyhow::Result<PathBuf> {
    let (file, context_file) = (cluster.layout().env(), cluster.layout().context());
    std::fs::write(&file, env(cluster))?;
    std::fs::write(&context_file, context(cluster).to_string())?;
    if std::env::var_os(ADD_CONTEXT).is_some() {
        let program = cluster.options().binaries.join("portcullisctl");
        let mut command = std::process::Command::new(program);
        command.args(["context", "add", cluster.options().name.as_str()]).arg(&context_file);
        let output = command.output()?;
        if !output.status.success() {
            let error = String::from_utf8_lossy(&output.stderr);
            say(&format!("The cluster is not among the contexts: {}\n", error.trim()))?;
        }
    }
    Ok(file)
}

/// Addresses and certificates for `portcullisctl`.
fn context(cluster: &Cluster) -> serde_json::Value {
    let (layout, ports) = (cluster.layout(), &cluster.options().ports);
    let (ca, (cert, key)) = (layout.ca(), layout.certificate(OPERATOR));
    let server = |port| json!({ "address": format!("127.0.0.1:{port}"), "ca": ca, "cert": cert, "key": key });
    let syncers = ports.syncer_debug.iter().map(|port| format!("http://127.0.0.1:{port}"));
    json!({
        "lock_server": server(ports.lock_server),
        "policy_store": server(ports.policy_store),
        "syncer_admin": syncers.collect::<Vec<_>>(),
        "cloud_controller": { "url": format!("https://127.0.0.1:{}", ports.api), "ca": ca },
    })
}

fn env(cluster: &Cluster) -> String {
    let (layout, options) = (cluster.layout(), cluster.options());
    let ports = &options.ports;
    let (cert, key) = layout.certificate(OPERATOR);
    let path = |path: &Path| quoted(&path.display().to_string());
    let (ca, cert, key) = (path(&layout.ca()), path(&cert), path(&key));
    // `scripts/need` installs grpcurl there, beside the build profiles.
    let tools = options.binaries.with_file_name("tools").join("bin");
    let (binaries, tools) = (path(&options.binaries), path(&tools));
    let (user, password) = ADMIN;
    format!(
        "# For a shell: `. this-file`; again for a fresh token, which lives 20 minutes
export PATH=$PATH:/usr/sbin:/sbin:{binaries}:{tools}
export CF_API=https://127.0.0.1:{api} UAA_URL=https://127.0.0.1:{uaa}
export PORTCULLIS_LOCK_SERVER=127.0.0.1:{lock_server}
export PORTCULLIS_POLICY_STORE=127.0.0.1:{policy_store}
export PORTCULLIS_CA={ca} PORTCULLIS_CERT={cert} PORTCULLIS_KEY={key}
CF_TOKEN=\"bearer $(curl -s --cacert \"$PORTCULLIS_CA\" -u cf: -d grant_type=password \\
  -d username={user} -d password={password} \"$UAA_URL/oauth/token\" |
  sed 's/.*\"access_token\":\"\\([^\"]*\\)\".*/\\1/')\"
export CF_TOKEN
# cf_api METHOD PATH [BODY]: a call to the Cloud Controller
cf_api() {{
  curl -sS --cacert \"$PORTCULLIS_CA\" -H \"Authorization: $CF_TOKEN\" -X \"$1\" \"$CF_API$2\" ${{3:+-d \"$3\"}}
}}
# guid: the GUID of the resource on standard input
guid() {{ sed 's/^[^{{]*{{[^}}]*\"guid\":\"\\([^\"]*\\)\".*/\\1/'; }}
# connect APP ADDRESS PORT: tries a TCP connection from the app, prints open or closed
connect() {{
  if ip netns exec \"$(ip netns list | sed -n \"s/^\\({name}-cell-[0-9]*-$1\\)\\( .*\\)*$/\\1/p\")\" \\
    timeout 2 bash -c \"exec 3<>/dev/tcp/$2/$3\" 2>/dev/null; then echo open; else echo closed; fi
}}
",
        api = ports.api,
        uaa = ports.uaa,
        lock_server = ports.lock_server,
        policy_store = ports.policy_store,
        name = options.name.as_str(),
    )
}

/// The listen addresses, and example commands.
pub(crate) fn guide(cluster: &Cluster, stage: &Stage, env: &Path, footing: Footing) -> String {
    let mut lines = summary(cluster, stage);
    lines.extend(listening(cluster));
    lines.extend(first_commands(env, footing));
    lines.extend(attempts());
    if let Some(container) = cluster.containers().next() {
        lines.extend(inspection(cluster, stage, container));
    }
    lines.extend(faults(cluster, stage));
    lines.extend([String::new(), "Ctrl-C ends the cluster and removes everything.".to_owned()]);
    lines.join("\n")
}

fn summary(cluster: &Cluster, stage: &Stage) -> Vec<String> {
    let cells = cluster.network().cells().count();
    let apps = cluster.containers().count();
    let (owner, token) = (&stage.leader.owner, stage.leader.fencing_token);
    vec![
        format!(
            "The cluster runs: {cells} cells, {apps} apps; {owner} leads, fencing token {token}."
        ),
        format!("Logs: {}", cluster.layout().logs().display()),
    ]
}

fn listening(cluster: &Cluster) -> Vec<String> {
    let ports = &cluster.options().ports;
    let line = |what: &str, port: u16, how: &str| format!("  {what:<28} {port:<6} {how}");
    let mut lines = vec![
        String::new(),
        "Listening (127.0.0.1):".to_owned(),
        line("Cloud Controller", ports.api, "HTTPS, admin / admin"),
        line("  internal", ports.internal_api, "HTTPS, client certificate"),
        line("UAA", ports.uaa, "HTTPS"),
        line("lock-server", ports.lock_server, "gRPC, client certificate"),
        line("  metrics, health, log level", ports.lock_server_debug, "HTTP"),
        line("policy-store", ports.policy_store, "gRPC, client certificate"),
        line("  metrics, health, log level", ports.policy_store_debug, "HTTP"),
    ];
    lines.extend((1..).zip(ports.syncer_debug).map(|(number, port)| {
        let name = settings::syncer_name(number);
        line(&format!("{name} metrics, health, log level, sync-now"), port, "HTTP")
    }));
    lines
}

/// The commands to run first.
fn first_commands(env: &Path, footing: Footing) -> Vec<String> {
    let enter = footing
        .shell_prefix()
        .map(|prefix| format!("  {prefix} bash     # first: the cluster has a network of its own"));
    let mut lines = vec![String::new(), "In another shell, before all else:".to_owned()];
    lines.extend(enter);
    lines.push(format!("  . {}", quoted(&env.display().to_string())));
    lines
}

const GROUP: &str = r#"{"name":"try-me","rules":[{"protocol":"tcp","destination":"10.20.30.40","ports":"80"}],"globally_enabled":{"running":true}}"#;

/// Commands that bind a group, show its effect, unbind it, and show that the effect is
/// gone.
fn attempts() -> Vec<String> {
    vec![
        String::new(),
        "Try: open a destination, and close it again:".to_owned(),
        "  connect appA 10.20.30.40 80                    # closed".to_owned(),
        format!("  group=$(cf_api POST /v3/security_groups '{GROUP}' | guid); sleep 2"),
        "  connect appA 10.20.30.40 80                    # open".to_owned(),
        r#"  cf_api PATCH "/v3/security_groups/$group" '{"globally_enabled":{"running":false}}'; sleep 2"#
            .to_owned(),
        "  connect appA 10.20.30.40 80                    # closed".to_owned(),
    ]
}

fn inspection(cluster: &Cluster, stage: &Stage, container: &Container) -> Vec<String> {
    let Container { wanted, handle, attachment: _ } = container;
    let ports = &cluster.options().ports;
    let socket = cluster.layout().agent_socket(wanted.cell);
    let socket = quoted(&socket.display().to_string());
    let cell = format!("ip netns exec {}", cluster.options().name.cell(wanted.cell));
    let grpc = "grpcurl -cacert $PORTCULLIS_CA -cert $PORTCULLIS_CERT -key $PORTCULLIS_KEY";
    let bind = format!(r#"{{"data":[{{"guid":"{}"}}]}}"#, stage.s1);
    let s1 = &stage.s1;
    let syncer = ports.syncer_debug[0];
    let lines = format!(
        "
Look at everything:
  cf_api POST \"/v3/security_groups/$group/relationships/running_spaces\" '{bind}'   # bind to space s1
  cf_api DELETE \"/v3/security_groups/$group/relationships/running_spaces/{s1}\"   # unbind
  portcullisctl get locks
  portcullisctl get cells -o wide
  portcullisctl get containers
  portcullisctl trace try-me
  portcullisctl explain --container {handle} --to 1.2.3.4:80/tcp
  portcullisctl top --once                        # without --once: a live view
  portcullisctl status
  portcullisctl doctor
  portcullisctl --cell-socket {socket} containers
  portcullisctl --cell-socket {socket} rules {handle}
  portcullisctl --cell-socket {socket} explain {handle} tcp 1.2.3.4:80
  {cell} nft list table inet portcullis
  {cell} curl -s http://127.0.0.1:8721/metrics
  curl -s http://127.0.0.1:{store}/metrics
  curl -s -X POST http://127.0.0.1:{syncer}/sync-now     # 409 on the standby
  {grpc} 127.0.0.1:{lock_server} list
  {grpc} 127.0.0.1:{policy_store} portcullis.policy.v1.PolicyStore/Status
  grpcurl -plaintext -authority localhost -unix {socket} portcullis.cell.v1.Cell/Status",
        store = ports.policy_store_debug,
        lock_server = ports.lock_server,
        policy_store = ports.policy_store,
    );
    lines.split('\n').map(str::to_owned).collect()
}

fn faults(cluster: &Cluster, stage: &Stage) -> Vec<String> {
    let command = live::command(cluster);
    let leader = &stage.leader.owner;
    vec![
        String::new(),
        "Break it (the cluster goes on):".to_owned(),
        format!("  {command} list"),
        format!("  {command} kill {leader}"),
        format!("  {command} start {leader}"),
        format!("  {command} add-app appX --space s2"),
        format!("  {command} remove-app appX"),
        format!("  {command} --help     # all requests"),
    ]
}
