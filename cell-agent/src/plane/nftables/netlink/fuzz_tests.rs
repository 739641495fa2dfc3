//! Fuzz test of the kernel's messages. Packets of containers are in some of them.

use fuzz::{Fuzz, Language};

use super::*;
use crate::denied::packet::denied;

/// The first byte selects the reader.
#[test]
fn fuzz_netlink() {
    let fuzz = Fuzz::new(env!("CARGO_MANIFEST_DIR"), "netlink", Language::Bytes);
    let fuzz = fuzz.expects(&[
        "counters Continue",
        "counters Break(Ok",
        "rules 1",
        "elements 1",
        "generation Some",
        "answer Ok",
        "answer Err",
        "denied 1",
    ]);
    fuzz.run(|input| {
        let (first, datagram) = input.split_first().unwrap_or((&0, &[]));
        match first % 6 {
            0 => {
                let mut counted = BTreeMap::new();
                let end = counts::counters(datagram, &mut counted);
                format!("counters {end:?} {}", counted.len())
            }
            1 => {
                let mut found = Vec::new();
                let end = counts::rules(datagram, &mut found);
                format!("rules {} {end:?}", found.len())
            }
            2 => {
                let mut found = BTreeMap::new();
                let end = counts::elements(datagram, &mut found);
                format!("elements {} {end:?}", found.len())
            }
            3 => format!("generation {:?}", message::generation(datagram)),
            4 => {
                let mut answer = message::Answer::default();
                answer.read(datagram);
                format!("answer {:?}", answer.outcome())
            }
            _ => {
                let found = denied(datagram);
                let kinds: Vec<_> = found.iter().take(2).map(|one| one.target.protocol).collect();
                format!("denied {} protocol {}", found.len(), kinds.len())
            }
        }
    });
}
