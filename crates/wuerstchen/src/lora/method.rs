//! Other methods of changing a model, which files of the same look may hold.

/// Pieces between the dots of a tensor's name that only one method has; those that end in `_` are how a
/// piece begins.
const MARKS: [(&str, &str); 18] = [
    ("dora_scale", "DoRA"),
    ("lora_magnitude_vector", "DoRA"),
    ("hada_", "LoHa"),
    ("lokr_", "LoKr"),
    ("oft_", "OFT"),
    ("boft_", "BOFT"),
    ("vera_", "VeRA"),
    ("ia3_", "IA3"),
    ("on_input", "IA3"),
    ("a1", "GLoRA"),
    ("b1", "GLoRA"),
    ("lora_mid", "LoCon with a third matrix"),
    ("lora_embedding_", "LoRA of embeddings"),
    ("diff", "differences of whole weights"),
    ("diff_b", "differences of whole weights"),
    ("w_norm", "differences of norms"),
    ("b_norm", "differences of norms"),
    ("bias", "trained biases"),
];

/// The method that a tensor shows, where it is not LoRA.
pub(super) fn other_method(key: &str) -> Option<&'static str> {
    let shows = |piece: &str, mark: &str| {
        if mark.ends_with('_') { piece.starts_with(mark) } else { piece == mark }
    };
    let of_piece = |piece| MARKS.into_iter().find(|(mark, _)| shows(piece, mark));
    key.split('.').find_map(of_piece).map(|(_, method)| method)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn methods_are_told_by_their_tensors() {
        let layer = "lora_prior_unet_blocks_2_attention_to_q";
        for (end, method) in [
            ("dora_scale", Some("DoRA")),
            ("lora_magnitude_vector.default.weight", Some("DoRA")),
            ("hada_w1_a", Some("LoHa")),
            ("lokr_w2", Some("LoKr")),
            ("oft_blocks", Some("OFT")),
            ("diff_b", Some("differences of whole weights")),
            ("lora_B.bias", Some("trained biases")),
            ("lora_down.weight", None),
            ("lora_A.default.weight", None),
            ("alpha", None),
        ] {
            assert_eq!(other_method(&format!("{layer}.{end}")), method, "{end}");
        }
    }
}
