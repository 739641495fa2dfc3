//! The number of changes of the packet filter in a network namespace.

/// The nf_tables generation of this network namespace.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct KernelGeneration(u32);

impl KernelGeneration {
    /// From the kernel's value.
    #[must_use]
    pub fn new(number: u32) -> Self {
        Self(number)
    }

    /// The kernel's value.
    #[must_use]
    pub fn number(self) -> u32 {
        self.0
    }

    /// A text that is unique among the generations of this namespace.
    #[must_use]
    pub fn salt(self) -> String {
        self.0.to_string()
    }

    /// Whether exactly one change lies between.
    #[must_use]
    pub fn follows(self, before: Self) -> bool {
        // The kernel skips 0 on wraparound.
        self.0 == before.0.wrapping_add(1) || (before.0 == u32::MAX && self.0 == 1)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_change_is_distinguished_from_more() {
        assert!(KernelGeneration(8).follows(KernelGeneration(7)));
        assert!(KernelGeneration(1).follows(KernelGeneration(u32::MAX)));
        assert!(!KernelGeneration(9).follows(KernelGeneration(7)));
        assert!(!KernelGeneration(7).follows(KernelGeneration(7)));
    }
}
