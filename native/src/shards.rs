//! Pictures in shards: in tar files, as a `WebDataset` has them, or in Parquet files.

mod filter;
mod index;
mod list;
mod named;
#[cfg(feature = "parquet")]
mod parquet;
mod web_dataset;

use std::collections::{BTreeMap, BTreeSet};
use std::mem;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, PoisonError};

use anyhow::{Result, bail};
use rayon::prelude::*;
use wuerstchen::Image;
use wuerstchen::noise::Philox;
use wuerstchen_train::Pictures;
use wuerstchen_train::config::ShardsConfig;
use wuerstchen_train::corpus::{CorpusError, Samples, draw_place};

use self::filter::{LeftOut, fields_of, texts_of};
pub(crate) use self::index::MAX_TEXT;
use self::index::{Found, MOST_FIELDS, Place, ReadError, Shard, Tally, read_shard};
use self::list::List;
use self::named::files_of;
use crate::folder::{fill, shuffled};
use crate::pictures::{look_at, with_bytes};
use crate::terminal::{counted, visible};

/// Captioned pictures in shards, in another order in every epoch.
pub(crate) struct Shards {
    seed: u64,
    /// Number of neighbouring samples that are shuffled among each other in an epoch.
    window: usize,
    /// Whether a picture that cannot be read is an error, instead of being left out.
    strict: bool,
    /// Whether there is a line for each picture that is left out.
    tells: bool,
    files: Vec<PathBuf>,
    samples: Vec<Sample>,
    /// Two epochs, those of even numbers in the first place: threads that read ahead are in the next one already.
    epochs: Mutex<[Epoch; 2]>,
    /// Samples that cannot be read.
    broken: Mutex<BTreeSet<u32>>,
    /// Where they are listed.
    list: Mutex<Option<List>>,
}

/// The order of an epoch.
#[derive(Default)]
struct Epoch {
    number: u64,
    /// The samples, none before the epoch is used.
    order: Vec<u32>,
    /// For a place whose sample is broken, a later place; all samples between the two are broken. So a row of broken
    /// samples is not walked through again and again.
    next: Vec<u32>,
}

/// What shards have beside their samples.
#[derive(Default)]
struct Rest {
    notes: BTreeSet<String>,
    fields: BTreeSet<String>,
    unread: BTreeMap<String, usize>,
    without_picture: Tally,
    dotted: Option<String>,
    apart: Tally,
}

impl Rest {
    /// Adds a shard, in which `name` tells a file.
    fn add(&mut self, shard: Shard, name: impl Fn(&str) -> String) {
        self.notes.extend(shard.notes);
        self.fields.extend(shard.fields);
        for (ending, count) in shard.unread {
            *self.unread.entry(ending).or_default() += count;
        }
        self.without_picture.join(shard.without_picture, &name);
        self.dotted = self.dotted.take().or_else(|| shard.dotted.map(|file| name(&file)));
        self.apart.join(shard.apart, &name);
    }

    /// Reports all of it, and the samples that were left out.
    fn tell(&self, left_out: &LeftOut) {
        self.notes.iter().for_each(|note| tell!("{}", visible(note)));
        left_out.lines().for_each(|line| tell!("{}", visible(&line)));
        let Self { without_picture, apart, .. } = self;
        if without_picture.count > 0 {
            let samples = counted(without_picture.count, "sample");
            let first = visible(&without_picture.first);
            tell!("left out: {samples} without a picture, such as {first}");
            if let Some(file) = &self.dotted {
                let file = visible(file);
                tell!(
                    "{file} is no picture of a sample: the name of a sample ends at the first dot"
                );
            }
        }
        if apart.count > 0 {
            let (samples, first) = (counted(apart.count, "sample"), visible(&apart.first));
            tell!(
                "the files of a sample must follow each other: those of {samples} do not, such as {first}"
            );
        }
        for (what, counts) in [
            ("not read in the shards", &self.unread),
            ("not used of the shards' texts", &left_out.unused),
        ] {
            if !counts.is_empty() {
                tell!("{what}: {}", visible(&listed(counts)));
            }
        }
    }
}

/// A picture in a shard.
struct Sample {
    shard: u32,
    name: String,
    place: Place,
    captions: Vec<String>,
    /// The probability of each caption; they sum to 1.
    chances: Vec<f64>,
    /// Whether it was read, and was smaller than it had to be.
    is_enlarged: AtomicBool,
    /// Whether it was read, and has several frames or pages.
    has_frames: AtomicBool,
}

impl Shards {
    /// Lists the samples of all shards, without those that the config's filter refuses; reports how many these are.
    pub(crate) fn open(config: &ShardsConfig, seed: u64) -> Result<Self> {
        let files = files_of(&config.paths)?;
        let wanted = fields_of(config);
        let read = files.par_iter().map(|file| read_shard(file, &wanted));
        let read = read.collect::<Result<Vec<_>>>()?;
        let mut left_out = LeftOut::default();
        let (mut samples, mut rest) = (Vec::new(), Rest::default());
        let mut unmatched: BTreeSet<&str> = config.captions.keys().map(String::as_str).collect();
        for (shard, mut read) in read.into_iter().enumerate() {
            let name = |sample: &str| format!("{}/{sample}", files[shard].display());
            let (found, faults) = (mem::take(&mut read.samples), mem::take(&mut read.faults));
            rest.add(read, name);
            for fault in faults {
                // The name of a file from elsewhere must not control the terminal.
                let line = format!("the shard {} {fault}", files[shard].display());
                let line = visible(&line);
                if config.strict {
                    bail!("{line}");
                }
                tell!("{line}");
            }
            for found in found {
                unmatched.retain(|field| texts_of(&found, field).is_empty());
                if let Some((captions, chances)) =
                    left_out.take(config, &found, || name(&found.name))
                {
                    let Found { name, place, .. } = found;
                    let shard = shard as u32;
                    let [is_enlarged, has_frames] = [false; 2].map(AtomicBool::new);
                    samples.push(Sample {
                        shard,
                        name,
                        place,
                        captions,
                        chances,
                        is_enlarged,
                        has_frames,
                    });
                }
            }
        }
        rest.tell(&left_out);
        if let Some(field) = unmatched.first() {
            bail!(
                "corpus.shards.captions: expected fields of the samples, found {field:?}, in which none has a \
                 caption{}",
                fields_told(&rest.fields)
            );
        }
        if samples.is_empty() {
            let shards = counted(files.len(), "shard");
            bail!(
                "expected captioned pictures in {shards}, found none{}{}",
                left_out.inline(),
                fields_told(&rest.fields)
            );
        }
        tell!("{} in {}", counted(samples.len(), "picture"), counted(files.len(), "shard"));
        let (window, strict) = (config.shuffle.max(1), config.strict);
        Ok(Self {
            seed,
            window,
            strict,
            tells: true,
            files,
            samples,
            epochs: Mutex::default(),
            broken: Mutex::default(),
            list: Mutex::default(),
        })
    }

    /// Without a line for each picture that cannot be read, for a caller that lists them.
    pub(crate) fn without_lines(self) -> Self {
        Self { tells: false, ..self }
    }

    /// How many pictures there are, including broken ones.
    pub(crate) fn len(&self) -> usize {
        self.samples.len()
    }

    /// All captions.
    pub(crate) fn all_captions(&self) -> impl Iterator<Item = &str> + Send {
        self.samples.iter().flat_map(|sample| sample.captions.iter().map(String::as_str))
    }

    /// A line for every picture, by which one corpus differs from another.
    pub(crate) fn described(&self) -> impl Iterator<Item = String> {
        (0..self.samples.len()).map(|index| {
            let Sample { shard, name, place, captions, chances, .. } = &self.samples[index];
            let shard = self.files[*shard as usize].file_name();
            format!("{shard:?} {name} {place} {captions:?} {chances:?}")
        })
    }

    /// Lists the pictures that cannot be read and are left out in a file, below those that it lists already.
    pub(crate) fn list_in(&self, path: &Path) -> Result<()> {
        *self.list.lock().unwrap_or_else(PoisonError::into_inner) = Some(List::open(path)?);
        Ok(())
    }

    /// How many pictures are listed, `None` where none was left out since the shards were opened.
    pub(crate) fn listed(&self) -> Option<usize> {
        let broken = self.broken.lock().unwrap_or_else(PoisonError::into_inner);
        let list = self.list.lock().unwrap_or_else(PoisonError::into_inner);
        let is_any = !broken.is_empty() && !self.strict;
        is_any.then(|| list.as_ref().map_or(0, List::len))
    }

    /// How many pictures were read so far that had to be enlarged.
    pub(crate) fn enlarged(&self) -> usize {
        self.samples.iter().filter(|sample| sample.is_enlarged.load(Ordering::Relaxed)).count()
    }

    fn name(&self, index: u32) -> String {
        let sample = &self.samples[index as usize];
        format!("{}/{}", self.files[sample.shard as usize].display(), sample.name)
    }

    /// The sample at a place of the endless order, whether it can be read or not.
    fn at(&self, number: u64) -> u32 {
        let (epoch, place) = self.place(number);
        self.in_epoch(epoch, |epoch| epoch.order[place])
    }

    /// The epoch of a place of the endless order, and the place in it.
    fn place(&self, number: u64) -> (u64, usize) {
        let count = self.samples.len() as u64;
        (number / count, (number % count) as usize)
    }

    /// Does something with an epoch, whose order is made if it is not at hand.
    fn in_epoch<T>(&self, number: u64, work: impl FnOnce(&mut Epoch) -> T) -> T {
        let mut epochs = self.epochs.lock().unwrap_or_else(PoisonError::into_inner);
        let epoch = &mut epochs[(number % 2) as usize];
        if epoch.number != number || epoch.order.is_empty() {
            let order = self.in_order(number);
            *epoch = Epoch { number, next: (1..=order.len() as u32).collect(), order };
        }
        work(epoch)
    }

    /// The order of an epoch: the shards in a random order, each from its start to its end, and then every window
    /// of samples shuffled. So shards are read nearly sequentially. The order depends only on the seed and the epoch.
    fn in_order(&self, epoch: u64) -> Vec<u32> {
        let mut of_shards = vec![Vec::new(); self.files.len()];
        for (index, sample) in self.samples.iter().enumerate() {
            of_shards[sample.shard as usize].push(index as u32);
        }
        let shards = shuffled(self.files.len() as u32, self.seed, epoch);
        let order: Vec<u32> =
            shards.iter().flat_map(|&shard| of_shards[shard as usize].iter().copied()).collect();
        let windows = order.chunks(self.window).enumerate().flat_map(|(i, window)| {
            // Every window of every epoch has a stream of random numbers of its own.
            let stream = epoch << 32 | (i as u64 + 1);
            let places = shuffled(window.len() as u32, self.seed ^ WINDOWS, stream);
            places.iter().map(|&place| window[place as usize]).collect::<Vec<_>>()
        });
        windows.collect()
    }

    /// The first sample that is not known to be broken, from a place of the order on.
    fn whole_from(&self, number: u64) -> Result<u32, CorpusError> {
        let broken = self.broken.lock().unwrap_or_else(PoisonError::into_inner);
        let (epoch, place) = self.place(number);
        // The next epoch has every sample.
        let found = [(epoch, place), (epoch + 1, 0)].into_iter().find_map(|(epoch, place)| {
            self.in_epoch(epoch, |epoch| epoch.whole_from(place, |index| broken.contains(&index)))
        });
        let name = || self.files[0].display().to_string();
        let reason = || "expected at least one picture that can be read".to_owned();
        found.ok_or_else(|| CorpusError::Picture { name: name(), reason: reason() })
    }

    /// The bytes of a sample's picture; remembers the samples that have none.
    fn bytes(&self, index: u32) -> Result<Vec<u8>, CorpusError> {
        let sample = &self.samples[index as usize];
        let path = &self.files[sample.shard as usize];
        sample.place.read(path).map_err(|error| match error {
            ReadError::Picture(reason) => self.leave_out(index, reason),
            ReadError::Shard(reason) => {
                let reason = format!("cannot read the shard {}: {reason}", path.display());
                CorpusError::File { reason }
            }
        })
    }

    /// Remembers that a sample is broken; reports and lists it once. Returns the error.
    fn leave_out(&self, index: u32, reason: String) -> CorpusError {
        let mut broken = self.broken.lock().unwrap_or_else(PoisonError::into_inner);
        if broken.insert(index) && !self.strict {
            let line = visible(&format!("{}: {reason}", self.name(index)));
            if self.tells {
                tell!("left out: {line}");
            }
            let mut list = self.list.lock().unwrap_or_else(PoisonError::into_inner);
            if let Some(Err(error)) = list.as_mut().map(|list| list.add(line)) {
                return CorpusError::File { reason: format!("{error:#}") };
            }
        }
        CorpusError::Picture { name: self.name(index), reason }
    }

    /// Decodes a sample, scaled to the size that `size` gives for its own; remembers the samples for which that fails.
    fn decode(
        &self,
        index: u32,
        size: &mut dyn FnMut([usize; 2]) -> Result<[usize; 2], String>,
    ) -> Result<Image, CorpusError> {
        let bytes = self.bytes(index)?;
        let has_frames = &self.samples[index as usize].has_frames;
        let decoded = with_bytes(&bytes, |picture| {
            has_frames.fetch_or(picture.has_frames, Ordering::Relaxed);
            let sides = [picture.pixels.height(), picture.pixels.width()];
            Ok(fill(picture, size(sides.map(|side| side as usize))?))
        });
        let decoded = decoded.map_err(|error| error.root_cause().to_string()).flatten();
        decoded.map_err(|reason| self.leave_out(index, reason))
    }
}

impl Epoch {
    /// The first sample from a place on that is not known to be broken.
    fn whole_from(&mut self, start: usize, is_broken: impl Fn(u32) -> bool) -> Option<u32> {
        let mut found = start;
        while self.order.get(found).is_some_and(|index| is_broken(*index)) {
            found = self.next[found] as usize;
        }
        // The next search leaps over all that this one has walked through.
        let mut walked = start;
        while walked < found {
            walked = std::mem::replace(&mut self.next[walked], found as u32) as usize;
        }
        self.order.get(found).copied()
    }
}

/// Most endings that a line lists.
const MOST_ENDINGS: usize = 20;

/// The most frequent endings with their numbers, for a line.
fn listed(counts: &BTreeMap<String, usize>) -> String {
    let mut counts: Vec<_> = counts.iter().collect();
    counts.sort_by_key(|(_, count)| std::cmp::Reverse(**count));
    let listed = counts.iter().take(MOST_ENDINGS);
    let listed: Vec<_> = listed.map(|(ending, count)| format!("{ending} ({count})")).collect();
    let others = match counts.len().saturating_sub(MOST_ENDINGS) {
        0 => String::new(),
        count => format!(" and {}", counted(count, "other kind")),
    };
    listed.join(", ") + &others
}

/// The names of the samples' fields, as the end of an error about captions.
fn fields_told(fields: &BTreeSet<String>) -> String {
    let known = filter::CAPTIONS.join(", ");
    let names: Vec<_> = fields.iter().take(MOST_FIELDS).map(|name| visible(name)).collect();
    let names = if names.is_empty() { "none".to_owned() } else { names.join(", ") };
    format!(
        "; the fields of the samples: {names}; captions are looked for in {known}, unless corpus.shards.captions names \
         others"
    )
}

/// Sets the random numbers of windows apart from others of the seed.
const WINDOWS: u64 = 0x5749_4e44_4f57_5300;

impl Samples for Shards {
    fn picture(&self, number: u64, side: usize) -> Result<Image, CorpusError> {
        loop {
            let index = self.whole_from(number)?;
            let is_enlarged = &self.samples[index as usize].is_enlarged;
            let mut size = |own: [usize; 2]| {
                if own.iter().any(|own| *own < side) {
                    is_enlarged.store(true, Ordering::Relaxed);
                }
                Ok([side; 2])
            };
            match self.decode(index, &mut size) {
                // The sample is known to be broken now, so the next round takes another one.
                Err(CorpusError::Picture { .. }) if !self.strict => {}
                image => return image,
            }
        }
    }

    fn captions(&self, number: u64) -> Vec<String> {
        let index = self.whole_from(number).unwrap_or_else(|_| self.at(number));
        self.samples[index as usize].captions.clone()
    }

    fn caption(&self, number: u64, rng: &mut Philox) -> String {
        let index = self.whole_from(number).unwrap_or_else(|_| self.at(number));
        let sample = &self.samples[index as usize];
        sample.captions[draw_place(sample.chances.iter().copied(), rng)].clone()
    }

    fn prompt(&self, number: u64) -> String {
        self.samples[self.at(number) as usize].captions[0].clone()
    }

    fn count(&self) -> Option<usize> {
        Some(self.len())
    }

    fn replaces_broken(&self) -> bool {
        !self.strict
    }
}

/// The pictures in the order in which they lie.
impl Pictures for Shards {
    fn count(&self) -> usize {
        self.len()
    }

    fn content(&self, index: usize) -> Result<Vec<u8>, CorpusError> {
        self.bytes(index as u32)
    }

    fn size(&self, index: usize, content: &[u8]) -> Result<[usize; 2], CorpusError> {
        let seen = look_at(content);
        let (size, several) =
            seen.map_err(|error| self.leave_out(index as u32, error.root_cause().to_string()))?;
        self.samples[index].has_frames.fetch_or(several, Ordering::Relaxed);
        Ok(size)
    }

    fn picture(
        &self,
        index: usize,
        size: &mut dyn FnMut([usize; 2]) -> Result<[usize; 2], String>,
    ) -> Result<Image, CorpusError> {
        self.decode(index as u32, size)
    }

    fn captions(&self, index: usize) -> Vec<(String, f64)> {
        let sample = &self.samples[index];
        sample.captions.iter().cloned().zip(sample.chances.iter().copied()).collect()
    }

    fn leaves_out_broken(&self) -> bool {
        !self.strict
    }

    fn with_frames(&self) -> usize {
        self.samples.iter().filter(|sample| sample.has_frames.load(Ordering::Relaxed)).count()
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    /// A tar file with the texts of all samples, whose pictures are no pictures unless `is_whole` says so.
    fn write_shard(path: &Path, samples: u32, is_whole: impl Fn(u32) -> bool) {
        let mut png = std::io::Cursor::new(Vec::new());
        image::RgbImage::new(1, 1).write_to(&mut png, image::ImageFormat::Png).unwrap();
        let mut tar = tar::Builder::new(fs::File::create(path).unwrap());
        for sample in 0..samples {
            let picture = if is_whole(sample) { &png.get_ref()[..] } else { b"none" };
            for (ending, bytes) in [("png", picture), ("txt", &b"black"[..])] {
                let mut header = tar::Header::new_gnu();
                header.set_size(bytes.len() as u64);
                header.set_cksum();
                tar.append_data(&mut header, format!("{sample}.{ending}"), bytes).unwrap();
            }
        }
        tar.finish().unwrap();
    }

    fn open(path: &Path) -> Shards {
        let paths = vec![path.display().to_string()];
        Shards::open(&ShardsConfig { paths, ..ShardsConfig::default() }, 7).unwrap().without_lines()
    }

    fn scratch(name: &str) -> PathBuf {
        std::env::temp_dir().join(format!("wuerstchen-{}-{name}.tar", std::process::id()))
    }

    #[test]
    fn a_shard_that_is_gone_is_no_broken_picture() {
        let path = scratch("gone");
        write_shard(&path, 4, |_| true);
        let shards = open(&path);
        assert!(Samples::picture(&shards, 0, 1).is_ok());
        fs::remove_file(&path).unwrap();
        let errors = [
            Samples::picture(&shards, 1, 1).err(),
            Pictures::picture(&shards, 1, &mut |_| Ok([1; 2])).err(),
            shards.content(1).err(),
        ];
        for error in errors {
            let Some(CorpusError::File { reason }) = error else { panic!("{error:?}") };
            assert!(reason.starts_with(&format!("cannot read the shard {}", path.display())));
        }
        assert_eq!(shards.listed(), None);
    }

    /// Wherever the only whole sample lies in the order, every number gets it.
    #[test]
    fn the_only_whole_sample_takes_every_place() {
        let path = scratch("only");
        write_shard(&path, 50, |sample| sample == 12);
        let shards = open(&path);
        for number in 0..200 {
            assert!(Samples::picture(&shards, number, 1).is_ok());
            assert_eq!(shards.whole_from(number).unwrap(), 12);
        }
        fs::remove_file(&path).unwrap();
        assert_eq!(shards.broken.lock().unwrap().len(), 49);
    }

    #[test]
    fn few_endings_are_listed() {
        let counts = (0..23).map(|number| (format!("{number:02}.png"), number / 22 + 1)).collect();
        let list = listed(&counts);
        assert!(list.starts_with("22.png (2), 00.png (1), "), "{list}");
        assert!(list.ends_with(", 18.png (1) and 3 other kinds"), "{list}");
    }

    #[test]
    fn broken_samples_are_walked_through_once() {
        const COUNT: usize = 1000;
        let order: Vec<u32> = (0..COUNT as u32).collect();
        let mut epoch = Epoch { number: 0, next: (1..=COUNT as u32).collect(), order };
        let asked = std::cell::Cell::new(0);
        let is_broken = |index: u32| {
            asked.set(asked.get() + 1);
            index != 900
        };
        for place in 0..COUNT {
            let expected = (place <= 900).then_some(900);
            assert_eq!(epoch.whole_from(place, is_broken), expected);
        }
        assert!(asked.get() < 5 * COUNT, "{}", asked.get());
    }
}
