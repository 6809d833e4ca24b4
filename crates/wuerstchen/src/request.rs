//! What a caller asks for: prompts, pictures and options.

use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use crate::image::{Image, Mask};
use crate::options::{GenerateOptions, MAX_COUNT, OptionsError, Settings};
use crate::origin::{Batch, Control, Origin, PicturePrompt};
use crate::provenance::Provenance;

/// Everything that pictures are made of.
///
/// The command line reads it from its arguments, JavaScript callers send it as JSON, and programs in Rust fill its
/// fields. [`Pipeline::prepare`](crate::Pipeline::prepare) takes it.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
#[serde(default, rename_all = "camelCase", deny_unknown_fields)]
#[cfg_attr(feature = "clap", derive(clap::Args))]
pub struct Request {
    /// What the pictures show. Each prompt gives as many pictures as the options say, or one for every frame.
    #[cfg_attr(feature = "clap", arg(skip))]
    pub prompts: Vec<String>,
    /// Make frames on the way from the prompt to this one
    #[cfg_attr(feature = "clap", arg(long, value_name = "PROMPT"))]
    pub prompt_to: Option<String>,
    /// Frames on the way, both ends included [default: 8]
    #[cfg_attr(feature = "clap", arg(long, value_name = "N"))]
    pub frames: Option<usize>,
    /// What else a caller may choose.
    #[cfg_attr(feature = "clap", command(flatten))]
    pub options: GenerateOptions,
    /// The pictures. JSON holds none of them: JavaScript callers add them one by one.
    #[serde(skip)]
    #[cfg_attr(feature = "clap", arg(skip))]
    pub pictures: SourcePictures,
}

/// The pictures that others are made of.
#[derive(Clone, Debug, Default)]
pub struct SourcePictures {
    /// The picture to start from; `None` to start at noise.
    pub image: Option<Image>,
    /// The mask, of the same size, of the part to paint anew; `None` to paint all of it.
    pub mask: Option<Mask>,
    /// The picture at the other end of the frames.
    pub image_to: Option<Image>,
    /// Pictures that the result shall resemble, with or without a prompt in words.
    pub picture_prompts: Vec<Image>,
    /// The picture that the model's ControlNet makes Stage C follow.
    pub control_image: Option<Image>,
    /// The part of that picture, of the same size, to paint anew, where the ControlNet takes one.
    pub control_mask: Option<Mask>,
}

/// The number of frames if the caller does not give one.
const FRAMES: usize = 8;

impl Request {
    /// All texts that a text encoder reads, each with the name of its option.
    pub fn texts(&self) -> impl Iterator<Item = (&'static str, &str)> {
        let prompts = self.prompts.iter().map(|prompt| ("prompt", prompt));
        let to = self.prompt_to.iter().map(|prompt| ("prompt_to", prompt));
        let texts = prompts.chain(to).chain([("negative_prompt", &self.options.negative_prompt)]);
        texts.map(|(field, text)| (field, text.as_str()))
    }

    /// The positions of the frames on the way from one end to the other, evenly spaced from 0 to 1. Without a
    /// second end there is one frame, at 0.
    ///
    /// # Errors
    ///
    /// There are fewer than two frames, or too many; or the caller asks for frames without a second end, or for
    /// several pictures of each frame.
    pub fn shares(&self) -> Result<Vec<f32>, OptionsError> {
        let has_end = self.prompt_to.is_some() || self.pictures.image_to.is_some();
        let count = self.options.count.unwrap_or(1);
        match (has_end, self.frames.unwrap_or(FRAMES)) {
            (false, _) if self.frames.is_some() => {
                Err(OptionsError::Missing { field: "frames", needed: "prompt_to or image_to" })
            }
            (false, _) => Ok(vec![0.0]),
            (true, _) if count > 1 => Err(OptionsError::CountOfFrames(count)),
            (true, frames @ 2..=MAX_COUNT) => {
                Ok((0..frames).map(|i| i as f32 / (frames - 1) as f32).collect())
            }
            (true, found) => Err(OptionsError::Frames(found)),
        }
    }

    /// Checks what can be checked without a model.
    ///
    /// # Errors
    ///
    /// An input has no effect without another, or contradicts it.
    pub fn check(&self) -> Result<(), OptionsError> {
        let SourcePictures { image, mask, image_to, control_image, control_mask, .. } =
            &self.pictures;
        let given = [("mask", mask.is_some()), ("image_to", image_to.is_some())];
        if let Some((field, _)) = given.into_iter().find(|given| given.1 && image.is_none()) {
            return Err(OptionsError::Missing { field, needed: "an image to start from" });
        }
        let given = [
            ("control_mask", control_mask.is_some()),
            ("control_scale", self.options.control_scale.is_some()),
        ];
        if let Some((field, _)) = given.into_iter().find(|given| given.1 && control_image.is_none())
        {
            return Err(OptionsError::Missing { field, needed: "a control_image" });
        }
        if control_image.is_some() && self.options.strength == Some(0.0) {
            let other = "a strength of 0, where Stage C has no steps";
            return Err(OptionsError::Contradiction { field: "control_image", other });
        }
        if mask.is_some() && image_to.is_some() {
            return Err(OptionsError::Contradiction { field: "image_to", other: "a mask" });
        }
        if self.prompts.is_empty() {
            return Err(OptionsError::Missing { field: "prompts", needed: "at least one prompt" });
        }
        Ok(())
    }
}

/// A request with every gap filled and its pictures encoded.
/// [`Pipeline::prepare`](crate::Pipeline::prepare) makes it.
pub struct Prepared {
    pub(crate) request: Request,
    /// The options with every gap filled.
    pub settings: Settings,
    /// The positions of the frames, `[0, 1]`; one where no frames are asked for.
    pub(crate) shares: Vec<f32>,
    /// Where every frame starts; empty if the pictures start at noise.
    pub(crate) origins: Vec<Origin>,
    /// The pictures that all results are to resemble.
    pub(crate) like: Option<PicturePrompt>,
    /// What Stage C follows in all results.
    pub(crate) control: Option<Control>,
}

impl Prepared {
    /// The request from which this was made.
    pub fn request(&self) -> &Request {
        &self.request
    }

    /// Whether the results are to follow the edges of a picture that has none.
    pub fn lacks_edges(&self) -> bool {
        self.control.as_ref().is_some_and(|control| control.lacks_edges)
    }

    /// The batches to make: one for every frame of every prompt, prompt by prompt.
    pub fn batches(&self) -> Vec<Batch<'_>> {
        let frames =
            |prompt| self.shares.iter().enumerate().map(move |(i, &share)| (prompt, i, share));
        let frames = self.request.prompts.iter().flat_map(frames);
        frames
            .map(|(prompt, i, share)| Batch {
                towards: self.request.prompt_to.as_deref().map(|prompt| (prompt, share)),
                origin: self.origins.get(i),
                pictures: self.like.as_ref(),
                control: self.control.as_ref(),
                ..Batch::new(prompt, self.settings.count)
            })
            .collect()
    }

    /// How a picture was made. `batch` is the number of its batch among [`Self::batches`], `image` the number of the
    /// picture in it, and `settings` are those of that batch's result.
    ///
    /// # Panics
    ///
    /// Panics if there is no such batch.
    pub fn provenance(
        &self,
        settings: &Settings,
        model: &str,
        [batch, image]: [usize; 2],
    ) -> Provenance {
        let frames = self.shares.len();
        Provenance {
            prompt: self.request.prompts[batch / frames].clone(),
            model: model.to_owned(),
            image,
            version: env!("CARGO_PKG_VERSION").to_owned(),
            settings: self.describe(settings, (frames > 1).then_some(batch % frames)),
        }
    }

    /// The settings of a result; where there are frames, also the prompt that they lead to and the frame's number.
    pub fn describe(&self, settings: &Settings, frame: Option<usize>) -> Value {
        let mut settings = serde_json::to_value(settings).expect("numbers and names are JSON");
        if let Some(prompt) = &self.request.prompt_to {
            settings["promptTo"] = json!(prompt);
        }
        if let Some(frame) = frame {
            settings["frame"] = json!(frame);
            settings["frames"] = json!(self.shares.len());
        }
        settings
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn request(json: &str) -> Request {
        serde_json::from_str(json).unwrap()
    }

    #[test]
    fn shares_reach_both_ends() {
        let shares = |json| request(json).shares();
        assert_eq!(shares(r#"{"promptTo": "b", "frames": 3}"#).unwrap(), [0.0, 0.5, 1.0]);
        assert_eq!(shares(r#"{"promptTo": "b"}"#).unwrap().len(), FRAMES);
        assert_eq!(shares(r#"{"options": {"count": 4}}"#).unwrap(), [0.0]);
        let message = |json| shares(json).unwrap_err().to_string();
        let one = r#"{"promptTo": "b", "frames": 1}"#;
        assert_eq!(message(one), "frames must be between 2 and 256, got 1");
        let two = r#"{"promptTo": "b", "options": {"count": 2}}"#;
        assert_eq!(message(two), "count must be 1 where frames are made, got 2");
        let missing = "frames needs prompt_to or image_to, which is missing";
        assert_eq!(message(r#"{"frames": 3}"#), missing);
    }

    #[test]
    fn an_input_without_effect_is_refused() {
        let image = Image { width: 1, height: 1, rgb: vec![0; 3] };
        let mask = Mask { width: 1, height: 1, values: vec![0] };
        let message = |pictures| {
            let request = Request { pictures, ..request(r#"{"prompts": [""]}"#) };
            request.check().map_err(|error| error.to_string())
        };
        let (image, mask) = (Some(image), Some(mask));
        let masked = SourcePictures { mask, ..Default::default() };
        let needed = "mask needs an image to start from, which is missing";
        assert_eq!(message(masked.clone()), Err(needed.to_owned()));
        let to = SourcePictures { image_to: image.clone(), ..Default::default() };
        assert!(message(to).unwrap_err().starts_with("image_to needs an image"));
        let both =
            SourcePictures { image: image.clone(), image_to: image.clone(), ..masked.clone() };
        assert_eq!(message(both), Err("image_to cannot be used with a mask".to_owned()));
        assert_eq!(message(SourcePictures { image: image.clone(), ..masked }), Ok(()));
        let control =
            SourcePictures { image: image.clone(), control_image: image, ..Default::default() };
        assert_eq!(message(control.clone()), Ok(()));
        let still = request(r#"{"prompts": [""], "options": {"strength": 0}}"#);
        let refused = Request { pictures: control, ..still }.check().unwrap_err();
        assert!(refused.to_string().starts_with("control_image cannot be used with a strength"));
        assert!(request("{}").check().is_err());
    }

    #[test]
    fn json_names_what_is_unknown() {
        let error = serde_json::from_str::<Request>(r#"{"prompt": "a"}"#).unwrap_err();
        assert!(error.to_string().contains("unknown field `prompt`"), "{error}");
    }

    /// Two prompts, each on a way of three frames.
    #[test]
    fn every_frame_of_every_prompt_is_a_batch() {
        let request = request(r#"{"prompts": ["a", "c"], "promptTo": "b", "frames": 3}"#);
        let settings = request.options.resolve(&crate::Defaults::default()).unwrap();
        let shares = request.shares().unwrap();
        let (origins, like, control) = (vec![], None, None);
        let prepared = Prepared { request, settings, shares, origins, like, control };
        let batches = prepared.batches();
        let found: Vec<_> =
            batches.iter().map(|batch| (batch.prompts[0], batch.towards.unwrap().1)).collect();
        let expected = [("a", 0.0), ("a", 0.5), ("a", 1.0), ("c", 0.0), ("c", 0.5), ("c", 1.0)];
        assert_eq!(found, expected);
        let found = prepared.provenance(&prepared.settings, "m", [4, 0]);
        assert_eq!((&*found.prompt, &*found.model), ("c", "m"));
        let [to, frame, frames] = ["promptTo", "frame", "frames"].map(|name| &found.settings[name]);
        assert_eq!((to, frame, frames), (&json!("b"), &json!(1), &json!(3)));
    }
}
