//! Network namespaces, the tools that set them up, and a cell's container metadata
//! store: what the CNI plugin provides on a cell.
//!
//! Users: the local [`cluster`](../cluster/index.html) and the
//! [`load`](../load/index.html) tools create cells and containers with it.

pub mod metadata;
pub mod namespace;
pub mod tools;
