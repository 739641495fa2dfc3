//! Sets of 16-bit numbers.

/// Numbers as inclusive intervals: ascending, disjoint and not adjacent, so that equal sets are
/// equal values.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Default)]
pub(super) struct Spans(Vec<(u16, u16)>);

impl Spans {
    /// The numbers from `first` to `last`.
    pub(super) fn new(first: u16, last: u16) -> Self {
        Self(vec![(first, last)])
    }

    pub(super) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    pub(super) fn contains(&self, number: u16) -> bool {
        self.0.iter().any(|(first, last)| (*first..=*last).contains(&number))
    }

    /// Whether a number from `first` to `last` is in the set.
    pub(super) fn intersects(&self, first: u16, last: u16) -> bool {
        self.0.iter().any(|span| span.0 <= last && first <= span.1)
    }

    /// The intervals, ascending.
    pub(super) fn iter(&self) -> impl Iterator<Item = (u16, u16)> {
        self.0.iter().copied()
    }

    pub(super) fn union(&self, other: &Self) -> Self {
        let mut spans: Vec<_> = self.iter().chain(other.iter()).collect();
        spans.sort_unstable();
        let mut union: Vec<(u16, u16)> = Vec::with_capacity(spans.len());
        for (first, last) in spans {
            match union.last_mut() {
                Some(before) if u32::from(first) <= u32::from(before.1) + 1 => {
                    before.1 = before.1.max(last);
                }
                _ => union.push((first, last)),
            }
        }
        Self(union)
    }

    pub(super) fn intersection(&self, other: &Self) -> Self {
        let common = self.iter().flat_map(|(first, last)| {
            let common = other.iter().map(move |(from, to)| (first.max(from), last.min(to)));
            common.filter(|(first, last)| first <= last)
        });
        Self(common.collect())
    }

    pub(super) fn minus(&self, other: &Self) -> Self {
        let mut rest = Vec::new();
        for (first, last) in self.iter() {
            // The start of what is left of the interval; none: nothing is left.
            let mut start = Some(first);
            for (from, to) in other.iter().filter(|span| span.0 <= last && first <= span.1) {
                match start {
                    Some(begin) if begin < from => rest.push((begin, from - 1)),
                    Some(_) | None => {}
                }
                start = to.checked_add(1).filter(|next| *next <= last);
            }
            rest.extend(start.map(|begin| (begin, last)));
        }
        Self(rest)
    }
}
