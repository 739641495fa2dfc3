//! Rulesets as the text of a data plane.

pub mod intervals;
pub mod nftables;
mod segment;
pub mod table;
