//! Query parameters for groups.

use std::collections::HashSet;

use model::{group::GroupId, ids::SpaceGuid};

/// Page size.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Limit {
    /// All groups.
    None,
    /// A limited number, and the first id of the next page.
    AtMost(usize),
    /// A negative number: no groups, and the next page refers to the last one.
    Negative,
}

/// One page of the groups that apply to some spaces.
#[derive(Debug, PartialEq, Eq)]
pub struct Wanted {
    /// Spaces; global groups are always included.
    pub spaces: HashSet<SpaceGuid>,
    /// First id of the page.
    pub from: GroupId,
    /// Page size.
    pub limit: Limit,
}

/// A parameter that is not a number.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("the parameter {name} is {text:?}, which is no integer")]
pub struct Error {
    /// Name of the parameter.
    pub name: &'static str,
    /// Value of the parameter.
    pub text: String,
}

impl Wanted {
    /// Parses the query part of a URL. Of a repeated parameter the first counts, as in the
    /// original. The page size is `limit`, which the original reads, or else `per_page`,
    /// which its clients send: that parameter has no other meaning, and a client that
    /// follows `next` gets everything either way.
    ///
    /// # Errors
    /// `from` or `limit` is not a number. The original ignores `per_page`, so an invalid
    /// value of it is ignored.
    pub fn parse(query: &str) -> Result<Self, Error> {
        let (mut spaces, mut from, mut limit, mut per_page) = (None, None, None, None);
        for (name, value) in pairs(query) {
            let parameter = match &*name {
                "space_guids" => &mut spaces,
                "from" => &mut from,
                "limit" => &mut limit,
                "per_page" => &mut per_page,
                _ => continue,
            };
            parameter.get_or_insert(value.into_owned());
        }
        let from = from.map_or(Ok(0), |text| integer("from", text))?;
        let limit = limit.map_or(Ok(0), |text| integer("limit", text))?;
        let per_page = per_page.and_then(|text| text.parse().ok()).filter(|size| *size > 0i64);
        let size = |number: i64| usize::try_from(number).unwrap_or(usize::MAX);
        Ok(Self {
            spaces: spaces.as_deref().map(guids).unwrap_or_default(),
            from: GroupId(u64::try_from(from).unwrap_or(0)),
            limit: match (limit, per_page) {
                (..0, _) => Limit::Negative,
                (1.., _) => Limit::AtMost(size(limit)),
                (0, Some(per_page)) => Limit::AtMost(size(per_page)),
                (0, None) => Limit::None,
            },
        })
    }
}

/// Accepts a sign and leading zeros, as Go's `strconv.Atoi` does.
fn integer(name: &'static str, text: String) -> Result<i64, Error> {
    text.parse().map_err(|_| Error { name, text })
}

/// Skips invalid guids, which match no group.
fn guids(list: &str) -> HashSet<SpaceGuid> {
    list.split(',').filter_map(|text| SpaceGuid::parse(text).ok()).collect()
}

/// Skips pairs with a semicolon or a bad escape, as Go does.
fn pairs(
    query: &str,
) -> impl Iterator<Item = (std::borrow::Cow<'_, str>, std::borrow::Cow<'_, str>)> {
    let is_whole = |pair: &&str| {
        let mut escapes = pair.split('%').skip(1);
        let is_hex = |escape: &str| {
            escape.len() >= 2 && escape.bytes().take(2).all(|byte| byte.is_ascii_hexdigit())
        };
        !pair.contains(';') && escapes.all(is_hex)
    };
    query.split('&').filter(is_whole).flat_map(|pair| form_urlencoded::parse(pair.as_bytes()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn wanted(query: &str) -> Wanted {
        Wanted::parse(query).unwrap()
    }

    fn spaces(guids: &[&str]) -> HashSet<SpaceGuid> {
        guids.iter().map(|guid| SpaceGuid::parse(guid).unwrap()).collect()
    }

    #[test]
    fn nothing_is_everything_for_everybody() {
        let all = Wanted { spaces: spaces(&[]), from: GroupId(0), limit: Limit::None };
        for query in ["", "space_guids=", "space_guids=,", "else=1&LIMIT=2", "limit=0", "from=-7"] {
            assert_eq!(wanted(query), all, "{query}");
        }
    }

    #[test]
    fn parameters_are_read_as_go_reads_them() {
        assert_eq!(wanted("space_guids=a,b%2Cc,+d").spaces, spaces(&["a", "b", "c", " d"]));
        assert_eq!(wanted("space_guids=a&space_guids=b").spaces, spaces(&["a"]));
        assert_eq!(wanted("space_guids=a;b&from=2").spaces, spaces(&[]));
        assert_eq!(wanted("space_guids=%zz&space_guids=%6").spaces, spaces(&[]));
        assert_eq!(wanted("from=%zz&from=3").from, GroupId(3));
        // A plus decodes to a space.
        assert_eq!(Wanted::parse("from=+7").unwrap_err().text, " 7");
    }

    #[test]
    fn numbers() {
        assert_eq!(wanted("from=%2B007").from, GroupId(7));
        for text in ["", "x", "1.0", "1_0", "0x1", "99999999999999999999"] {
            for name in ["from", "limit"] {
                let error = Wanted::parse(&format!("{name}={text}")).unwrap_err();
                assert_eq!(error, Error { name, text: text.to_owned() });
            }
        }
    }

    #[test]
    fn both_spellings_of_the_page_size() {
        let limit = |query: &str| wanted(query).limit;
        assert_eq!(limit("limit=5"), Limit::AtMost(5));
        assert_eq!(limit("per_page=5000"), Limit::AtMost(5000));
        assert_eq!(limit("per_page=5000&limit=5"), Limit::AtMost(5));
        assert_eq!(limit("per_page=5&limit=0"), Limit::AtMost(5));
        assert_eq!(limit("limit=-1&per_page=5"), Limit::Negative);
        for query in ["per_page=", "per_page=x", "per_page=-1", "per_page=0"] {
            assert_eq!(limit(query), Limit::None, "{query}");
        }
    }
}
