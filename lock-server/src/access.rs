//! Access control: which clients may write and read locks.
//!
//! A peer is identified by its certificate; the TLS layer has verified the chain to
//! the configured CA before. As with the original, every certificate of the CA has
//! full access unless a list is configured: then only identities that match a
//! pattern of the list have access. The two lists are independent.
//!
//! In addition, a key can be restricted to some writers, and the time to live can be
//! bounded: without a bound, a client can take a lock for 100 years.

use std::{fmt, time::Duration};

use model::lock::Ttl;
use runtime::tls::{Identity, Pattern, describe, matches_wildcard};

/// Action that a client requests.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Action {
    /// Take or release a lock.
    Write,
    /// Fetch or watch locks.
    Read,
}

impl fmt::Display for Action {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Write => "write locks",
            Self::Read => "read locks",
        })
    }
}

/// Access rules; `None` admits every client.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Access {
    /// Identities that may take and release locks.
    pub writers: Option<Vec<Pattern>>,
    /// Identities that may fetch and watch locks.
    pub readers: Option<Vec<Pattern>>,
    /// Keys that are restricted to some writers.
    pub keys: Vec<KeyRule>,
    /// Upper bound of the time to live, if configured.
    pub longest: Option<Duration>,
}

/// Identities that may take and release locks whose key matches.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct KeyRule {
    /// Key pattern: one `*` matches any text.
    pub keys: String,
    /// Identities that may write the keys.
    pub identities: Vec<Pattern>,
}

/// Reason why a lock may not be taken or released.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum OutOfBounds {
    /// The key is restricted to other identities.
    #[error("{peer} may not write the lock {key:?}")]
    Key {
        /// The peer, by its certificate.
        peer: String,
        /// The key.
        key: String,
    },
    /// The time to live exceeds the bound.
    #[error("ttl_in_seconds is {asked}, at most {most} is allowed (max_lock_ttl)")]
    Ttl {
        /// Requested time to live, in seconds.
        asked: i64,
        /// Upper bound, in seconds.
        most: u64,
    },
}

/// Access denied.
pub type Denied = runtime::tls::Denied<Action>;

impl Access {
    /// Checks that the peer may do this action.
    ///
    /// # Errors
    /// Access is denied.
    pub fn check(&self, identity: Option<&Identity>, action: Action) -> Result<(), Denied> {
        let list = match action {
            Action::Write => &self.writers,
            Action::Read => &self.readers,
        };
        match list {
            Some(patterns) if !Pattern::any_fits(patterns, identity) => {
                Err(Denied { peer: describe(identity), action })
            }
            _ => Ok(()),
        }
    }

    /// Whether key rules or a bound of the time to live are configured.
    pub fn has_bounds(&self) -> bool {
        self.longest.is_some() || !self.keys.is_empty()
    }

    /// Checks that the peer may take the lock for this time to live, or release it.
    ///
    /// # Errors
    /// Rules exist for the key and none of them names the peer, or the time to live
    /// exceeds the bound.
    pub fn check_lock(
        &self,
        identity: Option<&Identity>,
        key: &str,
        ttl: Option<Ttl>,
    ) -> Result<(), OutOfBounds> {
        let mut rules =
            self.keys.iter().filter(|rule| matches_wildcard(&rule.keys, key)).peekable();
        let is_for_all = rules.peek().is_none();
        if !is_for_all && !rules.any(|rule| Pattern::any_fits(&rule.identities, identity)) {
            return Err(OutOfBounds::Key { peer: describe(identity), key: key.to_owned() });
        }
        match (ttl, self.longest) {
            (Some(ttl), Some(longest)) if ttl.duration() > longest => {
                Err(OutOfBounds::Ttl { asked: ttl.seconds(), most: longest.as_secs() })
            }
            _ => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn patterns(texts: &[&str]) -> Option<Vec<Pattern>> {
        Some(texts.iter().map(|text| text.parse().unwrap()).collect())
    }

    fn bbs() -> Identity {
        Identity {
            common_name: Some("bbs".to_owned()),
            organizational_units: vec!["diego".to_owned()],
            dns_names: vec!["bbs.service.cf.internal".to_owned()],
            ..Identity::default()
        }
    }

    #[test]
    fn without_lists_everybody_may_everything() {
        let everybody = Access::default();
        for action in [Action::Write, Action::Read] {
            assert_eq!(everybody.check(None, action), Ok(()));
            assert_eq!(everybody.check(Some(&Identity::default()), action), Ok(()));
        }
    }

    #[test]
    fn a_list_is_for_its_action_alone() {
        let (named, other) =
            (patterns(&["cn=nobody", "dns=*.cf.internal"]), patterns(&["ou=cell"]));
        let table = [
            (Access { writers: named.clone(), readers: None, ..Access::default() }, true, true),
            (Access { writers: other.clone(), readers: None, ..Access::default() }, false, true),
            (
                Access { writers: other.clone(), readers: named.clone(), ..Access::default() },
                false,
                true,
            ),
            (Access { writers: named, readers: other, ..Access::default() }, true, false),
            (
                Access {
                    writers: None,
                    readers: patterns(&["cn=bbs,ou=cell"]),
                    ..Access::default()
                },
                true,
                false,
            ),
            (
                Access {
                    writers: patterns(&[]),
                    readers: patterns(&["cn=bbs,ou=diego"]),
                    ..Access::default()
                },
                false,
                true,
            ),
        ];
        for (access, writes, reads) in table {
            let may = |action| access.check(Some(&bbs()), action).is_ok();
            assert_eq!((may(Action::Write), may(Action::Read)), (writes, reads), "{access:?}");
        }
    }

    #[test]
    fn a_refusal_says_who_and_what() {
        let unnamed = Access {
            writers: patterns(&["cn=x"]),
            readers: patterns(&["cn=x"]),
            ..Access::default()
        };
        let table = [
            (
                Some(bbs()),
                Action::Write,
                "the peer cn=bbs,ou=diego,dns=bbs.service.cf.internal may not write locks",
            ),
            (
                Some(Identity::default()),
                Action::Read,
                "a peer whose certificate names nobody may not read locks",
            ),
            (None, Action::Write, "a peer without a certificate may not write locks"),
        ];
        for (identity, action, text) in table {
            assert_eq!(unnamed.check(identity.as_ref(), action).unwrap_err().to_string(), text);
        }
    }

    #[test]
    fn a_key_may_be_for_some_and_a_time_to_live_may_have_a_bound() {
        let rule = |keys: &str, identities: &[&str]| KeyRule {
            keys: keys.to_owned(),
            identities: patterns(identities).unwrap(),
        };
        let access = Access {
            keys: vec![
                rule("policy-server-asg-syncer", &["cn=syncer"]),
                rule("bbs*", &["cn=bbs"]),
                rule("*-presence", &["ou=diego", "ou=cell"]),
                rule("bbs-presence", &["cn=other"]),
            ],
            longest: Some(Duration::from_secs(60)),
            ..Access::default()
        };
        let ttl = |seconds| Some(Ttl::try_from_seconds(seconds).unwrap());
        let bbs = bbs();
        let may = |key: &str| access.check_lock(Some(&bbs), key, ttl(60)).is_ok();
        for key in ["bbs", "bbs_lock", "cell-presence", "bbs-presence", "anything", "presence"] {
            assert!(may(key), "{key}");
        }
        assert!(!may("policy-server-asg-syncer"));
        let check =
            |identity, key, ttl| access.check_lock(identity, key, ttl).unwrap_err().to_string();
        assert_eq!(
            check(Some(&bbs), "policy-server-asg-syncer", None),
            "the peer cn=bbs,ou=diego,dns=bbs.service.cf.internal may not write the lock \
             \"policy-server-asg-syncer\""
        );
        assert_eq!(
            check(None, "bbs", None),
            "a peer without a certificate may not write the lock \"bbs\""
        );
        let text = "ttl_in_seconds is 61, at most 60 is allowed (max_lock_ttl)";
        assert_eq!(check(None, "anything", ttl(61)), text);
        assert!(access.has_bounds() && !Access::default().has_bounds());
        assert_eq!(Access::default().check_lock(None, "bbs", ttl(i64::MAX)), Ok(()));
    }
}
