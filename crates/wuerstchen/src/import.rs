//! Recognises published weights by their tensors, and fills in what their files do not say.

use std::collections::{BTreeMap, BTreeSet};

use serde_json::{Value, json};

use crate::checkpoint::Checkpoint;
use crate::error::LoadError;
use crate::family::Family;
use crate::model_files::ModelFiles;
use crate::part::Part;
use crate::schedule::Schedule;

/// The parts to which these weights may belong, judged by their tensors.
pub fn recognise(weights: &Checkpoint) -> Vec<Part> {
    Part::all().filter(|part| part.may_be(weights)).collect()
}

/// The part that weights are of, in a model that lacks it; `None` where the parts that are there do not
/// tell which one it is.
pub fn part_beside(files: &ModelFiles, weights: &Checkpoint) -> Option<Part> {
    let has = |part: Part| files.weights.contains_key(&part);
    let begun = |part: &Part| Family::of(*part).all_parts().any(has);
    let mut fitting = recognise(weights);
    if fitting.iter().any(begun) {
        fitting.retain(begun);
    }
    // A part that its own tensors identify may be there already: it is named too, so that the caller can refuse
    // the second one.
    fitting.retain(|part| {
        (!has(*part) || part.stands_alone())
            && part.is_beside(weights, |part| files.weights.get(&part))
    });
    let mut free = fitting.iter().filter(|part| !has(**part));
    if let (Some(free), None) = (free.next(), free.next()) {
        return Some(*free);
    }
    let families: BTreeSet<_> = fitting.iter().map(|part| Family::of(*part).name).collect();
    let first = *fitting.first()?;
    // Weights that two families share belong to the first one, unless a part of that family is there already.
    let is_clear = fitting.len() == 1 || (families.len() == fitting.len() && !begun(&first));
    is_clear.then_some(first)
}

/// Adds the configs that a model lacks: those of its parts from their weights, those of the pipelines with the
/// published constants. Returns the paths of the added files.
///
/// Source: the pipelines of v2 and of Stable Cascade in diffusers; the notebook of v1 in dome272/Wuerstchen.
///
/// # Errors
///
/// The weights of a part do not tell its config.
pub fn complete(files: &mut ModelFiles) -> Result<Vec<String>, LoadError> {
    let mut written = Vec::new();
    let mut add = |texts: &mut BTreeMap<String, String>, path: String, value: Value| {
        if !texts.contains_key(&path) {
            texts.insert(path.clone(), value.to_string());
            written.push(path);
        }
    };
    for (&part, weights) in &files.weights {
        let path = part.config_path();
        if part.is_told_by_weights() || files.texts.contains_key(&path) {
            continue;
        }
        let config = part.infer(weights).ok_or_else(|| LoadError::File {
            path: path.clone(),
            reason:
                "it is missing, and the weights do not tell the sizes of a published model; put \
                     the config beside them"
                    .to_owned(),
        })?;
        add(&mut files.texts, path, config.into());
    }
    for pipeline in Family::ALL.into_iter().flat_map(|family| family.pipelines) {
        if files.weights.contains_key(&pipeline.main) {
            add(&mut files.texts, pipeline.index(), (pipeline.default_index)());
            if pipeline.is_scheduled {
                add(&mut files.texts, pipeline.scheduler(), json!(Schedule::default()));
            }
        }
    }
    Ok(written)
}

#[cfg(test)]
mod tests {
    use burn::tensor::Device;

    use super::*;
    use crate::cascade::{BlockType, CascadeConfig};
    use crate::config::PerLevel;
    use crate::decoder::{DecoderConfig, LevelConfig};
    use crate::part::PartConfig;
    use crate::prior::PriorConfig;
    use crate::text::TextEncoderConfig;
    use crate::token_decoder::TokenDecoderConfig;
    use crate::vqgan::VqganConfig;

    /// Weights of `part` of these sizes.
    fn weights<C: PartConfig>(part: Part, config: &C) -> Checkpoint {
        C::weights(part, &config.init(&Device::flex()))
    }

    fn text_encoder(width: usize) -> TextEncoderConfig {
        TextEncoderConfig {
            hidden_size: width,
            intermediate_size: 8,
            num_hidden_layers: 2,
            num_attention_heads: width / 64,
            max_position_embeddings: 5,
            vocab_size: 7,
            layer_norm_eps: 1e-5,
            hidden_act: "gelu".to_owned(),
        }
    }

    /// A config that is read off the weights that it makes.
    #[test]
    fn published_configs_are_read_off_their_weights() {
        let prior =
            PriorConfig { c_in: 16, c: 128, c_cond: 24, c_r: 8, depth: 2, nhead: 2, dropout: 0.1 };
        let found = weights(Part::PRIOR, &prior);
        assert_eq!(recognise(&found), [Part::PRIOR, Part::V1_PRIOR]);
        assert_eq!(part_beside(&ModelFiles::default(), &found), Some(Part::PRIOR));
        assert_eq!(PriorConfig::infer(&found), Some(prior));

        let level = |letters: &str| LevelConfig::Letters(letters.to_owned());
        let decoder = DecoderConfig {
            c_in: 4,
            c_out: 4,
            c_r: 8,
            patch_size: 2,
            c_cond: 12,
            c_hidden: vec![8, 64, 128],
            nhead: vec![-1, 1, 2],
            blocks: vec![1, 3, 2],
            level_config: vec![level("CT"), level("CTA"), level("CTA")],
            inject_effnet: vec![false, true, true],
            effnet_embd: 16,
            clip_embd: 20,
            kernel_size: 3,
            dropout: PerLevel::One(0.1),
        };
        let found = weights(Part::DECODER, &decoder);
        assert_eq!(recognise(&found), [Part::DECODER]);
        assert_eq!(DecoderConfig::infer(&found), Some(decoder));

        let vqgan = VqganConfig {
            in_channels: 3,
            out_channels: 3,
            up_down_scale_factor: 2,
            levels: 2,
            bottleneck_blocks: 3,
            embed_dim: 16,
            latent_channels: 4,
            num_vq_embeddings: 32,
            scale_factor: 0.3764,
        };
        let found = weights(Part::VQGAN, &vqgan);
        assert_eq!(recognise(&found), [Part::VQGAN, Part::CASCADE_VQGAN, Part::V1_VQGAN]);
        assert_eq!(part_beside(&ModelFiles::default(), &found), Some(Part::VQGAN));
        assert_eq!(VqganConfig::infer(&found), Some(vqgan));

        let text = text_encoder(64);
        let found = weights(Part::PRIOR_TEXT, &text);
        assert_eq!(recognise(&found), [Part::PRIOR_TEXT, Part::DECODER_TEXT, Part::V1_TEXT]);
        assert_eq!(TextEncoderConfig::infer(&found), Some(text));
    }

    /// The published layouts in small: Stage C with two levels of one size, Stage B with repeated levels.
    #[test]
    fn configs_of_stable_cascade_are_read_off_their_weights() {
        use BlockType::{Attention, Res, Timestep};
        let prior = CascadeConfig {
            in_channels: 16,
            out_channels: 16,
            timestep_ratio_embedding_dim: 8,
            patch_size: 1,
            conditioning_dim: 12,
            block_out_channels: vec![64, 128],
            num_attention_heads: vec![1, 2],
            down_num_layers_per_block: vec![1, 3],
            up_num_layers_per_block: vec![3, 1],
            down_blocks_repeat_mappers: Some(vec![1, 1]),
            up_blocks_repeat_mappers: Some(vec![1, 1]),
            block_types_per_layer: vec![vec![Res, Timestep, Attention]; 2],
            clip_text_in_channels: Some(10),
            clip_text_pooled_in_channels: 6,
            clip_image_in_channels: Some(7),
            clip_seq: 4,
            effnet_in_channels: None,
            pixel_mapper_in_channels: None,
            kernel_size: 3,
            dropout: PerLevel::One(0.0),
            self_attn: PerLevel::One(true),
            timestep_conditioning_type: vec!["sca".to_owned(), "crp".to_owned()],
            switch_level: Some(vec![false]),
        };
        let found = weights(Part::CASCADE_PRIOR, &prior);
        assert_eq!(recognise(&found), [Part::CASCADE_PRIOR]);
        assert_eq!(CascadeConfig::infer(&found).as_ref(), Some(&prior));

        let decoder = CascadeConfig {
            in_channels: 4,
            out_channels: 4,
            patch_size: 2,
            num_attention_heads: vec![0, 2],
            up_blocks_repeat_mappers: Some(vec![3, 2]),
            block_types_per_layer: vec![vec![Res, Timestep], vec![Res, Timestep, Attention]],
            clip_text_in_channels: None,
            clip_image_in_channels: None,
            effnet_in_channels: Some(16),
            pixel_mapper_in_channels: Some(3),
            timestep_conditioning_type: vec!["sca".to_owned()],
            switch_level: None,
            ..prior
        };
        let found = weights(Part::CASCADE_DECODER, &decoder);
        assert_eq!(recognise(&found), [Part::CASCADE_DECODER]);
        assert_eq!(CascadeConfig::infer(&found), Some(decoder));
    }

    /// With a Stage B that denoises tokens, all else is of v1.
    #[test]
    fn the_family_is_told_by_its_stage_b() {
        let level = LevelConfig::Letters("CT".to_owned());
        let decoder = TokenDecoderConfig {
            c_in: 4,
            c_out: 4,
            num_labels: 8,
            c_r: 4,
            patch_size: 2,
            c_cond: 4,
            c_hidden: vec![4],
            nhead: vec![-1],
            blocks: vec![1],
            level_config: vec![level],
            effnet_embd: 2,
            byt5_embd: 64,
            kernel_size: 3,
            dropout: PerLevel::One(0.0),
            self_attn: PerLevel::One(true),
        };
        let prior =
            PriorConfig { c_in: 2, c: 4, c_cond: 64, c_r: 4, depth: 1, nhead: 2, dropout: 0.0 };
        let mut files = ModelFiles::default();
        let found = weights(Part::V1_DECODER, &decoder);
        assert_eq!(part_beside(&files, &found), Some(Part::V1_DECODER));
        files.weights.insert(Part::V1_DECODER, found);
        let found = weights(Part::PRIOR, &prior);
        assert_eq!(part_beside(&files, &found), Some(Part::V1_PRIOR));
        files.weights.insert(Part::V1_PRIOR, found);
        let found = weights(Part::PRIOR_TEXT, &text_encoder(64));
        assert_eq!(part_beside(&files, &found), Some(Part::V1_TEXT));
    }

    /// Stage C takes texts of width 64 here, and Stage B is not there.
    #[test]
    fn the_stage_of_a_text_encoder_is_told_by_its_width() {
        let prior =
            PriorConfig { c_in: 2, c: 4, c_cond: 64, c_r: 4, depth: 1, nhead: 2, dropout: 0.0 };
        let mut files = ModelFiles::default();
        let [fitting, other] =
            [64, 128].map(|width| weights(Part::PRIOR_TEXT, &text_encoder(width)));
        assert_eq!(part_beside(&files, &fitting), None);
        files.weights.insert(Part::PRIOR, weights(Part::PRIOR, &prior));
        assert_eq!(part_beside(&files, &fitting), Some(Part::PRIOR_TEXT));
        assert_eq!(part_beside(&files, &other), None);
        files.weights.insert(Part::PRIOR_TEXT, fitting.clone());
        assert_eq!(part_beside(&files, &fitting), None);
    }

    #[test]
    fn a_config_that_weights_do_not_tell_is_asked_for() {
        let prior =
            PriorConfig { c_in: 2, c: 4, c_cond: 3, c_r: 4, depth: 1, nhead: 2, dropout: 0.0 };
        let mut files = ModelFiles::default();
        files.weights.insert(Part::PRIOR, weights(Part::PRIOR, &prior));
        let error = complete(&mut files).unwrap_err().to_string();
        assert!(error.starts_with("wuerstchen-prior/prior/config.json: it is missing"), "{error}");
        let config = serde_json::to_string(&prior).unwrap();
        files.texts.insert(Part::PRIOR.config_path(), config);
        let written = complete(&mut files).unwrap();
        let scheduler = "wuerstchen-prior/scheduler/scheduler_config.json";
        assert_eq!(written, ["wuerstchen-prior/model_index.json", scheduler]);
        files.check(Part::PRIOR, &Device::flex()).unwrap();
    }
}
