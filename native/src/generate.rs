//! `wuerstchen generate`: prompts and pictures to PNG files.

use std::collections::BTreeSet;
use std::path::PathBuf;
use std::time::Instant;

use anyhow::{Context, Result, bail};
use clap::Args;
use futures_lite::future::block_on;
use serde::Serialize;
use serde_json::{Value, json};
use wuerstchen::fs::{file_name, read_text};
use wuerstchen::text::emphasis::{MAX_WEIGHT, Passage, cut_passages};
use wuerstchen::text::unknown_syntax;
use wuerstchen::{
    Defaults, GenerateOptions, Generated, Image, Mask, Pipeline, Prepared, Progress, PromptSyntax,
    Request, Settings, SourcePictures, TokenSampling,
};

use crate::lora::LoraArg;
use crate::model::{Loaded, ModelArgs};
use crate::output::{Output, png_files};
use crate::progress::StepsBar;
use crate::terminal::counted;
use crate::{as_option, pictures};

/// Arguments of `wuerstchen generate`.
#[derive(Args)]
pub(crate) struct GenerateArgs {
    /// What the picture shows; may be left out with --prompts, --image or --picture-prompt
    #[arg(required_unless_present_any = ["prompts", "image", "picture_prompt"])]
    prompt: Option<String>,
    /// The PNG file to write, or its folder. Several pictures are numbered, prompt by prompt: out-0.png, out-1.png, …
    #[arg(short, long, value_name = "FILE", default_value = "out.png")]
    output: PathBuf,
    #[command(flatten)]
    model: ModelArgs,
    #[command(flatten)]
    inputs: Inputs,
    #[command(flatten)]
    request: Request,
    /// Print what was made as JSON
    #[arg(long)]
    json: bool,
}

/// Files and further prompts.
#[derive(Args)]
struct Inputs {
    /// A file with a prompt on every line. The pictures of a line are written before the next line begins; a
    /// model whose parts take turns on the device makes those of 16 lines at a time
    #[arg(long, value_name = "FILE", conflicts_with_all = ["prompt", "prompt_to"])]
    prompts: Option<PathBuf>,
    /// A picture to start from: PNG, JPEG, WebP, GIF, BMP or TIFF; --strength says how far to go
    #[arg(long, value_name = "FILE")]
    image: Option<PathBuf>,
    /// A picture of the same size that says where to paint anew: white paints, black keeps, grey mixes
    #[arg(long, value_name = "FILE", requires = "image")]
    mask: Option<PathBuf>,
    /// Make frames on the way from the picture to this one
    #[arg(long, value_name = "FILE", requires = "image", conflicts_with = "mask")]
    image_to: Option<PathBuf>,
    /// A picture that the result shall resemble, with or without a prompt in words; may be given several times. Only
    /// Stable Cascade with its image encoder takes these
    #[arg(long, value_name = "FILE")]
    picture_prompt: Vec<PathBuf>,
    /// A picture that the result follows. The model's ControlNet decides in what: edges, the part beside a mask, or the
    /// content in half the resolution
    #[arg(long, value_name = "FILE")]
    control_image: Option<PathBuf>,
    /// The part of that picture to paint anew, of the same size, for a ControlNet for inpainting: white paints
    #[arg(long, value_name = "FILE", requires = "control_image")]
    control_mask: Option<PathBuf>,
    /// The ControlNet to use in place of the model's own: a file of Stable Cascade's authors
    #[arg(long, value_name = "FILE", requires = "control_image")]
    controlnet: Option<PathBuf>,
    /// A LoRA of Stage C, or its folder, and its weight; may be given several times
    #[arg(long, value_name = "FILE[:WEIGHT]")]
    lora: Vec<LoraArg>,
}

/// What `--json` prints.
#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Report<'a> {
    files: Vec<String>,
    device: &'a str,
    load_secs: f64,
    generate_secs: f64,
    /// The prompt of every file.
    prompts: Vec<&'a str>,
    /// [`Settings`] and the names of the files, as pictures carry them.
    settings: Value,
}

/// Prompts or frames that are made together where the parts of a model take turns on the device: each part
/// is loaded once for all of them.
const TURN: usize = 16;

/// Generates and writes.
pub(crate) fn run(args: &GenerateArgs) -> Result<()> {
    let inputs = &args.inputs;
    let request =
        Request { prompts: args.prompts()?, pictures: inputs.pictures()?, ..args.request.clone() };
    request.check()?;
    let outputs = args.outputs(&request)?;
    let Loaded { pipeline, device, load_secs } =
        args.model.load(&inputs.lora, inputs.controlnet.as_deref())?;

    let started = Instant::now();
    for text in request.texts() {
        tell_of_prompt(&pipeline, text, request.options.prompt_syntax)?;
    }
    let prepared = block_on(pipeline.prepare(request))?;
    tell_of_sizes(&prepared);
    if prepared.lacks_edges() {
        say!("no edges were found in the --control-image: the ControlNet sees an empty picture");
    }
    tell_of_guidance(&prepared.settings, prepared.settings.strength != Some(0.0));
    tell_of_unused(&args.request.options, &prepared.settings);
    let batches = prepared.batches();
    let (mut generate_secs, mut made_settings) = (0.0, None);
    let (mut left, mut numbers) = (outputs.iter(), 0..);
    for batches in batches.chunks(if pipeline.is_resident() { 1 } else { TURN }) {
        let bar = StepsBar::default();
        let mut on_step = async |progress: Progress<'_>| bar.show(&progress);
        let made = block_on(pipeline.generate_batches(batches, &prepared.settings, &mut on_step));
        bar.finish();
        let made = made?;
        generate_secs = started.elapsed().as_secs_f64();
        for (made, batch) in made.iter().zip(&mut numbers) {
            inputs.write(&mut left, &prepared, made, batch, &pipeline.card.name)?;
        }
        made_settings = made.into_iter().next().map(|made| made.settings);
    }
    if args.json {
        let settings = made_settings.as_ref().unwrap_or(&prepared.settings);
        let mut settings = serde_json::to_value(settings)?;
        inputs.describe(&mut settings);
        let report = Report {
            files: outputs.iter().map(|output| output.path.display().to_string()).collect(),
            device: &device,
            load_secs,
            generate_secs,
            prompts: batches.iter().flat_map(|batch| batch.prompts.clone()).collect(),
            settings,
        };
        crate::print(&serde_json::to_string(&report)?)?;
    }
    Ok(())
}

impl GenerateArgs {
    /// The prompts of the command line or of a file; at least one.
    fn prompts(&self) -> Result<Vec<String>> {
        let Some(path) = &self.inputs.prompts else {
            // As a text that is copied from a file may begin.
            let prompt = self.prompt.as_deref().unwrap_or_default();
            return Ok(vec![prompt.trim_start_matches('\u{feff}').to_owned()]);
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

    /// The files to write.
    fn outputs(&self, request: &Request) -> Result<Vec<Output>> {
        // The model is not loaded yet: these defaults allow all options that some family has.
        let defaults = match request.options.decoder_shift {
            Some(_) => Defaults::stable_cascade(),
            None => Defaults::wuerstchen_v1(),
        };
        let count = request.options.resolve(&defaults)?.count;
        let pictures = request.prompts.len() * request.shares()?.len() * count;
        let Inputs { prompts, image, image_to, mask, lora, picture_prompt, .. } = &self.inputs;
        let Inputs { control_image, control_mask, controlnet, .. } = &self.inputs;
        let inputs = [prompts, image, image_to, mask, control_image, control_mask, controlnet];
        let inputs = inputs.into_iter().flatten().map(PathBuf::as_path);
        let inputs = inputs.chain(picture_prompt.iter().map(PathBuf::as_path));
        let inputs = inputs.chain(self.model.path()).chain(lora.iter().map(|lora| &*lora.path));
        png_files(&self.output, "out.png", pictures, &inputs.collect::<Vec<_>>())
    }
}

impl Inputs {
    fn pictures(&self) -> Result<SourcePictures> {
        let read = |path: &Option<PathBuf>| path.as_deref().map(pictures::read_image).transpose();
        let prompts = self.picture_prompt.iter();
        Ok(SourcePictures {
            image: read(&self.image)?,
            mask: self.mask.as_deref().map(pictures::read_mask).transpose()?,
            image_to: read(&self.image_to)?,
            picture_prompts: prompts
                .map(|path| pictures::read_image(path))
                .collect::<Result<_>>()?,
            control_image: read(&self.control_image)?,
            control_mask: self.control_mask.as_deref().map(pictures::read_mask).transpose()?,
        })
    }

    /// Writes the pictures of a batch to the next files.
    fn write<'a>(
        &self,
        outputs: &mut impl Iterator<Item = &'a Output>,
        prepared: &Prepared,
        made: &Generated,
        batch: usize,
        model: &str,
    ) -> Result<()> {
        for (i, image) in made.images.iter().enumerate() {
            let mut provenance = prepared.provenance(&made.settings, model, [batch, i]);
            self.describe(&mut provenance.settings);
            let png = provenance.to_png(image).context("cannot encode the picture")?;
            let output = outputs.next().context("more pictures were made than planned")?;
            wuerstchen::fs::write(&output.path, &png)?;
            output.tell();
        }
        Ok(())
    }

    /// Adds the names of the files to the settings that pictures carry.
    fn describe(&self, settings: &mut Value) {
        for (name, path) in [
            ("image", &self.image),
            ("imageTo", &self.image_to),
            ("mask", &self.mask),
            ("controlImage", &self.control_image),
            ("controlMask", &self.control_mask),
            ("controlnet", &self.controlnet),
        ] {
            if let Some(path) = path {
                settings[name] = json!(file_name(path));
            }
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

/// Reports which source pictures are scaled and cut to fit.
fn tell_of_sizes(prepared: &Prepared) {
    let Settings { width, height, .. } = prepared.settings;
    let SourcePictures { image, mask, image_to, control_image, picture_prompts, .. } =
        &prepared.request().pictures;
    for Image { width, height, .. } in
        picture_prompts.iter().filter(|image| image.width != image.height)
    {
        say!("of a picture prompt of {width} x {height} pixels the square in the middle counts");
    }
    let cut = |image: &&Image| image.width * height != image.height * width;
    for Image { width: found_width, height: found_height, .. } in control_image.iter().filter(cut) {
        say!(
            "a picture of {found_width} x {found_height} pixels is cut to the shape of {width} x {height}"
        );
    }
    for image in image_to.iter().chain(image) {
        tell_of_size(image, &prepared.settings);
    }
    if mask.as_ref().is_some_and(|mask| is_cut_off(mask, [width, height])) {
        say!(
            "all that is white of the mask is cut off with the picture, so nothing is painted anew"
        );
    }
}

/// Whether a mask has white parts, but none in the middle that is left when its picture is scaled and cut to a width and
/// height.
fn is_cut_off(mask: &Mask, [width, height]: [usize; 2]) -> bool {
    let scale = (width as f64 / mask.width as f64).max(height as f64 / mask.height as f64);
    let left = |side: usize, to: usize| {
        let cut = (side as f64 - to as f64 / scale) / 2.0;
        cut.floor() as usize..side - cut.floor() as usize
    };
    let (columns, rows) = (left(mask.width, width), left(mask.height, height));
    let is_white = |values: &[u8]| values.iter().any(|&value| value > 0);
    let mut seen = mask.values.chunks(mask.width).skip(rows.start).take(rows.len());
    is_white(&mask.values) && !seen.any(|row| is_white(&row[columns.clone()]))
}

/// Reports that a picture is scaled and cut to fit, if so.
pub(crate) fn tell_of_size(image: &Image, &Settings { width, height, .. }: &Settings) {
    let (found_width, found_height) = (image.width, image.height);
    if (found_width, found_height) != (width, height) {
        say!(
            "a picture of {found_width} x {found_height} pixels is scaled and cut to {width} x {height}"
        );
    }
}

/// Reports that the negative prompt does nothing, if so. Stage C's guidance scale counts only where Stage C runs.
pub(crate) fn tell_of_guidance(settings: &Settings, runs_prior: bool) {
    if !settings.negative_prompt.is_empty() && largest_guidance_scale(settings, runs_prior) <= 1.0 {
        say!("the --negative-prompt does nothing: no guidance scale is above 1");
    }
}

/// The largest guidance scale of the stages that run.
fn largest_guidance_scale(settings: &Settings, runs_prior: bool) -> f64 {
    let end = settings.tokens.map_or(0.0, |tokens| tokens.decoder_guidance_scale_end);
    let prior = if runs_prior { settings.prior_guidance_scale } else { 0.0 };
    prior.max(settings.decoder_guidance_scale).max(end)
}

/// Reports the options that do nothing beside the others.
fn tell_of_unused(given: &GenerateOptions, settings: &Settings) {
    let runs_prior = settings.strength != Some(0.0);
    let tell = |reason: &str, options: &[(&str, bool)]| {
        for (name, _) in options.iter().filter(|(_, is_given)| *is_given) {
            say!("the {} does nothing: {reason}", as_option(name));
        }
    };
    if !runs_prior {
        let options = [
            ("prior_steps", given.prior_steps.is_some()),
            ("timesteps", given.timesteps.is_some()),
            ("prior_guidance_scale", given.prior_guidance_scale.is_some()),
            ("prior_shift", given.prior_shift.is_some()),
        ];
        tell("Stage C does not run at a strength of 0", &options);
    }
    if largest_guidance_scale(settings, runs_prior) <= 1.0 {
        let is_given = given.guidance_rescale.is_some_and(|share| share > 0.0);
        tell("no guidance scale is above 1", &[("guidance_rescale", is_given)]);
    }
    let sampling = settings.tokens.map(|tokens| tokens.token_sampling);
    if sampling == Some(TokenSampling::Argmax) {
        let options = [
            ("temperature", given.temperature.is_some()),
            ("temperature_end", given.temperature_end.is_some()),
        ];
        tell("argmax takes the likeliest tokens at any temperature", &options);
    }
}

/// Most unknown words in a message.
const SHOWN_WORDS: usize = 20;

/// Most characters of a prompt's end, or of a word, in a message.
const SHOWN_LETTERS: usize = 500;

/// Reports the parts of a prompt that do nothing: those beyond the model's length, unknown words, and syntax of other
/// programs that is taken for words here. `field` is the name of the option with the prompt.
pub(crate) fn tell_of_prompt(
    pipeline: &Pipeline,
    (field, prompt): (&str, &str),
    syntax: PromptSyntax,
) -> Result<()> {
    let unread = pipeline.unread(prompt, syntax).map_err(wuerstchen::Error::from)?;
    let is_main = field == "prompt";
    let field = if is_main { field.to_owned() } else { as_option(field) };
    if let Some(end) = unread.cut_off {
        let letters = end.chars().count();
        let shown: String = end.chars().take(SHOWN_LETTERS).collect();
        let rest = match letters.saturating_sub(SHOWN_LETTERS) {
            0 => String::new(),
            rest => format!(" and {rest} letters more"),
        };
        say!("the {field} is longer than the model reads, which leaves out {shown:?}{rest}");
    }
    if !unread.unknown_words.is_empty() {
        let of = if is_main { String::new() } else { format!(" these words of the {field}") };
        let shown = unread.unknown_words.iter().take(SHOWN_WORDS);
        let shown: Vec<String> =
            shown.map(|word| word.chars().take(SHOWN_LETTERS).collect()).collect();
        let more = match unread.unknown_words.len().saturating_sub(SHOWN_WORDS) {
            0 => String::new(),
            more => format!(" and {}", counted(more, "other word")),
        };
        say!("the model does not know{of}: {}{more}", shown.join(", "));
    }
    if syntax == PromptSyntax::Weighted {
        for Passage { text, weight } in cut_passages(prompt) {
            let text: String = text.chars().take(SHOWN_LETTERS).collect();
            say!("the weight {weight} of {text:?} in the {field} is cut to {MAX_WEIGHT} in size");
        }
        for found in BTreeSet::from_iter(unknown_syntax(prompt)).iter().take(SHOWN_WORDS) {
            say!("{found:?} in the {field} is taken for words");
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn white_parts_of_masks_can_be_cut_off() {
        let cut_off = |white: Option<usize>| {
            let mut mask = Mask { width: 10, height: 6, values: vec![0; 60] };
            white.into_iter().for_each(|place| mask.values[place] = 1);
            is_cut_off(&mask, [12, 12])
        };
        // Two columns are lost on each side.
        assert_eq!(
            [0, 1, 2, 7, 8, 59].map(|place| cut_off(Some(place))),
            [true, true, false, false, true, true]
        );
        // Another line tells of a mask that is all black.
        assert!(!cut_off(None));
    }
}
