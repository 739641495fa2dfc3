//! The task behind the shared store: hears others' notices, tells ours, and passes
//! over the table.

use std::future::pending;

use runtime::{error::chain, server::Component};
use storage::server::{Listener, Notice as Heard, Value};
use tokio::{
    sync::mpsc,
    time::{Instant, sleep_until},
};
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

use super::{
    PASS, Shared, WATCHED_PASS,
    notice::{self, CHANNEL, Notice},
};
use crate::store::Error;

/// Notices that are told together.
const TOGETHER: usize = 256;

/// Follows what others do to the table.
#[derive(Debug)]
pub struct Follower {
    shared: Shared,
    /// What others know this instance's notices by.
    instance: String,
    to_tell: mpsc::Receiver<Notice>,
    listener: Option<Listener>,
}

impl Follower {
    pub(super) fn new(shared: Shared, to_tell: mpsc::Receiver<Notice>) -> Self {
        let listener = shared.server.listen(CHANNEL);
        Self { shared, instance: Uuid::new_v4().to_string(), to_tell, listener }
    }

    /// Follows until `stop`; then no call finds the store open.
    ///
    /// # Errors
    /// None at present: what fails is told to `health` and tried again.
    pub async fn run(
        mut self,
        stop: CancellationToken,
        health: Component,
    ) -> Result<(), storage::Error> {
        let mut last = Instant::now();
        let mut batch = Vec::with_capacity(TOGETHER);
        loop {
            let next = last + self.interval();
            tokio::select! {
                biased;
                () = stop.cancelled() => break,
                _ = self.to_tell.recv_many(&mut batch, TOGETHER) => {
                    self.tell(batch.drain(..)).await;
                }
                heard = next_notice(&mut self.listener) => match heard {
                    Heard::Told(payload) => self.heard(&payload).await,
                    Heard::Listening => {
                        last = Instant::now();
                        self.pass(&health).await;
                    }
                },
                () = sleep_until(next) => {
                    last = Instant::now();
                    self.pass(&health).await;
                }
            }
        }
        while let Ok(notice) = self.to_tell.try_recv() {
            batch.push(notice);
        }
        self.tell(batch.drain(..)).await;
        self.shared.server.close();
        Ok(())
    }

    fn interval(&self) -> std::time::Duration {
        let is_polled = self.listener.is_none() && self.shared.feed.has_watchers();
        if is_polled { WATCHED_PASS } else { PASS }
    }

    async fn pass(&self, health: &Component) {
        match self.shared.pass().await {
            Ok(()) => health.ready(),
            Err(error) => {
                let text = chain(&error);
                tracing::error!(error = text, "failed-fetching-locks");
                health.not_ready(text);
            }
        }
    }

    async fn tell(&self, notices: impl Iterator<Item = Notice>) {
        if self.listener.is_none() {
            return;
        }
        for payload in notice::payloads(&self.instance, notices) {
            let values = [Value::from(CHANNEL), Value::from(payload)];
            let told = self.shared.server.query("SELECT 1 FROM pg_notify(?, ?)", &values).await;
            if let Err(error) = told {
                // The others find it by their next pass.
                tracing::debug!(error = chain(&error), "failed-telling-locks");
            }
        }
    }

    async fn heard(&self, payload: &str) {
        for Notice { key, token, end } in notice::parse(payload, &self.instance) {
            match end {
                Some(end) => self.shared.view().end(&key, token, end, Instant::now()),
                None => match self.shared.look(&key).await {
                    Ok(_) => {}
                    Err(error) => {
                        let error: Error = error;
                        tracing::debug!(error = chain(&error), "failed-fetching-locks");
                    }
                },
            }
        }
    }
}

async fn next_notice(listener: &mut Option<Listener>) -> Heard {
    match listener {
        Some(listener) => listener.next().await,
        None => pending().await,
    }
}
