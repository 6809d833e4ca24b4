//! `wuerstchen data`: looks through pictures to train on, packs them into shards, and fills the caches of training.

use std::collections::BTreeMap;
use std::fs::File;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, anyhow, bail};
use clap::{Args, Subcommand};
use indicatif::ProgressBar;
use rayon::prelude::*;
use serde::Serialize;
use serde_json::json;
use tar::{Builder, Header};
use wuerstchen::Image;
use wuerstchen::fs::{has_extension, write};
use wuerstchen_train::Pictures;
use wuerstchen_train::config::ShardsConfig;
use wuerstchen_train::corpus::CorpusError;
use wuerstchen_train::tune::Buckets;

use crate::folder::Folder;
use crate::new_folder::{NewFolder, check_new};
use crate::output::{check_output, folder_of};
use crate::pictures::tell_of_frames;
use crate::shards::Shards;
use crate::terminal::{counted, visible_lines};
use crate::train::{CacheArgs, fill_cache};
use crate::usage;

/// Arguments of `wuerstchen data`.
#[derive(Args)]
pub(crate) struct DataArgs {
    #[command(subcommand)]
    task: Task,
}

#[derive(Subcommand)]
enum Task {
    /// Read all pictures and tell what is in them
    Stats(StatsArgs),
    /// Put the pictures of a folder into tar files
    Pack(PackArgs),
    /// Compute what a run computes before its first update, and keep it for `train --cache`
    Cache(CacheArgs),
}

#[derive(Args)]
struct StatsArgs {
    /// A folder of captioned pictures, or shards, which are tar or Parquet files; `*` in a file's name and `{000..012}`
    /// stand for several
    #[arg(required = true)]
    paths: Vec<String>,
    /// A field of shards with captions; may be given several times [default: the first that a sample has of captions,
    /// txt, caption, text, prompt and cap]
    #[arg(long, value_name = "FIELD")]
    captions: Vec<String>,
    /// A PNG file to write, with a grid of some of the pictures
    #[arg(long, value_name = "FILE.png")]
    grid: Option<PathBuf>,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

#[derive(Args)]
struct PackArgs {
    /// A folder of captioned pictures
    folder: PathBuf,
    /// The folder to write
    #[arg(short, long, value_name = "DIR")]
    output: PathBuf,
    /// Pictures in a tar file
    #[arg(long, default_value_t = 1000, value_parser = clap::value_parser!(u32).range(1..))]
    samples: u32,
}

/// Pictures in a row of a grid, and their side in pixels.
const GRID: usize = 8;
const GRID_PIXELS: usize = 96;

/// Cells of a square picture whose buckets give the aspect ratios that are told apart.
const SIDE: usize = 24;
const MAX_ASPECT: f64 = 4.0;

/// A picture that is wider, or taller by as much, is not counted under the nearest ratio.
const WIDEST: f64 = 1.1 * MAX_ASPECT;

/// What is in a corpus.
#[derive(Serialize)]
struct Stats {
    pictures: usize,
    captions: usize,
    /// Mean number of words over the captions.
    words_per_caption: f64,
    /// Numbers of pictures by the ratio of width to height.
    aspect_ratios: BTreeMap<String, usize>,
    /// Numbers of pictures by the largest power of two that their shorter side reaches, in pixels.
    shorter_sides: BTreeMap<u32, usize>,
    /// Pictures that cannot be read, and why.
    broken: Vec<String>,
}

pub(crate) fn run(args: &DataArgs) -> Result<()> {
    match &args.task {
        Task::Stats(args) => stats(args),
        Task::Pack(args) => pack(args),
        Task::Cache(args) => fill_cache(args),
    }
}

fn stats(args: &StatsArgs) -> Result<()> {
    if let Some(grid) = &args.grid {
        if !has_extension(grid, "png") {
            let expected = "expected a name that ends in .png";
            return Err(usage(&anyhow!("cannot write {}: {expected}", grid.display())));
        }
        let read: Vec<_> = args.paths.iter().map(Path::new).collect();
        check_output(grid, &read)?;
        if let Some(corpus) = read.iter().find(|folder| is_within(grid, folder)) {
            let (grid, corpus) = (grid.display(), corpus.display());
            let reason = "it would become one of its pictures";
            return Err(usage(&anyhow!("cannot write {grid} into {corpus}: {reason}")));
        }
    }
    let pictures: Box<dyn Pictures> = match &args.paths[..] {
        [folder] if Path::new(folder).is_dir() => {
            if !args.captions.is_empty() {
                let reason =
                    "--captions is for shards: the captions of a folder lie beside its pictures";
                return Err(usage(&anyhow!(reason)));
            }
            Box::new(Folder::open(Path::new(folder), 0)?)
        }
        paths => {
            if let Some(folder) = paths.iter().find(|path| Path::new(path).is_dir()) {
                bail!(
                    "expected one folder, or shards, found the folder {folder} among {} paths",
                    paths.len()
                );
            }
            let captions = args.captions.iter().map(|field| (field.clone(), 1.0)).collect();
            let paths = paths.to_vec();
            let config = ShardsConfig { paths, captions, ..ShardsConfig::default() };
            Box::new(Shards::open(&config, 0)?.without_lines())
        }
    };
    let sizes = sizes_of(&*pictures)?;
    if let Some(path) = &args.grid {
        draw(&*pictures, path)?;
    }
    let stats = count(&*pictures, &sizes);
    crate::print(&if args.json { serde_json::to_string(&stats)? } else { text(&stats) })?;
    if stats.broken.len() == stats.pictures {
        bail!("expected at least one picture that can be read, found none");
    }
    Ok(())
}

/// Whether a file lies in a folder or in one below it.
fn is_within(file: &Path, folder: &Path) -> bool {
    let folder = folder.canonicalize().ok().filter(|folder| folder.is_dir());
    folder.zip(folder_of(file)).is_some_and(|(folder, parent)| parent.starts_with(folder))
}

fn count(pictures: &dyn Pictures, sizes: &[Result<[usize; 2], CorpusError>]) -> Stats {
    let captions = (0..pictures.count()).flat_map(|index| pictures.captions(index));
    let words: Vec<_> =
        captions.map(|(caption, _)| caption.split_whitespace().count() as f64).collect();
    let buckets = Buckets::new(SIDE, MAX_ASPECT, None);
    let (mut aspect_ratios, mut shorter_sides) = (BTreeMap::new(), BTreeMap::new());
    for &size in sizes.iter().flatten() {
        let [height, width] = buckets.nearest(size);
        let ratio = ratio(size, width as f64 / height as f64);
        *aspect_ratios.entry(ratio).or_default() += 1;
        let shorter = size[0].min(size[1]).max(1) as u32;
        *shorter_sides.entry(1 << shorter.ilog2()).or_default() += 1;
    }
    Stats {
        pictures: pictures.count(),
        captions: words.len(),
        words_per_caption: words.iter().sum::<f64>() / words.len().max(1) as f64,
        aspect_ratios,
        shorter_sides,
        broken: broken(sizes),
    }
}

/// A ratio of width to height, by a picture's own size and the nearest ratio that is told apart.
fn ratio([height, width]: [usize; 2], nearest: f64) -> String {
    let own = width as f64 / height.max(1) as f64;
    if own > WIDEST {
        format!("above {MAX_ASPECT}")
    } else if own < WIDEST.recip() {
        format!("below 1/{MAX_ASPECT}")
    } else {
        format!("{nearest:.2}")
    }
}

fn text(stats: &Stats) -> String {
    let Stats { pictures, captions, words_per_caption, .. } = stats;
    let mut lines = vec![format!(
        "{} with {} of {words_per_caption:.1} words on average",
        counted(*pictures, "picture"),
        counted(*captions, "caption")
    )];
    lines.push("width to height, pictures".to_owned());
    lines.extend(stats.aspect_ratios.iter().map(|(ratio, count)| format!("{ratio:>9} {count:>8}")));
    lines.push("shorter side of at least so many pixels, pictures".to_owned());
    lines.extend(stats.shorter_sides.iter().map(|(side, count)| format!("{side:>9} {count:>8}")));
    if !stats.broken.is_empty() {
        lines.push(format!("{} cannot be read", counted(stats.broken.len(), "picture")));
        lines.extend(stats.broken.iter().map(|broken| format!("  {broken}")));
    }
    visible_lines(&lines.join("\n"))
}

/// Writes a grid of pictures from all over the corpus.
fn draw(pictures: &dyn Pictures, path: &Path) -> Result<()> {
    let count = pictures.count();
    let shown = count.min(GRID * GRID);
    let indices = (0..shown).map(|i| i * count / shown);
    let drawn: Vec<Image> = indices
        .filter_map(|index| pictures.picture(index, &mut |_| Ok([GRID_PIXELS; 2])).ok())
        .collect();
    if drawn.is_empty() {
        bail!("expected at least one picture that can be read, found none");
    }
    let png = Image::grid(&drawn, GRID).to_png().context("cannot encode the pictures")?;
    Ok(write(path, &png)?)
}

fn pack(args: &PackArgs) -> Result<()> {
    check_new(&args.output)?;
    let folder = Folder::open(&args.folder, 0)?;
    let (count, samples) = (folder.len(), args.samples as usize);
    let sizes = sizes_of(&folder)?;
    // Broken pictures are reported before anything is written.
    let broken = broken(&sizes);
    if !broken.is_empty() {
        broken.iter().for_each(|error| say!("{error}"));
        bail!("{} cannot be read", counted(broken.len(), "picture"));
    }
    let output = NewFolder::begin(&args.output)?;
    let bar = ProgressBar::new(count as u64).with_message("packing the pictures");
    for (shard, first) in (0..count).step_by(samples).enumerate() {
        let path = output.file(&format!("{shard:05}.tar"));
        let packed = || {
            let mut tar = Builder::new(File::create(&path)?);
            for (index, &size) in sizes.iter().flatten().enumerate().skip(first).take(samples) {
                add_sample(&mut tar, &folder, index, size)?;
                bar.inc(1);
            }
            Ok::<_, anyhow::Error>(tar.finish()?)
        };
        packed().with_context(|| format!("cannot write {}", path.display()))?;
    }
    bar.finish_and_clear();
    let (pictures, shards) =
        (counted(count, "picture"), counted(count.div_ceil(samples), ".tar file"));
    say!("wrote {pictures} into {shards} in {}", output.path().display());
    output.keep();
    Ok(())
}

/// Reads all pictures: the height and width of each, or why it cannot be read. Fails where a file of the corpus itself
/// cannot be read.
fn sizes_of(pictures: &dyn Pictures) -> Result<Vec<Result<[usize; 2], CorpusError>>> {
    let bar = ProgressBar::new(pictures.count() as u64).with_message("reading the pictures");
    let size = |index| {
        let mut sides = [0; 2];
        let read = pictures.picture(index, &mut |size| {
            sides = size;
            // Only the size is needed, so the picture is scaled to a single pixel.
            Ok([1; 2])
        });
        bar.inc(1);
        match read {
            Ok(_) => Ok(Ok(sides)),
            Err(broken @ CorpusError::Picture { .. }) => Ok(Err(broken)),
            Err(error) => Err(error),
        }
    };
    let sizes = (0..pictures.count()).into_par_iter().map(size).collect::<Result<_, _>>();
    bar.finish_and_clear();
    tell_of_frames(pictures.with_frames());
    Ok(sizes?)
}

/// The reasons why pictures cannot be read.
fn broken(sizes: &[Result<[usize; 2], CorpusError>]) -> Vec<String> {
    sizes.iter().filter_map(|size| size.as_ref().err()).map(ToString::to_string).collect()
}

/// Adds a picture as it is, its first caption, and all captions with its height and width.
fn add_sample(
    tar: &mut Builder<File>,
    folder: &Folder,
    index: usize,
    [height, width]: [usize; 2],
) -> Result<()> {
    let captions: Vec<String> =
        Pictures::captions(folder, index).into_iter().map(|(caption, _)| caption).collect();
    let name = folder.path(index).file_name().unwrap_or_default().to_string_lossy().into_owned();
    let about = json!({"captions": captions, "width": width, "height": height, "file_name": name});
    let ending =
        folder.path(index).extension().unwrap_or_default().to_string_lossy().to_lowercase();
    let mut add = |ending: &str, bytes: &[u8]| {
        let mut header = Header::new_gnu();
        header.set_size(bytes.len() as u64);
        header.set_mode(0o644);
        header.set_cksum();
        tar.append_data(&mut header, format!("{index:09}.{ending}"), bytes)
    };
    add(&ending, &folder.content(index)?)?;
    add("txt", captions[0].as_bytes())?;
    Ok(add("json", about.to_string().as_bytes())?)
}
