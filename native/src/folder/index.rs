//! Files by their names, in whatever way these are written.

use std::collections::HashMap;

use unicode_normalization::UnicodeNormalization;

/// Numbers of files by names with `/` between folders.
///
/// A letter with an accent is one character or two (Unicode's forms NFC and NFD). macOS, zip files and texts may write
/// the name of the same file in different forms. Windows and macOS ignore case.
#[derive(Default)]
pub(super) struct Index {
    exact: HashMap<String, Vec<usize>>,
    composed: HashMap<String, Vec<usize>>,
    lower_case: HashMap<String, Vec<usize>>,
}

impl Index {
    pub(super) fn insert(&mut self, name: &str, number: usize) {
        self.exact.entry(name.to_owned()).or_default().push(number);
        self.composed.entry(name.nfc().collect()).or_default().push(number);
        self.lower_case.entry(lower_case(name)).or_default().push(number);
    }

    /// The files of exactly this name, or else those of the same letters.
    pub(super) fn get(&self, name: &str) -> &[usize] {
        let found = self.exact.get(name);
        found
            .or_else(|| self.composed.get(&name.nfc().collect::<String>()))
            .map_or(&[], Vec::as_slice)
    }

    /// The files of [`Self::get`], or else those whose names differ only in case.
    pub(super) fn get_in_any_case(&self, name: &str) -> &[usize] {
        match self.get(name) {
            [] => self.lower_case.get(&lower_case(name)).map_or(&[], Vec::as_slice),
            found => found,
        }
    }

    /// How many files have this name, in any case.
    pub(super) fn count_in_any_case(&self, name: &str) -> usize {
        self.lower_case.get(&lower_case(name)).map_or(0, Vec::len)
    }
}

fn lower_case(name: &str) -> String {
    name.nfc().collect::<String>().to_lowercase()
}

/// A name as people's programs write it, with `/` between folders and without `.` and `..`.
pub(super) fn normalised(name: &str) -> String {
    let mut folders: Vec<&str> = Vec::new();
    for folder in name.split(['/', '\\']) {
        match folder {
            "" | "." => {}
            ".." if folders.last().is_some_and(|last| *last != "..") => {
                folders.pop();
            }
            _ => folders.push(folder),
        }
    }
    folders.join("/")
}

/// Whether a name begins at the root of a file system, also one of Windows.
pub(super) fn is_absolute(name: &str) -> bool {
    let has_drive = name.as_bytes().get(1) == Some(&b':') && name.starts_with(char::is_alphabetic);
    name.starts_with(['/', '\\']) || has_drive
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn letters_are_the_same_in_both_forms() {
        let (composed, decomposed) = ("caf\u{e9}.png", "cafe\u{301}.png");
        for (written, asked) in [(composed, decomposed), (decomposed, composed)] {
            let mut index = Index::default();
            index.insert(written, 0);
            assert_eq!(index.get(asked), [0]);
            index.insert(asked, 1);
            assert_eq!((index.get(written), index.get(asked)), (&[0][..], &[1][..]));
        }
    }

    #[test]
    fn capitals_matter_where_two_names_differ_in_them() {
        let mut index = Index::default();
        index.insert("Fox.png", 0);
        assert_eq!((index.get("fox.PNG"), index.get_in_any_case("fox.PNG")), (&[][..], &[0][..]));
        index.insert("fox.png", 1);
        assert_eq!(index.get_in_any_case("fox.png"), [1]);
        assert_eq!(index.get_in_any_case("FOX.png"), [0, 1]);
    }

    #[test]
    fn names_are_those_of_files() {
        for (name, expected) in [
            ("a.png", "a.png"),
            ("./sub/a.png", "sub/a.png"),
            (r"sub\a.png", "sub/a.png"),
            ("sub//x/../a.png", "sub/a.png"),
            ("../a.png", "../a.png"),
        ] {
            assert_eq!(normalised(name), expected);
        }
        assert!(
            is_absolute("/x/a.png") && is_absolute(r"C:\x\a.png") && is_absolute(r"\\nas\a.png")
        );
        assert!(!is_absolute("a.png") && !is_absolute("ab:c.png") && !is_absolute("é:a.png"));
    }

    proptest! {
        #[test]
        fn normal_names_stay_as_they_are(name in r"([a-z./\\]|\PC){0,30}") {
            let normal = normalised(&name);
            prop_assert_eq!(normalised(&normal), normal.clone());
            prop_assert!(!is_absolute(&normal) || normal.contains(':'));
        }
    }
}
