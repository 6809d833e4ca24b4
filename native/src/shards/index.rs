//! Indexes of shards: where each picture lies in the tar files of a `WebDataset`, or in Parquet files.

use std::collections::btree_map;
use std::collections::{BTreeMap, BTreeSet, HashSet};
use std::fmt;
use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, anyhow, bail};
use serde_json::{Map, Value};
use tar::{Archive, Entry, EntryType, PaxExtension};
use wuerstchen::FileType;
use wuerstchen::fs::{decode, has_extension, is_hidden};
use wuerstchen::json::with_nulls;
use wuerstchen_train::config::is_match;

#[cfg(feature = "parquet")]
use super::parquet::{Row, read_shard as read_parquet};
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
pub(super) enum Unread {
    /// The shard has no whole picture there.
    Picture(String),
    /// The shard itself cannot be opened or read.
    Shard(String),
}

impl Place {
    /// The bytes of the picture, from the shard at a path.
    pub(super) fn read(&self, path: &Path) -> Result<Vec<u8>, Unread> {
        match self {
            Self::Bytes { offset, length } => {
                // The index has found that the shard is long enough, so it is not the picture that is broken.
                range(path, *offset, *length).map_err(|error| Unread::Shard(error.to_string()))
            }
            #[cfg(feature = "parquet")]
            Self::Row(row) => row.read(path).map_err(|error| {
                // Errors of unpacking are of the same type as those of reading, but have no number of the system's.
                let is_of_system = error.chain().any(|cause| {
                    let cause = cause.downcast_ref::<io::Error>();
                    cause.is_some_and(|error| error.raw_os_error().is_some())
                });
                let reason = error.root_cause().to_string();
                if is_of_system { Unread::Shard(reason) } else { Unread::Picture(reason) }
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

/// The samples of a shard; of a Parquet file, the fields that are `wanted`.
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
    if is_parquet { read_parquet(path, file, wanted) } else { read_tar(path, file) }
}

#[cfg(not(feature = "parquet"))]
fn read_parquet(path: &Path, _: File, _: &BTreeSet<&str>) -> Result<Shard> {
    bail!(
        "{}: {EXPECTED}, found a Parquet file, and this program was built without the feature `parquet`: cargo build \
         --release -p wuerstchen-cli --features parquet builds one with it",
        path.display()
    )
}

/// The samples of a tar file. Files of one sample follow each other and have one name up to the first dot.
fn read_tar(path: &Path, file: File) -> Result<Shard> {
    let cannot = || format!("cannot read the shard {}", path.display());
    let refuse = |found: &str| anyhow!("{}: {EXPECTED}, found {found}", path.display());
    let whole = file.metadata().with_context(cannot)?.len();
    let mut archive = Archive::new(file);
    // Concatenated tar files have an end marker between them.
    archive.set_ignore_zeros(true);
    let (mut samples, mut last): (Vec<Found>, Option<(String, Pieces)>) = (Vec::new(), None);
    let (mut cut_off, mut unread) = (None, BTreeMap::<String, usize>::new());
    for entry in archive.entries_with_seek().with_context(cannot)? {
        let mut entry = match entry {
            Ok(entry) => entry,
            // Not even the first header is one of a tar file.
            Err(_) if samples.is_empty() && last.is_none() => {
                return Err(refuse("another type of file"));
            }
            Err(error) => {
                cut_off = Some(error.to_string());
                break;
            }
        };
        let (offset, length) = (entry.raw_file_position(), entry.size());
        let name = String::from_utf8_lossy(&entry.path_bytes()).into_owned();
        let unusable = match entry.header().entry_type() {
            EntryType::Directory | EntryType::XGlobalHeader => continue,
            _ if is_sparse(&mut entry) => Some("sparse files"),
            EntryType::Regular => None,
            _ => Some("links and special files"),
        };
        if let Some(unusable) = unusable {
            *unread.entry(unusable.to_owned()).or_default() += 1;
            continue;
        }
        if offset + length > whole {
            cut_off = Some(format!("{name} is cut off"));
            break;
        }
        let Some((key, ending)) = key_of(&name) else {
            *unread.entry("hidden files, or without an ending".to_owned()).or_default() += 1;
            continue;
        };
        if last.as_ref().is_none_or(|(of, _)| *of != key) {
            finish(last.take(), &mut samples, &mut unread);
            last = Some((key, Pieces::default()));
        }
        let Some((_, pieces)) = &mut last else { continue };
        if pictures::ENDINGS.contains(&&*ending) {
            if pieces.picture.is_some() {
                *unread.entry("second pictures of a sample".to_owned()).or_default() += 1;
            }
            pieces.picture.get_or_insert((name, offset, length as usize));
        } else if length <= MAX_TEXT && is_text(&ending) {
            let mut bytes = Vec::new();
            entry.read_to_end(&mut bytes).with_context(cannot)?;
            let text = decode(&bytes).ok();
            if ending == "json" && (pieces.fault.is_some() || !pieces.fields.is_empty()) {
                *unread.entry("second json of a sample".to_owned()).or_default() += 1;
            } else if ending == "json" {
                match text.map(|text| serde_json::from_str(&with_nulls(&text))) {
                    Some(Ok(Value::Object(fields))) => pieces.fields = fields,
                    Some(Ok(_)) => pieces.fault = Some("its .json file holds no JSON object"),
                    Some(Err(_)) => pieces.fault = Some("its .json file is not JSON"),
                    None => pieces.fault = Some("its .json file is no text in UTF-8 or UTF-16"),
                }
            } else if let Some(text) = text {
                match pieces.texts.entry(ending) {
                    btree_map::Entry::Vacant(place) => {
                        place.insert(text);
                    }
                    btree_map::Entry::Occupied(first) => {
                        *unread
                            .entry(format!("second {} of a sample", first.key()))
                            .or_default() += 1;
                    }
                }
            } else {
                *unread
                    .entry(format!("{ending} that is no text in UTF-8 or UTF-16"))
                    .or_default() += 1;
            }
        } else if is_text(&ending) {
            *unread.entry(format!("{ending} of more than {MAX_TEXT} bytes")).or_default() += 1;
        } else {
            *unread.entry(ending).or_default() += 1;
        }
    }
    finish(last, &mut samples, &mut unread);
    // A whole tar file ends in two blocks of zeros.
    if cut_off.is_none() && !ends_in_zeros(&mut archive.into_inner(), whole).with_context(cannot)? {
        cut_off = Some("the end of the tar file is missing".to_owned());
    }
    let faults = cut_off.into_iter().map(|reason| format!("ends early: {reason}")).collect();
    Ok(Shard { samples, faults, unread, ..Shard::default() })
}

/// Adds the last sample to the others, or counts that it has no picture.
fn finish(
    last: Option<(String, Pieces)>,
    samples: &mut Vec<Found>,
    unread: &mut BTreeMap<String, usize>,
) {
    let Some((_, pieces)) = last else { return };
    match pieces.finish() {
        Some(found) => samples.push(found),
        None => *unread.entry("samples without a picture".to_owned()).or_default() += 1,
    }
}

/// The content of a shard.
#[derive(Default)]
pub(super) struct Shard {
    /// The samples in their order.
    pub(super) samples: Vec<Found>,
    /// The faults of the shard, as clauses that follow "the shard": that it ends early, that it cannot be read, or
    /// which rows are broken.
    pub(super) faults: Vec<String>,
    /// The names of a Parquet file's columns, including those that are not read.
    pub(super) fields: BTreeSet<String>,
    /// Further notes, each reported once for all shards.
    pub(super) notes: BTreeSet<String>,
    /// How many files are not read, by the ends of their names or by what they are.
    pub(super) unread: BTreeMap<String, usize>,
}

/// Bytes of a header; the length of a tar file is a multiple of it.
const BLOCK: u64 = 512;

/// Bytes of the two blocks that end a tar file.
const END: usize = 1024;

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

fn is_sparse(entry: &mut Entry<'_, File>) -> bool {
    if entry.header().entry_type() == EntryType::GNUSparse {
        return true;
    }
    let is_of_holes = |key: PaxExtension<'_>| key.key_bytes().starts_with(SPARSE);
    let described = entry.pax_extensions().ok().flatten();
    described.is_some_and(|mut keys| keys.any(|key| key.is_ok_and(is_of_holes)))
}

fn ends_in_zeros(file: &mut File, length: u64) -> std::io::Result<bool> {
    if length < END as u64 {
        return Ok(false);
    }
    let mut end = [0; END];
    file.seek(SeekFrom::End(-(END as i64)))?;
    file.read_exact(&mut end)?;
    Ok(end.iter().all(|&byte| byte == 0))
}

/// The files of a sample.
#[derive(Default)]
struct Pieces {
    picture: Option<(String, u64, usize)>,
    texts: BTreeMap<String, String>,
    fields: Map<String, Value>,
    fault: Option<&'static str>,
}

impl Pieces {
    /// The sample, if it has a picture.
    fn finish(self) -> Option<Found> {
        let (name, offset, length) = self.picture?;
        let Self { texts, fields, fault, .. } = self;
        Some(Found { name, place: Place::Bytes { offset, length }, texts, fields, fault })
    }
}

/// Endings of files that are no texts and may be large.
const DATA: [&str; 13] = [
    "npy",
    "npz",
    "pth",
    "pt",
    "pyd",
    "mp4",
    "wav",
    "cls",
    "avif",
    "heic",
    "jxl",
    "bin",
    "safetensors",
];

/// Whether a file is read as a text, that is, if its ending is neither that of a picture nor that of other data.
fn is_text(ending: &str) -> bool {
    let last = ending.rsplit('.').next().unwrap_or(ending);
    !DATA.contains(&last) && !pictures::ENDINGS.contains(&last)
}

/// The sample that a file belongs to, and the end of its name in lower case; `None` for hidden files.
///
/// Source: `base_plus_ext` in `tariterators.py` of webdataset.
fn key_of(name: &str) -> Option<(String, String)> {
    let (folder, file) = name.rsplit_once('/').unwrap_or(("", name));
    let (stem, ending) = file.split_once('.').filter(|(stem, _)| !stem.is_empty())?;
    Some((format!("{folder}/{stem}"), ending.to_lowercase()))
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
        let key = |name: &str| key_of(name).map(|(key, ending)| format!("{key}|{ending}"));
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
        let shard = read_shard(&path, &BTreeSet::new());
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
        assert_eq!((samples.len(), faults.len(), unread.len()), (2, 0, 0));
        assert_eq!((samples[1].fields["width"].as_u64(), samples[1].fault), (Some(3), None));
        let Place::Bytes { offset, length } = samples[1].place else { panic!("no tar file") };
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
        assert_eq!((samples.len(), faults.len()), (2, 0));
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

    #[test]
    fn masks_and_other_data_are_no_texts() {
        let endings = ["txt", "json", "seg.png", "depth.npy", "blip", "mp4"];
        assert_eq!(endings.map(is_text), [true, true, false, false, true, false]);
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
