//! Network namespaces, the tools that set them up, and a cell's container metadata
//! store: what the CNI plugin provides on a cell.
//!
//! The local cluster and the load tools make cells and containers with it.

pub mod metadata;
pub mod namespace;
pub mod tools;
