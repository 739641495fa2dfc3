//! Sets of pairs of an address and a 16-bit number, such as a port.

use super::spans::Spans;

/// Pairs as a list of slabs, which are as large as possible: ascending and disjoint by address,
/// never empty, and adjacent ones differ in their numbers. Equal sets are equal values.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Default)]
pub(super) struct Region(Vec<Slab>);

/// Inclusive range of addresses with the same numbers.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
struct Slab {
    first: u128,
    last: u128,
    spans: Spans,
}

/// Inclusive range of addresses and numbers.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Rectangle {
    pub(super) addresses: (u128, u128),
    pub(super) numbers: (u16, u16),
}

/// Inclusive ranges of addresses, ascending.
type Ranges = Vec<(u128, u128)>;

/// Limit of the work to find the shorter list of rectangles: people do not read longer ones.
const MOST_TRANSPOSED: usize = 20_000;

impl Region {
    /// The union of rectangles.
    pub(super) fn of(mut rectangles: Vec<Rectangle>) -> Self {
        rectangles.sort_unstable();
        rectangles.dedup();
        Self::of_sorted(&rectangles)
    }

    fn of_sorted(rectangles: &[Rectangle]) -> Self {
        match rectangles {
            [] => Self::default(),
            [Rectangle { addresses: (first, last), numbers }] => {
                let spans = Spans::new(numbers.0, numbers.1);
                Self(vec![Slab { first: *first, last: *last, spans }])
            }
            several => {
                let (low, high) = several.split_at(several.len() / 2);
                Self::of_sorted(low).union(&Self::of_sorted(high))
            }
        }
    }

    pub(super) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    pub(super) fn contains(&self, address: u128, number: u16) -> bool {
        let slab = self.0.get(self.first_reaching(address));
        slab.is_some_and(|slab| slab.first <= address && slab.spans.contains(number))
    }

    pub(super) fn intersects(&self, rectangle: Rectangle) -> bool {
        let Rectangle { addresses: (first, last), numbers } = rectangle;
        let slabs = self.0[self.first_reaching(first)..].iter();
        let mut slabs = slabs.take_while(|slab| slab.first <= last);
        slabs.any(|slab| slab.spans.intersects(numbers.0, numbers.1))
    }

    /// Position of the first slab that ends at `address` or later.
    fn first_reaching(&self, address: u128) -> usize {
        self.0.partition_point(|slab| slab.last < address)
    }

    pub(super) fn union(&self, other: &Self) -> Self {
        self.combine(other, Spans::union)
    }

    pub(super) fn minus(&self, other: &Self) -> Self {
        if self.is_empty() || other.is_empty() {
            return self.clone();
        }
        self.combine(other, Spans::minus)
    }

    /// The pairs of both sets. Takes time by the size of the smaller set.
    pub(super) fn intersection(&self, other: &Self) -> Self {
        let (small, large) =
            if self.0.len() < other.0.len() { (self, other) } else { (other, self) };
        let mut common = Self::default();
        for slab in &small.0 {
            let others = large.0[large.first_reaching(slab.first)..].iter();
            for other in others.take_while(|other| other.first <= slab.last) {
                let (first, last) = (slab.first.max(other.first), slab.last.min(other.last));
                common.push(first, last, slab.spans.intersection(&other.spans));
            }
        }
        common
    }

    /// Number of addresses, whatever their numbers; saturates.
    pub(super) fn addresses(&self) -> u128 {
        let sizes = self.0.iter().map(|slab| (slab.last - slab.first).saturating_add(1));
        sizes.fold(0, u128::saturating_add)
    }

    /// Applies `combine` to the numbers of each address.
    fn combine(&self, other: &Self, combine: impl Fn(&Spans, &Spans) -> Spans) -> Self {
        let none = Spans::default();
        let (mut ours, mut theirs) = (self.0.as_slice(), other.0.as_slice());
        let mut combined = Self::default();
        // The first address that is not combined yet; none: all are.
        let mut next = Some(0);
        while let Some(at) = next {
            let reaching = |slab: &Slab| slab.last < at;
            ours = &ours[ours.partition_point(reaching).min(1)..];
            theirs = &theirs[theirs.partition_point(reaching).min(1)..];
            let heads = [ours.first(), theirs.first()];
            let Some(start) = heads.iter().flatten().map(|slab| slab.first.max(at)).min() else {
                break;
            };
            let ends = heads.iter().flatten().map(|slab| match slab.first > start {
                true => slab.first - 1,
                false => slab.last,
            });
            let end = ends.min().expect("one of the two has a slab");
            let spans = heads.map(|slab| match slab {
                Some(slab) if slab.first <= start => &slab.spans,
                Some(_) | None => &none,
            });
            combined.push(start, end, combine(spans[0], spans[1]));
            next = end.checked_add(1);
        }
        combined
    }

    fn push(&mut self, first: u128, last: u128, spans: Spans) {
        if spans.is_empty() {
            return;
        }
        match self.0.last_mut() {
            Some(before) if before.last + 1 == first && before.spans == spans => before.last = last,
            _ => self.0.push(Slab { first, last, spans }),
        }
    }

    /// Disjoint rectangles, ascending, whose union is the set. Of the list by address and the list
    /// by number, the shorter one.
    pub(super) fn rectangles(&self) -> Vec<Rectangle> {
        let by_address: Vec<_> = self.0.iter().flat_map(Slab::rectangles).collect();
        match self.by_number() {
            Some(mut by_number) if by_number.len() < by_address.len() => {
                by_number.sort_unstable();
                by_number
            }
            Some(_) | None => by_address,
        }
    }

    /// Rectangles that are as large as possible by number. `None`: too much work.
    fn by_number(&self) -> Option<Vec<Rectangle>> {
        let spans = self.0.iter().flat_map(|slab| slab.spans.iter());
        let mut cuts: Vec<u32> =
            spans.flat_map(|(first, last)| [u32::from(first), u32::from(last) + 1]).collect();
        cuts.sort_unstable();
        cuts.dedup();
        if cuts.len().saturating_mul(self.0.len()) > MOST_TRANSPOSED {
            return None;
        }
        // Ranges of numbers with the addresses of each.
        let mut columns: Vec<((u16, u16), Ranges)> = Vec::new();
        for pair in cuts.windows(2) {
            let [first, last] = [pair[0], pair[1] - 1].map(|cut| u16::try_from(cut).ok());
            let (first, last) = (first?, last?);
            let addresses = self.addresses_of(first);
            match columns.last_mut() {
                Some((range, same))
                    if range.1.checked_add(1) == Some(first) && *same == addresses =>
                {
                    range.1 = last;
                }
                _ => columns.push(((first, last), addresses)),
            }
        }
        let rectangles = columns.into_iter().flat_map(|(numbers, addresses)| {
            addresses.into_iter().map(move |addresses| Rectangle { addresses, numbers })
        });
        Some(rectangles.collect())
    }

    fn addresses_of(&self, number: u16) -> Ranges {
        let mut ranges = Ranges::new();
        for slab in self.0.iter().filter(|slab| slab.spans.contains(number)) {
            match ranges.last_mut() {
                Some(before) if before.1 + 1 == slab.first => before.1 = slab.last,
                _ => ranges.push((slab.first, slab.last)),
            }
        }
        ranges
    }
}

impl Slab {
    fn rectangles(&self) -> impl Iterator<Item = Rectangle> {
        let addresses = (self.first, self.last);
        self.spans.iter().map(move |numbers| Rectangle { addresses, numbers })
    }
}
