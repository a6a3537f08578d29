//! Address sets, complete: from the policy and from files.

use std::collections::BTreeMap;

use super::values::{AddressRange, Name};
use super::{Mistake, Policy};
use crate::elements::{Elements, normalise};
use crate::ir::Family;

/// Both families' ranges of every named address set.
#[derive(Debug, Clone, Default)]
pub struct AddressSets(BTreeMap<Name, Ranges>);

/// Ranges of one address set.
#[derive(Debug, Clone, Default)]
pub struct Ranges {
    v4: Vec<(u32, u32)>,
    v6: Vec<(u128, u128)>,
}

impl AddressSets {
    /// Collects what the policy and its files say. `lines` gives the ranges
    /// read from an address set's file.
    #[must_use]
    pub fn collect(policy: &Policy, mut files: BTreeMap<Name, Ranges>) -> Self {
        let mut sets = BTreeMap::new();
        for (name, addresses) in &policy.addresses {
            let mut ranges = files.remove(name).unwrap_or_default();
            for range in &addresses.get_ref().elements {
                ranges.push(*range);
            }
            normalise(&mut ranges.v4);
            normalise(&mut ranges.v6);
            sets.insert(name.clone(), ranges);
        }
        Self(sets)
    }

    /// Elements of one family, moved out: a set is made from them once.
    #[must_use]
    pub fn take(&mut self, name: &Name, family: Family) -> Elements {
        let ranges = self.0.get_mut(name);
        match family {
            Family::Ip => Elements::V4(
                ranges
                    .map(|r| std::mem::take(&mut r.v4))
                    .unwrap_or_default(),
            ),
            Family::Ip6 => Elements::V6(
                ranges
                    .map(|r| std::mem::take(&mut r.v6))
                    .unwrap_or_default(),
            ),
        }
    }
}

impl Ranges {
    fn push(&mut self, range: AddressRange) {
        match range {
            AddressRange::V4(from, to) => self.v4.push((from, to)),
            AddressRange::V6(from, to) => self.v6.push((from, to)),
        }
    }

    /// Reads a file: one range per line, `#` begins a comment.
    ///
    /// # Errors
    /// The first line that is none of these.
    pub fn parse(text: &str) -> Result<Self, Mistake> {
        let mut ranges = Self::default();
        let mut start = 0;
        for line in text.split_inclusive('\n') {
            let entry = line.split('#').next().unwrap_or_default().trim();
            if !entry.is_empty() {
                let indent = line.len() - line.trim_start().len();
                let span = start + indent..start + indent + entry.len();
                ranges.push(entry.parse().map_err(|message| Mistake {
                    message,
                    span: Some(span),
                    help: None,
                })?);
            }
            start += line.len();
        }
        Ok(ranges)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn file_has_comments_blank_lines_and_both_families() {
        let text =
            "# servers\n10.0.0.1 # one\n\n  2001:db8::/64\r\n10.0.0.0/30\n10.0.0.9-10.0.0.12";
        let ranges = Ranges::parse(text).expect("valid file");
        assert_eq!(ranges.v4.len(), 3);
        assert_eq!(ranges.v6.len(), 1);
    }

    #[test]
    fn mistake_in_a_file_is_where_it_is() {
        let text = "10.0.0.1\n  10.0.0.300\n";
        let mistake = Ranges::parse(text).expect_err("no address");
        let span = mistake.span.expect("span");
        assert_eq!(text.get(span), Some("10.0.0.300"));
    }
}
