//! The development Cloud Controller against recorded behaviour of the genuine
//! one, and over real sockets.

mod cli_calls;
mod message_cases;
mod rule_cases;
mod support;
