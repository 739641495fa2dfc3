//! PostgreSQL notifications (LISTEN/NOTIFY).

use std::{
    collections::VecDeque,
    fmt,
    future::poll_fn,
    pin::pin,
    task::{Context, Poll},
    time::Duration,
};

use net::backoff::Backoff;
use tokio::time::{Instant, sleep_until, timeout};
use tokio_postgres::{AsyncMessage, Client};

use super::{
    fault::Fault,
    postgres::{Connector, Driven},
};
use crate::Kind;

/// Event of a listener.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Notice {
    /// The subscription is active: from now on no notification is missed; earlier ones may have
    /// been. The first event, and the first after each lost connection.
    Listening,
    /// A notification with this payload.
    Told(String),
}

/// Receives the notifications of a channel over a separate connection, which reconnects after each
/// loss.
pub struct Listener {
    connector: Connector,
    channel: &'static str,
    connect_timeout: Duration,
    /// Interval and timeout of the liveness check.
    check_interval: Duration,
    link: Option<Link>,
    backoff: Backoff,
    /// Time of the next attempt to connect after a failure.
    retry_at: Option<Instant>,
}

struct Link {
    client: Client,
    connection: Driven,
    /// Received notifications that are not returned yet.
    heard: VecDeque<String>,
}

/// Timeout of a graceful close.
const GOODBYE: Duration = Duration::from_secs(1);

/// Bounds of the first and of the longest pause after a lost connection.
const PAUSES: (Duration, Duration) = (Duration::from_millis(50), Duration::from_secs(5));

impl fmt::Debug for Listener {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.debug_struct("Listener").field("channel", &self.channel).finish_non_exhaustive()
    }
}

impl Listener {
    pub(super) fn new(
        connector: Connector,
        channel: &'static str,
        connect_timeout: Duration,
        check_interval: Duration,
    ) -> Self {
        let backoff = Backoff::new(PAUSES.0, PAUSES.1);
        let (link, retry_at) = (None, None);
        Self { connector, channel, connect_timeout, check_interval, link, backoff, retry_at }
    }

    /// Waits for the next event. Cancel safe.
    pub async fn next(&mut self) -> Notice {
        loop {
            let Some(link) = &mut self.link else {
                if self.connect().await {
                    return Notice::Listening;
                }
                continue;
            };
            match link.next(self.check_interval).await {
                Ok(payload) => return Notice::Told(payload),
                Err(fault) => self.lost(&fault),
            }
        }
    }

    /// Closes the connection with the protocol's termination message.
    pub async fn close(&mut self) {
        if let Some(Link { client, connection, heard: _ }) = self.link.take() {
            drop(client);
            let _in_time = timeout(GOODBYE, connection).await;
        }
    }

    async fn connect(&mut self) -> bool {
        if let Some(at) = self.retry_at {
            sleep_until(at).await;
        }
        let linking = Link::open(&self.connector, self.channel);
        let linked = timeout(self.connect_timeout, linking).await;
        let linked =
            linked.unwrap_or_else(|_| Err(Fault::new(Kind::Unavailable, "no connection in time")));
        match linked {
            Ok(link) => {
                tracing::debug!(channel = self.channel, "database-listening");
                self.link = Some(link);
                self.backoff.reset();
                self.retry_at = None;
                true
            }
            Err(fault) => {
                self.lost(&fault);
                false
            }
        }
    }

    fn lost(&mut self, fault: &Fault) {
        tracing::info!(channel = self.channel, error = %fault, "database-listener-lost");
        self.link = None;
        self.retry_at = Some(Instant::now() + self.backoff.pause());
    }
}

impl Link {
    async fn open(connector: &Connector, channel: &str) -> Result<Self, Fault> {
        let (client, connection) = connector.dial().await?;
        let mut link = Self { client, connection, heard: VecDeque::new() };
        link.send(&format!("LISTEN \"{channel}\"")).await?;
        Ok(link)
    }

    /// Regularly checks that the server still responds: a listening connection has no other way to
    /// detect a dead server.
    async fn next(&mut self, check_interval: Duration) -> Result<String, Fault> {
        loop {
            if let Some(payload) = self.heard.pop_front() {
                return Ok(payload);
            }
            let notified = poll_fn(|context| poll_notification(&mut self.connection, context));
            match timeout(check_interval, notified).await {
                Ok(payload) => return payload,
                Err(_) => {
                    let gone = |_| Fault::new(Kind::Unavailable, "it answers no more");
                    timeout(check_interval, self.send("")).await.map_err(gone)??;
                }
            }
        }
    }

    /// Sends a statement, and keeps notifications that arrive meanwhile.
    async fn send(&mut self, sql: &str) -> Result<(), Fault> {
        let Self { client, connection, heard } = self;
        let mut answer = pin!(client.batch_execute(sql));
        poll_fn(|context| {
            loop {
                if let Poll::Ready(answered) = answer.as_mut().poll(context) {
                    return Poll::Ready(answered.map_err(Fault::from));
                }
                match poll_notification(connection, context) {
                    Poll::Ready(Ok(payload)) => heard.push_back(payload),
                    Poll::Ready(Err(fault)) => return Poll::Ready(Err(fault)),
                    Poll::Pending => return Poll::Pending,
                }
            }
        })
        .await
    }
}

/// Polls the connection until a notification arrives or the connection ends.
fn poll_notification(
    connection: &mut Driven,
    context: &mut Context<'_>,
) -> Poll<Result<String, Fault>> {
    loop {
        return match connection.poll_message(context) {
            Poll::Ready(Some(Ok(AsyncMessage::Notification(notification)))) => {
                Poll::Ready(Ok(notification.payload().to_owned()))
            }
            Poll::Ready(Some(Ok(_))) => continue,
            Poll::Ready(Some(Err(error))) => Poll::Ready(Err(error.into())),
            Poll::Ready(None) => {
                Poll::Ready(Err(Fault::new(Kind::Unavailable, "the server ended it")))
            }
            Poll::Pending => Poll::Pending,
        };
    }
}
