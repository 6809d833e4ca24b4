//! Lines about captions that the text encoder does not read as they stand.

use anyhow::Result;
use wuerstchen::Tokenizer;
use wuerstchen::text::emphasis::is_plain;

use crate::terminal::{counted, is_or_are};

/// Most characters of an example in a message.
const EXAMPLE_LETTERS: usize = 60;

/// Reports how many captions are longer than Stage C reads, naming the setting that limits the length, and how many
/// have words that its text encoder does not know. `of` says of what they are captions.
pub(super) fn tell_of_captions<'a>(
    captions: impl Iterator<Item = &'a str>,
    noun: &str,
    of: &str,
    tokenizer: &Tokenizer,
    limit: &str,
) -> Result<()> {
    let (mut cut, mut unknown) = ((0, None), (0, None));
    for caption in captions {
        if let Some(end) = tokenizer.cut_off(caption)? {
            cut.0 += 1;
            cut.1.get_or_insert(end);
        }
        if let Some(word) = tokenizer.unknown_words(caption)?.into_iter().next() {
            unknown.0 += 1;
            unknown.1.get_or_insert(word);
        }
    }
    if let (count, Some(end)) = cut {
        tell!(
            "{}{of} {} longer than {limit} = {}, which leaves out what follows, such as {:?}",
            counted(count, noun),
            is_or_are(count),
            tokenizer.length(),
            example(end)
        );
    }
    if let (count, Some(word)) = unknown {
        tell!(
            "{}{of} with words that the text encoder does not know, such as {:?}",
            counted(count, noun),
            example(&word)
        );
    }
    Ok(())
}

/// Reports captions that would mean something else as prompts.
pub(super) fn tell_of_brackets<'a>(captions: impl Iterator<Item = &'a str>) {
    let mut bracketed = captions.filter(|caption| !is_plain(caption));
    if let Some(first) = bracketed.next() {
        tell!(
            "{} with brackets or backslashes, which are learnt as they stand; in a prompt, brackets weigh words, unless \
             generate has --prompt-syntax plain: such as {:?}",
            counted(1 + bracketed.count(), "caption"),
            example(first)
        );
    }
}

/// The beginning of a text.
fn example(text: &str) -> String {
    text.chars().take(EXAMPLE_LETTERS).collect()
}
