//! Laws 1 and 2: a lock has one owner at most, what was acknowledged is
//! durable, and fencing tokens only rise.
//!
//! [`reference`](self) compares a store with a naive model, call by call, with
//! restarts and failed commits. [`history`] runs several concurrent clients, stops the
//! store during their calls, and checks the responses; [`shared`] does so with two
//! instances on one database server. [`decide`] compares the SQL conditions with the rules in
//! memory.

mod decide;
mod history;
mod reference;
mod shared;
