//! Fuzz test of the listing of our table.

use fuzz::{Fuzz, Language};

use super::*;
use crate::plane::nftables::diff::{Sweep, diff, suspect};

/// A listing does not differ from itself, and the difference from the written table can be
/// computed from any listing.
#[test]
fn fuzz_nft_listing() {
    let fuzz = Fuzz::new(env!("CARGO_MANIFEST_DIR"), "nft_listing", Language::Text);
    let fuzz = fuzz.tokens(&[
        "table inet portcullis {",
        "\tchain a {",
        "\tmap policies {",
        "\tset seen {",
        "\t}",
        "}",
        "\t\telements = { ",
        "10.0.0.1 : jump a",
        "type ipv4_addr : verdict",
        "accept",
        "\t",
        "\n",
    ]);
    fuzz.expects(&["0 differences", "1 differences"]).run(|input| {
        let text = String::from_utf8_lossy(input);
        // Two listings: before and after.
        let (before, after) = text.split_once("\n---\n").unwrap_or((&text, &text));
        let (outline, table) = (Outline::of(before), Table::default());
        let same = outline.drift(before, &table);
        assert_eq!(same.differences, 0, "{same:?}");
        assert_eq!(fingerprint(before), fingerprint(before));
        let drift = outline.drift(after, &table);
        let found = suspect(after, &table);
        let changes = diff(&found, &table, Sweep::Now);
        let kinds = drift.shown.iter().map(|one| match (&one.expected, &one.found) {
            (Some(_), Some(_)) => "changed",
            (Some(_), None) => "missing",
            (None, _) => "new",
        });
        let kinds: std::collections::BTreeSet<_> = kinds.collect();
        format!("{} differences {kinds:?}, {} changes", drift.differences, changes.len())
    });
}
