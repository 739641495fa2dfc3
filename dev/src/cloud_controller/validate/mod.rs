//! What the Cloud Controller says of a request, before anything is done.
//!
//! Pure: requests in, values or messages out. The texts and their order are the
//! contract (docs/compatibility/cloud-controller.md#refusals, #lists, #rule-validation); the
//! recorded cases in
//! `tests/fixtures` were made by running the original's validators.

pub mod address;
pub mod group;
pub mod query;
pub mod resources;
pub mod rules;
