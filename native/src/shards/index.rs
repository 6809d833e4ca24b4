//! Indexes of shards: where each picture lies in the tar files of a `WebDataset`, or in Parquet files.

use std::collections::{BTreeMap, BTreeSet, HashSet};
use std::fmt;
use std::fs::File;
use std::io::{self, BufRead, BufReader, Read, Seek, SeekFrom};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, anyhow, bail};
use serde_json::{Map, Value};
use tar::{Archive, EntryType, PaxExtension};
use wuerstchen::FileType;
use wuerstchen::fs::{decode, has_extension, is_hidden};
use wuerstchen::json::with_nulls;
use wuerstchen_train::config::is_match;

#[cfg(feature = "parquet")]
use super::parquet::{Row, read_shard as read_parquet};
use crate::folder::Entry;
use crate::pictures;
use crate::terminal::counted;

/// Most shards that a range in a pattern stands for.
const MOST_SHARDS: u64 = 1_000_000;

/// Most bytes of a text of a sample.
pub(crate) const MAX_TEXT: u64 = 1 << 20;

/// A picture in a shard, with its texts and fields.
pub(super) struct Found {
    /// Its name in the shard, for messages.
    pub(super) name: String,
    pub(super) place: Place,
    /// Texts by the ends of their names.
    pub(super) texts: BTreeMap<String, String>,
    /// The fields of its `.json` file, or the columns of its row.
    pub(super) fields: Map<String, Value>,
    /// Why the sample cannot be used.
    pub(super) fault: Option<&'static str>,
}

/// Where the bytes of a picture lie in a shard.
pub(super) enum Place {
    /// A range of bytes.
    Bytes {
        /// Place of the first byte, from the start of the file.
        offset: u64,
        /// Number of bytes.
        length: usize,
    },
    /// A row of a Parquet file.
    #[cfg(feature = "parquet")]
    Row(Row),
}

/// Why the bytes of a picture cannot be read.
#[derive(Debug)]
pub(super) enum ReadError {
    /// The shard has no whole picture there.
    #[cfg_attr(
        not(feature = "parquet"),
        expect(dead_code, reason = "the index of a tar file lists whole pictures only")
    )]
    Picture(String),
    /// The shard itself cannot be opened or read.
    Shard(String),
}

impl Place {
    /// The bytes of the picture, from the shard at a path.
    pub(super) fn read(&self, path: &Path) -> Result<Vec<u8>, ReadError> {
        match self {
            Self::Bytes { offset, length } => {
                // The index has found that the shard is long enough, so it is not the picture that is broken.
                range(path, *offset, *length).map_err(|error| ReadError::Shard(error.to_string()))
            }
            #[cfg(feature = "parquet")]
            Self::Row(row) => row.read(path).map_err(|error| {
                // Errors of unpacking are of the same type as those of reading, but have no number of the system's.
                let is_of_system = error.chain().any(|cause| {
                    let cause = cause.downcast_ref::<io::Error>();
                    cause.is_some_and(|error| error.raw_os_error().is_some())
                });
                let reason = error.root_cause().to_string();
                if is_of_system { ReadError::Shard(reason) } else { ReadError::Picture(reason) }
            }),
        }
    }
}

fn range(path: &Path, offset: u64, length: usize) -> io::Result<Vec<u8>> {
    let mut file = File::open(path)?;
    file.seek(SeekFrom::Start(offset))?;
    let mut bytes = vec![0; length];
    file.read_exact(&mut bytes)?;
    Ok(bytes)
}

/// Text by which one picture differs from others that were in its place.
impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Bytes { offset, length } => write!(f, "{offset} {length}"),
            #[cfg(feature = "parquet")]
            Self::Row(row) => row.fmt(f),
        }
    }
}

/// The samples of a shard, with the fields that are `wanted`.
pub(super) fn read_shard(path: &Path, wanted: &BTreeSet<&str>) -> Result<Shard> {
    let cannot = || format!("cannot read the shard {}", path.display());
    // Checked before the file is opened, because opening a pipe waits for its other end.
    let kind = path.metadata().with_context(cannot)?;
    let refuse = |found: &str| anyhow!("{}: {EXPECTED}, found {found}", path.display());
    if !kind.is_file() {
        return Err(refuse(if kind.is_dir() { "a folder" } else { "no ordinary file" }));
    }
    if pictures::ENDINGS.iter().any(|ending| has_extension(path, ending)) {
        return Err(refuse("a picture: name its folder"));
    }
    let mut file = File::open(path).with_context(cannot)?;
    let mut start = Vec::new();
    file.by_ref()
        .take(FileType::START_BYTES as u64)
        .read_to_end(&mut start)
        .with_context(cannot)?;
    let is_parquet = start.starts_with(&PARQUET);
    if FileType::of(&start) == Some(FileType::LfsPointer) {
        return Err(refuse(FileType::LfsPointer.name()));
    }
    let is_at = |place: usize, mark| start.get(place..).is_some_and(|rest| rest.starts_with(mark));
    if let Some((.., method, program)) = COMPRESSED.iter().find(|(at, mark, ..)| is_at(*at, mark)) {
        return Err(refuse(&format!("one that is compressed with {method}; {program} unpacks it")));
    }
    if kind.len() < BLOCK && !is_parquet {
        return Err(refuse(&format!("one of {}", counted(kind.len(), "byte"))));
    }
    file.rewind().with_context(cannot)?;
    if is_parquet { read_parquet(path, file, wanted) } else { read_tar(path, file, wanted) }
}

#[cfg(not(feature = "parquet"))]
fn read_parquet(path: &Path, _: File, _: &BTreeSet<&str>) -> Result<Shard> {
    bail!(
        "{}: {EXPECTED}, found a Parquet file, and this program was built without the feature `parquet`: cargo build \
         --release -p wuerstchen-cli --features parquet builds one with it",
        path.display()
    )
}

/// The samples of a tar file. Files of one sample follow each other and have one name up to the first dot. Only the
/// `wanted` texts and fields are kept.
fn read_tar(path: &Path, file: File, wanted: &BTreeSet<&str>) -> Result<Shard> {
    let cannot = || format!("cannot read the shard {}", path.display());
    let refuse = |found: &str| anyhow!("{}: {EXPECTED}, found {found}", path.display());
    let wanted: BTreeSet<String> = wanted.iter().map(|wanted| wanted.to_lowercase()).collect();
    let is_wanted = |name: &str| wanted.contains(name) || wanted.contains(&name.to_lowercase());
    let whole = file.metadata().with_context(cannot)?.len();
    // Looks at the bytes between entries, while the archive has a place of its own in the file.
    let mut between = File::open(path).with_context(cannot)?;
    let mut archive = Archive::new(file);
    // Concatenated tar files have an end marker between them.
    archive.set_ignore_zeros(true);
    let (mut shard, mut seen) = (Shard::default(), HashSet::new());
    let mut last: Option<(Vec<u8>, Pieces)> = None;
    // The end of the last entry; not known after a sparse file, whose header tells another size.
    let mut end = Some(0);
    // Where the tar file begins that others were put before.
    let mut start = 0;
    let (mut cut_off, mut gap) = (None, None);
    for entry in archive.entries_with_seek().with_context(cannot)? {
        let mut entry = match entry {
            Ok(entry) => entry,
            // Not even the first header is one of a tar file.
            Err(_) if end == Some(0) => {
                return Err(refuse("another type of file"));
            }
            Err(error) => {
                cut_off = Some(error.to_string());
                break;
            }
        };
        let (offset, length) = (entry.raw_file_position(), entry.size());
        let path_bytes = entry.path_bytes().into_owned();
        let name = String::from_utf8_lossy(&path_bytes).into_owned();
        // Headers of long names lie before an entry's own.
        if let Some(end) = end.filter(|end| *end < entry.raw_header_position()) {
            let zeros = zeros_from(&mut between, end).with_context(cannot)?;
            let place = end + zeros;
            if zeros >= END && zeros <= most_zeros(place - start) {
                start = place;
            } else if zeros >= BLOCK {
                gap.get_or_insert_with(|| {
                    format!(
                        "has zeros between its entries, such as {zeros} bytes before {name}: samples may be missing \
                         there"
                    )
                });
            }
        }
        let is_known = entry.header().entry_type() != EntryType::GNUSparse;
        end = is_known.then(|| (offset + length).next_multiple_of(BLOCK));
        let unusable = match entry.header().entry_type() {
            EntryType::Directory | EntryType::XGlobalHeader => continue,
            _ if is_sparse(&mut entry) => Some("sparse files"),
            EntryType::Regular => None,
            _ => Some("links and special files"),
        };
        if let Some(unusable) = unusable {
            shard.count_unread(unusable.to_owned());
            continue;
        }
        if offset + length > whole {
            cut_off = Some(format!("{name} is cut off"));
            break;
        }
        let Some((key, ending)) = key_of(&path_bytes) else {
            shard.count_unread("hidden files, or without an ending".to_owned());
            continue;
        };
        if last.as_ref().is_none_or(|(of, _)| *of != key) {
            shard.finish(last.take(), &mut seen);
            last = Some((key, Pieces::default()));
        }
        let Some((_, pieces)) = &mut last else { continue };
        if pictures::ENDINGS.contains(&&*ending) {
            if pieces.picture.is_some() {
                shard.count_unread("second pictures of a sample".to_owned());
            }
            pieces.picture.get_or_insert((name, offset, length as usize));
            continue;
        }
        let is_picture =
            ending.rsplit_once('.').is_some_and(|(_, last)| pictures::ENDINGS.contains(&last));
        if is_picture {
            pieces.dotted.get_or_insert(name);
        } else {
            pieces.has_others = true;
        }
        let is_json = ending == "json";
        if !is_picture && !is_json {
            shard.add_field(&ending);
        }
        if !is_json && !is_wanted(&ending) {
            shard.count_unread(ending);
        } else if length > MAX_TEXT {
            shard.count_unread(format!("{ending} of more than {MAX_TEXT} bytes"));
        } else if is_json && pieces.has_json || pieces.texts.contains_key(&ending) {
            shard.count_unread(format!("second {ending} of a sample"));
        } else {
            let mut bytes = Vec::new();
            entry.read_to_end(&mut bytes).with_context(cannot)?;
            let text = decode(&bytes).ok();
            if is_json {
                pieces.has_json = true;
                match text.as_deref().map_or(Err(NO_TEXT), |text| fields_in(text, is_wanted)) {
                    Ok((fields, names)) => {
                        pieces.fields = fields;
                        names.iter().for_each(|name| shard.add_field(name));
                    }
                    Err(fault) => pieces.fault = Some(fault),
                }
            } else if let Some(text) = text {
                pieces.texts.insert(ending, text);
            } else {
                shard.count_unread(format!("{ending} that is no text in UTF-8 or UTF-16"));
            }
        }
    }
    shard.finish(last, &mut seen);
    shard.faults.extend(gap);
    if cut_off.is_none() {
        let from = end.unwrap_or_else(|| whole.saturating_sub(END));
        let zeros = zeros_from(&mut between, from).with_context(cannot)?;
        let most = most_zeros(whole - start);
        if zeros < END {
            cut_off = Some("the end of the tar file is missing".to_owned());
        } else if zeros > most {
            shard.faults.push(format!(
                "ends in {zeros} bytes of zeros, expected at most {most}: samples may be missing there"
            ));
        }
    }
    shard.faults.extend(cut_off.map(|reason| format!("ends early: {reason}")));
    Ok(shard)
}

/// What is wrong with a sample whose `.json` file is no text.
const NO_TEXT: &str = "its .json file is no text in UTF-8 or UTF-16";

/// The wanted fields of a `.json` file, and the names of all; or what is wrong with it.
fn fields_in(
    text: &str,
    is_wanted: impl Fn(&str) -> bool,
) -> Result<(Map<String, Value>, Vec<String>), &'static str> {
    let Entry(all) = serde_json::from_str(&with_nulls(text)).map_err(|error| {
        if error.is_data() {
            "its .json file holds no JSON object"
        } else {
            "its .json file is not JSON"
        }
    })?;
    let (mut fields, mut names) = (Map::new(), Vec::new());
    for (name, value) in all {
        names.push(name.clone());
        if is_wanted(&name) && fields.insert(name, value).is_some() {
            return Err("its .json file has a field twice");
        }
    }
    Ok((fields, names))
}

/// The content of a shard.
#[derive(Default)]
pub(super) struct Shard {
    /// The samples in their order.
    pub(super) samples: Vec<Found>,
    /// The faults of the shard, as clauses that follow "the shard": that it ends early, that it cannot be read, or
    /// which rows are broken.
    pub(super) faults: Vec<String>,
    /// The names of fields; of a tar file at most [`MOST_FIELDS`].
    pub(super) fields: BTreeSet<String>,
    /// Further notes, each reported once for all shards.
    pub(super) notes: BTreeSet<String>,
    /// How many files are not read, by the ends of their names or by what they are.
    pub(super) unread: BTreeMap<String, usize>,
    /// The samples that have no picture.
    pub(super) without_picture: Tally,
    /// A picture that belongs to none of the samples above, because its name has a dot before its ending.
    pub(super) dotted: Option<String>,
    /// The samples that come again, with the files that they lacked before.
    pub(super) apart: Tally,
}

impl Shard {
    fn count_unread(&mut self, what: String) {
        *self.unread.entry(what).or_default() += 1;
    }

    fn add_field(&mut self, name: &str) {
        if self.fields.len() < MOST_FIELDS && !self.fields.contains(name) {
            self.fields.insert(name.to_owned());
        }
    }

    /// Adds the last sample to the others, or counts that it has no picture; `seen` are the keys of those before it.
    fn finish(&mut self, last: Option<(Vec<u8>, Pieces)>, seen: &mut HashSet<Vec<u8>>) {
        let Some((key, pieces)) = last else { return };
        let name = String::from_utf8_lossy(&key).trim_start_matches('/').to_owned();
        let is_again = !seen.insert(key);
        if is_again && pieces.picture.is_some() != pieces.has_others {
            self.apart.add(&name);
        }
        if let Some((picture, offset, length)) = pieces.picture {
            let Pieces { texts, fields, fault, .. } = pieces;
            let place = Place::Bytes { offset, length };
            self.samples.push(Found { name: picture, place, texts, fields, fault });
        } else if !is_again {
            self.without_picture.add(&name);
            self.dotted = self.dotted.take().or(pieces.dotted);
        }
    }
}

/// How many samples there are of a kind, and which is the first.
#[derive(Default)]
pub(super) struct Tally {
    pub(super) count: usize,
    pub(super) first: String,
}

impl Tally {
    pub(super) fn add(&mut self, name: &str) {
        if self.count == 0 {
            self.first = name.to_owned();
        }
        self.count += 1;
    }

    /// Adds the tally of a shard, in which `name` tells a sample.
    pub(super) fn join(&mut self, other: Self, name: impl Fn(&str) -> String) {
        if self.count == 0 && other.count > 0 {
            self.first = name(&other.first);
        }
        self.count += other.count;
    }
}

/// Most names of fields that an error lists.
pub(super) const MOST_FIELDS: usize = 40;

/// Bytes of a header; the length of a tar file is a multiple of it.
const BLOCK: u64 = 512;

/// Bytes of the two blocks that end a tar file.
const END: u64 = 2 * BLOCK;

/// Blocks of the records that most programs fill up with zeros.
const RECORD: u64 = 20;

/// Most bytes of a record.
const MOST_RECORD: u64 = 1 << 20;

/// Most bytes of zeros at the end of a whole tar file of this length: the end marker, and what fills up a record. A
/// record has a power of two of blocks, or 20 times as many, and the file is a multiple of it.
fn most_zeros(length: u64) -> u64 {
    let records = (0..).map(|power| BLOCK << power).take_while(|record| *record <= MOST_RECORD);
    let records = records.flat_map(|record| [record, RECORD * record]);
    let fits = |record: &u64| *record <= MOST_RECORD && length.is_multiple_of(*record);
    END + records.filter(fits).max().unwrap_or(BLOCK)
}

/// The number of zeros from a place of a file on, up to another byte or the end.
fn zeros_from(file: &mut File, place: u64) -> io::Result<u64> {
    file.seek(SeekFrom::Start(place))?;
    let (mut reader, mut zeros) = (BufReader::with_capacity(1 << 12, file), 0);
    loop {
        let piece = reader.fill_buf()?;
        let (length, own) = (piece.len(), piece.iter().take_while(|byte| **byte == 0).count());
        zeros += own as u64;
        if own < length || length == 0 {
            return Ok(zeros);
        }
        reader.consume(length);
    }
}

/// The files that can be shards, for messages.
const EXPECTED: &str = if cfg!(feature = "parquet") {
    "expected a tar or Parquet file"
} else {
    "expected a tar file"
};

/// The first bytes of Parquet files.
const PARQUET: [u8; 4] = *b"PAR1";

/// The bytes that compressed files have at a place near their start, how they are compressed, and what unpacks them.
const COMPRESSED: [(usize, &[u8], &str, &str); 5] = [
    (0, &[0x1f, 0x8b], "gzip", "gunzip"),
    // Its first three bytes are letters, with which the name of a tar file's first entry may begin as well.
    (4, b"1AY&SY", "bzip2", "bunzip2"),
    (0, b"\xfd7zXZ\0", "xz", "unxz"),
    (0, &[0x28, 0xb5, 0x2f, 0xfd], "zstd", "unzstd"),
    (0, b"PK\x03\x04", "zip", "unzip"),
];

/// The beginning of the keys with which GNU tar describes sparse files in the POSIX format.
const SPARSE: &[u8] = b"GNU.sparse.";

fn is_sparse(entry: &mut tar::Entry<'_, File>) -> bool {
    if entry.header().entry_type() == EntryType::GNUSparse {
        return true;
    }
    let is_of_holes = |key: PaxExtension<'_>| key.key_bytes().starts_with(SPARSE);
    let described = entry.pax_extensions().ok().flatten();
    described.is_some_and(|mut keys| keys.any(|key| key.is_ok_and(is_of_holes)))
}

/// The files of a sample.
#[derive(Default)]
struct Pieces {
    picture: Option<(String, u64, usize)>,
    texts: BTreeMap<String, String>,
    fields: Map<String, Value>,
    has_json: bool,
    fault: Option<&'static str>,
    /// Whether there are other files than pictures.
    has_others: bool,
    /// The first file of a picture that is none of this sample, because its name has a dot before its ending.
    dotted: Option<String>,
}

/// The sample that a file belongs to, and the end of its name in lower case; `None` for hidden files. Names are bytes,
/// so that those in other encodings than UTF-8 stay different.
///
/// Source: `base_plus_ext` in `tariterators.py` of webdataset.
fn key_of(name: &[u8]) -> Option<(Vec<u8>, String)> {
    let slash = name.iter().rposition(|byte| *byte == b'/');
    let (folder, file) =
        slash.map_or((&[][..], name), |slash| (&name[..slash], &name[slash + 1..]));
    let dot = file.iter().position(|byte| *byte == b'.').filter(|dot| *dot > 0)?;
    let ending = String::from_utf8_lossy(&file[dot + 1..]).to_lowercase();
    Some(([folder, &file[..dot]].join(&b'/'), ending))
}

/// The files that patterns name, in the order of the patterns; those of one pattern are sorted. `*` in the last piece
/// of a path stands for any text, and `{000..012}` anywhere for every number between. Files that are named more than
/// once are reported and taken once.
pub(super) fn files_of(patterns: &[String]) -> Result<Vec<PathBuf>> {
    let mut files = named(patterns)?;
    let mut seen = HashSet::new();
    files.retain(|file| {
        let is_new = seen.insert(file.canonicalize().unwrap_or_else(|_| file.clone()));
        if !is_new {
            tell!("the shard {} is named twice, and read once", file.display());
        }
        is_new
    });
    Ok(files)
}

fn named(patterns: &[String]) -> Result<Vec<PathBuf>> {
    let mut files = Vec::new();
    for pattern in patterns {
        for pattern in expanded(pattern)? {
            let path = PathBuf::from(&pattern);
            let name = path.file_name().map(|name| name.to_string_lossy().into_owned());
            let Some(name) = name.filter(|name| name.contains('*')) else {
                // There may be a million names, and hardly one that needs a look at the disk here.
                if let Some(hint) = hint(&pattern).filter(|_| !path.exists()) {
                    bail!("{pattern}: {EXPECTED}, found no such file; {hint}");
                }
                files.push(path);
                continue;
            };
            let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty());
            let folder = folder.unwrap_or(Path::new("."));
            let cannot = || format!("cannot read the folder {}", folder.display());
            let mut found = Vec::new();
            for entry in folder.read_dir().with_context(cannot)? {
                let entry = entry.with_context(cannot)?;
                if !is_match(&name, &entry.file_name().to_string_lossy()) {
                    continue;
                }
                // macOS keeps hidden files with the same ending beside tar files, which are no tar files.
                if is_hidden(&entry.file_name()) {
                    tell!("left out: {}, which is hidden", entry.path().display());
                } else {
                    found.push(entry.path());
                }
            }
            if found.is_empty() {
                bail!("{pattern}: expected shards, found none");
            }
            found.sort();
            files.extend(found);
        }
    }
    Ok(files)
}

/// What a pattern that names no file may mean elsewhere, and what to do here.
fn hint(pattern: &str) -> Option<&'static str> {
    if pattern.contains("://") || pattern.starts_with("pipe:") {
        Some("shards are read from this machine's disks alone: download them first")
    } else if pattern.starts_with('~') {
        Some("only a shell knows what ~ means: write the whole path")
    } else if pattern.contains(['?', '[', '*']) {
        Some("only * in a file's name and ranges such as {000..012} stand for several")
    } else {
        None
    }
}

/// The pattern with every number in place of a range in braces, for all of its ranges.
fn expanded(pattern: &str) -> Result<Vec<String>> {
    let Some((start, (range, end))) =
        pattern.split_once('{').and_then(|(start, rest)| Some((start, rest.split_once('}')?)))
    else {
        return Ok(vec![pattern.to_owned()]);
    };
    let numbers = range.split_once("..").and_then(|(first, last)| {
        Some((first.len(), first.parse::<u64>().ok()?, last.parse::<u64>().ok()?))
    });
    let Some((width, first, last)) = numbers else {
        bail!("{pattern}: expected a range such as {{000..012}}, found {{{range}}}");
    };
    if last.saturating_sub(first) >= MOST_SHARDS {
        bail!("{pattern}: expected at most {MOST_SHARDS} files, found more");
    }
    if last < first {
        bail!("{pattern}: expected a range that rises, found {{{range}}}");
    }
    let mut all = Vec::new();
    for number in first..=last {
        all.extend(expanded(&format!("{start}{number:0width$}{end}"))?);
    }
    Ok(all)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn files_of_a_sample_have_one_name_up_to_the_first_dot() {
        let key = |name: &str| {
            let (key, ending) = key_of(name.as_bytes())?;
            Some(format!("{}|{ending}", String::from_utf8(key).unwrap()))
        };
        assert_eq!(key("a/b/00.seg.PNG").as_deref(), Some("a/b/00|seg.png"));
        assert_eq!(key("00.txt").as_deref(), Some("/00|txt"));
        assert_eq!(key("a/.hidden"), None);
        assert_eq!(key("a/b"), None);
    }

    fn tar(files: &[(&str, &[u8])]) -> Vec<u8> {
        let mut tar = tar::Builder::new(Vec::new());
        for (name, bytes) in files {
            let mut header = tar::Header::new_gnu();
            header.set_size(bytes.len() as u64);
            header.set_cksum();
            tar.append_data(&mut header, name, *bytes).unwrap();
        }
        tar.into_inner().unwrap()
    }

    fn read(name: &str, bytes: &[u8]) -> Result<Shard> {
        let file = format!("wuerstchen-{}-{name}.tar", std::process::id());
        let path = std::env::temp_dir().join(file);
        std::fs::write(&path, bytes).unwrap();
        let shard = read_shard(&path, &BTreeSet::from(["caption", "txt", "width"]));
        std::fs::remove_file(&path).unwrap();
        shard
    }

    /// A picture belongs to the texts that came with it, and the second ones are counted.
    #[test]
    fn the_first_of_equal_names_counts() {
        let files: [(&str, &[u8]); 6] = [
            ("0.png", b"one"),
            ("0.txt", b"red"),
            ("0.json", br#"{"width": 1}"#),
            ("0.png", b"two"),
            ("0.txt", b"blue"),
            ("0.json", br#"{"width": 2}"#),
        ];
        let Shard { samples, faults, unread, .. } = read("twice", &tar(&files)).unwrap();
        assert_eq!((samples.len(), faults.len()), (1, 0));
        assert_eq!(
            (samples[0].place.to_string(), &*samples[0].texts["txt"]),
            ("512 3".into(), "red")
        );
        assert_eq!(samples[0].fields["width"].as_u64(), Some(1));
        let counted =
            ["second json of a sample", "second pictures of a sample", "second txt of a sample"];
        assert_eq!(unread.keys().collect::<Vec<_>>(), counted);
    }

    #[test]
    fn shards_one_behind_the_other_are_read() {
        let first = tar(&[("0.png", b"one"), ("0.txt", b"red")]);
        let marked = [b"\xef\xbb\xbf".as_slice(), br#"{"width": 3}"#].concat();
        let second = tar(&[("1.png", b"three"), ("1.json", &marked)]);
        let bytes = [first, second].concat();
        let Shard { samples, faults, unread, .. } = read("joined", &bytes).unwrap();
        assert_eq!((samples.len(), unread.len(), faults.len()), (2, 0, 0));
        assert_eq!((samples[1].fields["width"].as_u64(), samples[1].fault), (Some(3), None));
        let (offset, length) = match samples[1].place {
            Place::Bytes { offset, length } => (offset, length),
            #[cfg(feature = "parquet")]
            Place::Row(_) => panic!("no tar file"),
        };
        assert_eq!(&bytes[offset as usize..][..length], b"three");
    }

    /// What GNU tar writes for its options: a header for all files, and a sparse file in the POSIX format.
    #[test]
    fn entries_that_are_no_files_are_told_apart() {
        let mut tar = tar::Builder::new(Vec::new());
        let add = |tar: &mut tar::Builder<Vec<u8>>, kind: u8, name: &str, bytes: &[u8]| {
            let mut header = tar::Header::new_gnu();
            header.set_entry_type(EntryType::new(kind));
            header.set_size(bytes.len() as u64);
            header.set_cksum();
            tar.append_data(&mut header, name, bytes).unwrap();
        };
        add(&mut tar, b'g', "pax_global_header", b"");
        add(&mut tar, b'0', "0.png", b"one");
        add(&mut tar, b'2', "1.png", b"");
        add(&mut tar, b'0', "0.caption", b"a fox");
        tar.append_pax_extensions([("GNU.sparse.major", b"1".as_slice())]).unwrap();
        add(&mut tar, b'0', "GNUSparseFile.7/2.png", b"holes");
        add(&mut tar, b'0', "3.png", b"three");
        add(&mut tar, b'0', "3.txt", &vec![b' '; MAX_TEXT as usize + 1]);
        let bytes = tar.into_inner().unwrap();
        let Shard { samples, faults, unread, .. } = read("entries", &bytes).unwrap();
        assert_eq!((samples.len(), &faults[..]), (2, &[][..]));
        let told = ["links and special files", "sparse files", "txt of more than 1048576 bytes"];
        assert_eq!(unread.keys().collect::<Vec<_>>(), told);
    }

    #[test]
    fn what_is_no_tar_file_is_named() {
        let error = |name, bytes: &[u8]| read(name, bytes).err().unwrap().to_string();
        assert!(error("bzip2", b"BZh91AY&SY").contains("compressed with bzip2"));
        assert!(error("gzip", &[0x1f, 0x8b, 8, 0]).contains("compressed with gzip"));
        let zip = error("zip", b"PK\x03\x04");
        assert!(zip.ends_with("found one that is compressed with zip; unzip unpacks it"), "{zip}");
        let page = error("page", &[b'<'; 600]);
        assert!(page.contains(&format!("{EXPECTED}, found another type of file")), "{page}");
        let folder = read_shard(&std::env::temp_dir(), &BTreeSet::new()).err().unwrap().to_string();
        assert!(folder.ends_with(&format!("{EXPECTED}, found a folder")), "{folder}");
    }

    /// The first entry is the folder, as `tar cf x.tar folder` writes it.
    #[test]
    fn a_broken_header_behind_a_folder_is_a_fault() {
        let mut tar = tar::Builder::new(Vec::new());
        let mut header = tar::Header::new_gnu();
        header.set_entry_type(EntryType::Directory);
        header.set_size(0);
        header.set_cksum();
        tar.append_data(&mut header, "data/", &[][..]).unwrap();
        let mut bytes = tar.into_inner().unwrap();
        bytes[BLOCK as usize..].fill(b'<');
        let faults = read("folder", &bytes).unwrap().faults;
        assert!(faults.len() == 1 && faults[0].starts_with("ends early: "), "{faults:?}");
    }

    /// Files of three samples, of which 1.png is a picture of 700 bytes.
    fn three() -> Vec<u8> {
        tar(&[
            ("0.png", b"one"),
            ("0.txt", b"red"),
            ("1.png", &[7; 700]),
            ("1.txt", b"blue"),
            ("2.png", b"three"),
            ("2.txt", b"green"),
        ])
    }

    /// Zeros in place of samples, as a download that was not finished leaves them, are no end of a tar file.
    #[test]
    fn zeros_in_place_of_samples_are_faults() {
        let of = |name: &str, bytes: &[u8]| {
            let shard = read(name, bytes).unwrap();
            (shard.samples.len(), shard.faults)
        };
        let mut whole = three();
        assert_eq!(of("whole", &whole), (3, vec![]));
        // Records of 20 blocks, and of as many as fit in a mebibyte.
        for record in [10 << 10, 1 << 20] {
            whole.resize(record, 0);
            assert_eq!(of("record", &whole), (3, vec![]));
        }
        whole.resize(50 << 10, 0);
        let ends =
            "ends in 44544 bytes of zeros, expected at most 11264: samples may be missing there";
        assert_eq!(of("ends", &whole), (3, vec![ends.to_owned()]));
        let mut hole = three();
        hole[1024..7 * 512].fill(0);
        let (samples, faults) = of("hole", &hole);
        let gap = "has zeros between its entries, such as 2560 bytes before 1.txt: samples may be missing there";
        assert_eq!((samples, faults), (2, vec![gap.to_owned()]));
    }

    /// As old programs write them; all are the same text where bytes that are no UTF-8 are replaced.
    #[test]
    fn names_that_are_not_utf_8_are_different_samples() {
        let mut tar = tar::Builder::new(Vec::new());
        for name in [b"caf\xe9.png", b"caf\xe9.txt", b"caf\xe8.png", b"caf\xe8.txt"] {
            let mut header = tar::Header::new_ustar();
            header.as_old_mut().name[..name.len()].copy_from_slice(name);
            header.set_size(4);
            header.set_cksum();
            tar.append(&header, &b"text"[..]).unwrap();
        }
        let shard = read("latin", &tar.into_inner().unwrap()).unwrap();
        let names: Vec<_> = shard.samples.iter().map(|sample| sample.name.as_str()).collect();
        assert_eq!(names, ["caf\u{fffd}.png"; 2]);
        assert!(shard.samples.iter().all(|sample| sample.texts["txt"] == "text"));
    }

    #[test]
    fn samples_without_a_picture_and_in_pieces_are_counted() {
        let apart = [("0.png", &b"one"[..]), ("1.png", b"two"), ("0.txt", b"a"), ("1.txt", b"b")];
        let Shard { samples, apart, without_picture, .. } = read("apart", &tar(&apart)).unwrap();
        assert_eq!((samples.len(), apart.count, &*apart.first), (2, 2, "0"));
        assert_eq!(without_picture.count, 0);
        let dotted = [("a/img.0.png", &b"one"[..]), ("a/img.1.png", b"two"), ("b/x.txt", b"c")];
        let shard = read("dotted", &tar(&dotted)).unwrap();
        assert_eq!((shard.without_picture.count, &*shard.without_picture.first), (2, "a/img"));
        assert_eq!(shard.dotted.as_deref(), Some("a/img.0.png"));
        assert_eq!(shard.apart.count, 0);
    }

    #[test]
    fn only_wanted_fields_and_texts_are_kept() {
        let files = [
            ("0.png", &b"one"[..]),
            ("0.blip", b"unused"),
            ("0.json", br#"{"WIDTH": 3, "url": "x", "exif": "long"}"#),
            ("1.png", b"two"),
            ("1.json", br#"{"width": 3, "width": 4}"#),
        ];
        let Shard { samples, unread, fields, .. } = read("wanted", &tar(&files)).unwrap();
        assert_eq!(samples[0].fields.keys().collect::<Vec<_>>(), ["WIDTH"]);
        assert!(samples[0].texts.is_empty());
        assert_eq!(unread, BTreeMap::from([("blip".to_owned(), 1)]));
        assert!(["WIDTH", "blip", "exif", "url"].iter().all(|name| fields.contains(*name)));
        assert_eq!(samples[1].fault, Some("its .json file has a field twice"));
    }

    #[test]
    fn what_no_pattern_means_here_is_told() {
        let error = |pattern: &str| named(&[pattern.to_owned()]).unwrap_err().to_string();
        assert!(error("s3://bucket/{0..1}.tar").ends_with("download them first"));
        assert!(error("pipe:curl x/0.tar").ends_with("download them first"));
        assert!(error("~/none.tar").ends_with("write the whole path"));
        for several in ["none/0?.tar", "none/[01].tar", "none/*/0.tar"] {
            assert!(error(several).ends_with("stand for several"), "{several}");
        }
        // Whoever reads the file says that it is not there.
        assert_eq!(named(&["none/0.tar".into()]).unwrap(), [PathBuf::from("none/0.tar")]);
    }

    #[test]
    fn ranges_are_expanded_with_their_zeros() {
        let all = expanded("x/{08..11}-{0..1}.tar").unwrap();
        assert_eq!(all.len(), 8);
        assert_eq!([&*all[0], &*all[7]], ["x/08-0.tar", "x/11-1.tar"]);
        assert_eq!(expanded("x.tar").unwrap(), ["x.tar"]);
        for wrong in ["{a,b}.tar", "{2..0}.tar", "{0..1000000000}.tar"] {
            assert!(expanded(wrong).is_err(), "{wrong}");
        }
    }
}
