//! What trainers call the tensors of a LoRA.

/// What a tensor of a LoRA is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Role {
    /// The matrix `A`, `[rank, input]`.
    Down,
    /// The matrix `B`, `[output, rank]`.
    Up,
    /// The number that, divided by the rank, scales the product.
    Alpha,
}

/// Ends of names that tell the role. Besides these there is `.lora_A.NAME.weight`, where an adapter has a name.
const ROLES: [(&str, Role); 11] = [
    (".lora_A.weight", Role::Down),
    (".lora_down.weight", Role::Down),
    (".lora.down.weight", Role::Down),
    ("_lora.down.weight", Role::Down),
    (".lora_linear_layer.down.weight", Role::Down),
    (".lora_B.weight", Role::Up),
    (".lora_up.weight", Role::Up),
    (".lora.up.weight", Role::Up),
    ("_lora.up.weight", Role::Up),
    (".lora_linear_layer.up.weight", Role::Up),
    (".alpha", Role::Alpha),
];

/// What trainers put in front of the name of a layer. A prefix comes before the shorter ones that it begins with.
const PREFIXES: [&str; 16] = [
    "base_model.model.prior.",
    "base_model.model.text_encoder.",
    "base_model.model.",
    "prior_text_encoder.",
    "prior.",
    "unet.",
    // ComfyUI calls the network so.
    "diffusion_model.",
    "text_encoder.",
    "lora_prior_unet_",
    // OneTrainer wrote this until 2024.
    "lora_prior_prior_",
    "lora_prior_te_",
    "lora_prior_",
    "lora_unet_",
    "lora_te1_",
    "lora_te_",
    "lora_",
];

/// Projections of a text encoder's attention as older versions of diffusers call them.
const TEXT_PROJECTIONS: [(&str, &str); 4] = [
    ("_self_attn_to_q", "_self_attn_q_proj"),
    ("_self_attn_to_k", "_self_attn_k_proj"),
    ("_self_attn_to_v", "_self_attn_v_proj"),
    ("_self_attn_to_out", "_self_attn_out_proj"),
];

/// The name of a layer in the one spelling to which the names of all trainers can be brought: without dots.
pub(super) fn spelling(layer: &str) -> String {
    layer.replace('.', "_")
}

/// The layer that a tensor of a LoRA belongs to, as its trainer calls it, without what stands in front.
pub(super) fn plain_layer_of(key: &str) -> Option<(&str, Role)> {
    let (layer, role) = role_of(key)?;
    let plain = PREFIXES.iter().find_map(|prefix| layer.strip_prefix(prefix));
    Some((plain.unwrap_or(layer), role))
}

/// The layer of a tensor as its trainer calls it, with the network but without what peft puts in front of everything:
/// so the keys of peft's config name it.
pub(super) fn peft_layer_of(key: &str) -> &str {
    let layer = role_of(key).map_or(key, |(layer, _)| layer);
    layer.strip_prefix("base_model.model.").unwrap_or(layer)
}

/// The layer that a tensor of a LoRA belongs to, in the spelling of [`spelling`].
pub(super) fn layer_of(key: &str) -> Option<(String, Role)> {
    let (layer, role) = plain_layer_of(key)?;
    let layer = spelling(&layer.replace(".processor.", "."));
    for (old, name) in TEXT_PROJECTIONS {
        if let Some(block) = layer.strip_suffix(old) {
            return Some((format!("{block}{name}"), role));
        }
    }
    // Trainers of Stable Cascade name the layers of the authors' code.
    let layer = layer.replace("_attention_attn_", "_attention_");
    if let Some(block) = layer.strip_suffix("_attention_out_proj") {
        return Some((format!("{block}_attention_to_out_0"), role));
    }
    // Processors call the output projection by the name of the list that it is the first of.
    let layer = if layer.ends_with("_to_out") { layer + "_0" } else { layer };
    Some((layer, role))
}

/// The layer of a tensor of a LoRA with all that stands in front.
pub(super) fn role_of(key: &str) -> Option<(&str, Role)> {
    let known = ROLES.into_iter().find_map(|(end, role)| Some((key.strip_suffix(end)?, role)));
    known.or_else(|| {
        let (front, _adapter) = key.strip_suffix(".weight")?.rsplit_once('.')?;
        let named = [(".lora_A", Role::Down), (".lora_B", Role::Up)];
        named.into_iter().find_map(|(end, role)| Some((front.strip_suffix(end)?, role)))
    })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const ATTENTION: &str = "blocks_2_attention";
    const TEXT: &str = "text_model_encoder_layers_0_self_attn";

    #[test]
    fn knows_the_names_of_other_programs() {
        for (down, layer) in [
            ("blocks.2.attention.processor.to_q_lora.down.weight", "to_q"),
            ("prior.blocks.2.attention.processor.to_out_lora.down.weight", "to_out_0"),
            ("unet.blocks.2.attention.to_out.0.lora.down.weight", "to_out_0"),
            ("base_model.model.blocks.2.attention.to_k.lora_A.weight", "to_k"),
            ("base_model.model.blocks.2.attention.to_k.lora_A.default.weight", "to_k"),
            ("prior.blocks.2.attention.to_k.lora_A.my_style.weight", "to_k"),
            ("diffusion_model.blocks.2.attention.to_v.lora_down.weight", "to_v"),
            ("lora_prior_unet_blocks_2_attention_to_v.lora_down.weight", "to_v"),
            ("lora_prior_prior_blocks_2_attention_to_v.lora_down.weight", "to_v"),
            ("lora_unet_blocks_2_attention_to_out_0.lora_down.weight", "to_out_0"),
            ("prior.blocks.2.attention.to_out.0.lora_linear_layer.down.weight", "to_out_0"),
            ("lora_prior_unet_blocks_2_attention_attn_to_q.lora_down.weight", "to_q"),
            ("lora_prior_unet_blocks_2_attention_attn_out_proj.lora_down.weight", "to_out_0"),
        ] {
            assert_eq!(
                layer_of(down),
                Some((format!("{ATTENTION}_{layer}"), Role::Down)),
                "{down}"
            );
        }
        for (up, layer) in [
            ("lora_prior_te_text_model_encoder_layers_0_self_attn_q_proj.lora_up.weight", "q_proj"),
            ("lora_te_text_model_encoder_layers_0_self_attn_q_proj.lora_up.weight", "q_proj"),
            ("text_encoder.text_model.encoder.layers.0.self_attn.v_proj.lora_B.weight", "v_proj"),
            (
                "text_encoder.text_model.encoder.layers.0.self_attn.to_out_lora.up.weight",
                "out_proj",
            ),
            ("text_model.encoder.layers.0.self_attn.k_proj.lora_linear_layer.up.weight", "k_proj"),
        ] {
            assert_eq!(layer_of(up), Some((format!("{TEXT}_{layer}"), Role::Up)), "{up}");
        }
        let alpha = layer_of("lora_prior_unet_blocks_2_attention_to_q.alpha");
        assert_eq!(alpha, Some((format!("{ATTENTION}_to_q"), Role::Alpha)));
        assert_eq!(layer_of("blocks.2.attention.to_q.weight"), None);
    }

    proptest! {
        #[test]
        fn any_name_has_one_meaning_or_none(name in r"([a-z_.]|lora_[AB]|\.weight|\PC){0,40}") {
            if let Some((layer, _)) = layer_of(&name) {
                prop_assert!(!layer.contains('.'));
            }
        }
    }
}
