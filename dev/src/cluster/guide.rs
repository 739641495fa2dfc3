//! What a person needs to work with a running cluster: where everything
//! listens, and commands to copy.

use std::fmt::Write;
use std::path::{Path, PathBuf};

use super::cloud::quoted;
use super::launch::Cluster;
use super::rootless::Footing;
use super::settings::{self, ADMIN, OPERATOR};

/// Writes the file that a shell reads to have addresses, certificates and a
/// token at hand, and returns its path.
pub fn write_env(cluster: &Cluster) -> anyhow::Result<PathBuf> {
    let file = cluster.layout().logs().with_file_name("env");
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
    let mut text = String::new();
    // Writing to a String cannot fail.
    let _ = listening(&mut text, cluster);
    let _ = commands(&mut text, cluster, env, footing);
    text
}

fn listening(text: &mut String, cluster: &Cluster) -> std::fmt::Result {
    let (layout, ports) = (cluster.layout(), &cluster.options().ports);
    writeln!(text, "Listening (127.0.0.1):")?;
    let line = |what: &str, port: u16, how: &str| format!("  {what:<28} {port:<6} {how}\n");
    text.push_str(&line("Cloud Controller", ports.api, "HTTPS, admin / admin"));
    text.push_str(&line("  internal", ports.internal_api, "HTTPS, client certificate"));
    text.push_str(&line("UAA", ports.uaa, "HTTPS"));
    text.push_str(&line("lock-server", ports.lock_server, "gRPC, client certificate"));
    text.push_str(&line("  metrics, health, log level", ports.lock_server_debug, "HTTP"));
    text.push_str(&line("policy-store", ports.policy_store, "gRPC, client certificate"));
    text.push_str(&line("  metrics, health, log level", ports.policy_store_debug, "HTTP"));
    for (number, port) in (1..).zip(ports.syncer_debug) {
        let what = format!("{} metrics, health", settings::syncer_name(number));
        text.push_str(&line(&what, port, "HTTP"));
    }
    writeln!(text, "\nCells:")?;
    for cell in cluster.network().cells() {
        let namespace = cluster.options().name.cell(cell);
        let socket = layout.agent_socket(cell);
        writeln!(
            text,
            "  {} is namespace {namespace}, agent at {}",
            cell.name(),
            socket.display()
        )?;
    }
    writeln!(text, "\nContainers:")?;
    for container in cluster.containers() {
        writeln!(
            text,
            "  {} on {}: {}, space {}, handle {}",
            container.wanted.name,
            container.wanted.cell.name(),
            container.attachment.address,
            container.wanted.space,
            container.handle,
        )?;
    }
    writeln!(text, "\nLogs: {}", layout.logs().display())
}

fn commands(
    text: &mut String,
    cluster: &Cluster,
    env: &Path,
    footing: Footing,
) -> std::fmt::Result {
    let ports = &cluster.options().ports;
    writeln!(text, "\nIn another shell, for addresses, certificates and a token:\n")?;
    if let Some(prefix) = footing.shell_prefix() {
        writeln!(text, "  {prefix} bash     # first: the cluster has a network of its own")?;
    }
    writeln!(text, "  . {}\n", env.display())?;
    let grpc = "grpcurl -cacert $CA -cert $CERT -key $KEY";
    let mut block = |title: &str, lines: &[String]| {
        let _ = writeln!(text, "{title}");
        for line in lines {
            let _ = writeln!(text, "  {line}");
        }
        let _ = writeln!(text);
    };
    let curl = "curl -s --cacert $CA -H \"Authorization: $TOKEN\"";
    block(
        "The Cloud Controller:",
        &[
            format!("{curl} $CC/v3/security_groups"),
            format!(
                "{curl} -X POST $CC/v3/security_groups -d '{{\"name\":\"my-asg\",\"rules\":[{{\"protocol\":\"tcp\",\
                 \"destination\":\"10.20.30.40\",\"ports\":\"80\"}}],\"globally_enabled\":{{\"running\":true}}}}'"
            ),
        ],
    );
    block(
        "Each service over gRPC:",
        &[
            format!("{grpc} 127.0.0.1:{} list", ports.lock_server),
            format!(
                "{grpc} -d '{{\"type_code\":1}}' 127.0.0.1:{} models.Locket/FetchAll",
                ports.lock_server
            ),
            format!(
                "{grpc} 127.0.0.1:{} portcullis.policy.v1.PolicyStore/Status",
                ports.policy_store
            ),
        ],
    );
    cell_commands(text, cluster, footing)
}

fn cell_commands(text: &mut String, cluster: &Cluster, footing: Footing) -> std::fmt::Result {
    let exec = |namespace: &str, command: &str| match footing {
        Footing::Root => format!("ip netns exec {namespace} {command}"),
        Footing::Inside => format!("ip netns exec {namespace} {command}"),
    };
    writeln!(text, "Who holds the lock, how far each cell is:")?;
    writeln!(text, "  portcullisctl locks")?;
    writeln!(text, "  portcullisctl cells")?;
    for container in cluster.containers() {
        let (name, cell) = (&container.wanted.name, container.wanted.cell);
        let socket = cluster.layout().agent_socket(cell);
        let socket = socket.display();
        let on_cell = cluster.options().name.cell(cell);
        let inside = container.attachment.namespace.name();
        let handle = &container.handle;
        writeln!(text, "\nThe rules on {}, and {name} in it:", cell.name())?;
        writeln!(text, "  {}", exec(&on_cell, "nft list table inet portcullis"))?;
        writeln!(text, "  portcullisctl --cell-socket {socket} containers")?;
        writeln!(text, "  portcullisctl --cell-socket {socket} rules {handle}")?;
        writeln!(text, "  portcullisctl --cell-socket {socket} explain {handle} tcp 1.2.3.4:80")?;
        writeln!(text, "  {}", exec(inside, "ping -c 1 1.2.3.4"))?;
        writeln!(
            text,
            "  {}",
            exec(inside, "bash -c 'echo hello >/dev/tcp/1.2.3.4/80 && echo open'")
        )?;
    }
    writeln!(text, "\nCtrl-C ends the cluster and removes everything.")
}
