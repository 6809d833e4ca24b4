//! A folder of captioned pictures, to be trained on.

mod captions;
mod find;
mod index;
mod metadata;

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};

use anyhow::{Result, bail};
use image::DynamicImage;
use image::imageops::FilterType;
use rayon::prelude::*;
use wuerstchen::Image;
use wuerstchen::fs::read;
use wuerstchen::noise::Philox;
use wuerstchen_train::Pictures;
use wuerstchen_train::corpus::{CorpusError, Samples};
use wuerstchen_train::tune::digest;

use self::captions::captions_of;
use self::find::{CAPTION_ENDINGS, Found, find, refuse};
pub(crate) use self::metadata::Entry;
use crate::pictures::{self, look_at, tell_of_frames, with_picture};
use crate::terminal::{counted, visible};

/// Most bytes of scaled pictures that are kept, so that a small folder is decoded only once.
const KEPT_BYTES: usize = 2 << 30;

/// More bytes of pictures take so long to read that a line tells why.
const TOLD_BYTES: u64 = 1 << 30;

/// The pictures of a folder and of the folders below it, sorted; reports what it leaves out.
pub(crate) fn pictures_of(folder: &Path) -> Result<Vec<PathBuf>> {
    let found = find_any(folder)?;
    found.left_out.lines().for_each(|line| tell!("{}", visible(&line)));
    Ok(found.pictures)
}

/// The files of a folder; fails where none is a picture.
fn find_any(folder: &Path) -> Result<Found> {
    let found = find(folder)?;
    if found.pictures.is_empty() {
        let (folder, types) = (folder.display(), pictures::TYPES);
        bail!("{folder}: expected {types} files, found none{}", found.left_out.inline());
    }
    Ok(found)
}

/// The captions of the pictures of a folder, in the order of [`pictures_of`]; fails where one has none.
pub(crate) fn captions_of_pictures(folder: &Path) -> Result<Vec<Vec<String>>> {
    let found = find(folder)?;
    let captions = captions_of(folder, &found)?.of_pictures;
    refuse_uncaptioned(found.pictures.iter().zip(&captions))?;
    Ok(captions)
}

/// A line if a folder's name begins with a number, by which other programs repeat its pictures.
fn of_repeats(pictures: &[PathBuf]) -> Option<String> {
    let is_repeated = |folder: &&Path| {
        let name = folder.file_name().and_then(|name| name.to_str());
        let number = name.and_then(|name| name.split_once('_')).map(|(number, _)| number);
        // More digits are a year or a serial number.
        number.is_some_and(|number| {
            (1..=3).contains(&number.len()) && number.bytes().all(|b| b.is_ascii_digit())
        })
    };
    let folder = pictures.iter().filter_map(|path| path.parent()).find(is_repeated)?;
    Some(format!(
        "the number before the name of a folder, such as {}, has no effect: every picture is seen once an epoch",
        folder.display()
    ))
}

/// Fails with the names of pictures without captions.
fn refuse_uncaptioned<'a>(
    pictures: impl Iterator<Item = (&'a PathBuf, &'a Vec<String>)>,
) -> Result<()> {
    let without = pictures.filter(|(_, captions)| captions.is_empty());
    let without: Vec<_> = without.map(|(path, _)| path.display().to_string()).collect();
    let endings = CAPTION_ENDINGS.map(|ending| format!(".{ending}")).join(", ");
    refuse(
        &without,
        &format!(
            "without a caption in a file of the same name that ends in {endings}, or in metadata.jsonl or metadata.csv"
        ),
    )
}

/// Captioned pictures, in another order in every epoch.
pub(crate) struct Folder {
    seed: u64,
    pictures: Vec<Picture>,
    /// Bytes of the scaled pictures that were considered for keeping so far.
    kept: AtomicUsize,
    /// The order of the epoch that was asked for last.
    order: Mutex<(u64, Arc<[u32]>)>,
}

struct Picture {
    path: PathBuf,
    captions: Vec<String>,
    /// The picture at the size that was asked for first.
    scaled: OnceLock<Image>,
    /// Whether it was read for [`Pictures`], and has several frames or pages.
    has_frames: AtomicBool,
}

impl Folder {
    /// Finds the pictures of a folder and of the folders below it, and their captions; reports what it leaves out.
    pub(crate) fn open(folder: &Path, seed: u64) -> Result<Self> {
        if folder.as_os_str().is_empty() {
            bail!("expected the path of a folder of pictures, found an empty one");
        }
        let found = find_any(folder)?;
        let captions = captions_of(folder, &found)?;
        let lines = found.left_out.lines().chain(captions.left_out);
        lines.chain(of_repeats(&found.pictures)).for_each(|line| tell!("{}", visible(&line)));
        let pictures = found.pictures.into_iter().zip(captions.of_pictures);
        let pictures: Vec<_> = pictures
            .map(|(path, captions)| Picture {
                path,
                captions,
                scaled: OnceLock::new(),
                has_frames: AtomicBool::new(false),
            })
            .collect();
        refuse_uncaptioned(pictures.iter().map(|picture| (&picture.path, &picture.captions)))?;
        let order = Mutex::new((u64::MAX, Arc::default()));
        Ok(Self { seed, pictures, kept: AtomicUsize::new(0), order })
    }

    /// How many pictures there are.
    pub(crate) fn len(&self) -> usize {
        self.pictures.len()
    }

    /// The path of a picture.
    pub(crate) fn path(&self, index: usize) -> &Path {
        &self.pictures[index].path
    }

    /// A line for every picture, by which one corpus differs from another. Reads all files.
    pub(crate) fn described(&self) -> Vec<String> {
        let sizes = self.pictures.iter().filter_map(|picture| picture.path.metadata().ok());
        let bytes: u64 = sizes.map(|metadata| metadata.len()).sum();
        if bytes > TOLD_BYTES {
            let giga = bytes as f64 / 1e9;
            tell!("reading {giga:.1} GB of pictures, to notice on resuming if some are others");
        }
        let described = self.pictures.par_iter().map(|Picture { path, captions, .. }| {
            // If the file is gone by now, reading the picture will report the error.
            let content = fs::read(path).map_or_else(|_| String::new(), |bytes| digest([bytes]));
            format!("{:?} {content} {captions:?}", path.file_name())
        });
        described.collect()
    }

    /// All captions.
    pub(crate) fn all_captions(&self) -> impl Iterator<Item = &str> + Send {
        self.pictures.iter().flat_map(|picture| picture.captions.iter().map(String::as_str))
    }

    /// Reads every picture once and keeps it at this size, as long as there is room; fails with the names of all that
    /// cannot be read.
    pub(crate) fn check(&self, side: usize, on_picture: impl Fn() + Sync) -> Result<()> {
        let with_frames = AtomicUsize::new(0);
        // The number of pictures that are smaller, and the first of them.
        let (smaller, first) = (AtomicUsize::new(0), AtomicUsize::new(usize::MAX));
        let broken = self.pictures.par_iter().enumerate().filter_map(|(i, picture)| {
            let read = with_picture(&picture.path, |found| {
                with_frames.fetch_add(usize::from(found.has_frames), Ordering::Relaxed);
                if found.pixels.width().min(found.pixels.height()) < side as u32 {
                    smaller.fetch_add(1, Ordering::Relaxed);
                    first.fetch_min(i, Ordering::Relaxed);
                }
                fill(found, [side; 2])
            });
            on_picture();
            match read {
                Ok(image) => {
                    self.keep(picture, &image);
                    None
                }
                Err(error) => {
                    tell!("{error:#}");
                    Some(picture.path.display().to_string())
                }
            }
        });
        let broken: Vec<_> = broken.collect();
        tell_of_frames(with_frames.into_inner());
        if let Some(picture) = self.pictures.get(first.into_inner()) {
            let (pictures, first) =
                (counted(smaller.into_inner(), "picture"), picture.path.display());
            tell!(
                "{pictures} of less than {side} pixels in width or height will be enlarged, such as {first}"
            );
        }
        refuse(&broken, "that cannot be read")
    }

    /// The picture of a number: every epoch shows each once.
    fn at(&self, number: u64) -> &Picture {
        let count = self.pictures.len() as u64;
        let mut order = self.order.lock().unwrap_or_else(PoisonError::into_inner);
        if order.0 != number / count {
            *order = (number / count, shuffled(count as u32, self.seed, number / count));
        }
        &self.pictures[order.1[(number % count) as usize] as usize]
    }

    /// Keeps a scaled picture while there is room.
    fn keep(&self, picture: &Picture, image: &Image) {
        let size = image.rgb.len();
        if self.kept.fetch_add(size, Ordering::Relaxed) + size <= KEPT_BYTES {
            // Another thread may have been faster, with the same picture.
            let _ = picture.scaled.set(image.clone());
        }
    }
}

impl Samples for Folder {
    fn picture(&self, number: u64, side: usize) -> Result<Image, CorpusError> {
        let picture = self.at(number);
        if let Some(image) = picture.scaled.get().filter(|image| image.width == side) {
            return Ok(image.clone());
        }
        let image = with_picture(&picture.path, |picture| fill(picture, [side; 2]));
        let image =
            image.map_err(|error| unreadable(&picture.path, error.root_cause().to_string()))?;
        self.keep(picture, &image);
        Ok(image)
    }

    fn captions(&self, number: u64) -> Vec<String> {
        self.at(number).captions.clone()
    }

    fn prompt(&self, number: u64) -> String {
        self.at(number).captions[0].clone()
    }

    fn count(&self) -> Option<usize> {
        Some(self.len())
    }
}

/// The pictures in the order of their names.
impl Pictures for Folder {
    fn count(&self) -> usize {
        self.len()
    }

    fn content(&self, index: usize) -> Result<Vec<u8>, CorpusError> {
        let path = &self.pictures[index].path;
        let bytes = read(path).map_err(anyhow::Error::from);
        bytes.map_err(|error| unreadable(path, error.root_cause().to_string()))
    }

    fn size(&self, index: usize, content: &[u8]) -> Result<[usize; 2], CorpusError> {
        let Picture { path, has_frames, .. } = &self.pictures[index];
        let seen = look_at(content);
        let (size, several) =
            seen.map_err(|error| unreadable(path, error.root_cause().to_string()))?;
        has_frames.fetch_or(several, Ordering::Relaxed);
        Ok(size)
    }

    fn picture(
        &self,
        index: usize,
        size: &mut dyn FnMut([usize; 2]) -> Result<[usize; 2], String>,
    ) -> Result<Image, CorpusError> {
        let Picture { path, has_frames, .. } = &self.pictures[index];
        let scaled = with_picture(path, |picture| {
            has_frames.fetch_or(picture.has_frames, Ordering::Relaxed);
            let sides = [picture.pixels.height(), picture.pixels.width()];
            Ok(fill(picture, size(sides.map(|side| side as usize))?))
        });
        scaled
            .map_err(|error| error.root_cause().to_string())
            .flatten()
            .map_err(|reason| unreadable(path, reason))
    }

    fn captions(&self, index: usize) -> Vec<(String, f64)> {
        let captions = &self.pictures[index].captions;
        let chance = 1.0 / captions.len() as f64;
        captions.iter().map(|caption| (caption.clone(), chance)).collect()
    }

    fn with_frames(&self) -> usize {
        let all = self.pictures.iter();
        all.filter(|picture| picture.has_frames.load(Ordering::Relaxed)).count()
    }
}

fn unreadable(path: &Path, reason: String) -> CorpusError {
    CorpusError::Picture { name: path.display().to_string(), reason }
}

/// A picture, scaled to cover a height and a width; the parts beyond its edges are cut off on both sides.
/// Transparent pixels become white.
pub(crate) fn fill(picture: pictures::Picture, [height, width]: [usize; 2]) -> Image {
    let pixels = DynamicImage::from(picture.on(u8::MAX));
    let scaled = pixels.resize_to_fill(width as u32, height as u32, FilterType::Lanczos3);
    Image { width, height, rgb: scaled.into_rgb8().into_raw() }
}

/// The numbers below `count` in the order of an epoch (Fisher–Yates).
pub(crate) fn shuffled(count: u32, seed: u64, epoch: u64) -> Arc<[u32]> {
    let mut rng = Philox::new(seed, epoch);
    let mut order: Vec<u32> = (0..count).collect();
    for i in (1..count).rev() {
        order.swap(i as usize, rng.below(i + 1) as usize);
    }
    order.into()
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use proptest::prelude::*;

    use super::*;

    /// Pictures without compression keep their size in bytes, whatever they show.
    #[test]
    fn another_picture_of_the_same_size_is_another_corpus() {
        let root = std::env::temp_dir().join(format!("wuerstchen-same-{}", std::process::id()));
        fs::create_dir_all(&root).unwrap();
        fs::write(root.join("a.txt"), "a gray field").unwrap();
        let described = |gray: u8| {
            let pixels = image::GrayImage::from_pixel(8, 8, image::Luma([gray]));
            pixels.save(root.join("a.bmp")).unwrap();
            Folder::open(&root, 0).unwrap().described()
        };
        let pictures = [1, 2, 1].map(described);
        fs::remove_dir_all(&root).unwrap();
        assert_ne!(pictures[0], pictures[1]);
        assert_eq!(pictures[0], pictures[2]);
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(200))]

        /// Every file is a picture, tells a caption, or is counted in a line. Its content is its name.
        #[test]
        fn no_file_is_passed_over_in_silence(names in prop::collection::btree_set(
            "(|a/|A/|\\.h/)(x|X|\u{e9}|e\u{301}|x\\.y|\\._x)(\\.png|\\.PNG|\\.jpg|\\.txt|\\.caption|\\.png\\.txt|\\.json|)",
            1..12,
        )) {
            let root = std::env::temp_dir().join(format!("wuerstchen-tree-{}", std::process::id()));
            let _ = fs::remove_dir_all(&root);
            for name in &names {
                fs::create_dir_all(root.join(name).parent().unwrap()).unwrap();
                fs::write(root.join(name), name).unwrap();
            }
            let found = find(&root).unwrap();
            let captions = captions_of(&root, &found).unwrap();
            let lines: Vec<_> = found.left_out.lines().chain(captions.left_out).collect();
            let counted = |what: &str| -> usize {
                let lines = lines.iter().filter(|line| line.contains(what));
                let counts = lines.filter_map(|line| line.split(", such as").next());
                let numbers = counts.flat_map(|text| text.split(|c: char| !c.is_ascii_digit()));
                numbers.filter_map(|number| number.parse::<usize>().ok()).sum()
            };
            // A hidden folder counts once, whatever is in it.
            let (in_hidden_folder, others): (Vec<_>, Vec<_>) =
                names.iter().partition(|name| name.starts_with(".h/"));
            let hidden = others.iter().filter(|name| name.contains("._x")).count();
            let of_use = found.pictures.len() + found.texts.len() + found.left_out.others.len();
            prop_assert_eq!(of_use, others.len() - hidden);
            prop_assert_eq!(counted("hidden"), hidden + usize::from(!in_hidden_folder.is_empty()));
            prop_assert_eq!(counted("files that are not"), found.left_out.others.len());
            let used: BTreeSet<_> = captions.of_pictures.into_iter().flatten().collect();
            prop_assert_eq!(used.len() + counted("text file"), found.texts.len());
        }
    }

    #[test]
    fn every_epoch_shows_each_picture_once_in_another_order() {
        let epochs = [0, 1].map(|epoch| shuffled(100, 7, epoch));
        assert_ne!(epochs[0], epochs[1]);
        for epoch in epochs {
            let mut numbers = epoch.to_vec();
            numbers.sort_unstable();
            assert_eq!(numbers, (0..100).collect::<Vec<_>>());
        }
    }
}
