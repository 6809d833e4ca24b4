//! `wuerstchen compare`: how similar pictures are to others.

mod pictures;

use std::path::{Path, PathBuf};

use anyhow::{Context, Result, anyhow, bail};
use burn::tensor::Device;
use clap::{Args, ValueEnum};
use indicatif::ProgressBar;
use serde::Serialize;
use wuerstchen::TokenizerFiles;
use wuerstchen::fs::{read_text, with_extension};
use wuerstchen_train::compare::clip_score::ClipScore;
use wuerstchen_train::compare::inception::Inception;
use wuerstchen_train::compare::likeness::{MIN_SSIM_SIDE, cosine, frechet_distance, ssim};
use wuerstchen_train::compare::lpips::{Backbone, Lpips};

use self::pictures::Pictures;
use crate::devices::{Choice, choose};
use crate::files::read_tensors;
use crate::folder::captions_of_pictures;
use crate::terminal::{counted, is_or_are, visible};
use crate::usage;

/// Arguments of `wuerstchen compare`.
#[derive(Args)]
pub(crate) struct CompareArgs {
    /// Folder of the true pictures, such as those that a model was trained on
    reference: PathBuf,
    /// Folder of the pictures to be judged. A picture that has the name of a true one, but for the ending, is compared
    /// with it, pixel by pixel
    #[arg(required_unless_present = "stage_a")]
    pictures: Option<PathBuf>,
    /// In place of a folder, judge what Stage A of this model makes of the true pictures, cut to whole latents
    #[arg(long, value_name = "MODEL", conflicts_with = "pictures")]
    stage_a: Option<PathBuf>,
    /// Weights of LPIPS, a PyTorch or safetensors file: one file of the backbone and its heads, or, with this option
    /// twice, a file of VGG16 or AlexNet and one of the heads
    #[arg(long, value_name = "FILE")]
    lpips: Vec<PathBuf>,
    /// Weights of InceptionV3 in pytorch-fid's layout, for the Fréchet inception distance of all pictures
    #[arg(long, value_name = "FILE")]
    fid: Option<PathBuf>,
    /// Folder of a CLIP in transformers' layout, for the CLIP score of the judged pictures, which need captions as for
    /// training
    #[arg(long, value_name = "FOLDER")]
    clip: Option<PathBuf>,
    /// Name the true picture that is nearest to each judged one: by 32x32 pixels, or by the features of --fid
    #[arg(long, value_enum)]
    nearest: Option<Space>,
    /// Where to run
    #[arg(long, value_enum, default_value = "auto")]
    device: Choice,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

/// How the distance of two pictures is measured.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Space {
    Pixels,
    Features,
}

/// What is printed. Means are over the pairs, or over the judged pictures.
#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Report {
    /// True pictures.
    reference: usize,
    /// Judged pictures.
    pictures: usize,
    pairs: usize,
    #[serde(skip_serializing_if = "Option::is_none")]
    of_pairs: Option<OfPairs>,
    #[serde(skip_serializing_if = "Option::is_none")]
    fid: Option<f64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    clip_score: Option<f64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    nearest: Option<Vec<Nearest>>,
}

/// The similarity of pairs of pictures.
#[derive(Serialize)]
struct OfPairs {
    /// Pairs without a difference, whose signal-to-noise ratio would be infinite.
    equal: usize,
    /// Mean peak signal-to-noise ratio of the other pairs, in decibels.
    psnr: Option<f64>,
    ssim: f64,
    #[serde(skip_serializing_if = "Option::is_none")]
    lpips: Option<LpipsReport>,
}

#[derive(Serialize)]
struct LpipsReport {
    network: &'static str,
    mean: f64,
}

/// The true picture that is nearest to a judged one.
#[derive(Serialize)]
struct Nearest {
    picture: String,
    nearest: String,
    /// For pixels the root of the mean squared difference, for features one minus the cosine.
    distance: f64,
}

/// Compares and prints.
pub(crate) fn run(args: &CompareArgs) -> Result<()> {
    if args.nearest == Some(Space::Features) && args.fid.is_none() {
        let reason = "--nearest features takes the features of --fid: name its weights";
        return Err(usage(&anyhow!("{reason}")));
    }
    let device = choose(args.device)?.device;
    let reference = Pictures::find(&args.reference)?;
    let [reference, pictures] = match (&args.pictures, &args.stage_a) {
        (Some(folder), _) => [reference, Pictures::find(folder)?],
        (None, Some(model)) => reference.through_stage_a(model, &device)?,
        (None, None) => unreachable!("clap requires one of them"),
    };
    let pairs = reference.pairs(&pictures)?;
    check_pairs(args, [&reference, &pictures], pairs.len())?;
    let captions =
        args.clip.as_ref().map(|_| captions_of_pictures(&pictures.folder)).transpose()?;
    let captions = captions.unwrap_or_default();
    let several = captions.iter().filter(|of| of.len() > 1).count();
    if several > 0 {
        tell!("CLIP compares {} with the first of their captions", counted(several, "picture"));
    }
    let captions: Vec<_> = captions.into_iter().map(|mut of| of.swap_remove(0)).collect();

    let networks = Networks::load(args, device)?;
    if let Some(clip) = &networks.clip {
        let cut: Result<Vec<_>, _> =
            captions.iter().map(|caption| clip.is_cut_off(caption)).collect();
        let cut = cut?.into_iter().filter(|is_cut| *is_cut).count();
        if cut > 0 {
            let captions = counted(cut, "caption");
            tell!("{captions} {} longer than CLIP reads: the end is left out", is_or_are(cut));
        }
    }
    let both = [&reference, &pictures];
    let of_pairs =
        (!pairs.is_empty()).then(|| compare_pairs(&pairs, both, &networks)).transpose()?;
    let (fid, nearest) = compare_all(args.nearest, both, networks.inception.as_ref())?;
    let clip_score =
        networks.clip.as_ref().map(|clip| pictures.clip_score(clip, &captions)).transpose()?;
    let (reference, pictures, pairs) = (reference.len(), pictures.len(), pairs.len());
    let report = Report { reference, pictures, pairs, of_pairs, fid, clip_score, nearest };
    if args.json {
        return crate::print(&serde_json::to_string(&report)?);
    }
    crate::print(&report.lines().join("\n"))
}

/// Fails if there is nothing to compare; says how many pictures are in no pair, where there are pairs.
fn check_pairs(args: &CompareArgs, both: [&Pictures; 2], pairs: usize) -> Result<()> {
    let [reference, pictures] = both.map(|of| of.folder.display());
    let none = format!("no picture of {pictures} has the name of one of {reference}");
    if pairs == 0 && !args.lpips.is_empty() {
        return Err(usage(&anyhow!("--lpips compares pictures of one name: {none}")));
    }
    if pairs == 0 && args.fid.is_none() && args.clip.is_none() && args.nearest.is_none() {
        let others = "--fid, --clip and --nearest compare other pictures";
        return Err(usage(&anyhow!("{none}: {others}")));
    }
    let [alone, judged_alone] = both.map(|of| of.len() - pairs);
    if pairs > 0 && alone + judged_alone > 0 {
        tell!(
            "{alone} true and {judged_alone} judged pictures have no other of their name: PSNR, SSIM and LPIPS \
             leave them out"
        );
    }
    Ok(())
}

/// The networks that arguments name.
struct Networks {
    lpips: Option<Lpips>,
    inception: Option<Inception>,
    clip: Option<ClipScore>,
    device: Device,
}

impl Networks {
    fn load(args: &CompareArgs, device: Device) -> Result<Self> {
        let mut networks = Self { lpips: None, inception: None, clip: None, device };
        let device = &networks.device;
        if !args.lpips.is_empty() {
            let weights = read_tensors(&args.lpips).context("--lpips")?;
            networks.lpips = Some(Lpips::load(&weights, device).context("--lpips")?);
        }
        if let Some(path) = &args.fid {
            let weights = read_tensors(std::slice::from_ref(path)).context("--fid")?;
            networks.inception = Some(Inception::load(&weights, device).context("--fid")?);
        }
        if let Some(folder) = &args.clip {
            networks.clip = Some(read_clip(folder, device).context("--clip")?);
        }
        Ok(networks)
    }
}

/// Reads a CLIP in transformers' layout.
fn read_clip(folder: &Path, device: &Device) -> Result<ClipScore> {
    let mut weights = with_extension(folder, "safetensors")?;
    if weights.is_empty() {
        weights = with_extension(folder, "bin")?;
    }
    if weights.is_empty() {
        bail!("{}: expected model.safetensors or pytorch_model.bin, found none", folder.display());
    }
    let config = read_text(&folder.join("config.json"))?;
    let tokenizer = TokenizerFiles::from_named(|file| read_text(&folder.join(file)).ok());
    let clip = ClipScore::load(&read_tensors(&weights)?, &config, &tokenizer, device);
    clip.with_context(|| folder.display().to_string())
}

/// Fails unless the pictures of every pair are of one size, and their sides are at least `least` pixels.
fn check_sizes(
    pairs: &[[usize; 2]],
    [reference, pictures]: [&Pictures; 2],
    least: usize,
) -> Result<()> {
    for &[place, judged] in pairs {
        let (expected, found) = (reference.size(place)?, pictures.size(judged)?);
        let of = reference.path(place).display();
        let text = |[height, width]: [usize; 2]| format!("{width} x {height} pixels");
        if found != expected {
            let (made, found, expected) =
                (pictures.path(judged).display(), text(found), text(expected));
            bail!("{made}: expected {expected} as {of}, found {found}");
        }
        if expected.iter().any(|&side| side < least) {
            bail!("{of}: expected sides of at least {least} pixels, found {}", text(expected));
        }
    }
    Ok(())
}

/// Compares pairs of pictures, true and judged ones.
fn compare_pairs(
    pairs: &[[usize; 2]],
    [reference, pictures]: [&Pictures; 2],
    networks: &Networks,
) -> Result<OfPairs> {
    let least = networks.lpips.as_ref().map_or(0, |lpips| lpips.backbone().min_side());
    check_sizes(pairs, [reference, pictures], least.max(MIN_SSIM_SIDE))?;
    let bar = ProgressBar::new(pairs.len() as u64).with_message("pairs");
    let (mut psnr, mut structures, mut distances, mut equal) = (0.0, 0.0, 0.0, 0);
    for &[place, judged] in pairs {
        let (a, b) = (reference.image(place)?, pictures.image(judged)?);
        if a == b {
            equal += 1;
        } else {
            psnr += a.psnr(&b);
        }
        structures += ssim(&a, &b);
        if let Some(lpips) = &networks.lpips {
            let [a, b] = [a, b].map(|image| image.to_tensor(&networks.device));
            distances += f64::from(lpips.forward(a, b).into_scalar::<f32>());
        }
        bar.inc(1);
    }
    bar.finish_and_clear();
    let (count, different) = (pairs.len() as f64, pairs.len() - equal);
    let lpips = networks.lpips.as_ref().map(|lpips| LpipsReport {
        network: match lpips.backbone() {
            Backbone::Vgg16 => "VGG16",
            Backbone::AlexNet => "AlexNet",
        },
        mean: distances / count,
    });
    let psnr = (different > 0).then(|| psnr / different as f64);
    Ok(OfPairs { equal, psnr, ssim: structures / count, lpips })
}

/// Compares all pictures with all others: the Fréchet inception distance, and the nearest to each.
fn compare_all(
    space: Option<Space>,
    both: [&Pictures; 2],
    network: Option<&Inception>,
) -> Result<(Option<f64>, Option<Vec<Nearest>>)> {
    let features = match network {
        Some(network) => Some([both[0].features(network)?, both[1].features(network)?]),
        None => None,
    };
    let distance = features.as_ref().map(|[a, b]| frechet_distance(a, b)).transpose();
    let distance = distance.context("the Fréchet inception distance")?;
    let nearest = match (space, &features) {
        (Some(Space::Features), Some([a, b])) => Some(nearest(both, [a, b], one_minus_cosine)),
        (Some(_), _) => {
            let [a, b] = [both[0].pixels()?, both[1].pixels()?];
            Some(nearest(both, [&a, &b], root_mean_square))
        }
        (None, _) => None,
    };
    Ok((distance, nearest))
}

/// The true picture that is nearest to each judged one, by their rows of values.
fn nearest(
    [reference, pictures]: [&Pictures; 2],
    [true_rows, rows]: [&[Vec<f32>]; 2],
    distance: fn(&[f32], &[f32]) -> f64,
) -> Vec<Nearest> {
    let of = |(row, picture): (&Vec<f32>, &String)| {
        let distances = true_rows.iter().map(|other| distance(row, other)).enumerate();
        let nearest = distances.min_by(|a, b| a.1.total_cmp(&b.1));
        let (place, distance) = nearest.expect("a folder without pictures is refused");
        Nearest { picture: picture.clone(), nearest: reference.names[place].clone(), distance }
    };
    rows.iter().zip(&pictures.names).map(of).collect()
}

fn root_mean_square(a: &[f32], b: &[f32]) -> f64 {
    let squares = a.iter().zip(b).map(|(a, b)| f64::from(a - b).powi(2));
    (squares.sum::<f64>() / a.len() as f64).sqrt()
}

fn one_minus_cosine(a: &[f32], b: &[f32]) -> f64 {
    1.0 - cosine(a, b)
}

impl Report {
    /// The report as a table for people.
    fn lines(&self) -> Vec<String> {
        let Self { reference, pictures, pairs, .. } = self;
        let mut lines =
            vec![format!("{reference} true pictures, {pictures} judged, {pairs} pairs")];
        let mut line = |name: &str, value: String| lines.push(format!("{name:<12} {value}"));
        if let Some(of_pairs) = &self.of_pairs {
            let equal = match of_pairs.equal {
                0 => String::new(),
                count => format!(" ({count} pairs are equal and left out)"),
            };
            match of_pairs.psnr {
                Some(psnr) => line("PSNR", format!("{psnr:.2} dB{equal}")),
                None => line("PSNR", "infinite: all pairs are equal".to_owned()),
            }
            line("SSIM", format!("{:.4}", of_pairs.ssim));
            if let Some(LpipsReport { network, mean }) = &of_pairs.lpips {
                line("LPIPS", format!("{mean:.4} ({network})"));
            }
        }
        if let Some(fid) = self.fid {
            line("FID", format!("{fid:.3} ({reference} and {pictures} pictures)"));
        }
        if let Some(score) = self.clip_score {
            line("CLIP score", format!("{score:.2} ({pictures} pictures)"));
        }
        for Nearest { picture, nearest, distance } in self.nearest.iter().flatten() {
            let [picture, nearest] = [picture, nearest].map(|name| visible(name));
            lines.push(format!("{picture}: nearest {nearest}, distance {distance:.4}"));
        }
        lines
    }
}
