//! Memory for encoded records: one growing block per size class.
//!
//! Records of equal rounded size lie side by side, so a record costs its own
//! bytes and at most seven more. A block grows by remapping; freed places are
//! used again first.

const STEP: usize = 8;

/// Longest record, in bytes: what fits one datagram.
pub const MAX_LEN: usize = 1024;

const CLASSES: usize = MAX_LEN / STEP;

/// Where a record lies; meaningless without its length.
pub type Place = u32;

/// The blocks.
#[derive(Debug)]
pub struct Arena {
    classes: Box<[Class]>,
}

#[derive(Debug, Default)]
struct Class {
    bytes: Vec<u8>,
    free: Vec<Place>,
}

impl Default for Arena {
    fn default() -> Self {
        Self {
            classes: std::iter::repeat_with(Class::default)
                .take(CLASSES)
                .collect(),
        }
    }
}

const fn class_of(len: usize) -> usize {
    len.saturating_sub(1) / STEP
}

const fn offset(place: Place, class: usize) -> usize {
    place as usize * (class + 1) * STEP
}

impl Arena {
    /// Stores `data`; `None` if it is longer than [`MAX_LEN`] or 2^32 records
    /// of its size exist.
    pub fn put(&mut self, data: &[u8]) -> Option<Place> {
        let index = class_of(data.len());
        let class = self.classes.get_mut(index)?;
        if let Some(place) = class.free.pop() {
            self.write(place, data);
            return Some(place);
        }
        let size = (index + 1) * STEP;
        let place = Place::try_from(class.bytes.len() / size).ok()?;
        class.bytes.extend_from_slice(data);
        class.bytes.resize(offset(place, index) + size, 0);
        Some(place)
    }

    /// The record of `len` bytes at `place`.
    pub fn get(&self, place: Place, len: usize) -> &[u8] {
        let index = class_of(len);
        let at = offset(place, index);
        self.classes
            .get(index)
            .and_then(|c| c.bytes.get(at..at + len))
            .unwrap_or_default()
    }

    /// Replaces the record of `old` bytes at `place`; the new place.
    pub fn replace(&mut self, place: Place, old: usize, data: &[u8]) -> Option<Place> {
        if class_of(old) == class_of(data.len()) {
            self.write(place, data);
            return Some(place);
        }
        let new = self.put(data)?;
        self.free(place, old);
        Some(new)
    }

    /// Gives the record's place back.
    pub fn free(&mut self, place: Place, len: usize) {
        if let Some(class) = self.classes.get_mut(class_of(len)) {
            class.free.push(place);
        }
    }

    /// Bytes held, free places included.
    pub fn capacity(&self) -> usize {
        self.classes.iter().map(|c| c.bytes.capacity()).sum()
    }

    fn write(&mut self, place: Place, data: &[u8]) {
        let index = class_of(data.len());
        let at = offset(place, index);
        if let Some(room) = self
            .classes
            .get_mut(index)
            .and_then(|c| c.bytes.get_mut(at..at + data.len()))
        {
            room.copy_from_slice(data);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn records_keep_their_bytes_across_sizes_and_reuse() {
        let mut a = Arena::default();
        let x = a.put(&[1; 20]).unwrap();
        let y = a.put(&[2; 24]).unwrap();
        assert_eq!(a.get(x, 20), [1; 20]);
        assert_eq!(a.get(y, 24), [2; 24]);
        let x2 = a.replace(x, 20, &[3; 25]).unwrap();
        assert_eq!(a.get(x2, 25), [3; 25]);
        assert_eq!(a.put(&[4; 17]).unwrap(), x, "the freed place is used");
        assert_eq!(a.get(y, 24), [2; 24]);
    }

    #[test]
    fn a_record_that_is_too_long_is_refused() {
        let mut a = Arena::default();
        assert!(a.put(&[0; MAX_LEN]).is_some());
        assert!(a.put(&[0; MAX_LEN + 1]).is_none());
    }
}
