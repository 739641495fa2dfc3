//! Asks the servers once or at an interval, and turns their answers into messages.

use std::time::Duration;

use anyhow::anyhow;
use futures_util::future::{join_all, try_join_all};
use proto::{
    models::TypeCode,
    policy_v1::{
        CellsResponse, ChangesRequest, ChangesResponse, ContainersRequest, StatusResponse,
    },
};
use tokio::{
    sync::{Mutex, mpsc, watch},
    time::{MissedTickBehavior, interval, sleep},
    try_join,
};
use tonic::{Code, Streaming, transport::Channel};

use super::{
    data::{Containers, Lock, Owner, Store},
    model::{MOST_CHANGES, Message},
    wire,
};
use crate::{
    cells,
    connect::Connection,
    locks,
    refused::Refused,
    removal, store,
    stores::{self, foundation},
};

/// Timeout of a request without `--timeout`.
const TIMEOUT: Duration = Duration::from_secs(5);

/// Containers of a cell that are requested.
const MOST_CONTAINERS: u32 = 5_000;

/// The receiver of the messages is gone.
pub(crate) struct Closed;

/// An instance of the policy store. The channel is opened by the first request that
/// succeeds in doing so.
#[derive(Debug)]
struct Instance {
    store: stores::Store,
    channel: Mutex<Option<Channel>>,
}

/// The servers, and where their answers go.
#[derive(Debug)]
pub(crate) struct Sources<'a> {
    connection: &'a Connection,
    instances: Vec<Instance>,
    locks: Channel,
    interval: Duration,
    messages: mpsc::Sender<Message>,
}

impl<'a> Sources<'a> {
    /// # Errors
    /// A certificate cannot be read, or an address is malformed.
    pub(crate) async fn new(
        connection: &'a Connection,
        interval: Duration,
        messages: mpsc::Sender<Message>,
    ) -> anyhow::Result<Self> {
        // Before the terminal is changed.
        crate::connect::tls(connection.policy_store())?;
        let locks = connection.to_lock_server()?;
        let stores = connection.stores().await?.into_iter();
        let instances = stores.map(|store| Instance { store, channel: Mutex::default() }).collect();
        Ok(Self { connection, instances, locks, interval, messages })
    }

    /// Follows all servers until the receiver of the messages is gone. `wanted` is the id of
    /// the cell whose containers are requested.
    pub(crate) async fn follow(&self, wanted: watch::Receiver<Option<String>>) {
        tokio::select! {
            Err(Closed) = self.repeat(async || self.store_message().await) => {}
            Err(Closed) = self.repeat(async || self.locks_message().await) => {}
            Err(Closed) = self.follow_changes() => {}
            Err(Closed) = self.follow_containers(wanted) => {}
            else => {}
        }
    }

    /// Asks each server once; fails when the receiver of the messages is gone.
    pub(crate) async fn read(&self) -> Result<(), Closed> {
        let streams = self.instances.iter().enumerate();
        let streams = streams.map(|(number, instance)| self.pass_changes(number, instance, false));
        let store = async { self.send(self.store_message().await).await };
        let locks = async { self.send(self.locks_message().await).await };
        try_join!(store, locks, try_join_all(streams)).map(drop)
    }

    async fn send(&self, message: Message) -> Result<(), Closed> {
        self.messages.send(message).await.map_err(|_| Closed)
    }

    async fn ask<T>(
        &self,
        what: &'static str,
        call: impl Future<Output = Result<T, tonic::Status>>,
    ) -> anyhow::Result<T> {
        self.connection.ask_within(TIMEOUT, what, call).await
    }

    /// Sends a message at each interval.
    async fn repeat(&self, message: impl AsyncFn() -> Message) -> Result<(), Closed> {
        let mut ticks = interval(self.interval);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            ticks.tick().await;
            self.send(message().await).await?;
        }
    }

    async fn store_message(&self) -> Message {
        match self.ask_store().await {
            Ok(store) => Message::Store(store),
            Err(error) => Message::StoreLost(describe(&error)),
        }
    }

    /// A channel to an instance.
    async fn open(&self, instance: &Instance) -> anyhow::Result<Channel> {
        let mut channel = instance.channel.lock().await;
        if channel.is_none() {
            *channel = Some(self.connection.open(&instance.store).await?);
        }
        channel.clone().ok_or_else(|| anyhow!("no channel"))
    }

    /// The newest state of all instances together.
    async fn ask_store(&self) -> anyhow::Result<Store> {
        let asked = self.instances.iter().map(|instance| self.ask_instance(instance));
        let (mut statuses, mut cells, mut failed) = (Vec::new(), Vec::new(), Vec::new());
        for (instance, answer) in self.instances.iter().zip(join_all(asked).await) {
            match answer {
                Ok((status, known)) => {
                    statuses.push(status);
                    cells.push(known);
                }
                Err(error) => failed.push((&instance.store.address, error)),
            }
        }
        let refused = statuses.iter().filter_map(|status| status.refused_removal.as_ref());
        let refused: Vec<String> = refused
            .map(|of| {
                wire::text(&format!("removal refused: {}; see doctor", removal::sentence(of)))
            })
            .collect();
        let Some(newest) = statuses.into_iter().max_by_key(|status| status.generation) else {
            let first = failed.into_iter().next().map(|(_, error)| error);
            return Err(first.unwrap_or_else(|| anyhow!("there is no policy store")));
        };
        let mut store = wire::store(newest, cells::merge(cells));
        let silent = failed.iter().map(|(address, error)| {
            format!("policy store {}: retrying: {}", wire::text(address), describe(error))
        });
        store.silent = silent.collect();
        store.warnings.extend(refused);
        Ok(store)
    }

    async fn ask_instance(
        &self,
        instance: &Instance,
    ) -> anyhow::Result<(StatusResponse, CellsResponse)> {
        let channel = self.open(instance).await?;
        let status = self.ask("status", store::status_of(channel.clone())).await?;
        Ok((status, self.ask("cells", cells::pages(channel, "")).await?))
    }

    async fn locks_message(&self) -> Message {
        match self.ask("locks", locks::fetch(self.locks.clone(), TypeCode::Lock)).await {
            Ok(found) => Message::Locks(found.into_iter().map(lock).collect()),
            Err(error) => Message::LocksLost(describe(&error)),
        }
    }

    async fn follow_changes(&self) -> Result<(), Closed> {
        let streams = self.instances.iter().enumerate();
        let streams = streams.map(|(number, instance)| self.follow_stream(number, instance));
        try_join_all(streams).await.map(drop)
    }

    async fn follow_stream(&self, number: usize, instance: &Instance) -> Result<(), Closed> {
        loop {
            self.pass_changes(number, instance, true).await?;
            sleep(self.interval).await;
        }
    }

    /// Passes on the last changes and, if the stream follows, the later ones, until the stream
    /// ends.
    async fn pass_changes(
        &self,
        number: usize,
        instance: &Instance,
        follow: bool,
    ) -> Result<(), Closed> {
        let mut changes = match self.open_changes(instance, follow).await {
            Ok(changes) => changes,
            Err(error) if is_unimplemented(&error) => {
                return self.send(Message::ChangesUnserved).await;
            }
            Err(error) => return self.send(Message::ChangesLost(number, describe(&error))).await,
        };
        self.send(Message::ChangesOpen(number)).await?;
        let lost = loop {
            match changes.message().await {
                Ok(Some(response)) => {
                    if let Some(change) = wire::change(response) {
                        self.send(Message::Change(number, Box::new(change))).await?;
                    }
                }
                Ok(None) if !follow => return Ok(()),
                Ok(None) => break "the policy store ended the stream".to_owned(),
                Err(status) => break wire::text(&Refused::new(&status).to_string()),
            }
        };
        self.send(Message::ChangesLost(number, lost)).await
    }

    async fn open_changes(
        &self,
        instance: &Instance,
        follow: bool,
    ) -> anyhow::Result<Streaming<ChangesResponse>> {
        let last = u32::try_from(MOST_CHANGES).unwrap_or(u32::MAX);
        let request = ChangesRequest { last, follow, ..ChangesRequest::default() };
        let mut client = foundation(self.open(instance).await?);
        Ok(self.ask("changes", client.changes(request)).await?.into_inner())
    }

    async fn follow_containers(
        &self,
        mut wanted: watch::Receiver<Option<String>>,
    ) -> Result<(), Closed> {
        loop {
            let cell = wanted.borrow_and_update().clone();
            let changed = wanted.changed();
            if let Some(cell) = cell {
                let containers = self.ask_containers(cell).await;
                self.send(Message::Containers(containers)).await?;
                tokio::select! {
                    changed = changed => changed.map_err(|_| Closed)?,
                    () = sleep(self.interval) => {}
                }
            } else {
                changed.await.map_err(|_| Closed)?;
            }
        }
    }

    /// The answer of the instance that knows the containers, or else of any.
    async fn ask_containers(&self, cell: String) -> Containers {
        let asked = self.instances.iter().map(|instance| self.containers_of(instance, &cell));
        let mut answers = join_all(asked).await;
        let known = answers.iter().position(|answer| answer.unknown.is_empty());
        match (known, answers.is_empty()) {
            (_, true) => Containers { cell, ..Containers::default() },
            (known, false) => answers.swap_remove(known.unwrap_or(0)),
        }
    }

    async fn containers_of(&self, instance: &Instance, cell: &str) -> Containers {
        let request = ContainersRequest {
            cell_id: cell.to_owned(),
            page_size: MOST_CONTAINERS,
            ..ContainersRequest::default()
        };
        let answer = async {
            let mut client = foundation(self.open(instance).await?);
            self.ask("containers", client.containers(request)).await
        };
        let cell = cell.to_owned();
        match answer.await {
            Err(error) => Containers { cell, unknown: describe(&error), ..Containers::default() },
            Ok(answer) => {
                let answer = answer.into_inner();
                let is_unknown = answer.unknown_cells.contains(&cell);
                let unknown = "the cell has not reported its containers to this policy store";
                Containers {
                    cell,
                    list: answer.containers.into_iter().map(wire::container).collect(),
                    total: answer.total,
                    unknown: if is_unknown { unknown.to_owned() } else { String::new() },
                }
            }
        }
    }
}

fn lock(held: locks::Held) -> Lock {
    let locks::Held { lock, token } = held;
    Lock { key: wire::text(&lock.key), owner: Owner { name: wire::text(&lock.owner), token } }
}

fn is_unimplemented(error: &anyhow::Error) -> bool {
    error.downcast_ref::<Refused>().is_some_and(|refused| refused.code() == Code::Unimplemented)
}

fn describe(error: &anyhow::Error) -> String {
    wire::text(&format!("{error:#}"))
}
