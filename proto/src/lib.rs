//! gRPC contracts: generated code, descriptor sets, and conversions between messages and the model.
//!
//! | module | contract |
//! |---|---|
//! | [`models`] | `models.Locket`, wire compatible with the original Locket |
//! | [`lock_v1`] | `portcullis.lock.v1`: watch of locks |
//! | [`policy_v1`] | `portcullis.policy.v1`: Replace, List, Watch, Status, Explain, Reach of the policy store |
//! | [`cell_v1`] | `portcullis.cell.v1`: the agent of a cell, for operators |
//!
//! Received messages are converted with `TryFrom`, and an [`Error`] names the invalid field; sent
//! messages are converted with an infallible `From`. Messages of one service only are converted
//! in its `grpc` modules.
//!
//! Not in this crate: channels and servers, see [`runtime`](../runtime/index.html). The types
//! behind the messages are those of [`model`].
//!
//! # Example
//!
//! ```
//! use proto::models::{LockRequest, Resource, TypeCode, locket_client::LocketClient};
//! use tonic::transport::Channel;
//!
//! async fn claim(channel: Channel) -> Result<(), tonic::Status> {
//!     let resource = Resource {
//!         key: "bbs".into(),
//!         owner: "instance-1".into(),
//!         type_code: TypeCode::Lock.into(),
//!         ..Resource::default()
//!     };
//!     let request = LockRequest { resource: Some(resource), ttl_in_seconds: 15 };
//!     LocketClient::new(channel).lock(request).await?;
//!     Ok(())
//! }
//!
//! // The server parses the message before any other use.
//! let error = model::lock::Claim::try_from(&LockRequest::default()).unwrap_err();
//! assert!(error.to_string().contains("resource"), "{error}");
//! ```

mod cell;
mod codec;
mod error;
mod lock;
mod policy;
mod probe;

pub use error::Error;
pub use lock::{fetch_all_len, put_fetch_all};
pub use policy::{decode_group, encode_group, group_name, timestamp};
pub use probe::probe;

/// `models.Locket`, wire-compatible with the original (docs/compatibility/locket.md#grpc).
#[expect(
    missing_docs,
    unused_qualifications,
    clippy::allow_attributes,
    clippy::allow_attributes_without_reason,
    reason = "generated"
)]
pub mod models {
    tonic::include_proto!("models");
}

/// The contracts of Portcullis. Nested like their packages, since they refer to each other; use the
/// short names below.
#[expect(
    missing_docs,
    unused_qualifications,
    clippy::allow_attributes,
    clippy::allow_attributes_without_reason,
    clippy::large_enum_variant,
    reason = "generated"
)]
mod portcullis {
    pub(crate) mod lock {
        pub mod v1 {
            tonic::include_proto!("portcullis.lock.v1");
        }
    }
    pub(crate) mod policy {
        pub mod v1 {
            tonic::include_proto!("portcullis.policy.v1");
        }
    }
    pub(crate) mod cell {
        pub mod v1 {
            tonic::include_proto!("portcullis.cell.v1");
        }
    }
}

pub use portcullis::{cell::v1 as cell_v1, lock::v1 as lock_v1, policy::v1 as policy_v1};

/// Response header of Watch: the steps that the store accepts besides Hello, Subscribe and Report,
/// separated by commas.
pub const WATCH_ACCEPTS: &str = "portcullis-watch-accepts";

/// In [`WATCH_ACCEPTS`]: the store accepts Inventory.
pub const INVENTORY: &str = "inventory";

/// In [`WATCH_ACCEPTS`]: the store accepts RuleUses.
pub const RULE_USES: &str = "rule-uses";

/// Names of the methods of each service: a match over them does not compile when it lacks a method.
#[expect(missing_docs, reason = "generated")]
pub mod methods {
    include!(concat!(env!("OUT_DIR"), "/methods.rs"));
}

/// Descriptor set of all contracts, for gRPC reflection.
pub const DESCRIPTORS: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/descriptors.bin"));
