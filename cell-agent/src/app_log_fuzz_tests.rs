//! Fuzz test of the log configuration in a container's metadata.

use fuzz::{Fuzz, Language};

#[test]
fn fuzz_log_config() {
    let fuzz = Fuzz::new(env!("CARGO_MANIFEST_DIR"), "log_config", Language::Json);
    let fuzz = fuzz.tokens(&["guid", "index", "source_name", "tags", "app", "1"]);
    fuzz.expects(&["a line", "none"]).run(|input| {
        let text = String::from_utf8_lossy(input);
        match super::line(&text, "text".to_owned()) {
            Some(_) => "a line".to_owned(),
            None => "none".to_owned(),
        }
    });
}
