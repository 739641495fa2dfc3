//! Locks in memory only: the reference for the other stores.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use model::lock::{Claim, FencingToken, LockKey, Owner, Selector};
use uuid::Uuid;

use super::{Claimed, Error, Expired, Released, Store};
use crate::{
    decide,
    feed::{Event, Feed, Subscription},
    lock_version::{LockList, LockVersion, Request},
    table::Table,
};

/// In-memory store; loses everything at process exit, including fencing tokens.
#[derive(Debug, Clone)]
pub struct Memory {
    state: Arc<Mutex<State>>,
    feed: Feed,
}

#[derive(Debug, Default)]
struct State {
    table: Table,
    /// Last token of each key that was ever held.
    tokens: HashMap<LockKey, FencingToken>,
}

impl Memory {
    /// Creates an empty store.
    pub fn new(feed: Feed) -> Self {
        Self { state: Arc::default(), feed }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Store for Memory {
    fn refresh(&self, claim: &Claim, request: &Request) -> Option<Arc<LockVersion>> {
        let mut state = self.state();
        let before = state.table.get(&claim.key)?;
        let may = decide::claim(Some(&before.lock), claim) == decide::Claimed::Refresh;
        let held = may.then(|| Arc::new(before.again(claim, request.clone())))?;
        state.table.put(Arc::clone(&held));
        self.feed.publish(&Event::Refreshed(Arc::clone(&held)));
        Some(held)
    }

    fn known(&self, key: &LockKey) -> Option<Arc<LockVersion>> {
        self.state().table.get(key).cloned()
    }

    async fn claim(&self, claim: Claim, request: Request) -> Result<Claimed, Error> {
        let mut state = self.state();
        let before = state.table.get(&claim.key).cloned();
        let held = match (&before, decide::claim(before.as_deref().map(|held| &held.lock), &claim))
        {
            (Some(before), decide::Claimed::Collide) => {
                return Ok(Claimed::Collision(Arc::clone(before)));
            }
            (Some(before), _) => before.again(&claim, request),
            (None, _) => {
                let token = state.tokens.entry(claim.key.clone()).or_insert(FencingToken(0));
                *token = token.next();
                LockVersion::first(claim, Uuid::new_v4().to_string().into(), *token, request)
            }
        };
        let held = Arc::new(held);
        state.table.put(Arc::clone(&held));
        self.feed.publish(&Event::claimed(before, Arc::clone(&held)));
        Ok(Claimed::LockVersion(held))
    }

    async fn release(&self, key: &LockKey, owner: &Owner) -> Result<Released, Error> {
        let mut state = self.state();
        let released = decide::release(state.table.get(key), owner);
        if let Released::Deleted(held) = &released {
            state.table.remove(key);
            self.feed.publish(&Event::Released(Arc::clone(held)));
        }
        Ok(released)
    }

    async fn expire(&self, seen: &LockVersion) -> Result<Expired, Error> {
        let mut state = self.state();
        let expired = decide::expire(state.table.get(&seen.lock.key), seen.version());
        if let Expired::Deleted(held) = &expired {
            state.table.remove(&seen.lock.key);
            self.feed.publish(&Event::Expired(Arc::clone(held)));
        }
        Ok(expired)
    }

    async fn select(&self, selector: &Selector) -> Result<LockList, Error> {
        Ok(self.state().table.select(selector))
    }

    async fn watch(&self, selector: &Selector) -> Result<(LockList, Subscription), Error> {
        let mut state = self.state();
        let subscription = self.feed.subscribe(selector).ok_or(Error::TooManyWatchers)?;
        Ok((state.table.select(selector), subscription))
    }
}
