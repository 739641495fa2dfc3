//! Fuzz test of the kernel's answer about a route.

use fuzz::{Fuzz, Language};

#[test]
fn fuzz_route() {
    let fuzz = Fuzz::new(env!("CARGO_MANIFEST_DIR"), "route", Language::Bytes).longest(256);
    let fuzz = fuzz.expects(&["Some(Route", "Some(Refused", "None"]);
    fuzz.run(|input| format!("{:?}", super::read(input)));
}
