//! The instances of the policy store. Any of them answers questions about security groups; cells
//! and containers are known by the instance that they watch, so questions about those go to every
//! instance.

use std::net::SocketAddr;

use anyhow::{Context as _, anyhow};
use futures_util::future::join_all;
use proto::policy_v1::foundation_client::FoundationClient;
use runtime::client::{self, Options};
use tonic::{Status, transport::Channel};

use crate::{
    connect::{Connection, channel, tls},
    refused::is_final,
    report::warn,
};

/// Size limit of an answer: groups may be bound to very many spaces.
pub(crate) const LARGEST_ANSWER: usize = 64 << 20;

/// Calls the service Foundation over a channel.
pub(crate) fn foundation(channel: Channel) -> FoundationClient<Channel> {
    FoundationClient::new(channel).max_decoding_message_size(LARGEST_ANSWER)
}

/// An instance.
#[derive(Debug)]
pub(crate) struct Store {
    /// The address, as far as it tells this instance from others.
    pub(crate) address: String,
    /// The host that the certificate must be valid for, if the address does not have it.
    name: Option<String>,
}

impl Store {
    /// The address with the host that the certificate is for.
    pub(crate) fn name_and_port(&self) -> String {
        let port = self.address.rsplit_once(':').map_or("", |(_, port)| port);
        self.name.as_ref().map_or_else(|| self.address.clone(), |name| format!("{name}:{port}"))
    }
}

/// The answer of an instance.
pub(crate) type Answered<T> = (String, anyhow::Result<T>);

impl Connection {
    /// The instances: every address of every host in the configured list.
    pub(crate) async fn stores(&self) -> anyhow::Result<Vec<Store>> {
        let mut stores = Vec::new();
        for address in entries(self.policy_store_address()) {
            let (host, resolved) = (host(address), tokio::net::lookup_host(address).await);
            let mut found: Vec<SocketAddr> = match resolved {
                Ok(found) => found.collect(),
                // The call reports this error, with the name.
                Err(_) => Vec::new(),
            };
            found.sort_unstable();
            found.dedup();
            // Two addresses of this machine are one process.
            if found.len() <= 1 || found.iter().all(|at| at.ip().is_loopback()) {
                stores.push(Store { address: address.to_owned(), name: None });
            } else {
                let store =
                    |at: SocketAddr| Store { address: at.to_string(), name: Some(host.to_owned()) };
                stores.extend(found.into_iter().map(store));
            }
        }
        if stores.is_empty() {
            return Err(anyhow!("the address of the policy store is empty"));
        }
        Ok(stores)
    }

    /// Asks every instance at the same time.
    pub(crate) async fn survey<T>(
        &self,
        what: &'static str,
        call: impl AsyncFn(Channel) -> Result<T, Status>,
    ) -> anyhow::Result<Vec<Answered<T>>> {
        let stores = self.stores().await?;
        let asked = stores.iter().map(async |store| {
            let answer = async {
                let channel = self.open(store).await?;
                self.ask(what, call(channel)).await
            };
            (store.address.clone(), Box::pin(answer).await)
        });
        Ok(join_all(asked).await)
    }

    /// Asks every instance. One that does not answer is a warning if another one does.
    pub(crate) async fn ask_stores<T>(
        &self,
        what: &'static str,
        call: impl AsyncFn(Channel) -> Result<T, Status>,
    ) -> anyhow::Result<Vec<T>> {
        settle(self.survey(what, call).await?)
    }

    /// Asks the instances one after the other, until one answers. For questions that any instance
    /// can answer.
    pub(crate) async fn ask_a_store<T>(
        &self,
        what: &'static str,
        call: impl AsyncFn(Channel) -> Result<T, Status>,
    ) -> anyhow::Result<T> {
        let addresses: Vec<&str> = entries(self.policy_store_address()).collect();
        let mut failed = None;
        for address in &addresses {
            let channel = channel(self.policy_store(), address)?;
            match self.ask(what, call(channel)).await {
                Ok(answer) => return Ok(answer),
                Err(error) if is_final(&error) || addresses.len() == 1 => return Err(error),
                Err(error) => {
                    warn(&format!("policy store {address}: {error:#}"));
                    failed = Some(error);
                }
            }
        }
        Err(failed.unwrap_or_else(|| anyhow!("the address of the policy store is empty")))
    }

    /// A channel to an instance.
    pub(crate) async fn open(&self, store: &Store) -> anyhow::Result<Channel> {
        let server = self.policy_store();
        match &store.name {
            None => channel(server, &store.address),
            Some(name) => {
                let tls = tls(server)?;
                let options = Options { connect_timeout: self.timeout(), ..Options::default() };
                let connected = client::connect_as(name, &store.address, &tls, options).await;
                connected.context("policy store")
            }
        }
    }
}

/// The answers, with a warning for each instance that did not answer. If all failed, the first
/// error.
pub(crate) fn settle<T>(answers: Vec<Answered<T>>) -> anyhow::Result<Vec<T>> {
    let several = answers.len() > 1;
    let (mut given, mut failed) = (Vec::new(), Vec::new());
    for (address, answer) in answers {
        match answer {
            Ok(answer) => given.push(answer),
            Err(error) if several => failed.push(error.context(format!("policy store {address}"))),
            Err(error) => failed.push(error),
        }
    }
    if given.is_empty() && !failed.is_empty() {
        return Err(failed.swap_remove(0));
    }
    failed.iter().for_each(|error| warn(&format!("no answer: {error:#}")));
    Ok(given)
}

/// The addresses of a comma list.
fn entries(list: &str) -> impl Iterator<Item = &str> {
    list.split(',').map(str::trim).filter(|address| !address.is_empty())
}

fn host(address: &str) -> &str {
    let host = address.rsplit_once(':').map_or(address, |(host, _)| host);
    host.strip_prefix('[').and_then(|host| host.strip_suffix(']')).unwrap_or(host)
}

#[cfg(test)]
mod tests {
    use tonic::Code;

    use super::*;
    use crate::refused::Refused;

    #[test]
    fn a_list_has_several_addresses() {
        let found: Vec<&str> = entries("a:1, b:2,,[::1]:3").collect();
        assert_eq!(found, ["a:1", "b:2", "[::1]:3"]);
        assert_eq!(found.iter().map(|at| host(at)).collect::<Vec<_>>(), ["a", "b", "::1"]);
    }

    #[test]
    fn one_answer_is_sufficient() {
        let refused = |code| anyhow::Error::new(Refused::new(&Status::new(code, "sentence")));
        let dead = || Err(refused(Code::Unavailable).context("cells"));
        let one = settle(vec![("a:1".to_owned(), dead()), ("b:1".to_owned(), Ok(5))]);
        assert_eq!(one.expect("an answer"), [5]);
        let none = settle::<u8>(vec![("a:1".to_owned(), dead()), ("b:1".to_owned(), dead())]);
        let text = format!("{:#}", none.expect_err("no answer"));
        assert_eq!(text, "policy store a:1: cells: sentence");
        assert!(is_final(&refused(Code::NotFound)) && !is_final(&refused(Code::Unavailable)));
    }
}
