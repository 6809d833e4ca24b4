//! Indexes of shards: where each picture lies in the tar files of a `WebDataset`, or in Parquet files.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom};
use std::path::Path;

use anyhow::{Context, Result, anyhow};
use serde_json::{Map, Value};
use wuerstchen::FileType;
use wuerstchen::fs::has_extension;

#[cfg(feature = "parquet")]
use super::parquet::{Row, read_shard as read_parquet};
use super::web_dataset::read_tar;
use crate::pictures;
use crate::terminal::counted;

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
    Err(anyhow!(
        "{}: {EXPECTED}, found a Parquet file, and this program was built without the feature `parquet`: cargo build \
         --release -p wuerstchen-cli --features parquet builds one with it",
        path.display()
    ))
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
    pub(super) fn count_unread(&mut self, what: String) {
        *self.unread.entry(what).or_default() += 1;
    }

    pub(super) fn add_field(&mut self, name: &str) {
        if self.fields.len() < MOST_FIELDS && !self.fields.contains(name) {
            self.fields.insert(name.to_owned());
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
pub(super) const BLOCK: u64 = 512;

/// The files that can be shards, for messages.
pub(super) const EXPECTED: &str = if cfg!(feature = "parquet") {
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
