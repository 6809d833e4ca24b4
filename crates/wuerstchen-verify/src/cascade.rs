//! Goldens of Stable Cascade.

mod authors;
mod gdf;
mod networks;
mod samplings;
mod text;

use serde_json::{Value, json};
use wuerstchen::{CascadeConfig, Checkpoint, Lora, Part};

use crate::compare::Recorder;
use crate::report::{Verification, VerifyError};
use crate::{Compare, Subject};

pub(crate) use self::networks::PARTS;
use self::samplings::Studio;

/// The networks that the authors' files hold too, in the order of [`PARTS`].
pub(crate) const STAGES: [(&str, Compare); 4] = [
    ("unet_c", networks::prior),
    ("unet_b", networks::decoder),
    ("vqgan", networks::vqgan),
    ("effnet", networks::compressor),
];

pub(crate) const OTHERS: [(&str, Compare); 3] = [
    ("text_prior", text::encoder),
    ("image_encoder", networks::image_encoder),
    ("scheduler", gdf::scheduler),
];

/// Compares whole samplings; `on_file` is called before each file.
pub(crate) async fn samplings(
    subject: &Subject<'_>,
    result: &mut Verification,
    on_file: &mut dyn FnMut(&str),
) -> Result<(), VerifyError> {
    let Subject { files, originals, goldens, device, slack, .. } = *subject;
    if let (Some(golden), Some(lora)) = (goldens.tensors.get("lora"), subject.lora) {
        on_file("lora");
        let mut changed = files.clone();
        changed.add_loras(vec![Lora::read(lora, files, 1.0)?])?;
        let mut recorder = Recorder::new("lora", golden, slack);
        networks::changed_prior(&mut recorder, &changed, device)?;
        text::changed_encoder(&mut recorder, &changed, device)?;
        recorder.finish(result).await?;
    }
    let (Some(golden), Some(case)) =
        (goldens.tensors.get("pipeline"), goldens.texts.get("pipeline"))
    else {
        return Ok(());
    };
    let empty = Checkpoint::empty("image_encoder");
    let pictures = goldens.tensors.get("image_encoder").unwrap_or(&empty);
    on_file("pipeline");
    let studio = Studio::load(files, pictures, case, device)?;
    let mut recorder = Recorder::new("pipeline", golden, slack);
    studio.variants(&mut recorder).await?;
    recorder.finish(result).await?;
    if let (Some(golden), Some(case)) =
        (goldens.tensors.get("combined"), goldens.texts.get("combined"))
    {
        on_file("combined");
        let mut recorder = Recorder::new("combined", golden, slack);
        studio.combined(&mut recorder, case).await?;
        recorder.finish(result).await?;
    }
    let weights = originals.weights.get(&Part::CASCADE_CONTROLNET);
    let weights = weights.or_else(|| files.weights.get(&Part::CASCADE_CONTROLNET));
    if let (Some(golden), Some(config), Some(weights)) =
        (goldens.tensors.get("controlnet"), goldens.texts.get("controlnet"), weights)
    {
        on_file("controlnet");
        let mut controlled = files.clone();
        controlled.weights.insert(Part::CASCADE_CONTROLNET, weights.clone());
        let config: Value = samplings::parse("controlnet.json", config)?;
        let config = json!({ "blocks": config["blocks"] }).to_string();
        controlled.texts.insert(Part::CASCADE_CONTROLNET.config_path(), config);
        let (_, prior) = files.load::<CascadeConfig>(Part::CASCADE_PRIOR, device)?;
        let mut recorder = Recorder::new("controlnet", golden, slack);
        let control = networks::controlnet(&mut recorder, &controlled, &prior, device)?;
        authors::controlled_sampling(&mut recorder, &studio, files, &prior, control).await?;
        recorder.finish(result).await?;
    }
    if let Some(golden) = goldens.tensors.get("gdf") {
        on_file("gdf");
        let mut recorder = Recorder::new("gdf", golden, slack);
        gdf::schedules(&mut recorder)?;
        gdf::steps(&mut recorder, device)?;
        authors::samplings(&mut recorder, &studio, files).await?;
        recorder.finish(result).await?;
    }
    Ok(())
}
