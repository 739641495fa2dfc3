//! Tests the development Cloud Controller against recorded behaviour of the genuine
//! one, and over real sockets.

#![expect(clippy::unwrap_used, reason = "what a test unwraps, it asserts")]

mod api;
mod cli_calls;
mod cli_output;
mod listeners;
mod listing;
mod message_cases;
mod properties;
mod rule_cases;
mod stamp;
mod support;
mod tokens;
mod users;
mod visibility;
