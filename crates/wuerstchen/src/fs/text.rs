//! Text files as people's programs write them.

use std::path::Path;

use encoding_rs::{Encoding, UTF_8};

use super::error::{Result, unfit};
use super::files;
use crate::checkpoint::FileType;

/// The encodings that are read, for messages.
pub const ENCODINGS: &str = "UTF-8, or UTF-16 with a byte-order mark";

/// More bytes than a pointer of Git LFS has.
const MOST_POINTER: usize = 1024;

/// Most bytes of a text file: the metadata of a few million pictures.
const MOST_TEXT: u64 = 1 << 30;

/// A text file in UTF-8, or in what a byte-order mark at its start says, without that mark.
///
/// # Errors
///
/// The file cannot be read, or is in another encoding.
pub fn read_text(path: &Path) -> Result<String> {
    read_text_at_most(path, MOST_TEXT)
}

/// As [`read_text`], for a file that has at most `most` bytes.
///
/// # Errors
///
/// As [`read_text`], or the file has more bytes.
pub fn read_text_at_most(path: &Path, most: u64) -> Result<String> {
    decode(&files::read_at_most(path, most)?).map_err(|reason| unfit(path, reason))
}

/// A text in UTF-8, or in what a byte-order mark at its start says, without that mark, and with `\n` at the end of
/// every line.
///
/// # Errors
///
/// Names the first line that is in another encoding, or says that the text is a pointer of Git LFS.
pub fn decode(bytes: &[u8]) -> std::result::Result<String, String> {
    if bytes.len() <= MOST_POINTER && FileType::of(bytes) == Some(FileType::LfsPointer) {
        return Err(format!("expected a text, found {}", FileType::LfsPointer.name()));
    }
    let (encoding, mark) = Encoding::for_bom(bytes).unwrap_or((UTF_8, 0));
    let bytes = &bytes[mark..];
    let text = match str::from_utf8(bytes) {
        Ok(text) if encoding == UTF_8 => text.to_owned(),
        Err(error) if encoding == UTF_8 => {
            let (line, byte) = (line_of(bytes, error.valid_up_to()), bytes[error.valid_up_to()]);
            return Err(format!(
                "line {line}: expected text in {ENCODINGS}, found the byte 0x{byte:02x}"
            ));
        }
        _ => match encoding.decode_without_bom_handling_and_without_replacement(bytes) {
            Some(text) => text.into_owned(),
            None => {
                return Err(format!(
                    "expected text in {}, as its byte-order mark says",
                    encoding.name()
                ));
            }
        },
    };
    // Without a mark the letters of UTF-16 are letters of UTF-8 with zeros between them.
    if let Some(zero) = text.find('\0') {
        let line = line_of(text.as_bytes(), zero);
        return Err(format!("line {line}: expected text in {ENCODINGS}, found a zero byte"));
    }
    // Rust knows no lines that end with a carriage return alone.
    Ok(if text.contains('\r') { text.replace("\r\n", "\n").replace('\r', "\n") } else { text })
}

/// The number of the line that a byte is in, from 1.
fn line_of(bytes: &[u8], at: usize) -> usize {
    1 + bytes[..at].iter().filter(|&&byte| byte == b'\n').count()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn utf_16(text: &str, to_bytes: fn(u16) -> [u8; 2]) -> Vec<u8> {
        text.encode_utf16().flat_map(to_bytes).collect()
    }

    #[test]
    fn lines_end_in_one_way() {
        assert_eq!(decode(b"a\r\nb\rc\n").unwrap(), "a\nb\nc\n");
    }

    #[test]
    fn a_byte_order_mark_is_no_text() {
        let text = "ein Fuchs im Schnee – ✓";
        assert_eq!(decode(text.as_bytes()).unwrap(), text);
        let marked = format!("\u{feff}{text}");
        assert_eq!(decode(marked.as_bytes()).unwrap(), text);
        assert_eq!(decode(&utf_16(&marked, u16::to_le_bytes)).unwrap(), text);
        assert_eq!(decode(&utf_16(&marked, u16::to_be_bytes)).unwrap(), text);
        assert_eq!(decode("\u{feff}".as_bytes()).unwrap(), "");
    }

    #[test]
    fn other_encodings_are_named_with_their_line() {
        let error = |bytes: &[u8]| decode(bytes).unwrap_err();
        let pointer = error(b"version https://git-lfs.github.com/spec/v1\noid sha256:12\nsize 9\n");
        assert!(pointer.starts_with("expected a text, found a pointer of Git LFS"), "{pointer}");
        let latin = error(b"a fox\na caf\xe9\n");
        let expected = "expected text in UTF-8, or UTF-16 with a byte-order mark, found";
        assert_eq!(latin, format!("line 2: {expected} the byte 0xe9"));
        let unmarked = error(&utf_16("a fox", u16::to_le_bytes));
        assert_eq!(unmarked, format!("line 1: {expected} a zero byte"));
        let half = error(&[0xff, 0xfe, 0x41]);
        assert_eq!(half, "expected text in UTF-16LE, as its byte-order mark says");
    }
}
