//! What is written on the terminal: text of strangers, and nothing where another process writes.

use std::sync::atomic::{AtomicBool, Ordering};

/// Whether another process tells how the work goes.
static SILENT: AtomicBool = AtomicBool::new(false);

/// Lets this process write no results, progress and remarks: another one does the same work and writes them.
pub fn silence() {
    SILENT.store(true, Ordering::Relaxed);
}

/// Whether this process writes nothing.
pub(crate) fn is_silent() -> bool {
    SILENT.load(Ordering::Relaxed)
}

/// Writes a line to stderr. Nobody may read it any more, as when the output is piped into `head`: what works on does not
/// fail therefore.
#[macro_export]
macro_rules! say {
    ($($line:tt)*) => {{
        use std::io::Write;
        let _ = writeln!(std::io::stderr(), $($line)*);
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

/// A number of things, by the name of one, whose plural ends in s.
pub(crate) fn counted(count: impl TryInto<u64>, noun: &str) -> String {
    match count.try_into().unwrap_or(u64::MAX) {
        1 => format!("1 {noun}"),
        count => format!("{count} {noun}s"),
    }
}

/// The verb of so many things.
pub(crate) fn is_or_are(count: usize) -> &'static str {
    if count == 1 { "is" } else { "are" }
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
        if steers(c) { shown.extend(c.escape_default()) } else { shown.push(c) }
    }
    shown
}

/// The same of several lines.
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
