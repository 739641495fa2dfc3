//! Renders rulesets as the text of a data plane.

pub(crate) mod arguments;
pub mod chains;
pub mod guard;
pub mod intervals;
pub mod iptables;
pub mod nftables;
mod segment;
pub mod table;
