//! Rows of the changed groups of a history, with their contents before the change.

use std::{
    collections::{BTreeMap, HashMap},
    io::{Read as _, Write as _},
    sync::Arc,
};

use flate2::{Compression, read::DeflateDecoder, write::DeflateEncoder};
use model::{
    generation::{Generation, Point, Stamp},
    group::{GroupId, Lifecycle, Scope, SecurityGroup},
    ids::{GroupGuid, SpaceGuid},
};
use serde::{Deserialize, Serialize};
use storage::server::Value;

use super::super::{
    Error, Stored,
    plan::sql_id,
    rows::{Scopes, corrupt, from_sql},
    rules,
    session::Columns,
};
use crate::groups::{
    archive::{ChangedGroup, Kind, Undo},
    content::{Content, SharedSpaces},
    decide::{Decision, Upsert},
};

/// Room of a row besides its texts, for the size limit.
const ROW_BYTES: usize = 64;

fn kind_text(kind: Kind) -> &'static str {
    match kind {
        Kind::Added => "added",
        Kind::Changed => "changed",
        Kind::Removed => "removed",
    }
}

/// Reads guid, name and kind of a row of `archive_groups`.
pub(in crate::store) fn changed_group(row: &[Value]) -> Result<ChangedGroup, Error> {
    let mut columns = Columns(row.iter());
    let guid = guid(&mut columns)?;
    let name = columns.text("archive_groups.name")?.unwrap_or_default().into();
    let kind = match columns.text("archive_groups.kind")?.as_deref() {
        Some("added") => Kind::Added,
        Some("changed") => Kind::Changed,
        Some("removed") => Kind::Removed,
        other => return Err(corrupt("archive_groups.kind")(format!("{other:?}"))),
    };
    Ok(ChangedGroup { guid, name, kind })
}

fn guid(columns: &mut Columns<'_>) -> Result<GroupGuid, Error> {
    let guid = columns.text("archive_groups.guid")?.unwrap_or_default();
    GroupGuid::parse(&guid).map_err(corrupt("archive_groups.guid"))
}

/// Rows of `archive_groups` of a decision.
pub(in crate::store) struct GroupRows<'a> {
    generation: i64,
    decision: &'a Decision,
    /// New names of changed groups.
    names: HashMap<i64, &'a str>,
    /// Size of the rows so far.
    pub(in crate::store) bytes: i64,
}

impl<'a> GroupRows<'a> {
    pub(in crate::store) fn new(generation: i64, decision: &'a Decision) -> Result<Self, Error> {
        let changed = decision.upserts.iter().filter(|upsert| !upsert.added);
        let names = changed.map(|upsert| Ok((sql_id(upsert.id)?, upsert.group.name.as_str())));
        let names = names.collect::<Result<_, Error>>()?;
        Ok(Self { generation, decision, names, bytes: 0 })
    }

    /// Rows of new groups.
    pub(in crate::store) fn added(&mut self) -> Result<Vec<Vec<Value>>, Error> {
        let added = self.decision.upserts.iter().filter(|upsert| upsert.added);
        let added: Vec<_> = added.collect();
        let row = |upsert: &&Upsert| {
            let (guid, name) = (upsert.group.guid.as_str(), &upsert.group.name);
            Ok(self.row(sql_id(upsert.id)?, guid, name, Kind::Added, None))
        };
        added.iter().map(row).collect()
    }

    /// The row of a changed or removed group, from its row before.
    pub(in crate::store) fn touched(
        &mut self,
        before: &GroupBefore,
        scopes: &Scopes,
    ) -> Vec<Value> {
        let GroupBefore { id, guid, name, rules } = before;
        let scope = |which| scopes.get(*id, which);
        let content = pack(name, scope(Lifecycle::Running), scope(Lifecycle::Staging), rules);
        let (kind, name) = match self.names.get(id).copied() {
            Some(name) => (Kind::Changed, name.to_owned()),
            None => (Kind::Removed, name.clone()),
        };
        self.row(*id, guid, &name, kind, Some(content))
    }

    fn row(
        &mut self,
        id: i64,
        guid: &str,
        name: &str,
        kind: Kind,
        content: Option<Vec<u8>>,
    ) -> Vec<Value> {
        let bytes = ROW_BYTES + guid.len() + name.len() + content.as_ref().map_or(0, Vec::len);
        self.bytes = self.bytes.saturating_add(i64::try_from(bytes).unwrap_or(i64::MAX));
        vec![
            self.generation.into(),
            id.into(),
            guid.into(),
            name.as_bytes().into(),
            kind_text(kind).into(),
            content.into(),
        ]
    }
}

/// Columns of a row of `security_groups` before a change.
#[derive(Debug)]
pub(in crate::store) struct GroupBefore {
    id: i64,
    guid: String,
    name: String,
    rules: String,
}

impl GroupBefore {
    /// Reads id, guid, name and rules.
    pub(in crate::store) fn read(row: &[Value]) -> Result<Self, Error> {
        let mut columns = Columns(row.iter());
        Ok(Self {
            id: columns.int("security_groups.id")?,
            guid: columns.text("security_groups.guid")?.unwrap_or_default(),
            name: columns.text("security_groups.name")?.unwrap_or_default(),
            rules: columns.text("security_groups.rules")?.unwrap_or_default(),
        })
    }
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Header {
    name: String,
    running: ScopeText,
    staging: ScopeText,
}

#[derive(Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct ScopeText {
    everywhere: bool,
    spaces: Vec<String>,
}

/// Content of a group in one column, compressed: a line with name and spaces as JSON, then the
/// JSON text of the rules as in `security_groups`.
fn pack(name: &str, running: Option<&Scope>, staging: Option<&Scope>, rules: &str) -> Vec<u8> {
    let scope = |scope: Option<&Scope>| {
        scope.map_or_else(ScopeText::default, |scope| ScopeText {
            everywhere: scope.everywhere,
            spaces: scope.spaces.iter().map(|space| space.as_str().to_owned()).collect(),
        })
    };
    let (running, staging) = (scope(running), scope(staging));
    let header = Header { name: name.to_owned(), running, staging };
    let header = serde_json::to_string(&header).expect("texts and flags");
    // Contents of many groups may be packed in one transaction.
    let mut encoder = DeflateEncoder::new(Vec::new(), Compression::fast());
    let packed = encoder
        .write_all(header.as_bytes())
        .and_then(|()| encoder.write_all(b"\n"))
        .and_then(|()| encoder.write_all(rules.as_bytes()))
        .and_then(|()| encoder.finish());
    packed.expect("writing to memory does not fail")
}

fn unpack(
    guid: GroupGuid,
    packed: &[u8],
    spaces: &mut SharedSpaces,
) -> Result<SecurityGroup, Error> {
    let field = "archive_groups.content";
    let mut text = String::new();
    DeflateDecoder::new(packed).read_to_string(&mut text).map_err(corrupt(field))?;
    let (header, rules) = text.split_once('\n').ok_or_else(|| corrupt(field)("one line"))?;
    let Header { name, running, staging } =
        runtime::json::from_str(header).map_err(corrupt(field))?;
    let mut scope = |text: ScopeText| {
        let parsed = text
            .spaces
            .iter()
            .map(|space| Ok(spaces.share(SpaceGuid::parse(space).map_err(corrupt(field))?)));
        let spaces = parsed.collect::<Result<_, Error>>()?;
        Ok::<_, Error>(Scope { everywhere: text.everywhere, spaces })
    };
    let (running, staging) = (scope(running)?, scope(staging)?);
    let rules = rules::parse(rules).map_err(corrupt(field))?;
    Ok(SecurityGroup { guid, name, rules, running, staging })
}

/// Builder of an [`Undo`] from rows.
#[derive(Debug, Default)]
pub(in crate::store) struct UndoRows {
    groups: BTreeMap<GroupId, Option<Stored>>,
    spaces: SharedSpaces,
}

impl UndoRows {
    /// Adds id, guid and content of a row of `archive_groups`.
    pub(in crate::store) fn group(&mut self, row: &[Value]) -> Result<(), Error> {
        let mut columns = Columns(row.iter());
        let id =
            GroupId(from_sql("archive_groups.group_id", columns.int("archive_groups.group_id")?)?);
        let guid = guid(&mut columns)?;
        let stored = match columns.bytes("archive_groups.content")? {
            None => None,
            Some(packed) => {
                let group = unpack(guid, &packed, &mut self.spaces)?;
                let hash = group.content_hash();
                Some(Stored { id, group: Arc::new(Content::from(group)), hash })
            }
        };
        self.groups.insert(id, stored);
        Ok(())
    }

    /// `stamp_ns`: of the older generation. `recorded`: number of recorded generations in
    /// between.
    pub(in crate::store) fn into_undo(
        self,
        (from, to): (Generation, Generation),
        stamp_ns: Option<i64>,
        recorded: i64,
    ) -> Option<Undo> {
        let wanted = from.0.checked_sub(to.0)?;
        let is_whole = u64::try_from(recorded).is_ok_and(|recorded| recorded == wanted);
        let to = Point { generation: to, stamp: Stamp(stamp_ns?) };
        is_whole.then_some(Undo { from, to, groups: self.groups })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_content_comes_back() {
        let space = |text: &str| SpaceGuid::parse(text).unwrap();
        let running = Scope { everywhere: true, spaces: [space("s1"), space("s2")].into() };
        let guid = GroupGuid::parse("g").unwrap();
        let rule = model::rule::RuleSpec { description: "a\nb".to_owned(), ..Default::default() };
        let group = SecurityGroup {
            guid: guid.clone(),
            name: "a name \n with \0 and \u{1F600}".to_owned(),
            rules: vec![rule; 100],
            running: running.clone(),
            staging: Scope::default(),
        };
        let text = rules::to_text(&group.rules);
        let packed = pack(&group.name, Some(&running), None, &text);
        assert!(packed.len() < text.len() / 10, "{} bytes", packed.len());
        let unpacked = |packed: &[u8]| unpack(guid.clone(), packed, &mut SharedSpaces::default());
        assert_eq!(unpacked(&packed).unwrap(), group);
        for bad in [&packed[..packed.len() / 2], b"", b"nothing"] {
            let error = unpacked(bad).unwrap_err().to_string();
            assert!(error.starts_with("corrupt value in archive_groups.content"), "{error}");
        }
    }
}
