//! Weights of passages of a prompt, as users of other programs write them.
//!
//! | written | means |
//! | --- | --- |
//! | `(red)` | 1.1 times as strong |
//! | `(red:1.3)` | 1.3 times as strong |
//! | `[red]` | 1.1 times weaker |
//! | `((red))`, `([red]:2)` | the product |
//! | `\(`, `\)`, `\[`, `\]`, `\\` | the character itself |
//!
//! A bracket that is not closed reaches to the end; one that was not opened is text. Anything else that has no
//! meaning is text too, so that every prompt can be read.

/// A passage of a prompt and how strong it is.
#[derive(Clone, Debug, PartialEq)]
pub struct Passage {
    /// The text of the passage, without brackets and weights.
    pub text: String,
    /// 1 for text without emphasis; at most [`MAX_WEIGHT`] in size.
    pub weight: f64,
}

/// Larger weights, of either sign, are cut to this.
pub const MAX_WEIGHT: f64 = 100.0;

/// What one pair of brackets multiplies or divides by.
const STEP: f64 = 1.1;

/// Brackets of a kind that may be open at a time; further ones are text.
const MAX_DEPTH: usize = 1000;

/// Whether a prompt has neither brackets nor backslashes, so that it is text as a whole.
pub fn is_plain(prompt: &str) -> bool {
    !prompt.contains(['(', ')', '[', ']', '\\'])
}

/// Splits a prompt into passages of equal weight. There is always one, an empty prompt's is empty.
///
/// Source: `parse_prompt_attention` of AUTOMATIC1111/stable-diffusion-webui, `prompt_parser.py`;
/// unlike there, a backslash that escapes nothing is kept.
pub fn passages(prompt: &str) -> Vec<Passage> {
    let mut joined: Vec<Passage> = Vec::new();
    for mut passage in parse(prompt) {
        passage.weight = passage.weight.clamp(-MAX_WEIGHT, MAX_WEIGHT);
        match joined.last_mut().filter(|last| last.weight == passage.weight) {
            Some(last) => last.text.push_str(&passage.text),
            None => joined.push(passage),
        }
    }
    if joined.is_empty() {
        joined.push(Passage { text: String::new(), weight: 1.0 });
    }
    joined
}

/// The passages whose weights are cut to [`MAX_WEIGHT`], with the weights that the prompt says.
pub fn cut_passages(prompt: &str) -> Vec<Passage> {
    parse(prompt).into_iter().filter(|passage| passage.weight.abs() > MAX_WEIGHT).collect()
}

/// Passages with the weights that the prompt says; neighbours may have equal ones.
fn parse(prompt: &str) -> Vec<Passage> {
    let mut parser = Parser::default();
    let mut rest = prompt;
    while let Some(c) = rest.chars().next() {
        rest = &rest[parser.take(c, rest)..];
    }
    parser.finish()
}

#[derive(Default)]
struct Parser {
    passages: Vec<Passage>,
    /// The places in `passages` of the open round and square brackets.
    round: Vec<usize>,
    square: Vec<usize>,
    /// Whether a bracket stands between the last passage and what follows.
    bracket: bool,
}

impl Parser {
    /// Reads what `rest` starts with, the character `c`; gives the number of bytes read.
    fn take(&mut self, c: char, rest: &str) -> usize {
        match c {
            '\\' => {
                let escaped = rest[1..].chars().next().filter(|next| "()[]\\".contains(*next));
                self.text(escaped.unwrap_or(c));
                return 1 + escaped.map_or(0, char::len_utf8);
            }
            '(' if self.round.len() < MAX_DEPTH => {
                let start = self.open();
                self.round.push(start);
            }
            '[' if self.square.len() < MAX_DEPTH => {
                let start = self.open();
                self.square.push(start);
            }
            ':' if !self.round.is_empty() => {
                let Some((weight, bytes)) = explicit_weight(rest) else {
                    self.text(c);
                    return 1;
                };
                let start = self.round.pop();
                self.close(start, weight);
                return bytes;
            }
            ')' if !self.round.is_empty() => {
                let start = self.round.pop();
                self.close(start, STEP);
            }
            ']' if !self.square.is_empty() => {
                let start = self.square.pop();
                self.close(start, 1.0 / STEP);
            }
            _ => self.text(c),
        }
        c.len_utf8()
    }

    fn text(&mut self, c: char) {
        match self.passages.last_mut().filter(|_| !self.bracket) {
            Some(last) => last.text.push(c),
            None => self.passages.push(Passage { text: c.to_string(), weight: 1.0 }),
        }
        self.bracket = false;
    }

    fn open(&mut self) -> usize {
        self.bracket = true;
        self.passages.len()
    }

    fn close(&mut self, start: Option<usize>, factor: f64) {
        self.bracket = true;
        for passage in &mut self.passages[start.unwrap_or(0)..] {
            // Finite factors cannot make NaN, but their product may overflow.
            passage.weight = (passage.weight * factor).clamp(f64::MIN, f64::MAX);
        }
    }

    /// Closes what is open.
    fn finish(mut self) -> Vec<Passage> {
        while let Some(start) = self.round.pop() {
            self.close(Some(start), STEP);
        }
        while let Some(start) = self.square.pop() {
            self.close(Some(start), 1.0 / STEP);
        }
        self.passages
    }
}

/// The weight of `:1.3)` and the number of its bytes.
fn explicit_weight(text: &str) -> Option<(f64, usize)> {
    let text = text.strip_prefix(':')?;
    let is_number = |c: char| c.is_ascii_digit() || "+-. ".contains(c);
    let (number, rest) = text.split_at(text.find(|c| !is_number(c))?);
    let weight = number.trim().parse::<f64>().ok().filter(|weight| weight.is_finite())?;
    rest.starts_with(')').then_some((weight, number.len() + 2))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn cut_weights_are_told() {
        let cut = cut_passages("(red:1000000000) or (blue:-101) or (green:100)").into_iter();
        let cut: Vec<_> = cut.map(|passage| (passage.text, passage.weight)).collect();
        assert_eq!(cut, [("red".to_owned(), 1e9), ("blue".to_owned(), -101.0)]);
    }

    fn parsed(prompt: &str) -> Vec<(String, f64)> {
        let passages = passages(prompt).into_iter();
        // Three digits, as products of 1.1 are not round.
        passages.map(|p| (p.text, (p.weight * 1000.0).round() / 1000.0)).collect()
    }

    fn expect(prompt: &str, passages: &[(&str, f64)]) {
        let expected: Vec<_> = passages.iter().map(|&(text, w)| (text.to_owned(), w)).collect();
        assert_eq!(parsed(prompt), expected, "{prompt}");
    }

    /// The examples in the documentation of `parse_prompt_attention`.
    #[test]
    fn means_what_it_means_elsewhere() {
        expect("normal text", &[("normal text", 1.0)]);
        expect("an (important) word", &[("an ", 1.0), ("important", 1.1), (" word", 1.0)]);
        expect("(unbalanced", &[("unbalanced", 1.1)]);
        expect(r"\(literal\]", &[("(literal]", 1.0)]);
        expect("(unnecessary)(parens)", &[("unnecessaryparens", 1.1)]);
        expect(
            "a (((house:1.3)) [on] a (hill:0.5), sun, (((sky))).",
            &[
                ("a ", 1.0),
                ("house", 1.573),
                (" ", 1.1),
                ("on", 1.0),
                (" a ", 1.1),
                ("hill", 0.55),
                (", sun, ", 1.1),
                ("sky", 1.464),
                (".", 1.1),
            ],
        );
    }

    #[test]
    fn what_cannot_be_meant_is_text() {
        expect("", &[("", 1.0)]);
        expect("()", &[("", 1.0)]);
        expect("a) b:1.2) c]", &[("a) b:1.2) c]", 1.0)]);
        expect("(ratio 1:2:x)", &[("ratio 1:2:x", 1.1)]);
        expect("(a:1.2.3)", &[("a:1.2.3", 1.1)]);
        expect("(a:inf)", &[("a:inf", 1.1)]);
        expect(r"c:\dir \\(a)", &[(r"c:\dir \", 1.0), ("a", 1.1)]);
        expect("(a : -2 )", &[("a ", -2.0)]);
        expect("(((a:1e3):9999999):99999)", &[("a:1e3", 100.0)]);
    }

    proptest! {
        #[test]
        fn every_prompt_has_finite_weights(prompt in r"([()\[\]\\:0-9.+\- a-zß★]|\PC){0,60}") {
            let passages = passages(&prompt);
            prop_assert!(!passages.is_empty());
            prop_assert!(passages.iter().all(|passage| passage.weight.abs() <= MAX_WEIGHT));
        }

        #[test]
        fn plain_prompts_stay_as_they_are(prompt in r"[^()\[\]\\]{0,60}") {
            prop_assert!(is_plain(&prompt));
            prop_assert_eq!(passages(&prompt), [Passage { text: prompt, weight: 1.0 }]);
        }

        #[test]
        fn escaped_prompts_mean_what_they_say(prompt in r"([()\[\]\\:0-9]|\PC){0,60}") {
            let escape = |c: char| if "()[]\\".contains(c) { format!("\\{c}") } else { c.into() };
            let escaped: String = prompt.chars().map(escape).collect();
            prop_assert_eq!(passages(&escaped), [Passage { text: prompt, weight: 1.0 }]);
        }
    }
}
