//! Syntax of prompts for other programs that has no meaning here.

/// Words that divide a prompt in AUTOMATIC1111's web UI.
const DIVIDERS: [&str; 2] = ["BREAK", "AND"];

/// What stands before the name of an embedding in ComfyUI.
const EMBEDDING: &str = "embedding:";

/// The passages of a prompt that do something in other programs and are words here: `<lora:style:0.8>`,
/// `[cat:dog:0.5]`, `[cat|dog]`, `{cat|dog}`, `BREAK`, `embedding:bad`.
pub fn unknown_syntax(prompt: &str) -> Vec<&str> {
    let angular = closed(prompt, '>').filter_map(|text| Some(&text[text.rfind('<')?..]));
    // Brackets around emphasis are emphasis too.
    let square = closed(prompt, ']').filter_map(|text| Some(&text[text.rfind('[')?..]));
    let curly = closed(prompt, '}').filter_map(|text| Some(&text[text.find('{')?..]));
    let angular = angular.filter(|found| found.contains(':'));
    let square = square.filter(|found| found.contains([':', '|']) && !found.contains('('));
    let curly = curly.filter(|found| found.contains('|'));
    let dividers = prompt.split_whitespace().filter(|word| DIVIDERS.contains(word));
    angular.chain(square).chain(curly).chain(dividers).chain(embeddings(prompt)).collect()
}

/// The names of embeddings in a prompt, with what stands before them.
fn embeddings(prompt: &str) -> impl Iterator<Item = &str> {
    prompt.match_indices(EMBEDDING).filter_map(|(start, _)| {
        let name = &prompt[start + EMBEDDING.len()..];
        let is_of_name = |c: char| c.is_alphanumeric() || "_-.".contains(c);
        let length = name.find(|c| !is_of_name(c)).unwrap_or(name.len());
        let is_word = prompt[..start].ends_with(char::is_alphanumeric);
        (length > 0 && !is_word).then(|| &prompt[start..start + EMBEDDING.len() + length])
    })
}

/// The pieces of a prompt that end with a closing bracket.
fn closed(prompt: &str, bracket: char) -> impl Iterator<Item = &str> {
    prompt.split_inclusive(bracket).filter(move |text| text.ends_with(bracket))
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
        let embeddings = "a,embedding:bad, (embedding:worse-2:1.2) embedding: an embedding:";
        assert_eq!(unknown_syntax(embeddings), ["embedding:bad", "embedding:worse-2"]);
        let none: [&str; 0] = [];
        assert_eq!(unknown_syntax("[weak] [(a:1.2)] 1 < 2: a [b"), none);
        let nested = unknown_syntax("1 < 2 <x:1> [a [b|c]] {d|{e} f}");
        assert_eq!(nested, ["<x:1>", "[b|c]", "{d|{e}"]);
    }

    /// This would take minutes if a search went from each bracket to the end.
    #[test]
    fn a_million_brackets_are_read_once() {
        let none: [&str; 0] = [];
        for brackets in ["[(", "<", "{", "[:"] {
            assert_eq!(unknown_syntax(&brackets.repeat(1_000_000)), none);
        }
        assert_eq!(unknown_syntax(&format!("{}:]", "[".repeat(1_000_000))), ["[:]"]);
    }
}
