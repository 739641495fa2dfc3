//! Fuzz test of the names in a certificate.

use fuzz::{Fuzz, Language};

use super::*;

/// Names are complete: no name has more text than the certificate. What rustls accepts as a CA is
/// read by both parsers.
#[test]
fn fuzz_identity() {
    let fuzz = Fuzz::new(env!("CARGO_MANIFEST_DIR"), "certificate", Language::Bytes);
    let fuzz = fuzz.longest(8_192).expects(&["cn=fuzz", "no names"]);
    fuzz.run(|input| {
        let identity = Identity::of(&CertificateDer::from(input));
        let names = identity.to_string();
        assert!(names.len() <= 8 * input.len() + 16, "{names}");
        let Identity { common_name, organizational_units, dns_names, ip_addresses, uris } =
            &identity;
        let counts = [organizational_units.len(), dns_names.len(), ip_addresses.len(), uris.len()];
        match (common_name, counts) {
            (None, [0, 0, 0, 0]) => "no names".to_owned(),
            (Some(name), counts) if name == "fuzz" => format!("cn=fuzz {counts:?}"),
            (name, counts) => format!("cn {} {counts:?}", name.is_some()),
        }
    });
}
