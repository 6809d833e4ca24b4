//! `wuerstchen generate`: prompts and pictures to PNG files.

use std::path::PathBuf;
use std::time::Instant;

use anyhow::{Context, Result, bail};
use clap::Args;
use futures_lite::future::block_on;
use serde::Serialize;
use serde_json::{Value, json};
use wuerstchen::fs::{file_name, read_text};
use wuerstchen::interpolate::shares;
use wuerstchen::text::unknown_syntax;
use wuerstchen::{
    Batch, Defaults, GenerateOptions, Generated, Image, Mask, OptionsError, Pipeline, Progress,
    PromptSyntax, Provenance, Settings, Source,
};

use crate::lora::LoraArg;
use crate::model::{Loaded, ModelArgs};
use crate::output::{Output, png_files};
use crate::pictures;
use crate::progress::StepsBar;

/// Arguments of `wuerstchen generate`.
#[derive(Args)]
pub(crate) struct GenerateArgs {
    /// What the picture shows; may be left out where there is a picture to start from
    #[arg(required_unless_present_any = ["prompts", "image", "picture_prompt"])]
    prompt: Option<String>,
    /// The PNG file to write, or its folder; several pictures are numbered, out-0.png, out-1.png, …
    #[arg(short, long, value_name = "FILE", default_value = "out.png")]
    output: PathBuf,
    #[command(flatten)]
    model: ModelArgs,
    #[command(flatten)]
    inputs: Inputs,
    #[command(flatten)]
    options: GenerateOptions,
    /// Print what was made as JSON
    #[arg(long)]
    json: bool,
}

/// Files and further prompts.
#[derive(Args)]
struct Inputs {
    /// A file with a prompt on every line, of each of which pictures are made and written before the next;
    /// of 16 lines at a time where the parts of the model take turns on the device
    #[arg(long, value_name = "FILE", conflicts_with_all = ["prompt", "prompt_to"])]
    prompts: Option<PathBuf>,
    /// A picture to start from: PNG, JPEG, WebP, GIF, BMP or TIFF; --strength says how far to go
    #[arg(long, value_name = "FILE")]
    image: Option<PathBuf>,
    /// What of the picture to paint anew: white in a picture of the same size, grey mixes
    #[arg(long, value_name = "FILE", requires = "image")]
    mask: Option<PathBuf>,
    /// Make frames on the way from the prompt to this one
    #[arg(long, value_name = "PROMPT")]
    prompt_to: Option<String>,
    /// Make frames on the way from the picture to this one
    #[arg(long, value_name = "FILE", requires = "image", conflicts_with = "mask")]
    image_to: Option<PathBuf>,
    /// Frames on the way, both ends included [default: 8]
    #[arg(long, value_name = "N")]
    frames: Option<usize>,
    /// A picture as a prompt, which the result shall be like, beside or without words; may be given several
    /// times. Stable Cascade with its image encoder takes them
    #[arg(long, value_name = "FILE")]
    picture_prompt: Vec<PathBuf>,
    /// A LoRA of Stage C, or its folder, and its weight; may be given several times
    #[arg(long, value_name = "FILE[:WEIGHT]")]
    lora: Vec<LoraArg>,
}

/// The pictures that are read.
struct Pictures {
    image: Option<Image>,
    image_to: Option<Image>,
    mask: Option<Mask>,
    prompts: Vec<Image>,
}

/// What `--json` prints.
#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Report<'a> {
    files: Vec<String>,
    device: &'a str,
    load_secs: f64,
    generate_secs: f64,
    /// Of every file.
    prompts: Vec<&'a str>,
    settings: &'a Settings,
}

/// Prompts or frames that are made together where the parts of a model take turns on the device: each part
/// is loaded once for all of them.
const TURN: usize = 16;

/// Generates and writes.
pub(crate) fn run(args: &GenerateArgs) -> Result<()> {
    let inputs = &args.inputs;
    let (prompts, shares) = (args.prompts()?, args.shares()?);
    let frame_count = shares.len();
    let outputs = args.outputs(prompts.len() * frame_count)?;
    let pictures = inputs.pictures()?;
    let Loaded { pipeline, device, load_secs } = args.model.load(&inputs.lora)?;

    let started = Instant::now();
    let settings = pipeline.settings(&args.options, pictures.image.as_ref())?;
    args.tell_of_prompts(&pipeline, &prompts)?;
    let frames = block_on(pipeline.frames(pictures.source(&settings), shares, &settings))?;
    let like = if pictures.prompts.is_empty() {
        None
    } else {
        Some(block_on(pipeline.picture_prompt(&pictures.prompts))?)
    };
    let batches = |prompt| frames.batches(prompt, inputs.prompt_to.as_deref(), settings.count);
    let batches = prompts.iter().flat_map(|prompt| batches(prompt));
    let batches: Vec<_> = batches.map(|batch| Batch { pictures: like.as_ref(), ..batch }).collect();
    let (mut generate_secs, mut made_settings) = (0.0, None);
    let (mut left, mut frames) = (outputs.iter(), (0..frame_count).cycle());
    for batches in batches.chunks(if pipeline.is_resident() { 1 } else { TURN }) {
        let bar = StepsBar::default();
        let mut on_step = async |progress: Progress<'_>| bar.show(&progress);
        let made = block_on(pipeline.generate_batches(batches, &settings, &mut on_step));
        bar.finish();
        let made = made?;
        generate_secs = started.elapsed().as_secs_f64();
        let frames = frames.by_ref().map(|frame| [frame, frame_count]);
        let made_of = batches.iter().zip(frames);
        args.write(&mut left, &pipeline, made_of.zip(&made))?;
        made_settings = made.into_iter().next().map(|made| made.settings);
    }
    if args.json {
        let report = Report {
            files: outputs.iter().map(|output| output.path.display().to_string()).collect(),
            device: &device,
            load_secs,
            generate_secs,
            prompts: batches.iter().flat_map(|batch| batch.prompts.clone()).collect(),
            settings: &made_settings.unwrap_or(settings),
        };
        crate::print(&serde_json::to_string(&report)?)?;
    }
    Ok(())
}

impl GenerateArgs {
    /// The prompts of the command line or of a file; at least one.
    fn prompts(&self) -> Result<Vec<String>> {
        let Some(path) = &self.inputs.prompts else {
            return Ok(vec![self.prompt.clone().unwrap_or_default()]);
        };
        let text = read_text(path)?;
        let lines = text.lines().map(str::trim).filter(|line| !line.is_empty());
        let prompts: Vec<_> = lines.map(str::to_owned).collect();
        if prompts.is_empty() {
            bail!("{}: expected a prompt on every line, found none", path.display())
        } else {
            Ok(prompts)
        }
    }

    /// The shares of the way that the frames have gone.
    fn shares(&self) -> Result<Vec<f32>, OptionsError> {
        let Inputs { prompt_to, image_to, frames, .. } = &self.inputs;
        let has_end = prompt_to.is_some() || image_to.is_some();
        shares(has_end, *frames, self.options.count.unwrap_or(1))
    }

    /// The files to write, of so many prompts or frames.
    fn outputs(&self, batches: usize) -> Result<Vec<Output>> {
        // The model is not known yet: these defaults know the options of all families.
        let count = self.options.resolve(&Defaults::wuerstchen_v1())?.count;
        let Inputs { prompts, image, image_to, mask, lora, picture_prompt, .. } = &self.inputs;
        let inputs = [prompts, image, image_to, mask].into_iter().flatten().map(PathBuf::as_path);
        let inputs = inputs.chain(picture_prompt.iter().map(PathBuf::as_path));
        let inputs = inputs.chain(self.model.path()).chain(lora.iter().map(|lora| &*lora.path));
        png_files(&self.output, "out.png", batches * count, &inputs.collect::<Vec<_>>())
    }

    /// Says what of the prompts does nothing.
    fn tell_of_prompts(&self, pipeline: &Pipeline, prompts: &[String]) -> Result<()> {
        let further = [Some(&self.options.negative_prompt), self.inputs.prompt_to.as_ref()];
        for prompt in prompts.iter().chain(further.into_iter().flatten()) {
            tell_of_prompt(pipeline, prompt, self.options.prompt_syntax)?;
        }
        Ok(())
    }

    /// Writes pictures to the next files.
    fn write<'a, 'm>(
        &self,
        outputs: &mut impl Iterator<Item = &'a Output>,
        pipeline: &Pipeline,
        made: impl Iterator<Item = ((&'m Batch<'m>, [usize; 2]), &'m Generated)>,
    ) -> Result<()> {
        for ((batch, frame), made) in made {
            for (i, image) in made.images.iter().enumerate() {
                let mut settings = serde_json::to_value(&made.settings)?;
                self.inputs.describe(&mut settings, batch, frame);
                let provenance = Provenance {
                    prompt: batch.prompts[i].to_owned(),
                    model: pipeline.card.name.clone(),
                    image: i,
                    version: env!("CARGO_PKG_VERSION").to_owned(),
                    settings,
                };
                let png = provenance.to_png(image).context("cannot encode the picture")?;
                let output = outputs.next().context("more pictures were made than planned")?;
                wuerstchen::fs::write(&output.path, &png)?;
                output.tell();
            }
        }
        Ok(())
    }
}

impl Inputs {
    fn pictures(&self) -> Result<Pictures> {
        let read = |path: &Option<PathBuf>| path.as_deref().map(pictures::read_image).transpose();
        Ok(Pictures {
            image: read(&self.image)?,
            image_to: read(&self.image_to)?,
            mask: self.mask.as_deref().map(pictures::read_mask).transpose()?,
            prompts: self
                .picture_prompt
                .iter()
                .map(|path| pictures::read_image(path))
                .collect::<Result<_>>()?,
        })
    }

    /// Adds what pictures are made of to the settings that they carry, and which of how many frames they are.
    fn describe(&self, settings: &mut Value, batch: &Batch<'_>, [frame, frames]: [usize; 2]) {
        if frames > 1 {
            (settings["frame"], settings["frames"]) = (json!(frame), json!(frames));
        }
        for (name, path) in
            [("image", &self.image), ("imageTo", &self.image_to), ("mask", &self.mask)]
        {
            if let Some(path) = path {
                settings[name] = json!(file_name(path));
            }
        }
        if let Some((prompt, _)) = batch.towards {
            settings["promptTo"] = json!(prompt);
        }
        if !self.picture_prompt.is_empty() {
            settings["picturePrompts"] = self.picture_prompt.iter().map(|p| file_name(p)).collect();
        }
        if !self.lora.is_empty() {
            let lora = |lora: &LoraArg| format!("{}:{}", file_name(&lora.path), lora.weight);
            settings["loras"] = self.lora.iter().map(lora).collect();
        }
    }
}

impl Pictures {
    /// Where the pictures start; says where one is changed to fit.
    fn source(&self, settings: &Settings) -> Option<Source<'_>> {
        let image = self.image.as_ref()?;
        let size = |image: &Image| (image.width, image.height);
        let target = (settings.width, settings.height);
        for image in self.image_to.iter().chain([image]).filter(|image| size(image) != target) {
            let (width, height) = size(image);
            eprintln!(
                "a picture of {width} x {height} pixels is scaled and cut to {} x {}",
                target.0, target.1
            );
        }
        Some(Source { image, mask: self.mask.as_ref(), towards: self.image_to.as_ref() })
    }
}

/// Most letters of a prompt's end in a message.
const SHOWN_LETTERS: usize = 500;

/// Says what of a prompt does nothing: what is too long for the model, and what other programs would not
/// take for words.
pub(crate) fn tell_of_prompt(
    pipeline: &Pipeline,
    prompt: &str,
    syntax: PromptSyntax,
) -> Result<()> {
    let unread = pipeline.unread(prompt, syntax).map_err(wuerstchen::Error::from)?;
    if let Some(end) = unread.cut_off {
        let letters = end.chars().count();
        let shown: String = end.chars().take(SHOWN_LETTERS).collect();
        let rest = match letters.saturating_sub(SHOWN_LETTERS) {
            0 => String::new(),
            rest => format!(" and {rest} letters more"),
        };
        eprintln!("the prompt is longer than the model reads, which leaves out {shown:?}{rest}");
    }
    if !unread.unknown_words.is_empty() {
        eprintln!("the model does not know: {}", unread.unknown_words.join(", "));
    }
    if syntax == PromptSyntax::Weighted {
        for found in unknown_syntax(prompt) {
            eprintln!("{found:?} in the prompt is taken for words");
        }
    }
    Ok(())
}
