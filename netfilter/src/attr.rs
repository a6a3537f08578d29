//! Zero-copy reader and writer of netlink attributes (`struct nlattr`).
//!
//! An attribute is a 16-bit length (header included, padding not), a 16-bit
//! type whose two upper bits are flags, and a value padded to four bytes;
//! length and type in host byte order (linux/netlink.h). nfnetlink values
//! are big-endian.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

/// `NLA_F_NESTED`: the value is a sequence of attributes.
const NLA_F_NESTED: u16 = 0x8000;
/// `NLA_TYPE_MASK`: the type without `NLA_F_NESTED` and `NLA_F_NET_BYTEORDER`.
const NLA_TYPE_MASK: u16 = 0x3fff;
/// Bytes of `struct nlattr`.
const HDRLEN: usize = 4;

/// Why an attribute the codec knows could not be read.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum DecodeError {
    /// The value has not the length that its type prescribes.
    #[error("attribute {attr} has {len} bytes")]
    Length {
        /// The kernel's name of the attribute.
        attr: &'static str,
        /// Length found, in bytes.
        len: usize,
    },
    /// An attribute without which the message means nothing is absent.
    #[error("attribute {0} is missing")]
    Missing(&'static str),
    /// The value is outside what the attribute can hold.
    #[error("attribute {0} has a value out of range")]
    Value(&'static str),
}

/// One attribute: its type without flags, and its value.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Attr<'a> {
    /// Type with `NLA_F_NESTED` and `NLA_F_NET_BYTEORDER` removed.
    pub ty: u16,
    /// Value without padding.
    pub value: &'a [u8],
}

/// Iterates over the attributes in a buffer; stops at the first malformed one.
#[derive(Debug, Clone, Copy)]
pub struct Attrs<'a>(&'a [u8]);

impl<'a> Attrs<'a> {
    /// Reads attributes from `buf`, which starts with an attribute header.
    pub const fn new(buf: &'a [u8]) -> Self {
        Self(buf)
    }

    /// Bytes not consumed yet; not empty after the end means malformed input.
    pub const fn rest(&self) -> &'a [u8] {
        self.0
    }

    /// The value of the first attribute of type `ty`.
    pub fn find(mut self, ty: u16) -> Option<Attr<'a>> {
        self.by_ref().find(|attr| attr.ty == ty)
    }
}

impl<'a> Iterator for Attrs<'a> {
    type Item = Attr<'a>;

    #[inline]
    fn next(&mut self) -> Option<Attr<'a>> {
        let [l0, l1, t0, t1] = *self.0.first_chunk::<HDRLEN>()?;
        let len = usize::from(u16::from_ne_bytes([l0, l1]));
        let ty = u16::from_ne_bytes([t0, t1]) & NLA_TYPE_MASK;
        let value = self.0.get(HDRLEN..len)?;
        self.0 = self.0.get(len.next_multiple_of(4)..).unwrap_or(&[]);
        Some(Attr { ty, value })
    }
}

impl<'a> Attr<'a> {
    /// The nested attributes.
    pub const fn nested(&self) -> Attrs<'a> {
        Attrs::new(self.value)
    }

    /// Exactly `N` bytes.
    ///
    /// # Errors
    /// [`DecodeError::Length`] under the name `attr`.
    #[inline]
    pub fn array<const N: usize>(&self, attr: &'static str) -> Result<[u8; N], DecodeError> {
        self.value.try_into().map_err(|_| DecodeError::Length {
            attr,
            len: self.value.len(),
        })
    }

    /// One byte.
    ///
    /// # Errors
    /// [`DecodeError::Length`] under the name `attr`.
    #[inline]
    pub fn u8(&self, attr: &'static str) -> Result<u8, DecodeError> {
        self.array(attr).map(u8::from_be_bytes)
    }

    /// Big-endian 16 bits.
    ///
    /// # Errors
    /// [`DecodeError::Length`] under the name `attr`.
    #[inline]
    pub fn be16(&self, attr: &'static str) -> Result<u16, DecodeError> {
        self.array(attr).map(u16::from_be_bytes)
    }

    /// Big-endian 32 bits.
    ///
    /// # Errors
    /// [`DecodeError::Length`] under the name `attr`.
    #[inline]
    pub fn be32(&self, attr: &'static str) -> Result<u32, DecodeError> {
        self.array(attr).map(u32::from_be_bytes)
    }

    /// Big-endian 64 bits.
    ///
    /// # Errors
    /// [`DecodeError::Length`] under the name `attr`.
    #[inline]
    pub fn be64(&self, attr: &'static str) -> Result<u64, DecodeError> {
        self.array(attr).map(u64::from_be_bytes)
    }

    /// An IPv4 address.
    ///
    /// # Errors
    /// [`DecodeError::Length`] under the name `attr`.
    #[inline]
    pub fn ipv4(&self, attr: &'static str) -> Result<IpAddr, DecodeError> {
        Ok(Ipv4Addr::from(self.array::<4>(attr)?).into())
    }

    /// An IPv6 address.
    ///
    /// # Errors
    /// [`DecodeError::Length`] under the name `attr`.
    #[inline]
    pub fn ipv6(&self, attr: &'static str) -> Result<IpAddr, DecodeError> {
        Ok(Ipv6Addr::from(self.array::<16>(attr)?).into())
    }
}

/// Appends attributes to a buffer that the caller reuses.
///
/// A value too long for the 16-bit length is not written; [`Writer::overflowed`]
/// tells, and the message builder refuses the message.
#[derive(Debug)]
pub struct Writer<'b> {
    buf: &'b mut Vec<u8>,
    overflowed: bool,
}

impl<'b> Writer<'b> {
    /// Appends to `buf`, whose length must be a multiple of four.
    pub const fn new(buf: &'b mut Vec<u8>) -> Self {
        Self {
            buf,
            overflowed: false,
        }
    }

    /// Whether some value or nest was longer than an attribute can be.
    pub const fn overflowed(&self) -> bool {
        self.overflowed
    }

    /// One attribute with the bytes of `value`.
    #[inline]
    pub fn put(&mut self, ty: u16, value: &[u8]) {
        let Ok(len) = u16::try_from(HDRLEN + value.len()) else {
            self.overflowed = true;
            return;
        };
        self.buf.extend_from_slice(&len.to_ne_bytes());
        self.buf.extend_from_slice(&ty.to_ne_bytes());
        self.buf.extend_from_slice(value);
        self.buf.resize(self.buf.len().next_multiple_of(4), 0);
    }

    /// One byte.
    #[inline]
    pub fn u8(&mut self, ty: u16, value: u8) {
        self.put(ty, &[value]);
    }

    /// Big-endian 16 bits.
    #[inline]
    pub fn be16(&mut self, ty: u16, value: u16) {
        self.put(ty, &value.to_be_bytes());
    }

    /// Big-endian 32 bits.
    #[inline]
    pub fn be32(&mut self, ty: u16, value: u32) {
        self.put(ty, &value.to_be_bytes());
    }

    /// Big-endian 64 bits.
    #[inline]
    pub fn be64(&mut self, ty: u16, value: u64) {
        self.put(ty, &value.to_be_bytes());
    }

    /// A NUL-terminated string.
    pub fn str(&mut self, ty: u16, value: &[u8]) {
        let Ok(len) = u16::try_from(HDRLEN + value.len() + 1) else {
            self.overflowed = true;
            return;
        };
        self.buf.extend_from_slice(&len.to_ne_bytes());
        self.buf.extend_from_slice(&ty.to_ne_bytes());
        self.buf.extend_from_slice(value);
        self.buf.push(0);
        self.buf.resize(self.buf.len().next_multiple_of(4), 0);
    }

    /// An address under `v4` or `v6`, whichever its family is.
    #[inline]
    pub fn ip(&mut self, v4: u16, v6: u16, addr: IpAddr) {
        match addr {
            IpAddr::V4(a) => self.put(v4, &a.octets()),
            IpAddr::V6(a) => self.put(v6, &a.octets()),
        }
    }

    /// An attribute whose value is what `fill` writes.
    #[inline]
    pub fn nest(&mut self, ty: u16, fill: impl FnOnce(&mut Self)) {
        let start = self.buf.len();
        self.buf.extend_from_slice(&[0; HDRLEN]);
        fill(self);
        let Ok(len) = u16::try_from(self.buf.len() - start) else {
            self.buf.truncate(start);
            self.overflowed = true;
            return;
        };
        let [l0, l1] = len.to_ne_bytes();
        let [t0, t1] = (ty | NLA_F_NESTED).to_ne_bytes();
        if let Some(header) = self.buf.get_mut(start..start + HDRLEN) {
            header.copy_from_slice(&[l0, l1, t0, t1]);
        }
    }

    /// Bytes as they are, for values that are already encoded attributes.
    pub fn raw(&mut self, attrs: &[u8]) {
        self.buf.extend_from_slice(attrs);
        self.buf.resize(self.buf.len().next_multiple_of(4), 0);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn collect(buf: &[u8]) -> Vec<(u16, &[u8])> {
        Attrs::new(buf).map(|a| (a.ty, a.value)).collect()
    }

    #[test]
    fn written_attributes_are_read_back() {
        let mut buf = Vec::new();
        let mut w = Writer::new(&mut buf);
        w.u8(1, 7);
        w.be16(2, 0x1234);
        w.nest(3, |w| w.be32(4, 0xdead_beef));
        w.str(5, b"ftp");
        assert!(!w.overflowed());
        assert_eq!(
            collect(&buf),
            [
                (1, &[7u8][..]),
                (2, &[0x12, 0x34]),
                (3, &[8, 0, 4, 0, 0xde, 0xad, 0xbe, 0xef]),
                (5, b"ftp\0"),
            ]
        );
    }

    #[test]
    fn every_truncation_ends_the_iteration_without_panic() {
        let mut buf = Vec::new();
        let mut w = Writer::new(&mut buf);
        w.be32(1, 1);
        w.put(2, b"abcde");
        for len in 0..buf.len() {
            assert!(collect(&buf[..len]).len() <= 2);
        }
        // A length below the header's own is malformed, not an endless loop.
        assert_eq!(collect(&[3, 0, 1, 0, 0, 0, 0, 0]), []);
    }

    #[test]
    fn a_value_too_long_is_refused() {
        let mut buf = Vec::new();
        let mut w = Writer::new(&mut buf);
        w.put(1, &vec![0; 65532]);
        assert!(w.overflowed());
        assert!(buf.is_empty());
        let mut w = Writer::new(&mut buf);
        w.nest(1, |w| {
            w.put(2, &[0; 40000]);
            w.put(2, &[0; 40000]);
        });
        assert!(w.overflowed());
        assert!(buf.is_empty());
    }
}
