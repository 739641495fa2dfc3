//! Notices what others do to our table.
//!
//! The kernel numbers each change to the packet filter of a network namespace.
//! As long as the number is the one after our own last change, nobody has done
//! anything, and asking for it costs two system calls. When it has moved, nft's
//! listing of our table is compared with the one taken after our last change.

use sha2::{Digest as _, Sha256};

/// The kernel's number for the packet filter in this network namespace.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct KernelGeneration(u32);

impl KernelGeneration {
    /// As the kernel tells it.
    #[must_use]
    pub fn new(number: u32) -> Self {
        Self(number)
    }

    /// As the kernel tells it.
    #[must_use]
    pub fn number(self) -> u32 {
        self.0
    }

    /// A text that no earlier generation of this namespace gave.
    #[must_use]
    pub fn salt(self) -> String {
        self.0.to_string()
    }

    /// Whether one change lies between.
    #[must_use]
    pub fn follows(self, before: Self) -> bool {
        // The kernel leaves 0 out when the number wraps.
        self.0 == before.0.wrapping_add(1) || (before.0 == u32::MAX && self.0 == 1)
    }
}

/// What nft's listing of a table says, without what the kernel itself puts into
/// sets (connection buckets), as a hash.
#[must_use]
pub fn fingerprint(listing: &str) -> String {
    let mut hash = Sha256::new();
    let mut in_set = false;
    let mut in_elements = false;
    for line in listing.lines() {
        if line.starts_with("\tset ") {
            in_set = true;
        } else if line == "\t}" {
            (in_set, in_elements) = (false, false);
        }
        in_elements |= in_set && line.trim_start().starts_with("elements = ");
        if !in_elements {
            hash.update(line.as_bytes());
            hash.update(b"\n");
        }
    }
    format!("{:x}", hash.finalize())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_change_is_told_from_more() {
        assert!(KernelGeneration(8).follows(KernelGeneration(7)));
        assert!(KernelGeneration(1).follows(KernelGeneration(u32::MAX)));
        assert!(!KernelGeneration(9).follows(KernelGeneration(7)));
        assert!(!KernelGeneration(7).follows(KernelGeneration(7)));
    }

    #[test]
    fn buckets_do_not_count_and_everything_else_does() {
        let listing = |bucket: &str, element: &str| {
            format!(
                "table inet portcullis {{\n\tmap policies {{\n\t\telements = {{ {element} }}\n\t}}\n\
                 \tset connections {{\n\t\tsize 65535\n{bucket}\t}}\n\tchain a {{\n\t}}\n}}\n"
            )
        };
        let bucket = "\t\telements = { 10.0.0.1 . 10.0.0.2 . 80 limit rate over 1/second,\n\t\t\t     10.0.0.3 . 1 }\n";
        let plain = fingerprint(&listing("", "10.0.0.1 : jump p"));
        assert_eq!(fingerprint(&listing(bucket, "10.0.0.1 : jump p")), plain);
        assert_ne!(fingerprint(&listing("", "10.0.0.2 : jump p")), plain);
    }
}
