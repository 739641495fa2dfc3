//! Laws 1 and 2: a lock has one owner at most, what was acknowledged is
//! durable, and fencing tokens only rise.
//!
//! [`reference`](self) compares a store with a naive model, call by call, over
//! restarts and commits that fail. [`history`] lets several clients loose at the
//! same time, ends the store in the middle, and looks at what was answered;
//! [`shared`] does so with two instances on one database server.

mod history;
mod reference;
mod shared;
