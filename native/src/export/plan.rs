//! Which pictures an export makes: as many and as large as the model makes in minutes.

use anyhow::{Result, anyhow};
use clap::Args;
use wuerstchen::options::{MAX_COUNT, MAX_STEPS};
use wuerstchen::{GenerateOptions, OptionsError, Pipeline, SelfTest, Settings};

use crate::usage;

/// What the caller may choose.
#[derive(Args)]
pub(super) struct PlanArgs {
    /// Pictures to make to fit the colours of previews, at most 256; 0 for a model without previews
    /// [default: 64; 4 for a model with more than 300 million parameters]
    #[arg(long, value_name = "N")]
    preview_pictures: Option<usize>,
    /// Pictures to make with the stored and with the given weights, to measure what storing costs, at most 256
    /// [default: 2; 0 for a large model]
    #[arg(long, value_name = "N")]
    check: Option<usize>,
    /// Width and height of all these pictures, and of the one that tests a browser's device [default: the
    /// model's; 256 for a large model]
    #[arg(long, value_name = "PIXELS")]
    picture_size: Option<usize>,
    /// Steps of each of the stages C and B for these pictures, at most 1000; the test has 2 [default: the model's;
    /// 12 for a large model]
    #[arg(long, value_name = "N")]
    picture_steps: Option<usize>,
}

/// Pictures to fit colours to.
const PREVIEW_PICTURES: usize = 64;

/// Pictures that tell what storing costs.
const CHECK_PICTURES: usize = 2;

/// A model with more parameters is large: on a CPU, its own pictures would take hours.
const LARGE: usize = 300_000_000;

/// Pictures of a large model to fit colours to. Those of the published one have 144 cells of image
/// embeddings, for 17 unknowns of a colour.
const LARGE_PREVIEW_PICTURES: usize = 4;

impl PlanArgs {
    /// Fails for numbers out of their range, and where the model cannot make pictures of the chosen size. The errors of
    /// pictures would name the options of other commands.
    pub(super) fn check(&self, pipeline: &Pipeline) -> Result<()> {
        let ranges = [
            ("--preview-pictures", self.preview_pictures, 0..=MAX_COUNT),
            ("--check", self.check, 0..=MAX_COUNT),
            ("--picture-steps", self.picture_steps, 1..=MAX_STEPS),
        ];
        for (option, value, range) in ranges {
            if let Some(found) = value.filter(|value| !range.contains(value)) {
                let (least, most) = (range.start(), range.end());
                let error = anyhow!("{option} must be between {least} and {most}, got {found}");
                return Err(usage(&error));
            }
        }
        let Some(size) = self.picture_size else { return Ok(()) };
        match pipeline.sizes(size, size) {
            // One option sets both sides.
            Err(OptionsError::Size { found, nearest, .. }) => {
                Err(OptionsError::Size { field: "picture_size", found, nearest }.into())
            }
            other => Ok(other.map(|_| ())?),
        }
    }
}

/// Least side in pixels of a large model's pictures: the smallest possible side from here on is taken.
const LARGE_PICTURE_SIZE: usize = 256;

/// Steps of a large model's pictures, of which only the colours matter.
const LARGE_PICTURE_STEPS: usize = 12;

/// The pictures to make.
#[derive(Debug, PartialEq)]
pub(super) struct Plan {
    /// The options of the golden vectors.
    pub(super) self_test: GenerateOptions,
    /// The options of the pictures to which the colours of previews are fitted.
    pub(super) preview: Option<GenerateOptions>,
    /// The options of the pictures that measure what storing costs.
    pub(super) check: Option<GenerateOptions>,
}

impl Plan {
    /// The values that the caller chose, and otherwise those that suit a model of so many `parameters`.
    pub(super) fn new(args: &PlanArgs, pipeline: &Pipeline, parameters: usize) -> Self {
        let possible = |side: &usize| pipeline.sizes(*side, *side).is_ok();
        let large_size = || (LARGE_PICTURE_SIZE..=pipeline.card.defaults.width).find(possible);
        let (preview, check, size, steps) = if parameters > LARGE {
            (LARGE_PREVIEW_PICTURES, 0, large_size(), Some(LARGE_PICTURE_STEPS))
        } else {
            (PREVIEW_PICTURES, CHECK_PICTURES, None, None)
        };
        let (size, steps) = (args.picture_size.or(size), args.picture_steps.or(steps));
        let pictures = |count| GenerateOptions {
            count: Some(count),
            width: size,
            height: size,
            prior_steps: steps,
            decoder_steps: steps,
            ..Default::default()
        };
        let preview = args.preview_pictures.unwrap_or(preview);
        let check = args.check.unwrap_or(check);
        Self {
            self_test: SelfTest::options(size),
            preview: (preview > 0).then(|| pictures(preview)),
            check: (check > 0).then(|| pictures(check)),
        }
    }

    /// What will be made, a line for each purpose.
    ///
    /// # Errors
    ///
    /// Names an option that the model cannot run.
    pub(super) fn text(&self, pipeline: &Pipeline) -> Result<String, OptionsError> {
        let line = |purpose: &str, options: &GenerateOptions| {
            let settings = pipeline.settings(options, None)?;
            pipeline.sizes(settings.height, settings.width)?;
            Ok(format!("{purpose}: {}", describe(&settings)))
        };
        let mut lines = vec![line("golden vectors", &self.self_test)?];
        lines.push(match &self.preview {
            Some(options) => line("colours of previews", options)?,
            None => "colours of previews: none".to_owned(),
        });
        lines.push(match &self.check {
            Some(options) => {
                line("what storing costs", options)? + ", by the given and by the stored weights"
            }
            None => "what storing costs: no pictures, only weights are compared".to_owned(),
        });
        Ok(lines.join("\n"))
    }
}

fn describe(settings: &Settings) -> String {
    let Settings { count, width, height, prior_timesteps, decoder_timesteps, .. } = settings;
    // There is one more time than steps, because the last time is where the last step ends.
    let (prior, decoder) = (prior_timesteps.len() - 1, decoder_timesteps.len() - 1);
    let pictures = if *count == 1 { "picture" } else { "pictures" };
    format!(
        "{count} {pictures} of {width} x {height} pixels, {prior} steps of Stage C and {decoder} of \
         Stage B"
    )
}

#[cfg(test)]
mod tests {
    use burn::tensor::Device;
    use wuerstchen::Residency;

    use super::*;

    /// The built-in model, whose pictures have 64 pixels, with the default size of a large one.
    fn pipeline() -> Pipeline {
        let model = crate::files::read_model(None).unwrap();
        let mut pipeline = Pipeline::load(&model, &Device::flex(), Residency::PerStage).unwrap();
        (pipeline.card.defaults.width, pipeline.card.defaults.height) = (1024, 1024);
        pipeline
    }

    const NOTHING_CHOSEN: PlanArgs =
        PlanArgs { preview_pictures: None, check: None, picture_size: None, picture_steps: None };

    #[test]
    fn a_small_model_makes_pictures_of_its_own_size() {
        let plan = Plan::new(&NOTHING_CHOSEN, &pipeline(), LARGE);
        let pictures = |count| Some(GenerateOptions { count: Some(count), ..Default::default() });
        assert_eq!((plan.preview, plan.check), (pictures(64), pictures(2)));
        assert_eq!(plan.self_test, SelfTest::options(None));
    }

    #[test]
    fn a_large_model_makes_few_and_small_pictures() {
        let pipeline = pipeline();
        let plan = Plan::new(&NOTHING_CHOSEN, &pipeline, LARGE + 1);
        assert_eq!(
            plan.text(&pipeline).unwrap(),
            "golden vectors: 1 picture of 256 x 256 pixels, 2 steps of Stage C and 2 of Stage B\n\
             colours of previews: 4 pictures of 256 x 256 pixels, 12 steps of Stage C and 12 of \
             Stage B\n\
             what storing costs: no pictures, only weights are compared"
        );
    }

    #[test]
    fn what_the_caller_chose_comes_first() {
        let args = PlanArgs {
            preview_pictures: Some(0),
            check: Some(1),
            picture_size: Some(128),
            picture_steps: Some(3),
        };
        let pipeline = pipeline();
        let plan = Plan::new(&args, &pipeline, LARGE + 1);
        assert_eq!(
            plan.text(&pipeline).unwrap(),
            "golden vectors: 1 picture of 128 x 128 pixels, 2 steps of Stage C and 2 of Stage B\n\
             colours of previews: none\n\
             what storing costs: 1 picture of 128 x 128 pixels, 3 steps of Stage C and 3 of Stage \
             B, by the given and by the stored weights"
        );
        let impossible = PlanArgs { picture_size: Some(100), ..args };
        let error = Plan::new(&impossible, &pipeline, 1).text(&pipeline).unwrap_err();
        assert!(error.to_string().contains("height must be a size that the model can make"));
    }
}
