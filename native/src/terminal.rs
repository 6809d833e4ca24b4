//! Output on the terminal: text from elsewhere is made harmless, and only one of several processes writes.

use std::sync::atomic::{AtomicBool, Ordering};

/// Whether another process reports the work.
static SILENT: AtomicBool = AtomicBool::new(false);

/// Stops this process from writing results, progress and remarks, because another one does the same work and writes
/// them.
pub fn silence() {
    SILENT.store(true, Ordering::Relaxed);
}

/// Whether this process writes nothing.
pub(crate) fn is_silent() -> bool {
    SILENT.load(Ordering::Relaxed)
}

/// Writes a line to stderr, with characters escaped that would control a terminal: names of files may have them. It
/// ignores errors, because a program must not fail when nobody reads its messages any more, for example with the output
/// piped into `head`.
#[macro_export]
macro_rules! say {
    ($($line:tt)*) => {{
        use std::io::Write;
        let _ = writeln!(std::io::stderr(), "{}", $crate::visible_lines(&format!($($line)*)));
    }};
}

/// Writes a line to stderr, unless another process does.
macro_rules! tell {
    ($($line:tt)*) => {
        if !$crate::terminal::is_silent() {
            say!($($line)*);
        }
    };
}

/// A number of things; `noun` is the name of one thing, whose plural ends in s.
pub(crate) fn counted(count: impl TryInto<u64>, noun: &str) -> String {
    match count.try_into().unwrap_or(u64::MAX) {
        1 => format!("1 {noun}"),
        count => format!("{count} {noun}s"),
    }
}

/// The verb for `count` things.
pub(crate) fn is_or_are(count: usize) -> &'static str {
    if count == 1 { "is" } else { "are" }
}

/// The line, with characters escaped that would control a terminal, such as escape codes, or reverse its direction.
pub(crate) fn visible(line: &str) -> String {
    let steers = |c: char| {
        let is_direction =
            matches!(c, '\u{61c}' | '\u{200e}' | '\u{200f}' | '\u{202a}'..='\u{202e}');
        c.is_control() || is_direction || matches!(c, '\u{2066}'..='\u{2069}')
    };
    let mut shown = String::with_capacity(line.len());
    for c in line.chars() {
        if steers(c) { shown.extend(c.escape_default()) } else { shown.push(c) }
    }
    shown
}

/// The lines of a text, with characters escaped that would control a terminal.
pub fn visible_lines(text: &str) -> String {
    text.split('\n').map(visible).collect::<Vec<_>>().join("\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_thing_is_no_plural() {
        let of = |count: usize| counted(count, "caption");
        assert_eq!([of(0), of(1), of(2)], ["0 captions", "1 caption", "2 captions"]);
    }

    #[test]
    fn what_steers_a_terminal_is_shown() {
        let (line, shown) = ("a \u{1b}[31mfox\r\u{202e}", r"a \u{1b}[31mfox\r\u{202e}");
        assert_eq!(visible(line), shown);
        assert_eq!(visible("zwei\nZeilen – ✓ 👩‍🚀"), r"zwei\nZeilen – ✓ 👩‍🚀");
        assert_eq!(visible_lines("a\n\tb"), "a\n\\tb");
    }
}
