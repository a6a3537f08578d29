//! Primitives of the wire format: a checked reader and a writer.
//!
//! Integers of fixed width are big-endian; variable ones are LEB128, at most
//! ten bytes, shortest form only, so that equal values have equal bytes.

/// Why bytes are no valid message or record.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum WireError {
    /// Ends before the named field does.
    #[error("{0} is cut off")]
    Short(&'static str),
    /// The named field has a value it may not have.
    #[error("{0} has an impossible value")]
    Value(&'static str),
    /// A field this version doesn't know, and which must not be ignored.
    #[error("field {0} is unknown and critical")]
    Critical(u64),
    /// Bytes are left over.
    #[error("{0} bytes too many")]
    Trailing(usize),
}

/// Takes values off the front of a slice.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Reader<'a> {
    rest: &'a [u8],
}

impl<'a> Reader<'a> {
    /// Reads `data` from its start.
    pub const fn new(data: &'a [u8]) -> Self {
        Self { rest: data }
    }

    /// What has not been read.
    pub const fn rest(&self) -> &'a [u8] {
        self.rest
    }

    /// True at the end.
    pub const fn is_empty(&self) -> bool {
        self.rest.is_empty()
    }

    /// The next `n` bytes.
    ///
    /// # Errors
    /// [`WireError::Short`] naming `what`.
    #[inline]
    pub fn bytes(&mut self, n: usize, what: &'static str) -> Result<&'a [u8], WireError> {
        let (head, rest) = self
            .rest
            .split_at_checked(n)
            .ok_or(WireError::Short(what))?;
        self.rest = rest;
        Ok(head)
    }

    /// The next `N` bytes as an array.
    ///
    /// # Errors
    /// As [`Reader::bytes`].
    #[inline]
    pub fn array<const N: usize>(&mut self, what: &'static str) -> Result<[u8; N], WireError> {
        let (head, rest) = self
            .rest
            .split_first_chunk::<N>()
            .ok_or(WireError::Short(what))?;
        self.rest = rest;
        Ok(*head)
    }

    /// One byte.
    ///
    /// # Errors
    /// As [`Reader::bytes`].
    #[inline]
    pub fn u8(&mut self, what: &'static str) -> Result<u8, WireError> {
        self.array::<1>(what).map(|[b]| b)
    }

    /// Two bytes.
    ///
    /// # Errors
    /// As [`Reader::bytes`].
    #[inline]
    pub fn u16(&mut self, what: &'static str) -> Result<u16, WireError> {
        self.array(what).map(u16::from_be_bytes)
    }

    /// Four bytes.
    ///
    /// # Errors
    /// As [`Reader::bytes`].
    #[inline]
    pub fn u32(&mut self, what: &'static str) -> Result<u32, WireError> {
        self.array(what).map(u32::from_be_bytes)
    }

    /// Eight bytes.
    ///
    /// # Errors
    /// As [`Reader::bytes`].
    #[inline]
    pub fn u64(&mut self, what: &'static str) -> Result<u64, WireError> {
        self.array(what).map(u64::from_be_bytes)
    }

    /// A variable-length integer.
    ///
    /// # Errors
    /// As [`Reader::bytes`]; [`WireError::Value`] if it is longer than needed
    /// or exceeds 64 bits.
    #[inline]
    pub fn varint(&mut self, what: &'static str) -> Result<u64, WireError> {
        let mut value = 0_u64;
        for shift in (0..64).step_by(7) {
            let b = self.u8(what)?;
            let bits = u64::from(b & 0x7f);
            if (bits << shift) >> shift != bits || (b == 0 && shift != 0) {
                return Err(WireError::Value(what));
            }
            value |= bits << shift;
            if b & 0x80 == 0 {
                return Ok(value);
            }
        }
        Err(WireError::Value(what))
    }

    /// A variable-length integer that fits `T`.
    ///
    /// # Errors
    /// As [`Reader::varint`].
    #[inline]
    pub fn int<T: TryFrom<u64>>(&mut self, what: &'static str) -> Result<T, WireError> {
        T::try_from(self.varint(what)?).map_err(|_| WireError::Value(what))
    }

    /// Bytes after their own length.
    ///
    /// # Errors
    /// As [`Reader::bytes`].
    #[inline]
    pub fn counted(&mut self, what: &'static str) -> Result<&'a [u8], WireError> {
        let n = self.int(what)?;
        self.bytes(n, what)
    }

    /// Checks that nothing is left.
    ///
    /// # Errors
    /// [`WireError::Trailing`].
    pub const fn end(&self) -> Result<(), WireError> {
        match self.rest.len() {
            0 => Ok(()),
            n => Err(WireError::Trailing(n)),
        }
    }
}

/// Appends a variable-length integer.
#[inline]
pub fn put_varint(out: &mut Vec<u8>, mut value: u64) {
    while value >= 0x80 {
        out.push(0x80 | low7(value));
        value >>= 7;
    }
    out.push(low7(value));
}

/// Appends bytes after their length.
#[inline]
pub fn put_counted(out: &mut Vec<u8>, bytes: &[u8]) {
    put_varint(out, bytes.len() as u64);
    out.extend_from_slice(bytes);
}

/// How many bytes [`put_varint`] appends.
#[inline]
pub const fn varint_len(value: u64) -> usize {
    let bits = 64 - (value | 1).leading_zeros() as usize;
    bits.div_ceil(7)
}

#[inline]
const fn low7(value: u64) -> u8 {
    value.to_le_bytes()[0] & 0x7f
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn varints_round_trip_in_their_shortest_form() {
        for v in [0, 1, 127, 128, 16383, 16384, 432_000, u64::MAX] {
            let mut b = Vec::new();
            put_varint(&mut b, v);
            assert_eq!(b.len(), varint_len(v), "{v}");
            let mut r = Reader::new(&b);
            assert_eq!(r.varint("v"), Ok(v));
            assert_eq!(r.end(), Ok(()));
        }
    }

    #[test]
    fn varints_that_are_cut_long_or_too_big_are_refused() {
        let bad: [&[u8]; 4] = [
            &[0x80],
            &[0x80, 0],
            &[0xff; 11],
            &[0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 2],
        ];
        for b in bad {
            assert!(Reader::new(b).varint("v").is_err(), "{b:?}");
        }
        assert_eq!(
            Reader::new(&[0x80, 2]).int::<u8>("v"),
            Err(WireError::Value("v"))
        );
    }

    #[test]
    fn counted_bytes_do_not_reach_past_the_end() {
        assert_eq!(Reader::new(&[2, 9, 9]).counted("c"), Ok(&[9, 9][..]));
        assert_eq!(
            Reader::new(&[3, 9, 9]).counted("c"),
            Err(WireError::Short("c"))
        );
    }
}
