//! The doors: listeners of the services, what an attacker knows of each, and its honest client.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;

use anyhow::{Context as _, ensure};
use certificates::{Authority, Files, Flaw};
use cni::metadata::{Entry, Store};
use load::connect;
use load::server::{Ends, Server, Site};
use load::store::data::{Data, Shape, guid};
use load::store::writer::{Identity, Writer};
use runtime::tls::{ClientTls, Role};
use serde_json::{Map, Value, json};
use tokio_rustls::rustls::ClientConfig;

use super::dial::{Address, Dial, Protocol};
use super::honest;

/// The container of the cell.
const HANDLE: &str = "0000cafe-0000-4000-8000-000000000001";
/// Groups of the policy store: a small foundation.
const GROUPS: u32 = 200;

/// A listener of a service.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub(crate) enum Door {
    /// gRPC of the lock server
    LockServer,
    /// gRPC of the policy store
    PolicyStore,
    /// HTTP API of the policy store, that of policy-server-internal
    PolicyStoreHttp,
    /// Admin address of the policy store
    Admin,
    /// Unix socket of the cell agent
    CellSocket,
    /// HTTP port of the cell agent that the CNI plugin calls
    CellHttp,
    /// API of the development Cloud Controller
    CloudController,
}

/// TLS of a door.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Security {
    None,
    /// Without client certificates.
    Server,
    Mutual,
}

impl Door {
    pub(crate) const ALL: [Self; 7] = [
        Self::LockServer,
        Self::PolicyStore,
        Self::PolicyStoreHttp,
        Self::Admin,
        Self::CellSocket,
        Self::CellHttp,
        Self::CloudController,
    ];

    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::LockServer => "lock-server",
            Self::PolicyStore => "policy-store",
            Self::PolicyStoreHttp => "policy-store-http",
            Self::Admin => "admin",
            Self::CellSocket => "cell-socket",
            Self::CellHttp => "cell-http",
            Self::CloudController => "cloud-controller",
        }
    }

    /// The door of a cell agent, which needs a network namespace.
    pub(crate) fn is_cell(self) -> bool {
        matches!(self, Self::CellSocket | Self::CellHttp)
    }

    pub(crate) fn security(self) -> Security {
        match self {
            Self::LockServer | Self::PolicyStore | Self::PolicyStoreHttp => Security::Mutual,
            Self::CloudController => Security::Server,
            Self::Admin | Self::CellSocket | Self::CellHttp => Security::None,
        }
    }

    pub(crate) fn speaks(self, protocol: Protocol) -> bool {
        match self {
            Self::LockServer | Self::PolicyStore | Self::CellSocket => protocol == Protocol::Http2,
            Self::PolicyStoreHttp | Self::Admin | Self::CellHttp => protocol == Protocol::Http1,
            Self::CloudController => true,
        }
    }

    pub(crate) fn is_grpc(self) -> bool {
        matches!(self, Self::LockServer | Self::PolicyStore | Self::CellSocket)
    }
}

/// What an attacker knows of a door.
#[derive(Debug)]
pub(crate) struct Target {
    pub(crate) door: Door,
    pub(crate) dial: Dial,
    /// A gRPC method, or the path of a response.
    pub(crate) path: String,
    /// A method whose request has a body, with its path.
    pub(crate) upload: (&'static str, &'static str),
    /// Header lines of an admitted request.
    pub(crate) admitted: String,
    /// Configurations of TLS with certificates that must be refused.
    pub(crate) wrong: Vec<(&'static str, Arc<ClientConfig>)>,
    /// The attacker's certificate.
    pub(crate) files: Files,
    /// The writer of the policy store.
    pub(crate) ends: Option<Ends>,
}

impl Target {
    /// The address in URLs.
    pub(crate) fn authority(&self) -> String {
        match &self.dial.address {
            Address::Tcp(address) => address.to_string(),
            Address::Unix(_) => "localhost".to_owned(),
        }
    }
}

/// The processes of a door.
#[derive(Debug)]
pub(crate) struct Running {
    pub(crate) target: Arc<Target>,
    pub(crate) honest: honest::Spec,
    pub(crate) server: Server,
    _others: Vec<Server>,
    /// Last field: its directory has the files of the processes.
    _site: Site,
}

/// Starts the processes of a door.
pub(crate) async fn start(door: Door, binaries: Option<PathBuf>) -> anyhow::Result<Running> {
    let site = Site::new(binaries)?;
    match door {
        Door::LockServer => lock_server(site).await,
        Door::PolicyStore | Door::PolicyStoreHttp | Door::Admin => policy_store(site, door).await,
        Door::CellSocket | Door::CellHttp => cell(site, door).await,
        Door::CloudController => cloud_controller(site).await,
    }
}

const ROLE: Role = Role { service: "attack", name: "client" };

/// Configuration of a client with these files, which need not be valid.
fn tls(files: &Files) -> anyhow::Result<ClientConfig> {
    let tls = ClientTls::follow(ROLE, &files.clone().into());
    Ok(tls.rustls_config()?.as_ref().clone())
}

fn wrong(site: &Site) -> anyhow::Result<Vec<(&'static str, Arc<ClientConfig>)>> {
    let authority = site.authority();
    let mut all = Vec::new();
    for (name, flaw) in [
        ("expired", Flaw::Expired),
        ("not yet valid", Flaw::NotYetValid),
        ("serverAuth only", Flaw::ServerOnly),
        ("self-signed", Flaw::SelfSigned),
    ] {
        all.push((name, Arc::new(tls(&authority.issue_flawed("flawed", flaw)?)?)));
    }
    let other = Authority::create(&site.path("other"))?.issue("other", &[])?;
    let other = Files { ca: authority.ca_file(), ..other };
    all.push(("other CA", Arc::new(tls(&other)?)));
    let without = ClientTls::trusting(&[authority.ca_file()])?;
    all.push(("none", without.rustls_config()?));
    let ca = Files {
        ca: authority.ca_file(),
        cert: authority.ca_file(),
        key: authority.ca_file().with_extension("key"),
    };
    all.push(("the CA's own", Arc::new(tls(&ca)?)));
    Ok(all)
}

fn address(text: &str) -> anyhow::Result<Address> {
    let address: SocketAddr = text.parse().with_context(|| format!("{text} is no address"))?;
    Ok(Address::Tcp(address))
}

async fn lock_server(mut site: Site) -> anyhow::Result<Running> {
    let server = site.lock_server(None).await?;
    let files = site.authority().issue("attacker", &[])?;
    let target = Target {
        door: Door::LockServer,
        dial: Dial::new(address(server.address())?, Some(&tls(&files)?)),
        path: "/models.Locket/Lock".to_owned(),
        upload: ("POST", "/models.Locket/Lock"),
        admitted: String::new(),
        wrong: wrong(&site)?,
        files,
        ends: None,
    };
    let honest = honest::Spec::Locks(server.target());
    Ok(Running { target: Arc::new(target), honest, server, _others: Vec::new(), _site: site })
}

/// The groups of the stores.
pub(crate) fn groups() -> Data {
    Data::new(&Shape {
        groups: GROUPS,
        global: 2,
        rules: 20,
        bindings: 3,
        staging_bindings: 0,
        scattered: false,
        spaces: 100,
    })
}

/// A store with groups, and its admin address.
async fn filled_store(site: &mut Site) -> anyhow::Result<(Server, Ends, String)> {
    let (mut server, ends) = site.policy_store().await?;
    let started = server.log_line("started", |data| data["admin-address"].is_string()).await?;
    let admin = started["admin-address"].as_str().unwrap_or_default().to_owned();
    let channel = ends.writer.channels(1)?.remove(0);
    Writer::new(channel, Identity::default()).replace(&groups()).await?;
    Ok((server, ends, admin))
}

async fn policy_store(mut site: Site, door: Door) -> anyhow::Result<Running> {
    let (server, ends, admin) = filled_store(&mut site).await?;
    let http = ends.http.clone().context("the store serves no HTTP")?;
    let connect::Target { ca, cert, key, .. } = ends.cell.clone();
    let files = Files { ca, cert, key };
    let cell = tls(&files)?;
    let list = "/networking/v1/internal/security_groups?per_page=500&space_guids=";
    let list = format!("{list}{}", guid(1, 1));
    let (at, secured, path, upload) = match door {
        Door::PolicyStoreHttp => {
            (address(&http)?, Some(&cell), list.clone(), ("PUT", "/networking/v1/internal/tags"))
        }
        Door::Admin => (address(&admin)?, None, "/metrics".to_owned(), ("POST", "/log-level")),
        _ => {
            let path = "/portcullis.policy.v1.PolicyStore/Watch";
            (address(server.address())?, Some(&cell), path.to_owned(), ("POST", path))
        }
    };
    let honest = match door {
        Door::PolicyStoreHttp => {
            honest::Spec::http(Some(cell.clone()), format!("https://{http}{list}"), None)
        }
        Door::Admin => honest::Spec::http(None, format!("http://{admin}/metrics"), None),
        _ => {
            let Files { ca: _, cert, key } = site.authority().issue("operator", &[])?;
            honest::Spec::Store(connect::Target { cert, key, ..server.target() })
        }
    };
    let target = Target {
        door,
        dial: Dial::new(at, secured),
        path,
        upload,
        admitted: String::new(),
        wrong: wrong(&site)?,
        files,
        ends: Some(ends),
    };
    Ok(Running { target: Arc::new(target), honest, server, _others: Vec::new(), _site: site })
}

async fn cell(mut site: Site, door: Door) -> anyhow::Result<Running> {
    let (store, ends, _) = filled_store(&mut site).await?;
    let metadata = site.path("store.json");
    let entry = Entry::app(HANDLE, [10, 255, 0, 7].into(), HANDLE, &guid(1, 1));
    Store::at(metadata.clone()).fill(vec![entry])?;
    let mut keys = Map::new();
    keys.insert("cni_datastore_path".to_owned(), json!(metadata));
    keys.insert("overlay_network".to_owned(), json!("10.255.0.0/16"));
    keys.insert("data_plane".to_owned(), json!("nftables"));
    let mut server = site.cell_agent(&ends.cell, keys).await?;
    let started = server.log_line("started", |data| data["socket"].is_string()).await?;
    let socket = PathBuf::from(started["socket"].as_str().unwrap_or_default());
    let path = format!("/force-asgs-for-container?container={HANDLE}");
    let (at, path, honest) = match door {
        Door::CellSocket => {
            let honest = honest::Spec::Cell(socket.clone());
            (Address::Unix(socket), "/portcullis.cell.v1.Cell/Status".to_owned(), honest)
        }
        _ => {
            let http = server.address().to_owned();
            let honest = honest::Spec::http(None, format!("http://{http}{path}"), None);
            (address(&http)?, path, honest)
        }
    };
    let target = Target {
        door,
        dial: Dial::new(at, None),
        path,
        upload: ("POST", "/force-policy-poll-cycle"),
        admitted: String::new(),
        wrong: Vec::new(),
        files: site.files().clone(),
        ends: None,
    };
    Ok(Running { target: Arc::new(target), honest, server, _others: vec![store], _site: site })
}

async fn cloud_controller(mut site: Site) -> anyhow::Result<Running> {
    let cloud = site.cloud_controller().await?;
    let files = site.authority().issue("attacker", &[])?;
    let trusting = ClientTls::trusting(&[site.authority().ca_file()])?.rustls_config()?;
    let http = honest::client(Some(trusting.as_ref()))?;
    let form = [("grant_type", "password"), ("username", "admin"), ("password", "admin")];
    let answer = http.post(format!("{}/oauth/token", cloud.uaa)).basic_auth("cf", Some(""));
    let answer: Value = answer.form(&form).send().await?.json().await?;
    let token = answer["access_token"].as_str().context("the UAA gives no token")?;
    let path = "/v3/security_groups?per_page=50";
    let url = format!("{}{path}", cloud.api);
    let (_, at) = cloud.api.split_once("://").context("the API has a URL")?;
    ensure!(cloud.api.starts_with("https"), "the API has no TLS");
    let target = Target {
        door: Door::CloudController,
        dial: Dial::new(address(at)?, Some(&trusting)),
        path: path.to_owned(),
        upload: ("POST", "/v3/security_groups"),
        admitted: format!("Authorization: bearer {token}\r\n"),
        wrong: Vec::new(),
        files,
        ends: None,
    };
    let honest = honest::Spec::http(Some(trusting.as_ref().clone()), url, Some(token.to_owned()));
    let server = cloud.server;
    Ok(Running { target: Arc::new(target), honest, server, _others: Vec::new(), _site: site })
}
