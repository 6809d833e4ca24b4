//! Text of strangers on a terminal.

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
pub(crate) fn visible_lines(text: &str) -> String {
    text.split('\n').map(visible).collect::<Vec<_>>().join("\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_steers_a_terminal_is_shown() {
        let (line, shown) = ("a \u{1b}[31mfox\r\u{202e}", r"a \u{1b}[31mfox\r\u{202e}");
        assert_eq!(visible(line), shown);
        assert_eq!(visible("zwei\nZeilen – ✓ 👩‍🚀"), r"zwei\nZeilen – ✓ 👩‍🚀");
        assert_eq!(visible_lines("a\n\tb"), "a\n\\tb");
    }
}
