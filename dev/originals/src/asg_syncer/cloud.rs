//! The calls to UAA and Cloud Controller, docs/compatibility/asg-syncer.md.

use anyhow::{Context, bail};
use http::StatusCode;
use jiff::Timestamp;
use reqwest::{Certificate, Client, Identity};
use serde::Deserialize;
use serde::de::DeserializeOwned;
use serde_json::Value;

use crate::config::Config;
use crate::groups::{Group, Rule, rules_text};

/// Attempts at a list whose stamp moves meanwhile.
const ATTEMPTS: usize = 3;

pub(super) struct Cloud {
    uaa: Client,
    internal: Client,
    token_url: String,
    client: (String, String),
    stamp_url: String,
    list_url: String,
}

#[derive(Debug, Deserialize)]
struct Page {
    pagination: Pagination,
    resources: Option<Vec<Listed>>,
}

#[derive(Debug, Deserialize)]
struct Pagination {
    next: Option<Value>,
}

#[derive(Debug, Deserialize)]
struct Listed {
    guid: String,
    name: String,
    globally_enabled: Enabled,
    rules: Vec<Rule>,
    relationships: Relationships,
}

#[derive(Debug, Deserialize)]
struct Enabled {
    running: bool,
    staging: bool,
}

#[derive(Debug, Deserialize)]
struct Relationships {
    running_spaces: Spaces,
    staging_spaces: Spaces,
}

#[derive(Debug, Deserialize)]
struct Spaces {
    data: Vec<Space>,
}

#[derive(Debug, Deserialize)]
struct Space {
    guid: String,
}

impl Spaces {
    fn guids(self) -> Vec<String> {
        self.data.into_iter().map(|space| space.guid).collect()
    }
}

impl Cloud {
    pub(super) fn new(config: &Config) -> anyhow::Result<Self> {
        let mut roots = Vec::new();
        for key in ["uaa_ca", "cc_ca_cert"] {
            let file = config.text_or(key, "");
            if !file.is_empty() {
                let pem = std::fs::read(&file).with_context(|| format!("could not read {file}"))?;
                roots.extend(Certificate::from_pem_bundle(&pem)?);
            }
        }
        let http = || Client::builder().http1_only().no_proxy().user_agent("Go-http-client/1.1");
        let uaa = http().tls_certs_only(roots).build()?;
        let (cert, key) = ("cc_internal_client_cert", "cc_internal_client_key");
        let files = config.files("cc_internal_ca_cert", cert, key)?;
        let mut pair = std::fs::read(&files.cert)?;
        pair.extend(std::fs::read(&files.key)?);
        let roots = Certificate::from_pem_bundle(&std::fs::read(&files.ca)?)?;
        let internal = http().tls_certs_only(roots).identity(Identity::from_pem(&pair)?);
        let (uaa_url, cc) = (config.text("uaa_url")?, config.text("cc_url")?);
        Ok(Self {
            uaa,
            internal: internal.build()?,
            token_url: format!("{uaa_url}:{}/oauth/token", config.port("uaa_port")?),
            client: (config.text("uaa_client")?, config.text("uaa_client_secret")?),
            stamp_url: format!("{}/internal/v4/asg_latest_update", config.text("cc_internal_url")?),
            list_url: format!("{cc}/v3/security_groups?per_page=5000&page="),
        })
    }

    /// A new token for each poll.
    pub(super) async fn token(&self) -> anyhow::Result<String> {
        let (client, secret) = &self.client;
        let body = format!("client_id={client}&grant_type=client_credentials");
        let form = "application/x-www-form-urlencoded";
        let request = self.uaa.post(&self.token_url).basic_auth(client, Some(secret));
        let answer = request.header("content-type", form).body(body).send().await;
        let answer = answer.context("http client")?;
        let status = answer.status();
        let text = answer.text().await.context("read body")?;
        if status != StatusCode::OK {
            bail!("bad uaa response: {}: {text}", status.as_u16());
        }
        let answer: Value = runtime::json::from_str(&text).context("unmarshal json")?;
        Ok(answer["access_token"].as_str().unwrap_or_default().to_owned())
    }

    /// The stamp; `None` without one (404).
    pub(super) async fn last_update(&self, token: &str) -> anyhow::Result<Option<Timestamp>> {
        let Some(answer) = get::<Value>(&self.internal, &self.stamp_url, token).await? else {
            return Ok(None);
        };
        let text = answer["last_update"].as_str().unwrap_or_default();
        let failed = || format!("failed parsing last_update from cloud controller: '{text}'");
        Ok(Some(text.parse().with_context(failed)?))
    }

    /// All groups; the list is read again if the stamp moves while it is read.
    pub(super) async fn security_groups(&self, token: &str) -> anyhow::Result<Vec<Group>> {
        let mut failure = None;
        for _attempt in 0..ATTEMPTS {
            match self.list(token).await {
                Ok(groups) => return Ok(groups),
                Err(error) => failure = Some(error),
            }
        }
        Err(failure.context("no attempt was made")?.context("Ran out of retry attempts"))
    }

    async fn list(&self, token: &str) -> anyhow::Result<Vec<Group>> {
        let before = self.last_update(token).await?;
        let mut groups = Vec::new();
        for page in 1.. {
            let url = format!("{}{page}", self.list_url);
            let answer: Page = get(&self.uaa, &url, token).await?.context("http status 404")?;
            if self.last_update(token).await? != before {
                bail!("last_update time has changed");
            }
            let Some(resources) = answer.resources else { break };
            for listed in resources {
                groups.push(listed.group()?);
            }
            let next = answer.pagination.next.unwrap_or_default();
            if next["href"].as_str().unwrap_or_default().is_empty() {
                break;
            }
        }
        Ok(groups)
    }
}

impl Listed {
    fn group(self) -> anyhow::Result<Group> {
        let Self { guid, name, globally_enabled, rules, relationships } = self;
        Ok(Group {
            guid,
            name,
            rules: rules_text(&rules)?,
            staging_default: globally_enabled.staging,
            running_default: globally_enabled.running,
            staging_space_guids: relationships.staging_spaces.guids(),
            running_space_guids: relationships.running_spaces.guids(),
        })
    }
}

/// `None` for 404.
async fn get<T: DeserializeOwned>(
    client: &Client,
    url: &str,
    token: &str,
) -> anyhow::Result<Option<T>> {
    let request = client.get(url).header("authorization", format!("bearer {token}"));
    let answer = request.send().await.context("json client do")?;
    let status = answer.status();
    let text = answer.text().await.context("json client do")?;
    if status == StatusCode::NOT_FOUND {
        return Ok(None);
    }
    if status.as_u16() > 299 {
        bail!("json client do: http status {}: {text}", status.as_u16());
    }
    Ok(Some(runtime::json::from_str(&text).context("json unmarshal")?))
}
