//! Request validation of the Cloud Controller.
//!
//! Pure: requests in, values or messages out. The texts and their order are the
//! contract (docs/compatibility/cloud-controller.md#refusals, #lists,
//! #rule-validation); the recorded cases in `tests/fixtures` come from the original's
//! validators.

pub mod address;
pub mod group;
mod parameters;
pub mod query;
pub mod resources;
pub mod rules;
