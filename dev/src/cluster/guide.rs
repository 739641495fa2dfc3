//! What a person needs to work with a running cluster: where everything
//! listens, and commands to copy.

use std::path::{Path, PathBuf};

use super::cloud::quoted;
use super::container::Container;
use super::launch::Cluster;
use super::rootless::Footing;
use super::settings::{self, ADMIN, OPERATOR};

/// Writes the file that a shell reads to have addresses, certificates and a
/// token at hand, and returns its path.
pub fn write_env(cluster: &Cluster) -> anyhow::Result<PathBuf> {
    let file = cluster.layout().env();
    std::fs::write(&file, env(cluster))?;
    Ok(file)
}

fn env(cluster: &Cluster) -> String {
    let (layout, options) = (cluster.layout(), cluster.options());
    let ports = &options.ports;
    let (cert, key) = layout.certificate(OPERATOR);
    let path = |path: &Path| quoted(&path.display().to_string());
    let (ca, cert, key) = (path(&layout.ca()), path(&cert), path(&key));
    let binaries = path(&options.binaries);
    let (user, password) = ADMIN;
    format!(
        "# For a shell: `. this-file`\n\
         export PATH=$PATH:/usr/sbin:/sbin:{binaries}\n\
         export CA={ca} CERT={cert} KEY={key}\n\
         export CC=https://127.0.0.1:{api} UAA=https://127.0.0.1:{uaa}\n\
         export PORTCULLIS_LOCK_SERVER=127.0.0.1:{lock_server}\n\
         export PORTCULLIS_POLICY_STORE=127.0.0.1:{policy_store}\n\
         export PORTCULLIS_CA=$CA PORTCULLIS_CERT=$CERT PORTCULLIS_KEY=$KEY\n\
         # A fresh token: `. this-file` again\n\
         TOKEN=\"bearer $(curl -s --cacert \"$CA\" -u cf: -d grant_type=password \\\n\
         \x20 -d username={user} -d password={password} \"$UAA/oauth/token\" |\n\
         \x20 sed 's/.*\"access_token\":\"\\([^\"]*\\)\".*/\\1/')\"\n\
         export TOKEN\n",
        api = ports.api,
        uaa = ports.uaa,
        lock_server = ports.lock_server,
        policy_store = ports.policy_store,
    )
}

/// Where everything listens, and what to type.
pub fn guide(cluster: &Cluster, env: &Path, footing: Footing) -> String {
    let mut lines = listening(cluster);
    lines.extend(places(cluster));
    lines.extend(commands(cluster, env, footing));
    for container in cluster.containers() {
        lines.extend(cell_commands(cluster, container));
    }
    lines.extend([String::new(), "Ctrl-C ends the cluster and removes everything.".to_owned()]);
    lines.join("\n")
}

fn listening(cluster: &Cluster) -> Vec<String> {
    let ports = &cluster.options().ports;
    let line = |what: &str, port: u16, how: &str| format!("  {what:<28} {port:<6} {how}");
    let mut lines = vec![
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
        line(&format!("{} metrics, health", settings::syncer_name(number)), port, "HTTP")
    }));
    lines
}

/// Cells, containers, logs.
fn places(cluster: &Cluster) -> Vec<String> {
    let (layout, name) = (cluster.layout(), &cluster.options().name);
    let mut lines = vec![String::new(), "Cells:".to_owned()];
    lines.extend(cluster.network().cells().map(|cell| {
        let socket = layout.agent_socket(cell);
        format!("  {} is namespace {}, agent at {}", cell.name(), name.cell(cell), socket.display())
    }));
    lines.extend([String::new(), "Containers:".to_owned()]);
    lines.extend(cluster.containers().map(|container| {
        let Container { wanted, handle, attachment } = container;
        let (cell, address) = (wanted.cell.name(), attachment.address);
        format!("  {} on {cell}: {address}, space {}, handle {handle}", wanted.name, wanted.space)
    }));
    lines.extend([String::new(), format!("Logs: {}", layout.logs().display())]);
    lines
}

fn commands(cluster: &Cluster, env: &Path, footing: Footing) -> Vec<String> {
    let ports = &cluster.options().ports;
    let curl = "curl -s --cacert $CA -H \"Authorization: $TOKEN\"";
    let grpc = "grpcurl -cacert $CA -cert $CERT -key $KEY 127.0.0.1";
    let (lock_server, policy_store) = (ports.lock_server, ports.policy_store);
    let enter = footing
        .shell_prefix()
        .map(|prefix| format!("  {prefix} bash     # first: the cluster has a network of its own"));
    let mut lines = vec![
        String::new(),
        "In another shell, for addresses, certificates and a token:".to_owned(),
    ];
    lines.extend(enter);
    lines.push(format!("  . {}", quoted(&env.display().to_string())));
    let rest = format!(
        "
The Cloud Controller:
  {curl} $CC/v3/security_groups
  {curl} -X POST $CC/v3/security_groups -d '{GROUP}'

Each service over gRPC (`scripts/need grpcurl` puts one into target/tools/bin):
  {grpc}:{lock_server} list
  {grpc}:{lock_server} describe models.Locket
  {grpc}:{policy_store} list
  {grpc}:{policy_store} portcullis.policy.v1.PolicyStore/Status

Who holds the lock, how far each cell is:
  portcullisctl locks
  portcullisctl cells"
    );
    lines.push(rest);
    lines
}

const GROUP: &str = r#"{"name":"my-asg","rules":[{"protocol":"tcp","destination":"10.20.30.40","ports":"80"}],"globally_enabled":{"running":true}}"#;

fn cell_commands(cluster: &Cluster, container: &Container) -> Vec<String> {
    let Container { wanted, handle, attachment } = container;
    let socket = cluster.layout().agent_socket(wanted.cell);
    let socket = quoted(&socket.display().to_string());
    let on_cell = format!("ip netns exec {}", cluster.options().name.cell(wanted.cell));
    let inside = format!("ip netns exec {}", attachment.namespace.name());
    let ctl = format!("portcullisctl --cell-socket {socket}");
    vec![
        String::new(),
        format!("The rules on {}, and {} in it:", wanted.cell.name(), wanted.name),
        format!("  {on_cell} nft list table inet portcullis"),
        format!("  {ctl} containers"),
        format!("  {ctl} rules {handle}"),
        format!("  {ctl} explain {handle} tcp 1.2.3.4:80"),
        format!(
            "  grpcurl -plaintext -authority cell -unix {socket} portcullis.cell.v1.Cell/Status"
        ),
        format!("  {inside} ping -c 1 1.2.3.4"),
        format!("  {inside} bash -c 'echo hello >/dev/tcp/1.2.3.4/80 && echo open'"),
    ]
}
