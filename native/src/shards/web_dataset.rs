//! The samples of tar files, as `WebDataset` writes them: files of one sample follow each other and have one name up to
//! the first dot.

use std::collections::{BTreeMap, BTreeSet, HashSet};
use std::fs::File;
use std::io::{self, BufRead, BufReader, Read, Seek, SeekFrom};
use std::path::Path;

use anyhow::{Context, Result, anyhow};
use serde_json::{Map, Value};
use tar::{Archive, Entry, EntryType, PaxExtension};
use wuerstchen::fs::decode;
use wuerstchen::json::with_nulls;

use super::index::{BLOCK, EXPECTED, Found, MAX_TEXT, Place, Shard};
use crate::folder;
use crate::pictures;

/// The samples of a tar file. Only the `wanted` texts and fields are kept.
pub(super) fn read_tar(path: &Path, file: File, wanted: &BTreeSet<&str>) -> Result<Shard> {
    let cannot = || format!("cannot read the shard {}", path.display());
    let whole = file.metadata().with_context(cannot)?.len();
    // The archive has a place of its own in the file.
    let between = File::open(path).with_context(cannot)?;
    let mut zeros = Zeros { file: between, start: 0, end: Some(0) };
    let mut archive = Archive::new(file);
    // Concatenated tar files have an end marker between them.
    archive.set_ignore_zeros(true);
    let mut samples = Samples::new(wanted);
    let (mut cut_off, mut gap) = (None, None);
    for entry in archive.entries_with_seek().with_context(cannot)? {
        let mut entry = match entry {
            Ok(entry) => entry,
            // Not even the first header is one of a tar file.
            Err(_) if zeros.end == Some(0) => {
                return Err(anyhow!("{}: {EXPECTED}, found another type of file", path.display()));
            }
            Err(error) => {
                cut_off = Some(error.to_string());
                break;
            }
        };
        // Headers of long names lie before an entry's own.
        let hole = zeros.before(entry.raw_header_position()).with_context(cannot)?;
        let place = (entry.raw_file_position(), entry.size());
        let name = String::from_utf8_lossy(&entry.path_bytes()).into_owned();
        if let Some(hole) = hole {
            gap.get_or_insert_with(|| {
                format!(
                    "has zeros between its entries, such as {hole} bytes before {name}: samples may be missing there"
                )
            });
        }
        let (offset, length) = place;
        let is_known = entry.header().entry_type() != EntryType::GNUSparse;
        zeros.end = is_known.then(|| (offset + length).next_multiple_of(BLOCK));
        let unusable = match entry.header().entry_type() {
            EntryType::Directory | EntryType::XGlobalHeader => continue,
            _ if is_sparse(&mut entry) => Some("sparse files"),
            EntryType::Regular => None,
            _ => Some("links and special files"),
        };
        if let Some(unusable) = unusable {
            samples.shard.count_unread(unusable.to_owned());
        } else if offset + length > whole {
            cut_off = Some(format!("{name} is cut off"));
            break;
        } else {
            samples.add(&mut entry, name, place).with_context(cannot)?;
        }
    }
    let mut shard = samples.finish();
    shard.faults.extend(gap);
    shard.faults.extend(match cut_off {
        Some(reason) => Some(format!("ends early: {reason}")),
        None => zeros.at_end(whole).with_context(cannot)?,
    });
    Ok(shard)
}

/// The samples of a tar file, whose files come one after the other.
struct Samples {
    shard: Shard,
    /// The texts and fields that are kept, in lower case.
    wanted: BTreeSet<String>,
    /// The keys of all samples but the last.
    seen: HashSet<Vec<u8>>,
    /// The key and the files of the last sample.
    last: Option<(Vec<u8>, Pieces)>,
}

impl Samples {
    fn new(wanted: &BTreeSet<&str>) -> Self {
        let wanted = wanted.iter().map(|wanted| wanted.to_lowercase()).collect();
        Self { shard: Shard::default(), wanted, seen: HashSet::new(), last: None }
    }

    /// Adds a file, whose first byte and length are given.
    fn add(
        &mut self,
        file: &mut Entry<'_, File>,
        name: String,
        (offset, length): (u64, u64),
    ) -> io::Result<()> {
        let Some((key, ending)) = key_of(&file.path_bytes()) else {
            self.shard.count_unread("hidden files, or without an ending".to_owned());
            return Ok(());
        };
        if self.last.as_ref().is_none_or(|(of, _)| *of != key) {
            self.finish_last();
        }
        let (shard, wanted) = (&mut self.shard, &self.wanted);
        let (_, pieces) = self.last.get_or_insert_with(|| (key, Pieces::default()));
        let is_wanted = |name: &str| wanted.contains(name) || wanted.contains(&name.to_lowercase());
        if pictures::ENDINGS.contains(&&*ending) {
            if pieces.picture.is_some() {
                shard.count_unread("second pictures of a sample".to_owned());
            }
            pieces.picture.get_or_insert((name, offset, length as usize));
            return Ok(());
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
            return Ok(());
        }
        if length > MAX_TEXT {
            shard.count_unread(format!("{ending} of more than {MAX_TEXT} bytes"));
            return Ok(());
        }
        if is_json && pieces.has_json || pieces.texts.contains_key(&ending) {
            shard.count_unread(format!("second {ending} of a sample"));
            return Ok(());
        }
        let mut bytes = Vec::new();
        file.read_to_end(&mut bytes)?;
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
        Ok(())
    }

    /// Adds the last sample to the others, or counts that it has no picture.
    fn finish_last(&mut self) {
        let Some((key, pieces)) = self.last.take() else { return };
        let name = String::from_utf8_lossy(&key).trim_start_matches('/').to_owned();
        let is_again = !self.seen.insert(key);
        let shard = &mut self.shard;
        if is_again && pieces.picture.is_some() != pieces.has_others {
            shard.apart.add(&name);
        }
        if let Some((picture, offset, length)) = pieces.picture {
            let Pieces { texts, fields, fault, .. } = pieces;
            let place = Place::Bytes { offset, length };
            shard.samples.push(Found { name: picture, place, texts, fields, fault });
        } else if !is_again {
            shard.without_picture.add(&name);
            shard.dotted = shard.dotted.take().or(pieces.dotted);
        }
    }

    fn finish(mut self) -> Shard {
        self.finish_last();
        self.shard
    }
}

/// What is wrong with a sample whose `.json` file is no text.
const NO_TEXT: &str = "its .json file is no text in UTF-8 or UTF-16";

/// The wanted fields of a `.json` file, and the names of all; or what is wrong with it.
fn fields_in(
    text: &str,
    is_wanted: impl Fn(&str) -> bool,
) -> Result<(Map<String, Value>, Vec<String>), &'static str> {
    let folder::Entry(all) = serde_json::from_str(&with_nulls(text)).map_err(|error| {
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

/// Looks for zeros in a tar file, which may stand in place of samples.
struct Zeros {
    file: File,
    /// Where the last of several tar files begins that were put one behind the other.
    start: u64,
    /// The end of the last entry; not known after a sparse file, whose header tells another size.
    end: Option<u64>,
}

impl Zeros {
    /// The number of zeros before the next entry, whose header begins at `place`, if a whole tar file does not end there.
    fn before(&mut self, place: u64) -> io::Result<Option<u64>> {
        let Some(end) = self.end.filter(|end| *end < place) else { return Ok(None) };
        let zeros = zeros_from(&mut self.file, end)?;
        let next = end + zeros;
        if zeros >= END && zeros <= most_zeros(next - self.start) {
            self.start = next;
            return Ok(None);
        }
        Ok((zeros >= BLOCK).then_some(zeros))
    }

    /// What is wrong with the end of a file of this length.
    fn at_end(&mut self, length: u64) -> io::Result<Option<String>> {
        let from = self.end.unwrap_or_else(|| length.saturating_sub(END));
        let (zeros, most) = (zeros_from(&mut self.file, from)?, most_zeros(length - self.start));
        Ok(if zeros < END {
            Some("ends early: the end of the tar file is missing".to_owned())
        } else if zeros > most {
            Some(format!(
                "ends in {zeros} bytes of zeros, expected at most {most}: samples may be missing there"
            ))
        } else {
            None
        })
    }
}

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

#[cfg(test)]
mod tests {
    use super::super::index::read_shard;
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
}
