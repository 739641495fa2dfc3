//! Reads that run concurrently with the writer.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use rusqlite::Connection;
use tokio::{
    sync::{OwnedSemaphorePermit, Semaphore},
    task,
};

use crate::Error;

#[derive(Debug)]
pub(super) struct Readers {
    /// One permit per connection, so a permit guarantees a free connection.
    permits: Arc<Semaphore>,
    connections: Mutex<Vec<Connection>>,
    count: u32,
}

impl Readers {
    pub(super) fn new(connections: Vec<Connection>) -> Self {
        Self {
            permits: Arc::new(Semaphore::new(connections.len())),
            count: u32::try_from(connections.len()).expect("a few connections"),
            connections: Mutex::new(connections),
        }
    }

    pub(super) async fn read<T, E, F>(self: &Arc<Self>, work: F) -> Result<T, E>
    where
        F: FnOnce(&Connection) -> Result<T, E> + Send + 'static,
        T: Send + 'static,
        E: From<Error> + Send + 'static,
    {
        let permit = Arc::clone(&self.permits).acquire_owned().await.map_err(|_| Error::Closed)?;
        let mut lease = Lease::new(Arc::clone(self), permit)?;
        task::spawn_blocking(move || lease.in_snapshot(work))
            .await
            .unwrap_or_else(|_| Err(Error::Panicked.into()))
    }

    /// Waits for running reads; later ones are rejected.
    pub(super) async fn close(&self) {
        if let Ok(_all) = self.permits.acquire_many(self.count).await {
            self.permits.close();
            self.connections().clear();
        }
    }

    fn connections(&self) -> MutexGuard<'_, Vec<Connection>> {
        self.connections.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A leased connection: returned even if its user panics or is cancelled.
struct Lease {
    readers: Arc<Readers>,
    connection: Option<Connection>,
    /// Dropped after the connection is returned.
    _permit: OwnedSemaphorePermit,
}

impl Lease {
    fn new(readers: Arc<Readers>, permit: OwnedSemaphorePermit) -> Result<Self, Error> {
        let connection = readers.connections().pop().ok_or(Error::Closed)?;
        Ok(Self { readers, connection: Some(connection), _permit: permit })
    }

    fn in_snapshot<T, E, F>(&mut self, work: F) -> Result<T, E>
    where
        F: FnOnce(&Connection) -> Result<T, E>,
        E: From<Error>,
    {
        let connection = self.connection.as_mut().ok_or(Error::Closed)?;
        let snapshot = connection.transaction().map_err(Error::transaction)?;
        work(&snapshot)
    }
}

impl Drop for Lease {
    fn drop(&mut self) {
        if let Some(connection) = self.connection.take() {
            self.readers.connections().push(connection);
        }
    }
}
