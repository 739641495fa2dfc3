//! A client of the Cloud Controller with an operator's permissions.

use std::path::Path;
use std::time::Duration;

use anyhow::{Context, bail};
use reqwest::{Certificate, Client, Method, StatusCode};
use serde_json::{Value, json};
use tokio::time::{Instant, sleep};

use super::settings::ADMIN;

/// Request timeout, also for a busy machine.
const TIMEOUT: Duration = Duration::from_secs(10);

/// Timeout of the UAA's start.
const START: Duration = Duration::from_secs(30);

/// Timeout of one login attempt; the next one uses a new connection.
const ONE_LOGIN: Duration = Duration::from_secs(3);

#[derive(Debug, thiserror::Error)]
#[error("cannot reach the UAA")]
struct Unreachable(#[source] reqwest::Error);

/// A client, logged in as administrator.
#[derive(Debug, Clone)]
pub struct Cloud {
    http: Client,
    api: String,
    token: String,
}

/// A response of the Cloud Controller, with its time.
#[derive(Debug)]
pub struct Answer {
    /// The status.
    pub status: StatusCode,
    /// The document; null if the response has none.
    pub body: Value,
    /// When the response was complete.
    pub at: Instant,
}

impl Cloud {
    /// Logs in at the UAA as soon as it is ready; trusts this CA.
    pub async fn log_in(api: &str, uaa: &str, ca: &Path) -> anyhow::Result<Self> {
        let since = Instant::now();
        loop {
            match Self::try_log_in(api, uaa, ca).await {
                Err(error) if error.is::<Unreachable>() && since.elapsed() < START => {
                    sleep(Duration::from_millis(20)).await;
                }
                result => return result,
            }
        }
    }

    async fn try_log_in(api: &str, uaa: &str, ca: &Path) -> anyhow::Result<Self> {
        let pem = std::fs::read(ca).with_context(|| format!("cannot read {}", ca.display()))?;
        let http = Client::builder()
            .tls_certs_only(Certificate::from_pem_bundle(&pem)?)
            .timeout(TIMEOUT)
            .build()?;
        let form = [("grant_type", "password"), ("username", ADMIN.0), ("password", ADMIN.1)];
        let request =
            http.post(format!("{uaa}/oauth/token")).basic_auth("cf", Some("")).form(&form);
        let response = request.timeout(ONE_LOGIN).send().await.map_err(Unreachable)?;
        let status = response.status();
        let body: Value = response.json().await.context("the UAA's answer")?;
        match body["access_token"].as_str() {
            Some(token) => Ok(Self { http, api: api.to_owned(), token: token.to_owned() }),
            None => bail!("the UAA gave no token: {status}: {body}"),
        }
    }

    /// Calls the API.
    ///
    /// # Errors
    /// Any response that is not a success, with the Cloud Controller's message.
    pub async fn call(
        &self,
        method: Method,
        path: &str,
        body: Option<&Value>,
    ) -> anyhow::Result<Answer> {
        let mut request = self.http.request(method.clone(), format!("{}{path}", self.api));
        request = request.bearer_auth(&self.token);
        if let Some(body) = body {
            request = request.json(body);
        }
        let what = || format!("{method} {path}");
        let response = request.send().await.with_context(what)?;
        let status = response.status();
        let text = response.text().await.with_context(what)?;
        let at = Instant::now();
        if !status.is_success() {
            bail!("{method} {path}: {status}: {text}");
        }
        let body = match text.as_str() {
            "" => Value::Null,
            text => serde_json::from_str(text).with_context(what)?,
        };
        Ok(Answer { status, body, at })
    }

    /// Creates an organization, and returns its GUID.
    pub async fn create_organization(&self, name: &str) -> anyhow::Result<String> {
        let body = json!({ "name": name });
        self.create("/v3/organizations", &body).await
    }

    /// Creates a space, and returns its GUID.
    pub async fn create_space(&self, name: &str, organization: &str) -> anyhow::Result<String> {
        let organization = json!({ "data": { "guid": organization } });
        let body = json!({ "name": name, "relationships": { "organization": organization } });
        self.create("/v3/spaces", &body).await
    }

    async fn create(&self, path: &str, body: &Value) -> anyhow::Result<String> {
        let answer = self.call(Method::POST, path, Some(body)).await?;
        let guid = answer.body["guid"].as_str().map(str::to_owned);
        guid.with_context(|| format!("POST {path} answered without a guid"))
    }
}

/// The same call as a `curl` command for a shell that has read the cluster's `env`
/// file.
pub(crate) fn curl(method: &Method, path: &str, body: Option<&Value>) -> String {
    let method = match method {
        &Method::GET => String::new(),
        other => format!(" -X {other}"),
    };
    let body = body.map_or_else(String::new, |body| format!(" -d {}", quoted(&body.to_string())));
    format!(
        "curl -s --cacert $PORTCULLIS_CA -H \"Authorization: $CF_TOKEN\"{method} \"$CF_API{path}\"{body}"
    )
}

/// Quotes any text in single quotes.
pub(crate) fn quoted(text: &str) -> String {
    format!("'{}'", text.replace('\'', r"'\''"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_call_is_shown_as_it_is_typed() {
        assert_eq!(
            curl(&Method::GET, "/v3/security_groups?names=my-asg", None),
            r#"curl -s --cacert $PORTCULLIS_CA -H "Authorization: $CF_TOKEN" "$CF_API/v3/security_groups?names=my-asg""#
        );
        let body = json!({ "name": "it's" });
        assert_eq!(
            curl(&Method::POST, "/v3/security_groups", Some(&body)),
            r#"curl -s --cacert $PORTCULLIS_CA -H "Authorization: $CF_TOKEN" -X POST "$CF_API/v3/security_groups" -d '{"name":"it'\''s"}'"#
        );
    }
}
