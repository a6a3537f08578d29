//! Elements of a named set, held compactly: sorted, merged ranges.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

/// Inclusive ranges in ascending order, none overlapping another.
///
/// One hundred thousand IPv4 addresses take 800 KB.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Elements {
    /// IPv4 addresses.
    V4(Vec<(u32, u32)>),
    /// IPv6 addresses.
    V6(Vec<(u128, u128)>),
    /// Nothing the policy knows.
    None,
}

impl Elements {
    /// Number of ranges.
    #[must_use]
    pub fn len(&self) -> usize {
        match self {
            Self::V4(ranges) => ranges.len(),
            Self::V6(ranges) => ranges.len(),
            Self::None => 0,
        }
    }

    /// No ranges at all.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Ranges as addresses, ascending.
    pub fn ranges(&self) -> Box<dyn Iterator<Item = (IpAddr, IpAddr)> + '_> {
        match self {
            Self::V4(ranges) => Box::new(
                ranges
                    .iter()
                    .map(|&(from, to)| (Ipv4Addr::from(from).into(), Ipv4Addr::from(to).into())),
            ),
            Self::V6(ranges) => Box::new(
                ranges
                    .iter()
                    .map(|&(from, to)| (Ipv6Addr::from(from).into(), Ipv6Addr::from(to).into())),
            ),
            Self::None => Box::new(std::iter::empty()),
        }
    }
}

/// Sorts ranges and merges those that overlap.
///
/// Neighbours that merely touch stay apart: nft lists them as they were
/// written, and so the operator finds his own entries again.
pub fn normalise<T: Ord + Copy>(ranges: &mut Vec<(T, T)>) {
    ranges.sort_unstable();
    ranges.dedup_by(|next, kept| {
        let overlaps = next.0 <= kept.1;
        if overlaps {
            kept.1 = kept.1.max(next.1);
        }
        overlaps
    });
}

/// Merges ranges that overlap or touch; they must be in ascending order.
///
/// Two lists of ranges that hold the same addresses become equal.
pub fn coalesce<T>(ranges: &mut Vec<(T, T)>)
where
    T: Ord + Copy + From<u8> + std::ops::Sub<Output = T>,
{
    ranges.dedup_by(|next, kept| {
        let touches = next.0 <= kept.1 || next.0 - kept.1 == T::from(1);
        if touches {
            kept.1 = kept.1.max(next.1);
        }
        touches
    });
}

/// Addresses in `from` that are not in `without`; both must be in ascending
/// order.
#[must_use]
pub fn subtract<T>(from: &[(T, T)], without: &[(T, T)]) -> Vec<(T, T)>
where
    T: Ord + Copy + From<u8> + std::ops::Sub<Output = T> + std::ops::Add<Output = T>,
{
    let one = T::from(1);
    let mut left = Vec::new();
    let mut without = without.iter().peekable();
    for &(mut start, end) in from {
        let mut done = false;
        while let Some((a, b)) = without.peek().filter(|range| range.0 <= end) {
            if *b < start {
                without.next();
                continue;
            }
            if *a > start {
                left.push((start, *a - one));
            }
            if *b >= end {
                done = true;
                break;
            }
            start = *b + one;
            without.next();
        }
        if !done {
            left.push((start, end));
        }
    }
    left
}

/// Prefix length if the range is exactly one prefix.
#[must_use]
pub fn prefix_len(from: IpAddr, to: IpAddr) -> Option<u8> {
    let (from, to, width) = match (from, to) {
        (IpAddr::V4(from), IpAddr::V4(to)) => {
            (u128::from(from.to_bits()), u128::from(to.to_bits()), 32)
        }
        (IpAddr::V6(from), IpAddr::V6(to)) => (from.to_bits(), to.to_bits(), 128),
        _ => return None,
    };
    let differing = from ^ to;
    let host_bits = 128 - differing.leading_zeros();
    let low_bits = differing.count_ones() == host_bits && from & differing == 0;
    let length = u8::try_from(u32::checked_sub(width, host_bits)?).ok()?;
    low_bits.then_some(length)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn overlapping_ranges_become_one_and_neighbours_stay_apart() {
        let mut ranges = vec![(20, 30), (1, 5), (25, 40), (6, 7), (21, 22)];
        normalise(&mut ranges);
        assert_eq!(ranges, [(1, 5), (6, 7), (20, 40)]);
    }

    #[test]
    fn difference_holds_what_only_the_first_has() {
        let check = |from: &[(u32, u32)], without: &[(u32, u32)], expected: &[(u32, u32)]| {
            assert_eq!(subtract(from, without), expected, "{from:?} - {without:?}");
        };
        check(&[(1, 9)], &[], &[(1, 9)]);
        check(&[(1, 9)], &[(1, 9)], &[]);
        check(&[(1, 9)], &[(0, u32::MAX)], &[]);
        check(&[(1, 9)], &[(3, 4), (6, 6)], &[(1, 2), (5, 5), (7, 9)]);
        check(&[(1, 3), (5, 9)], &[(2, 6)], &[(1, 1), (7, 9)]);
        check(&[(5, u32::MAX)], &[(9, u32::MAX)], &[(5, 8)]);
        check(&[(1, 1), (2, 2)], &[(2, 2)], &[(1, 1)]);
    }

    #[test]
    fn touching_ranges_become_one_when_comparing() {
        let mut ranges = vec![(1u32, 5), (6, 7), (9, 9)];
        coalesce(&mut ranges);
        assert_eq!(ranges, [(1, 7), (9, 9)]);
    }

    #[test]
    fn prefix_is_recognised_only_when_aligned() {
        let check = |from: &str, to: &str, expected: Option<u8>| {
            let length = prefix_len(from.parse().expect("address"), to.parse().expect("address"));
            assert_eq!(length, expected, "{from}-{to}");
        };
        check("10.0.0.0", "10.0.0.255", Some(24));
        check("10.0.0.1", "10.0.0.1", Some(32));
        check("0.0.0.0", "255.255.255.255", Some(0));
        check("10.0.0.1", "10.0.0.2", None);
        check("10.0.0.1", "10.0.1.0", None);
        check(
            "2001:db8::",
            "2001:db8:ffff:ffff:ffff:ffff:ffff:ffff",
            Some(32),
        );
        check("::", "ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff", Some(0));
        check("2001:db8::3", "2001:db8::4", None);
    }
}
