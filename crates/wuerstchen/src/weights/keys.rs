//! Names of a model's parameters in a checkpoint.

/// How a model's fields lie in a checkpoint.
#[derive(Clone, Copy, Debug)]
pub struct KeyTable {
    /// Field names and what they become: pairs of path segments, applied in order.
    names: &'static [(&'static str, &'static str)],
    /// Fields whose linear layers are 1x1 convolutions in PyTorch, with two more axes of length 1.
    pub(super) convolutions: &'static [&'static str],
}

impl KeyTable {
    /// The field names themselves.
    pub const FIELDS: Self = Self { names: &[], convolutions: &[] };

    /// Names of the prior, of both decoders, and of both networks of Stable Cascade.
    pub const DIFFUSION: Self = Self {
        names: &[
            ("Prior", ""),
            ("Decoder", ""),
            ("Cascade", ""),
            ("in_mapper", "in_mapper.0.weight"),
            ("out_mapper", "out_mapper.1"),
            ("cond_in", "cond_mapper.0"),
            ("cond_out", "cond_mapper.2"),
            ("out", "out.1"),
            ("clf", "clf.1"),
            ("embedding", "embedding.1"),
            ("Res", ""),
            ("Timestep", ""),
            ("Attention", ""),
            ("Downscale", "1"),
            ("Upscale", "1"),
            ("expand", "0"),
            ("response_norm", "2"),
            ("contract", "4"),
            ("scale_shift", "mapper"),
            ("Shrink.map", "1.blocks.0"),
            ("Grow.map", "1.blocks.1"),
            ("inner", "0"),
            ("outer", "2"),
            ("to_out", "to_out.0"),
            ("kv_mapper", "kv_mapper.1"),
        ],
        convolutions: &[
            "projection",
            "out",
            "embedding",
            "clf",
            "effnet_mappers",
            "out_mapper",
            "inner",
            "outer",
            "map",
            "down_repeat_mappers",
            "up_repeat_mappers",
        ],
    };

    /// Names of the VQGAN.
    pub const VQGAN: Self = Self {
        names: &[
            ("in_block", "in_block.1"),
            ("out_block", "out_block.0"),
            ("Mixing", ""),
            ("Downscale", ""),
            ("Upscale", ""),
            ("ToLatents.map", "0"),
            ("ToLatents.norm", "1"),
            ("FromLatents.map", "0"),
            ("depthwise", "depthwise.1"),
            ("expand", "0"),
            ("contract", "2"),
            ("vquantizer.embedding", "vquantizer.embedding.weight"),
        ],
        convolutions: &["in_block", "out_block", "map"],
    };

    /// Names of the semantic compressor.
    pub const COMPRESSOR: Self = Self {
        names: &[
            ("projection", "mapper"),
            ("Conv", ""),
            ("Blocks", ""),
            ("Squeeze", ""),
            ("conv", "0.weight"),
            ("norm", "1"),
        ],
        convolutions: &["fc1", "fc2"],
    };

    /// Names of the ControlNet, whose backbone may have the layers of the compressor.
    pub const CONTROLNET: Self = Self {
        names: &[
            ("Features", ""),
            ("Convolutions", ""),
            ("Conv", ""),
            ("Blocks", ""),
            ("Squeeze", ""),
            ("Activation", ""),
            ("Residual", ""),
            ("Norm", ""),
            ("conv", "0.weight"),
            ("norm", "1"),
            ("inner", "0"),
            ("outer", "2"),
            ("gamma", "weight"),
            ("beta", "bias"),
        ],
        convolutions: &["fc1", "fc2", "inner", "outer"],
    };

    /// Names of the text encoders.
    pub const TEXT: Self = Self {
        names: &[
            ("Plain", ""),
            ("Pooled", ""),
            ("text", ""),
            ("token_embedding", "text_model.embeddings.token_embedding.weight"),
            ("position_embedding", "text_model.embeddings.position_embedding.weight"),
            ("layers", "text_model.encoder.layers"),
            ("final_layer_norm", "text_model.final_layer_norm"),
            ("gamma", "weight"),
            ("beta", "bias"),
        ],
        convolutions: &[],
    };

    /// Names of the image encoder.
    pub const VISION: Self = Self {
        names: &[
            ("class_embedding", "vision_model.embeddings.class_embedding"),
            ("patch_embedding", "vision_model.embeddings.patch_embedding.weight"),
            ("position_embedding", "vision_model.embeddings.position_embedding.weight"),
            ("pre_norm", "vision_model.pre_layrnorm"),
            ("layers", "vision_model.encoder.layers"),
            ("post_norm", "vision_model.post_layernorm"),
            ("gamma", "weight"),
            ("beta", "bias"),
        ],
        convolutions: &[],
    };

    /// Names of the previewer.
    pub const PREVIEWER: Self = Self {
        names: &[("Conv", ""), ("Grow", ""), ("Norm", ""), ("Activation", "")],
        convolutions: &[],
    };

    /// Names of VGG16 in torchvision, and of LPIPS's heads over it.
    pub const LPIPS_VGG16: Self = Self {
        names: &[
            ("convs.0", "features.0"),
            ("convs.1", "features.2"),
            ("convs.2", "features.5"),
            ("convs.3", "features.7"),
            ("convs.4", "features.10"),
            ("convs.5", "features.12"),
            ("convs.6", "features.14"),
            ("convs.7", "features.17"),
            ("convs.8", "features.19"),
            ("convs.9", "features.21"),
            ("convs.10", "features.24"),
            ("convs.11", "features.26"),
            ("convs.12", "features.28"),
            ("heads.0", "lin0.model.1.weight"),
            ("heads.1", "lin1.model.1.weight"),
            ("heads.2", "lin2.model.1.weight"),
            ("heads.3", "lin3.model.1.weight"),
            ("heads.4", "lin4.model.1.weight"),
        ],
        convolutions: &[],
    };

    /// Names of `AlexNet` in torchvision, and of LPIPS's heads over it.
    pub const LPIPS_ALEXNET: Self = Self {
        names: &[
            ("convs.0", "features.0"),
            ("convs.1", "features.3"),
            ("convs.2", "features.6"),
            ("convs.3", "features.8"),
            ("convs.4", "features.10"),
            ("heads.0", "lin0.model.1.weight"),
            ("heads.1", "lin1.model.1.weight"),
            ("heads.2", "lin2.model.1.weight"),
            ("heads.3", "lin3.model.1.weight"),
            ("heads.4", "lin4.model.1.weight"),
        ],
        convolutions: &[],
    };

    /// Names of a training state: the field names, but Stage A's network has no name of its own, so that states of
    /// runs without other networks beside it can still be read.
    pub const STATES: Self = Self { names: &[("vqgan", "")], convolutions: &[] };

    pub(super) fn name(self, path: &[String]) -> String {
        let mut name = format!(".{}.", path.join("."));
        for (field, key) in self.names {
            // A browser asks for all names of a part with every shard: most fields are left out by their first segment.
            let first = field.split('.').next();
            if !name.split('.').any(|segment| Some(segment) == first) {
                continue;
            }
            let key = if key.is_empty() { ".".to_owned() } else { format!(".{key}.") };
            name = name.replace(&format!(".{field}."), &key);
        }
        name.trim_matches('.').to_owned()
    }
}
