//! Fuzz test of state files: only a file that was written as a whole is read.

use fuzz::{Fuzz, Language};

use super::*;

#[test]
fn fuzz_state_file() {
    let directory = tempfile::tempdir().unwrap();
    let state = StateDirectory::open(directory.path()).unwrap();
    let fuzz = Fuzz::new(env!("CARGO_MANIFEST_DIR"), "state_file", Language::Bytes);
    let fuzz = fuzz.tokens(&["portcullis cell-agent groups 1 ", "\n", "groups", "told"]);
    fuzz.expects(&["ok", "the file is damaged"]).run(|input| {
        fs::write(directory.path().join("groups"), input).unwrap();
        match state.read("groups") {
            Ok(content) => {
                let content = content.unwrap();
                assert_eq!([header("groups", &content).as_bytes(), &content].concat(), input);
                "ok".to_owned()
            }
            Err(error) => error.to_string(),
        }
    });
}
