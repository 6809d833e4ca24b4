//! Which captions belong to which picture.

use std::collections::{BTreeSet, HashMap};
use std::path::{Path, PathBuf};

use anyhow::{Result, bail};
use wuerstchen::FileType;
use wuerstchen::fs::read_text_at_most;

use super::find::{CAPTION_ENDINGS, Found, ending, refuse};
use super::index::{Index, is_absolute, normalised};
use super::metadata::{CAPTIONS, NULLS, Numbered, read_rows, trimmed};
use crate::pictures;
use crate::shards::MAX_TEXT;
use crate::terminal::{counted, is_or_are};

/// The captions of the pictures of a folder.
pub(super) struct Captions {
    /// The captions of each picture, in the pictures' order; a picture may have none.
    pub(super) of_pictures: Vec<Vec<String>>,
    /// A line for each kind of thing that is not used.
    pub(super) left_out: Vec<String>,
}

/// Joins pictures with their captions: those in metadata, or else those in a text file of the picture's name, in which
/// every line is a caption.
pub(super) fn captions_of(root: &Path, found: &Found) -> Result<Captions> {
    let mut captions = vec![Vec::new(); found.pictures.len()];
    let mut left_out = told_by_metadata(root, found, &mut captions)?;

    let texts = index(root, &found.texts, without_ending);
    let pictures = index(root, &found.pictures, without_ending);
    let mut unused: BTreeSet<usize> = (0..found.texts.len()).collect();
    let (mut doubled, mut unread) = (BTreeSet::new(), Vec::new());
    for (picture, captions) in found.pictures.iter().zip(&mut captions) {
        for text_number in beside(root, picture, &pictures, &texts, &found.texts) {
            if captions.is_empty() {
                match read_text_at_most(&found.texts[text_number], MAX_TEXT) {
                    Ok(text) if is_page(&text) => {
                        let path = found.texts[text_number].display();
                        unread.push(format!("{path}: expected captions, found an HTML page"));
                        break;
                    }
                    Ok(text) => *captions = trimmed(text.lines()),
                    Err(error) => {
                        unread.push(format!("{:#}", anyhow::Error::from(error)));
                        break;
                    }
                }
                unused.remove(&text_number);
            } else {
                doubled.insert(text_number);
            }
        }
    }
    refuse(&unread, "whose text cannot be read")?;
    // A text may belong to two pictures, as the only text of one and a second text of the other.
    let doubled: Vec<_> = doubled.into_iter().filter(|text| unused.remove(text)).collect();
    if let Some(&first) = doubled.first() {
        let (texts, first) = (counted(doubled.len(), "text file"), found.texts[first].display());
        left_out.push(format!(
            "left out: {texts} of pictures that have captions in metadata or in another \
             text file, such as {first}"
        ));
    }
    if let Some(&first) = unused.first() {
        let (texts, first) = (counted(unused.len(), "text file"), found.texts[first].display());
        left_out.push(format!("left out: {texts} without a picture, such as {first}"));
    }
    Ok(Captions { of_pictures: captions, left_out })
}

/// The text files of a picture, such as `fox.txt` and `fox.png.txt` for `fox.png`, beginning with the one to take. Case
/// does not matter, unless another picture's name differs only in case.
fn beside(
    root: &Path,
    picture: &Path,
    pictures: &Index,
    texts: &Index,
    paths: &[PathBuf],
) -> Vec<usize> {
    let (whole, stem) = (name_in(root, picture), name_in(root, &without_ending(picture)));
    let is_alone = pictures.get(&stem).len() == pictures.count_in_any_case(&stem);
    let of_name = |name: &str| if is_alone { texts.get_in_any_case(name) } else { texts.get(name) };
    let mut found = [of_name(&stem), of_name(&whole)].concat();
    let rank = |text: &usize| {
        let ending = ending(&paths[*text]);
        CAPTION_ENDINGS.iter().position(|known| ending.as_deref() == Some(known))
    };
    // Of names that differ only in case, the one in lower case comes first.
    let is_lower = |text: &usize| {
        paths[*text].extension().is_some_and(|own| own.to_str() == ending(&paths[*text]).as_deref())
    };
    found.sort_by_key(|text| (rank(text), !is_lower(text)));
    found
}

/// Adds the captions in metadata to those of the pictures; returns lines about names that were not taken as written.
fn told_by_metadata(
    root: &Path,
    found: &Found,
    captions: &mut [Vec<String>],
) -> Result<Vec<String>> {
    let pictures = index(root, &found.pictures, Path::to_owned);
    let others = index(root, &found.left_out.others, Path::to_owned);
    let (mut strangers, mut lines) = (Strangers::default(), Vec::new());
    let mut folders = HashMap::new();
    let mut absolute: HashMap<usize, String> = HashMap::new();
    for path in &found.metadata {
        let folder = path.parent().unwrap_or(root);
        if let Some(other) = folders.insert(folder, path) {
            let names = [other, path].map(|path| path.file_name().unwrap_or_default().display());
            let (folder, [one, other]) = (folder.display(), names);
            bail!("{folder}: expected one file of metadata, found {one} and {other}");
        }
        let rows = read_rows(path)?;
        lines.extend(lines_about(path, &rows));
        for (line, row) in rows {
            let mut names = names_of(root, folder, &row.file_name);
            // Tables may have spaces around their commas.
            let trimmed = row.file_name.trim();
            if trimmed != row.file_name {
                names.extend(names_of(root, folder, trimmed));
            }
            let exact = names.iter().map(|name| pictures.get(name));
            let any_case = names.iter().map(|name| pictures.get_in_any_case(name));
            let named = exact.chain(any_case).find_map(|found| match found {
                [picture] => Some(*picture),
                _ => None,
            });
            let Some(picture) = named else {
                let is_other = names.iter().any(|name| !others.get_in_any_case(name).is_empty());
                strangers.add((path, line), (root, folder), &row.file_name, (&names, is_other));
                continue;
            };
            if is_absolute(&row.file_name)
                && let Some(other) = absolute.insert(picture, row.file_name.clone())
                && normalised(&other) != normalised(&row.file_name)
            {
                let (path, picture) = (path.display(), found.pictures[picture].display());
                let name = row.file_name;
                bail!(
                    "{path}: {other:?} and {name:?} are different files, but both lead to {picture}"
                );
            }
            let of_picture = &mut captions[picture];
            for caption in row.captions {
                if !of_picture.contains(&caption) {
                    of_picture.push(caption);
                }
            }
        }
    }
    strangers.refuse()?;
    Ok(lines)
}

/// Lines about rows that have no caption, and about names that are not taken as written.
fn lines_about(path: &Path, rows: &[Numbered]) -> Vec<String> {
    let (mut lines, path) = (Vec::new(), path.display());
    if !rows.is_empty() && rows.iter().all(|(_, row)| row.captions.is_empty()) {
        let fields = CAPTIONS.join(", ");
        lines.push(format!("{path}: no row has a caption, which is looked for in {fields}"));
    }
    let nulls = rows.iter().filter(|(_, row)| row.has_null).count();
    if nulls > 0 {
        let (rows, nulls) = (counted(nulls, "row"), NULLS.join(", "));
        lines.push(format!("{path}: left out: captions of {rows} that are one of {nulls}"));
    }
    let moved = rows.iter().filter(|(_, row)| is_absolute(&row.file_name)).count();
    if moved > 0 {
        let (names, are) = (counted(moved, "absolute name"), is_or_are(moved));
        lines.push(format!("{path}: {names} {are} looked for in its folder"));
    }
    lines
}

/// Rows of metadata whose pictures are none of the corpus: the paths that they mean, each with its row.
#[derive(Default)]
struct Strangers {
    missing: Vec<String>,
    /// Whether a missing one is named by a path of another place.
    is_elsewhere: bool,
    /// Those outside of the corpus.
    outside: Vec<String>,
    /// Files of other types.
    of_other_types: Vec<String>,
}

impl Strangers {
    /// Adds the row at `line` of the metadata in a folder below the root. `names` are those that its file name may mean,
    /// and `is_other` says that a file of another type has one of them.
    fn add(
        &mut self,
        (metadata, line): (&Path, u64),
        (root, folder): (&Path, &Path),
        file_name: &str,
        (names, is_other): (&[String], bool),
    ) {
        let picture = folder.join(file_name);
        let metadata = metadata.file_name().unwrap_or_default().display();
        let row = format!("{} ({metadata}, line {line})", picture.display());
        let leaves = || names.iter().all(|name| normalised(name).starts_with("../"));
        if is_other {
            self.of_other_types.push(row);
        } else if !is_absolute(file_name) && leaves() {
            self.outside.push(row);
        } else {
            self.is_elsewhere |= !picture.starts_with(root);
            self.missing.push(row);
        }
    }

    /// Fails if there are any.
    fn refuse(self) -> Result<()> {
        let Self { missing, is_elsewhere, outside, of_other_types } = self;
        let types = pictures::TYPES;
        refuse(&of_other_types, &format!("named in metadata but of another type than {types}"))?;
        refuse(
            &outside,
            "named in metadata.jsonl or metadata.csv but outside of the corpus, which their names may not leave",
        )?;
        let place = if is_elsewhere {
            "in the folder, where absolute names are looked for by their ends"
        } else {
            "there"
        };
        refuse(&missing, &format!("named in metadata.jsonl or metadata.csv but not {place}"))
    }
}

/// The names below the root that a name in a folder's metadata may mean, the likeliest first. A folder whose metadata
/// has absolute names may have been moved, so only the ends of these names count.
fn names_of(root: &Path, folder: &Path, name: &str) -> Vec<String> {
    let folder = name_in(root, folder);
    let below = |name: &str| normalised(&format!("{folder}/{name}"));
    if !is_absolute(name) {
        // Where a backslash does not separate folders, it may be a part of a name.
        return vec![format!("{folder}/{name}").trim_start_matches('/').to_owned(), below(name)];
    }
    let name = normalised(name);
    let ends = name.match_indices('/').map(|(slash, _)| &name[slash + 1..]);
    ends.chain([&name[..]]).flat_map(|end| [below(end), end.to_owned()]).collect()
}

fn index(root: &Path, paths: &[PathBuf], name: impl Fn(&Path) -> PathBuf) -> Index {
    let mut index = Index::default();
    for (number, path) in paths.iter().enumerate() {
        index.insert(&name_in(root, &name(path)), number);
    }
    index
}

/// A path below the root, with `/` between folders.
fn name_in(root: &Path, path: &Path) -> String {
    let below = path.strip_prefix(root).unwrap_or(path);
    let names = below.iter().map(|name| match name.to_str() {
        Some(name) => name.to_owned(),
        // Names that are not UTF-8 stay different from each other and from all that are: no name of a
        // file has a zero in it.
        None => format!("\0{name:?}"),
    });
    names.collect::<Vec<_>>().join("/")
}

fn without_ending(path: &Path) -> PathBuf {
    path.with_extension("")
}

/// Whether a text is a page that a server sent in place of a file.
fn is_page(text: &str) -> bool {
    let start = text.trim_start().as_bytes();
    FileType::of(&start[..start.len().min(FileType::START_BYTES)]) == Some(FileType::WebPage)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn absolute_names_mean_what_lies_in_the_folder() {
        let names = |name| names_of(Path::new("/root"), Path::new("/root/sub"), name);
        assert_eq!(names("a.png"), ["sub/a.png", "sub/a.png"]);
        assert_eq!(names(r"x\a.png"), [r"sub/x\a.png", "sub/x/a.png"]);
        assert_eq!(names("../a.png"), ["sub/../a.png", "a.png"]);
        let moved = names(r"C:\x\a.png");
        let ends = ["sub/x/a.png", "x/a.png", "sub/a.png", "a.png", "sub/C:/x/a.png", "C:/x/a.png"];
        assert_eq!(moved, ends);
        assert_eq!(names("/a.png"), ["sub/a.png", "a.png"]);
    }
}
