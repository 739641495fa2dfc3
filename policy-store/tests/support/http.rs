//! Minimal polling agent; decodes responses as its Go code does.

use policy_store::groups::decide::Replacement;
use reqwest::{Method, RequestBuilder, Response};
use runtime::tls::ClientTls;
use serde::Deserialize;
use serde_json::{Value, value::RawValue};

use super::site::Site;

/// A client with a certificate that does not decode bodies.
pub(crate) struct Poller {
    client: reqwest::Client,
    base: String,
}

impl Poller {
    pub(crate) fn new(site: &Site, address: &str, name: &str) -> Self {
        Self::built(site, address, name, |builder| builder.no_gzip())
    }

    /// The same as the original's, which accepts gzip transparently.
    pub(crate) fn decoding(site: &Site, address: &str, name: &str) -> Self {
        Self::built(site, address, name, |builder| builder.gzip(true))
    }

    fn built(
        site: &Site,
        address: &str,
        name: &str,
        with: impl FnOnce(reqwest::ClientBuilder) -> reqwest::ClientBuilder,
    ) -> Self {
        let tls = ClientTls::load(&site.certificate(name, None)).unwrap().rustls_config().unwrap();
        let builder = reqwest::Client::builder()
            .tls_backend_preconfigured((*tls).clone())
            .http1_only()
            .timeout(super::PATIENCE);
        Self { client: with(builder).build().unwrap(), base: format!("https://{address}") }
    }

    pub(crate) fn request(&self, method: Method, path: &str) -> RequestBuilder {
        self.client.request(method, format!("{}{path}", self.base))
    }

    pub(crate) async fn ask(&self, method: Method, path: &str) -> Response {
        self.request(method, path).send().await.unwrap()
    }

    pub(crate) async fn get(&self, path: &str) -> Response {
        self.ask(Method::GET, path).await
    }

    pub(crate) async fn text(&self, path: &str) -> String {
        self.get(path).await.text().await.unwrap()
    }

    pub(crate) async fn groups(&self, query: &str) -> Answer {
        let text = self.text(&format!("/networking/v1/internal/security_groups{query}")).await;
        serde_json::from_str(&text).unwrap_or_else(|error| panic!("{error} in {text}"))
    }

    /// Loop of the original's client (docs/compatibility/policy-server-internal.md#clients):
    /// returns the groups and the number of requests.
    pub(crate) async fn all(&self, per_page: usize, spaces: &str) -> (Vec<Group>, usize) {
        let (mut groups, mut from, mut requests) = (Vec::new(), 0, 0);
        loop {
            let mut query = format!("?per_page={per_page}");
            if !spaces.is_empty() {
                query += &format!("&space_guids={spaces}");
            }
            if from != 0 {
                query += &format!("&from={from}");
            }
            let Answer { next, security_groups } = self.groups(&query).await;
            groups.extend(security_groups);
            requests += 1;
            if next == 0 {
                return (groups, requests);
            }
            assert!(next > from, "pages go on");
            from = next;
        }
    }
}

/// Response of security_groups.
#[derive(Debug, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Answer {
    pub(crate) next: u64,
    pub(crate) security_groups: Vec<Group>,
}

/// A group of it.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Group {
    pub(crate) guid: String,
    pub(crate) name: String,
    #[serde(deserialize_with = "rules")]
    pub(crate) rules: Value,
    pub(crate) staging_default: bool,
    pub(crate) running_default: bool,
    pub(crate) staging_space_guids: Vec<String>,
    pub(crate) running_space_guids: Vec<String>,
}

impl Answer {
    pub(crate) fn guids(&self) -> Vec<&str> {
        self.security_groups.iter().map(|group| group.guid.as_str()).collect()
    }
}

/// Decodes `rules` as the original's client does: Go's `strconv.Unquote`, then JSON.
fn rules<'de, D: serde::Deserializer<'de>>(reader: D) -> Result<Value, D::Error> {
    let token: Box<RawValue> = Deserialize::deserialize(reader)?;
    let text = unquote(token.get())
        .ok_or_else(|| serde::de::Error::custom(format!("invalid syntax: {token}")))?;
    serde_json::from_str(&text).map_err(serde::de::Error::custom)
}

/// Go's `strconv.Unquote` of a text in double quotes.
pub(crate) fn unquote(token: &str) -> Option<String> {
    let inner = token.strip_prefix('"')?.strip_suffix('"')?;
    let mut text = String::new();
    let mut rest = inner.chars();
    while let Some(c) = rest.next() {
        match c {
            '"' | '\n' => return None,
            '\\' => {
                let escape = rest.next()?;
                let mut digits = |count: usize, radix| {
                    let digits: String = rest.by_ref().take(count).collect();
                    (digits.len() == count)
                        .then(|| u32::from_str_radix(&digits, radix).ok())
                        .flatten()
                };
                text.push(match escape {
                    'a' => '\u{7}',
                    'b' => '\u{8}',
                    'f' => '\u{c}',
                    'n' => '\n',
                    'r' => '\r',
                    't' => '\t',
                    'v' => '\u{b}',
                    '\\' | '"' => escape,
                    // Not a surrogate, which `char` refuses as Go does.
                    'u' => char::from_u32(digits(4, 16)?)?,
                    'U' => char::from_u32(digits(8, 16)?)?,
                    // \x and octal escapes are bytes in Go; the server never writes them.
                    _ => return None,
                });
            }
            c => text.push(c),
        }
    }
    Some(text)
}

/// Expected response for a set, ascending by guid as the ids are.
pub(crate) fn expected(write: &Replacement) -> Vec<Group> {
    let mut groups: Vec<_> =
        write.supplied.groups.values().map(|content| content.group()).collect();
    groups.sort_by_key(|group| group.guid.clone());
    let spaces = |scope: &model::group::Scope| {
        scope.spaces.iter().map(|space| space.as_str().to_owned()).collect()
    };
    let rule = |rule: &model::rule::RuleSpec| {
        serde_json::json!({
            "protocol": rule.protocol, "destination": rule.destination, "ports": rule.ports,
            "type": rule.icmp_type, "code": rule.icmp_code, "description": rule.description,
            "log": rule.log,
        })
    };
    let group = |group: model::group::SecurityGroup| Group {
        guid: group.guid.as_str().to_owned(),
        name: group.name.clone(),
        rules: group.rules.iter().map(rule).collect(),
        staging_default: group.staging.everywhere,
        running_default: group.running.everywhere,
        staging_space_guids: spaces(&group.staging),
        running_space_guids: spaces(&group.running),
    };
    groups.into_iter().map(group).collect()
}
