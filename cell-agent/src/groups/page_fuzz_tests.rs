//! Fuzz test of the JSON of policy-server-internal.

use fuzz::{Fuzz, Language};

use super::*;

/// Each problem names its group, and a group that cannot be read keeps its last good version.
#[test]
fn fuzz_polled_page() {
    let known = br#"{"security_groups":[{"guid":"a","rules":"[]"},{"guid":"b","rules":"[]"}]}"#;
    let (before, _) = collect(Page::parse(known).unwrap().groups, &Groups::new());
    let fuzz = Fuzz::new(env!("CARGO_MANIFEST_DIR"), "polled_page", Language::Json);
    let fuzz = fuzz.tokens(&["a", "b", "guid", "name", "rules", "next", "protocol", "tcp", "[]"]);
    let fuzz = fuzz.expects(&["error", "ok, 0 problems", "ok, 1 problems"]);
    fuzz.run(|input| {
        let page = match Page::parse(input) {
            Ok(page) => page,
            Err(error) => return format!("error: {error}"),
        };
        let guids: Vec<_> = page.groups.iter().map(|entry| entry.guid.clone()).collect();
        let (groups, problems) = collect(page.groups, &before);
        for problem in &problems {
            assert!(problem.starts_with("group "), "{problem}");
        }
        for (guid, kept) in &before {
            let is_named = guids.iter().flatten().any(|named| named == guid.as_str());
            assert_eq!(is_named, groups.contains_key(guid), "{guid}");
            let same = groups.get(guid).is_none_or(|group| group.stored.group.guid == *guid);
            assert!(same, "{kept:?}");
        }
        let problem = problems.first().map(|text| text.rsplit(": ").next().unwrap_or_default());
        format!("ok, {} problems: {}", problems.len(), problem.unwrap_or_default())
    });
}
