//! Text files as people's programs write them.

use std::path::Path;

use anyhow::{Context, Result, bail};
use encoding_rs::{Encoding, UTF_8};

use crate::files;

/// A text file in UTF-8, or in what a byte-order mark at its start says, without that mark.
pub(crate) fn read_text(path: &Path) -> Result<String> {
    decode(&files::read(path)?).with_context(|| path.display().to_string())
}

/// A line with what would steer a terminal, such as escape codes, or turn its direction, shown as escapes.
pub(crate) fn visible(line: &str) -> String {
    let steers = |c: char| {
        let is_direction =
            matches!(c, '\u{61c}' | '\u{200e}' | '\u{200f}' | '\u{202a}'..='\u{202e}');
        c.is_control() || is_direction || matches!(c, '\u{2066}'..='\u{2069}')
    };
    let mut shown = String::with_capacity(line.len());
    for c in line.chars() {
        match steers(c) {
            true => shown.extend(c.escape_default()),
            false => shown.push(c),
        }
    }
    shown
}

/// The same of several lines.
pub(crate) fn visible_lines(text: &str) -> String {
    text.split('\n').map(visible).collect::<Vec<_>>().join("\n")
}

fn decode(bytes: &[u8]) -> Result<String> {
    let (encoding, mark) = Encoding::for_bom(bytes).unwrap_or((UTF_8, 0));
    let bytes = &bytes[mark..];
    let text = match str::from_utf8(bytes) {
        Ok(text) if encoding == UTF_8 => text.to_owned(),
        Err(error) if encoding == UTF_8 => {
            let (line, byte) = (line_of(bytes, error.valid_up_to()), bytes[error.valid_up_to()]);
            bail!("line {line}: expected text in UTF-8, found the byte 0x{byte:02x}");
        }
        _ => match encoding.decode_without_bom_handling_and_without_replacement(bytes) {
            Some(text) => text.into_owned(),
            None => bail!("expected text in {}, as its byte-order mark says", encoding.name()),
        },
    };
    // Without a mark the letters of UTF-16 are letters of UTF-8 with zeros between them.
    if let Some(zero) = text.find('\0') {
        let line = line_of(text.as_bytes(), zero);
        bail!("line {line}: expected text in UTF-8, found a zero byte");
    }
    Ok(text)
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
    fn what_steers_a_terminal_is_shown() {
        let (line, shown) = ("a \u{1b}[31mfox\r\u{202e}", r"a \u{1b}[31mfox\r\u{202e}");
        assert_eq!(visible(line), shown);
        assert_eq!(visible("zwei\nZeilen – ✓ 👩‍🚀"), r"zwei\nZeilen – ✓ 👩‍🚀");
        assert_eq!(visible_lines("a\n\tb"), "a\n\\tb");
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
        let error = |bytes: &[u8]| decode(bytes).unwrap_err().to_string();
        let latin = error(b"a fox\na caf\xe9\n");
        assert_eq!(latin, "line 2: expected text in UTF-8, found the byte 0xe9");
        let unmarked = error(&utf_16("a fox", u16::to_le_bytes));
        assert_eq!(unmarked, "line 1: expected text in UTF-8, found a zero byte");
        let half = error(&[0xff, 0xfe, 0x41]);
        assert_eq!(half, "expected text in UTF-16LE, as its byte-order mark says");
    }
}
