//! Fuzz test of the query of the CNI plugin.

use fuzz::{Fuzz, Language};

/// Any handle that is escaped is found.
#[test]
fn fuzz_force_query() {
    let fuzz = Fuzz::new(env!("CARGO_MANIFEST_DIR"), "force_query", Language::Text);
    let fuzz = fuzz.tokens(&["container", "%63", "%zz", "%", "+", ";", "&", "="]);
    fuzz.expects(&["a handle", "none"]).run(|input| {
        let query = String::from_utf8_lossy(input);
        let escaped: String = query.bytes().map(|byte| format!("%{byte:02X}")).collect();
        let found = super::container(&format!("a=b&container={escaped}"));
        assert_eq!(found.unwrap_or_default(), query);
        match super::container(&query) {
            Some(handle) => {
                assert!(!handle.is_empty());
                "a handle".to_owned()
            }
            None => "none".to_owned(),
        }
    });
}
