//! The listeners: public API, UAA, and the internal API behind mutual TLS.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context;
use axum::{Extension, Router, middleware};
use runtime::server::{Http, Listener};
use runtime::supervise::Tasks;
use runtime::tls::{Alpn, Files, ServerTls};
use tempfile::TempDir;
use tokio::net::TcpListener;
use tokio_rustls::TlsAcceptor;
use tokio_util::sync::CancellationToken;

use super::config::{Config, ConfiguredClient};
use super::http::uaa::router as uaa_router;
use super::http::{Scheme, Shared, api_router, internal_router};
use super::http::{bodies, trouble};
use super::state::{Moment, State};
use super::store::{Content, Store, new_guid};
use super::tls;
use super::uaa::Client;
use super::uaa::token::Signer;
use certificates::Authority;

const DRAIN: Duration = Duration::from_secs(3);

/// A Cloud Controller with bound listeners that does not serve yet.
pub struct App {
    api: Public,
    uaa: Public,
    internal: Listener,
    internal_tls: ServerTls,
    shared: Arc<Shared>,
    trouble_file: Option<PathBuf>,
    certificates: Files,
    // Temporary directory of generated certificates, deleted with the process.
    _temporary: Option<TempDir>,
}

/// The addresses of an [`App`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Addresses {
    /// The URL of the public API.
    pub api: String,
    /// The URL of the UAA.
    pub uaa: String,
    /// The URL of the internal API.
    pub internal: String,
    /// The internal listener's certificate files, with the CA of its clients.
    pub certificates: Files,
}

impl App {
    /// Acquires sockets, certificates and the state.
    pub async fn bind(config: Config) -> anyhow::Result<Self> {
        let acceptor = match &config.tls {
            Some(tls) => Some(tls::load(&tls.cert_file, &tls.key_file)?),
            None => None,
        };
        let api = Public::bind("the API", config.api_address.as_str(), acceptor.clone()).await?;
        let uaa = Public::bind("the UAA", config.uaa_address.as_str(), acceptor).await?;
        let internal = Listener::tcp("the internal API", config.internal_address.as_str()).await?;
        let (certificates, temporary) = internal_certificates(&config)?;
        let internal_tls =
            ServerTls::load(&certificates, Alpn::None).context("the internal API")?;
        let uaa_port = uaa.port()?;
        let (store, signer) = open_state(&config)?;
        let shared = Shared {
            store,
            signer,
            clients: clients(&config.clients),
            lifetimes: config.lifetimes,
            flags: config.flags,
            uaa_port,
        };
        Ok(Self {
            api,
            uaa,
            internal,
            internal_tls,
            shared: Arc::new(shared),
            trouble_file: config.trouble_file,
            certificates,
            _temporary: temporary,
        })
    }

    /// The addresses of the listeners.
    pub fn addresses(&self) -> Addresses {
        Addresses {
            api: self.api.url(),
            uaa: self.uaa.url(),
            internal: format!("https://{}", self.internal.local_addr()),
            certificates: self.certificates.clone(),
        }
    }

    /// Serves until `shutdown`.
    pub async fn run(self, shutdown: CancellationToken) -> anyhow::Result<()> {
        let Addresses { api, uaa, internal, certificates } = self.addresses();
        tracing::info!(api = %api, uaa = %uaa, internal = %internal,
            ca = %certificates.ca.display(), "started");
        let mut tasks = Tasks::new(shutdown.clone());
        let trouble = middleware::from_fn_with_state(self.trouble_file, trouble::apply);
        let api = api_router(self.shared.clone()).layer(trouble.clone());
        tasks.add("api", self.api.serve(api, shutdown.clone()));
        tasks.add("uaa", self.uaa.serve(uaa_router(self.shared.clone()), shutdown.clone()));
        tasks.add("certificates", self.internal_tls.clone().watch(shutdown.clone()));
        let internal = Http::new(self.internal, Some(self.internal_tls));
        let router = internal_router(self.shared.clone()).layer(trouble);
        tasks.add("internal", async move {
            internal.serve(router, shutdown, DRAIN).await;
            Ok(())
        });
        tasks.join(DRAIN + Duration::from_secs(1)).await
    }
}

fn clients(configured: &[ConfiguredClient]) -> Vec<Client> {
    let configured = configured.iter().map(ConfiguredClient::to_client);
    std::iter::once(Client::cf()).chain(configured).collect()
}

fn internal_certificates(config: &Config) -> anyhow::Result<(Files, Option<TempDir>)> {
    if let Some(tls) = &config.internal_tls {
        let files = Files {
            ca: tls.ca_file.clone(),
            cert: tls.cert_file.clone(),
            key: tls.key_file.clone(),
        };
        return Ok((files, None));
    }
    if let Some(directory) = &config.certificates_directory {
        return Ok((issue(directory)?, None));
    }
    let temporary = tempfile::Builder::new()
        .prefix("portcullis-dev-certificates-")
        .tempdir()
        .context("making a directory for certificates")?;
    Ok((issue(temporary.path())?, Some(temporary)))
}

/// Issues the server's certificate, and one for a first client.
fn issue(directory: &Path) -> anyhow::Result<Files> {
    let authority = Authority::open(directory)?;
    let names = ["localhost", "127.0.0.1", "::1", "cloud-controller-ng.service.cf.internal"];
    authority.issue("client", &[])?;
    Ok(authority.issue("cloud-controller", &names)?.into())
}

fn open_state(config: &Config) -> anyhow::Result<(Store, Signer)> {
    let now = jiff::Timestamp::now();
    let content = match &config.state_file {
        Some(path) => Content::load(path)?,
        None => None,
    };
    let (mut state, signer) = match content {
        Some(content) => (content.state(), Signer::from_pem(&content.signing_key)?),
        None => (State::fresh(now, new_guid), Signer::generate()?),
    };
    for user in &config.users {
        let moment = Moment { now, guid: new_guid() };
        state.configure_user(&user.name, &user.password, &user.scopes, &moment);
    }
    let file = config.state_file.clone().map(|path| (path, signer.pem().to_owned()));
    Ok((Store::new(state, file)?, signer))
}

/// A public listener, with or without TLS.
enum Public {
    Plain(Listener),
    Tls(TcpListener, SocketAddr, TlsAcceptor),
}

impl Public {
    async fn bind(
        what: &'static str,
        address: &str,
        acceptor: Option<TlsAcceptor>,
    ) -> anyhow::Result<Self> {
        let Some(acceptor) = acceptor else {
            return Ok(Self::Plain(Listener::tcp(what, address).await?));
        };
        let listen = async {
            let every = address.strip_prefix(':').map(|port| format!("0.0.0.0:{port}"));
            let listener = TcpListener::bind(every.as_deref().unwrap_or(address)).await?;
            let local = listener.local_addr()?;
            Ok::<_, std::io::Error>(Self::Tls(listener, local, acceptor))
        };
        listen.await.with_context(|| format!("listening on {address} for {what}"))
    }

    fn local_addr(&self) -> String {
        match self {
            Self::Plain(listener) => listener.local_addr(),
            Self::Tls(_, address, _) => address.to_string(),
        }
    }

    fn scheme(&self) -> &'static str {
        match self {
            Self::Plain(_) => "http",
            Self::Tls(..) => "https",
        }
    }

    fn url(&self) -> String {
        format!("{}://{}", self.scheme(), self.local_addr())
    }

    fn port(&self) -> anyhow::Result<u16> {
        let address: SocketAddr = self.local_addr().parse().context("the UAA's address")?;
        Ok(address.port())
    }

    async fn serve(self, router: Router, shutdown: CancellationToken) -> anyhow::Result<()> {
        let scheme = Extension(Scheme(self.scheme()));
        let router = router.layer(middleware::from_fn_with_state(bodies::budget(), bodies::bound));
        let router = router.layer(scheme);
        match self {
            Self::Plain(listener) => Http::new(listener, None).serve(router, shutdown, DRAIN).await,
            Self::Tls(listener, _, acceptor) => {
                tls::serve(listener, acceptor, router, shutdown, DRAIN).await;
            }
        }
        Ok(())
    }
}
