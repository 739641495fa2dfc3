//! Who may write, and who may read.
//!
//! A peer is what its certificate says; its chain to our authority is checked
//! before anybody asks here. As with the original, every certificate of the
//! authority may do everything, until a list says otherwise: then only those that
//! fit a pattern of the list may, and the two lists know nothing of each other.

use runtime::tls::{Identity, Pattern};

/// What somebody wants to do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Action {
    /// Take or release a lock.
    Write,
    /// Fetch or watch locks.
    Read,
}

/// Who may what; `None` is everybody.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Access {
    /// Those that may take and release locks.
    pub writers: Option<Vec<Pattern>>,
    /// Those that may fetch and watch them.
    pub readers: Option<Vec<Pattern>>,
}

/// Why somebody may not: says who, so that the log and the peer agree.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{peer} may not {}", match .action {
    Action::Write => "write locks",
    Action::Read => "read locks",
})]
pub struct Denied {
    /// The peer, by its certificate.
    pub peer: String,
    /// What it wanted.
    pub action: Action,
}

impl Access {
    /// Whether the peer may.
    ///
    /// # Errors
    /// It may not.
    pub fn check(&self, identity: Option<&Identity>, action: Action) -> Result<(), Denied> {
        let list = match action {
            Action::Write => &self.writers,
            Action::Read => &self.readers,
        };
        let Some(patterns) = list else { return Ok(()) };
        let fits = |identity| patterns.iter().any(|pattern| pattern.fits(identity));
        if identity.is_some_and(fits) {
            return Ok(());
        }
        let peer = match identity.map(ToString::to_string).as_deref() {
            None => "a peer without a certificate".to_owned(),
            Some("") => "a peer whose certificate names nobody".to_owned(),
            Some(names) => format!("the peer {names}"),
        };
        Err(Denied { peer, action })
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
            (Access { writers: named.clone(), readers: None }, true, true),
            (Access { writers: other.clone(), readers: None }, false, true),
            (Access { writers: other.clone(), readers: named.clone() }, false, true),
            (Access { writers: named, readers: other }, true, false),
            (Access { writers: None, readers: patterns(&["cn=bbs,ou=cell"]) }, true, false),
            (
                Access { writers: patterns(&[]), readers: patterns(&["cn=bbs,ou=diego"]) },
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
        let nobody = Access { writers: patterns(&["cn=x"]), readers: patterns(&["cn=x"]) };
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
            assert_eq!(nobody.check(identity.as_ref(), action).unwrap_err().to_string(), text);
        }
    }
}
