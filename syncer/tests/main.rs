//! Tests across modules.

#![expect(clippy::unwrap_used, reason = "what a test unwraps, it asserts")]

mod call_order;
mod configuration;
mod contract_messages;
mod fuzz;
mod import;
mod integrity;
mod keeper;
mod law_nine;
mod law_nine_loop;
mod lease;
mod log_lines;
mod moving_list;
mod pacing;
mod private_ca;
mod process;
mod readiness;
mod reading;
mod support;
mod syncing;
mod tokens;
