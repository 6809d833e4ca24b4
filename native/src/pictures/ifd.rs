//! The first directory of a TIFF file. EXIF data have the same form.
//!
//! Source: TIFF 6.0, section 2.

/// Types of values: bytes without a meaning are of either of two.
const BYTE: usize = 1;
const SHORT: usize = 3;
const LONG: usize = 4;
const UNDEFINED: usize = 7;

/// Where the entries of a directory are.
pub(super) struct Directory<'a> {
    bytes: &'a [u8],
    is_little: bool,
    start: usize,
    entries: usize,
}

impl<'a> Directory<'a> {
    /// The first directory; `None` where there is none, or where it is cut off.
    pub(super) fn first(bytes: &'a [u8]) -> Option<Self> {
        let is_little = match bytes.get(..4)? {
            b"II\x2a\0" => true,
            b"MM\0\x2a" => false,
            _ => return None,
        };
        let start = number(bytes, is_little, 4, 4)?;
        let entries = number(bytes, is_little, start, 2)?;
        Some(Self { bytes, is_little, start, entries })
    }

    /// Whether another directory follows.
    pub(super) fn has_next(&self) -> bool {
        let end = self.start + 2 + 12 * self.entries;
        self.number(end, 4).is_some_and(|next| next != 0)
    }

    /// The first number of a tag.
    pub(super) fn value(&self, tag: usize) -> Option<usize> {
        let (kind, count, at) = self.entry(tag)?;
        let length = match kind {
            BYTE => 1,
            SHORT => 2,
            LONG => 4,
            _ => return None,
        };
        self.number(self.values_at(at, count.checked_mul(length)?)?, length)
    }

    /// The bytes of a tag.
    pub(super) fn data(&self, tag: usize) -> Option<&'a [u8]> {
        let (kind, count, at) = self.entry(tag)?;
        if !matches!(kind, BYTE | UNDEFINED) {
            return None;
        }
        let start = self.values_at(at, count)?;
        self.bytes.get(start..start.checked_add(count)?)
    }

    /// Where the values of a tag are that have `length` bytes: in the entry itself, at `at`, if they fit.
    fn values_at(&self, at: usize, length: usize) -> Option<usize> {
        if length <= 4 { Some(at) } else { self.number(at, 4) }
    }

    /// The type of a tag's values, their number, and the place of the values or of their offset.
    fn entry(&self, tag: usize) -> Option<(usize, usize, usize)> {
        let places = (0..self.entries).map(|entry| self.start + 2 + 12 * entry);
        let at = places.into_iter().find(|&at| self.number(at, 2) == Some(tag))?;
        Some((self.number(at + 2, 2)?, self.number(at + 4, 4)?, at + 8))
    }

    fn number(&self, at: usize, length: usize) -> Option<usize> {
        number(self.bytes, self.is_little, at, length)
    }
}

fn number(bytes: &[u8], is_little: bool, at: usize, length: usize) -> Option<usize> {
    let digits = bytes.get(at..at.checked_add(length)?)?;
    let add = |sum: usize, &digit: &u8| sum << 8 | usize::from(digit);
    Some(if is_little { digits.iter().rev().fold(0, add) } else { digits.iter().fold(0, add) })
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A directory at byte 8 with one entry, then the place of the next directory, then more bytes.
    fn little(entry: [u8; 12], next: u8, more: &[u8]) -> Vec<u8> {
        [&b"II\x2a\0\x08\0\0\0\x01\0"[..], &entry, &[next, 0, 0, 0], more].concat()
    }

    #[test]
    fn a_second_directory_is_a_second_page() {
        let has_next = |bytes: &[u8]| Directory::first(bytes).is_some_and(|found| found.has_next());
        assert!(has_next(&little([0; 12], 64, &[])));
        assert!(!has_next(&little([0; 12], 0, &[])));
        assert!(!has_next(&little([0; 12], 64, &[])[..20]));
    }

    /// The same number as a SHORT and as a LONG, in both orders of bytes.
    #[test]
    fn numbers_of_either_type_are_read() {
        let value = |bytes: &[u8]| Directory::first(bytes).unwrap().value(0x112);
        assert_eq!(value(&little([0x12, 1, 3, 0, 1, 0, 0, 0, 6, 0, 0, 0], 0, &[])), Some(6));
        assert_eq!(value(&little([0x12, 1, 4, 0, 1, 0, 0, 0, 6, 0, 0, 0], 0, &[])), Some(6));
        assert_eq!(value(&little([0x12, 1, 2, 0, 1, 0, 0, 0, 6, 0, 0, 0], 0, &[])), None);
        let big = b"MM\0\x2a\0\0\0\x08\0\x01\x01\x12\0\x03\0\0\0\x01\0\x06\0\0\0\0\0\0";
        assert_eq!(value(big), Some(6));
    }

    #[test]
    fn bytes_are_read_where_they_are() {
        let data = |kind: u8, offset: u8| {
            let entry = [0x73, 0x87, kind, 0, 5, 0, 0, 0, offset, 0, 0, 0];
            let bytes = little(entry, 0, b"icc..");
            Directory::first(&bytes).unwrap().data(0x8773).map(<[u8]>::to_vec)
        };
        assert_eq!(data(7, 26), Some(b"icc..".to_vec()));
        assert_eq!(data(1, 26), Some(b"icc..".to_vec()));
        assert_eq!((data(3, 26), data(7, 27)), (None, None));
    }
}
