//! Fuzz tests of the Cloud Controller's list and stamp.

use std::io::Read;

use ::fuzz::{Fuzz, Language};
use model::group::SecurityGroup;
use syncer::{
    import::{self, Malformed},
    manifest::ListSnapshot,
    stamp::Stamp,
};

/// A reader of one byte at a time, as a slow connection.
struct Slow<'a>(&'a [u8]);

impl Read for Slow<'_> {
    fn read(&mut self, into: &mut [u8]) -> std::io::Result<usize> {
        let length = into.len().min(1);
        self.0.read(&mut into[..length])
    }
}

/// A page does not depend on how it arrives. Each group is complete, or its problem is stated
/// with the path of a field; a complete one stays the same on the wire.
#[test]
fn security_groups() {
    const FIELDS: [&str; 14] = [
        "guid",
        "name",
        "rule",
        "globally_enabled",
        "relationship",
        "running",
        "staging",
        "data",
        "object",
        "surrogate",
        "unicode",
        "expected",
        "hex escape",
        "out of range",
    ];
    let fuzz = Fuzz::new(env!("CARGO_MANIFEST_DIR"), "security_groups", Language::Json);
    let fuzz = fuzz.longest(8_192).tokens(&[
        "guid",
        "name",
        "rules",
        "resources",
        "pagination",
        "next",
        "href",
        "total_results",
        "globally_enabled",
        "running",
        "staging",
        "relationships",
        "running_spaces",
        "data",
        "tcp",
        "protocol",
        "destination",
        "ports",
        "type",
        "code",
        "log",
        "10.0.0.0/8",
        "443",
        "space-1",
    ]);
    fuzz.expects(&["1 groups, 0 malformed", "0 groups, 0 malformed", "error"]).run(|input| {
        let mut groups: Vec<Result<SecurityGroup, Malformed>> = Vec::new();
        let page = import::page(input, &mut |group| groups.push(group));
        let mut slow = Vec::new();
        let again = import::page(Slow(input), &mut |group| slow.push(group));
        assert_eq!((page.as_ref().ok(), &groups), (again.as_ref().ok(), &slow));
        for malformed in groups.iter().filter_map(|group| group.as_ref().err()) {
            let reason = &malformed.reason;
            assert!(FIELDS.iter().any(|field| reason.contains(field)), "{reason}");
        }
        for group in groups.iter().flatten() {
            let encoded = proto::encode_group(group.clone());
            let back = proto::decode_group(encoded).unwrap();
            assert_eq!(SecurityGroup::try_from(back).as_ref(), Ok(group));
        }
        let mut snapshot = ListSnapshot::new(true);
        let read = snapshot.page(input, &Default::default());
        assert_eq!(read.ok(), page.as_ref().ok().copied());
        match page {
            Err(error) => format!("error: {}", std::error::Error::source(&error).unwrap()),
            Ok(_) => {
                let malformed = groups.iter().filter(|group| group.is_err());
                let reason = groups.iter().find_map(|group| group.as_ref().err());
                let reason = reason.map(|malformed| malformed.reason.as_str()).unwrap_or_default();
                let (good, bad) = (groups.iter().flatten().count(), malformed.count());
                format!("{good} groups, {bad} malformed {reason}")
            }
        }
    });
}

/// A stamp is logged as the time that was read.
#[test]
fn stamps() {
    let fuzz = Fuzz::new(env!("CARGO_MANIFEST_DIR"), "stamp", Language::Text).longest(200);
    let fuzz = fuzz.tokens(&["-009999", "9999", "T", "Z", "+25:59", ".999999999", "60", "[UTC]"]);
    fuzz.expects(&["ok", "error"]).run(|input| {
        match Stamp::parse(&String::from_utf8_lossy(input)) {
            Ok(stamp) => {
                assert_eq!(Stamp::parse(&stamp.to_string()).unwrap(), stamp);
                let stored = proto::timestamp(stamp.watermark());
                assert!((0..1_000_000_000).contains(&stored.nanos), "{stored:?}");
                "ok".to_owned()
            }
            Err(error) => format!("error: {error}"),
        }
    });
}
