//! Syntax of prompts for other programs that has no meaning here.

/// Words that divide a prompt in AUTOMATIC1111's web UI.
const DIVIDERS: [&str; 2] = ["BREAK", "AND"];

/// The passages of a prompt that do something in other programs and are words here: `<lora:style:0.8>`,
/// `[cat:dog:0.5]`, `[cat|dog]`, `{cat|dog}`, `BREAK`.
pub fn unknown_syntax(prompt: &str) -> Vec<&str> {
    let angular = enclosed(prompt, '<', '>').filter(|found| found.contains(':'));
    let square = enclosed(prompt, '[', ']')
        .filter(|found| found.contains([':', '|']) && !found[1..].contains(['(', '[']));
    let curly = enclosed(prompt, '{', '}').filter(|found| found.contains('|'));
    let dividers = prompt.split_whitespace().filter(|word| DIVIDERS.contains(word));
    angular.chain(square).chain(curly).chain(dividers).collect()
}

/// The texts from each opening bracket to the next closing one, with both brackets.
fn enclosed(prompt: &str, open: char, close: char) -> impl Iterator<Item = &str> {
    prompt.match_indices(open).filter_map(move |(start, _)| {
        let length = prompt[start..].find(close)?;
        Some(&prompt[start..=start + length])
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_other_programs_do_is_found() {
        let prompt =
            "a (red:1.3) [cat:dog:0.5] BREAK on [grass|snow] in {rain|fog} <lora:style:0.8>";
        let found = ["<lora:style:0.8>", "[cat:dog:0.5]", "[grass|snow]", "{rain|fog}", "BREAK"];
        assert_eq!(unknown_syntax(prompt), found);
        let none: [&str; 0] = [];
        assert_eq!(unknown_syntax("[weak] [(a:1.2)] 1 < 2: a [b"), none);
    }
}
