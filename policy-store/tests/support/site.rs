//! A certificate authority, and a store that is served in this process.

use std::{path::Path, sync::Arc};

use policy_store::{app::App, config::Config};
use proto::policy_v1::{
    foundation_client::FoundationClient, policy_store_client::PolicyStoreClient,
};
use rcgen::{
    BasicConstraints, CertificateParams, DistinguishedName, DnType, ExtendedKeyUsagePurpose, IsCa,
    Issuer, KeyPair,
};
use runtime::{
    client,
    process::{Process, Service as _},
    tls::{ClientTls, Files},
};
use serde_json::{Value, json};
use storage::{server::Dialect, testing::TestServer};
use tempfile::TempDir;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;
use tonic::transport::Channel;

use super::http::Poller;

pub(crate) type Client = PolicyStoreClient<Channel>;
pub(crate) type Foundation = FoundationClient<Channel>;

/// A directory with certificates and a database.
#[derive(Clone)]
pub(crate) struct Site {
    directory: Arc<TempDir>,
    issuer: Arc<Issuer<'static, KeyPair>>,
    database: Value,
}

impl Site {
    pub(crate) fn new() -> Self {
        runtime::tls::install_provider();
        let directory = tempfile::tempdir().unwrap();
        let key = KeyPair::generate().unwrap();
        let mut parameters = CertificateParams::default();
        parameters.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let certificate = parameters.self_signed(&key).unwrap();
        std::fs::write(directory.path().join("ca.crt"), certificate.pem()).unwrap();
        let issuer = Arc::new(Issuer::new(parameters, key));
        let database = json!({ "type": "sqlite", "path": directory.path().join("store.db") });
        Self { directory: Arc::new(directory), issuer, database }
    }

    /// A site whose stores use a new database of this server.
    pub(crate) fn on(server: &TestServer) -> Self {
        let options = server.database();
        let (_, name) = options.connection_string.rsplit_once('/').expect("a name at the end");
        let database = json!({
            "type": if server.dialect() == Dialect::Postgres { "postgres" } else { "mysql" },
            "user": "tester", "password": "secret", "host": "127.0.0.1", "port": server.port(),
            "database_name": name, "timeout": 5,
        });
        Self { database, ..Self::new() }
    }

    /// The same, whose stores write the original's tables as well.
    pub(crate) fn writing_original_tables(mut self) -> Self {
        self.database["write_original_tables"] = json!(true);
        self
    }

    /// Name of the database on its server.
    pub(crate) fn database_name(&self) -> &str {
        self.database["database_name"].as_str().expect("it is on a server")
    }

    pub(crate) fn path(&self) -> &Path {
        self.directory.path()
    }

    /// A certificate with this common name, and an organizational unit if given.
    pub(crate) fn certificate(&self, name: &str, unit: Option<&str>) -> Files {
        let mut parameters = CertificateParams::new(vec!["127.0.0.1".to_owned()]).unwrap();
        let mut subject = DistinguishedName::new();
        subject.push(DnType::CommonName, name);
        if let Some(unit) = unit {
            subject.push(DnType::OrganizationalUnitName, unit);
        }
        parameters.distinguished_name = subject;
        parameters.extended_key_usages =
            vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
        let key = KeyPair::generate().unwrap();
        let certificate = parameters.signed_by(&key, &*self.issuer).unwrap();
        let file = |end: &str| self.path().join(format!("{name}.{end}"));
        std::fs::write(file("crt"), certificate.pem()).unwrap();
        std::fs::write(file("key"), key.serialize_pem()).unwrap();
        Files { ca: self.path().join("ca.crt"), cert: file("crt"), key: file("key") }
    }

    /// A configuration of this site, on free ports.
    pub(crate) fn config(&self) -> Value {
        let server = self.certificate("server", None);
        json!({
            "grpc_listen_address": "127.0.0.1:0",
            "listen_host": "127.0.0.1",
            "internal_listen_port": 0,
            "health_check_port": 0,
            "admin_listen_address": "127.0.0.1:0",
            "ca_cert_file": server.ca,
            "server_cert_file": server.cert,
            "server_key_file": server.key,
            "database": self.database,
            "report_save_interval_seconds": 1,
            "drain_timeout_seconds": 5,
            "drain_spread_seconds": 1,
        })
    }

    /// A client with this certificate, connected to a store.
    pub(crate) fn client(&self, address: &str, name: &str, unit: Option<&str>) -> Client {
        PolicyStoreClient::new(self.channel(address, name, unit))
            .max_decoding_message_size(32 << 20)
    }

    /// The same for the Foundation service.
    pub(crate) fn foundation(&self, address: &str, name: &str, unit: Option<&str>) -> Foundation {
        FoundationClient::new(self.channel(address, name, unit))
    }

    fn channel(&self, address: &str, name: &str, unit: Option<&str>) -> Channel {
        let tls = ClientTls::load(&self.certificate(name, unit)).unwrap();
        client::channel(address, Some(tls), client::Options::default()).unwrap()
    }
}

/// A store served in this process by [`App`].
pub(crate) struct Served {
    pub(crate) site: Site,
    pub(crate) address: String,
    pub(crate) internal: String,
    pub(crate) health_checks: String,
    pub(crate) shutdown: CancellationToken,
    running: JoinHandle<anyhow::Result<()>>,
}

impl Served {
    pub(crate) async fn start() -> Self {
        Self::start_at(Site::new()).await
    }

    pub(crate) async fn start_at(site: Site) -> Self {
        let config = site.config();
        Self::start_with(site, &config).await
    }

    /// With a modified configuration of this site.
    pub(crate) async fn start_with(site: Site, config: &Value) -> Self {
        let config: Config = runtime::config::parse(&config.to_string()).unwrap().config;
        let app = App::bind(config, &Process::detached()).await.unwrap();
        let address = app.grpc_address();
        let internal = app.internal_address().unwrap();
        let health_checks = app.health_check_address().unwrap();
        let shutdown = CancellationToken::new();
        #[expect(clippy::disallowed_methods, reason = "`stop` waits for it")]
        let running = tokio::spawn(app.run(shutdown.clone()));
        Self { site, address, internal, health_checks, shutdown, running }
    }

    pub(crate) fn writer(&self) -> Client {
        self.site.client(&self.address, "syncer", None)
    }

    /// A polling agent with an ordinary certificate.
    pub(crate) fn poller(&self) -> Poller {
        Poller::new(&self.site, &self.internal, "agent")
    }

    pub(crate) fn operator(&self) -> Client {
        self.site.client(&self.address, "operator", None)
    }

    /// A client of the Foundation service with the certificate of this name and unit.
    pub(crate) fn foundation(&self, name: &str, unit: Option<&str>) -> Foundation {
        self.site.foundation(&self.address, name, unit)
    }

    pub(crate) fn cell(&self, id: &str) -> Client {
        self.site.client(&self.address, id, Some("cell"))
    }

    /// Stops it in order.
    pub(crate) async fn stop(self) -> Site {
        self.shutdown.cancel();
        self.running.await.unwrap().unwrap();
        self.site
    }
}
