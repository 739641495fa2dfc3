//! Domain types of Portcullis: pure values and the rules between them.
//!
//! | module | main types |
//! |---|---|
//! | [`lock`] | [`Lock`](lock::Lock), [`Claim`](lock::Claim) |
//! | [`group`] | [`SecurityGroup`](group::SecurityGroup), [`ContentHash`](group::ContentHash) |
//! | [`rule`] | [`RuleSpec`](rule::RuleSpec): as written; [`Rule`](rule::Rule): enforceable |
//! | [`connections`] | [`Connections`](connections::Connections): what rules allow, as a set |
//! | [`effective`] | [`effective_rules`](effective::effective_rules): the rules of one container |
//! | [`explain`] | near misses, and rules that were meant for a connection |
//! | [`generation`] | generations and watermarks of a set of groups |
//! | [`ids`] | GUIDs and handles |
//! | [`uses`] | [`PermitKey`](uses::PermitKey): identity of what a rule allows, for records of uses |
//! | [`trace`] | [`TraceContext`](trace::TraceContext): names one sync in all logs |
//!
//! Not in this crate: sockets, clocks, databases, wire formats. Text from outside is parsed into
//! these types once, where it enters a process; the invariants of a type (an owner is never empty,
//! a port range is never inverted) hold everywhere after that.
//!
//! Neighbours: [`proto`](../proto/index.html) converts these types from and to protobuf messages;
//! every service uses both.
//!
//! # Example
//!
//! ```
//! use std::sync::Arc;
//! use model::effective::{Probe, ProbeKind, ReadGroup, Verdict, effective_rules};
//! use model::group::{GroupId, Lifecycle, Scope, SecurityGroup, StoredGroup};
//! use model::ids::{GroupGuid, SpaceGuid};
//! use model::rule::RuleSpec;
//!
//! # fn main() -> Result<(), model::ids::Error> {
//! let https = RuleSpec {
//!     protocol: "tcp".into(),
//!     destination: "10.0.0.0/8".into(),
//!     ports: "443".into(),
//!     ..RuleSpec::default()
//! };
//! let space = SpaceGuid::parse("space-1")?;
//! let group = SecurityGroup {
//!     guid: GroupGuid::parse("group-1")?,
//!     name: "https".into(),
//!     rules: vec![https],
//!     running: Scope { everywhere: false, spaces: [space.clone()].into() },
//!     staging: Scope::default(),
//! };
//! let group = ReadGroup::new(StoredGroup { id: GroupId(1), group: Arc::new(group) });
//!
//! let rules = effective_rules([&group], Lifecycle::Running, &space, false);
//! let to = |port| Probe { destination: [10, 1, 2, 3].into(), kind: ProbeKind::Tcp(port) };
//! assert!(matches!(rules.verdict(to(443)), Verdict::Allowed(..)));
//! assert_eq!(rules.verdict(to(80)), Verdict::Denied);
//! # Ok(())
//! # }
//! ```

/// Reading and printing of a type that wraps a text.
macro_rules! text {
    ($name:ident) => {
        impl $name {
            /// The text.
            #[must_use]
            pub fn as_str(&self) -> &str {
                &self.0
            }
        }

        impl std::fmt::Display for $name {
            fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                f.write_str(&self.0)
            }
        }

        impl std::fmt::Debug for $name {
            fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                write!(f, "{:?}", &*self.0)
            }
        }
    };
}

pub mod connections;
pub mod effective;
pub mod explain;
pub mod generation;
pub mod group;
pub mod ids;
pub mod lock;
pub mod rule;
pub mod trace;
pub mod uses;
