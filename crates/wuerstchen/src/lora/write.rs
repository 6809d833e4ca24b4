//! LoRAs as files that diffusers and peft read.

use std::collections::BTreeMap;

use serde_json::json;

use crate::checkpoint::{Checkpoint, NamedTensor};

/// What stands in front of a layer's name in a file of diffusers: the pipeline's own name of Stage C.
const DIFFUSERS_PREFIX: &str = "prior.";

/// The same in a file of peft.
const PEFT_PREFIX: &str = "base_model.model.";

/// A LoRA of Stage C that has been trained here; all of its layers have one rank and one alpha.
#[derive(Clone, Debug, PartialEq)]
pub struct TrainedLora {
    /// Rank of the matrices, at least 1.
    pub rank: usize,
    /// The number that, divided by the rank, scales every product.
    pub alpha: f64,
    /// The layers, by their names in a checkpoint, such as `blocks.2.attention.to_q`.
    pub layers: BTreeMap<String, TrainedLayer>,
}

/// The two matrices of a layer.
#[derive(Clone, Debug, PartialEq)]
pub struct TrainedLayer {
    /// `[rank, input]`.
    pub down: Vec<f32>,
    /// `[output, rank]`.
    pub up: Vec<f32>,
}

impl TrainedLora {
    /// The tensors of `pytorch_lora_weights.safetensors` as diffusers names them. Its files of this family have
    /// no alpha, and take it for the rank: the scale goes into `up`.
    pub fn for_diffusers(&self) -> Checkpoint {
        let scale = (self.alpha / self.rank as f64) as f32;
        self.tensors(DIFFUSERS_PREFIX, ["lora.down", "lora.up"], scale)
    }

    /// The tensors of `adapter_model.safetensors` as peft names them; [`Self::adapter_config`] has the alpha.
    pub fn for_peft(&self) -> Checkpoint {
        self.tensors(PEFT_PREFIX, ["lora_A", "lora_B"], 1.0)
    }

    /// `adapter_config.json`, which peft keeps beside its weights.
    pub fn adapter_config(&self) -> String {
        let config = json!({
            "peft_type": "LORA",
            "r": self.rank,
            "lora_alpha": self.alpha,
            "target_modules": self.layers.keys().collect::<Vec<_>>(),
            "lora_dropout": 0.0,
            "bias": "none",
            "fan_in_fan_out": false,
            "inference_mode": true,
            "init_lora_weights": true,
            "use_rslora": false,
            "use_dora": false,
            "task_type": null,
            "base_model_name_or_path": null,
        });
        serde_json::to_string_pretty(&config).expect("JSON values are JSON")
    }

    fn tensors(&self, prefix: &str, [down, up]: [&str; 2], scale: f32) -> Checkpoint {
        let tensors = self.layers.iter().flat_map(|(layer, matrices)| {
            let name = |half: &str| format!("{prefix}{layer}.{half}.weight");
            let sides = [&matrices.down, &matrices.up].map(|values| values.len() / self.rank);
            let scaled = matrices.up.iter().map(|value| value * scale).collect();
            [
                NamedTensor::new(name(down), &[self.rank, sides[0]], matrices.down.clone()),
                NamedTensor::new(name(up), &[sides[1], self.rank], scaled),
            ]
        });
        Checkpoint::from_tensors("the trained LoRA", tensors)
    }
}

#[cfg(test)]
mod tests {
    use super::super::read::tests::model;
    use super::*;
    use crate::lora::{Lora, LoraFile};
    use crate::part::Part;

    /// Both forms change a layer alike: `6/2·up·down` on top of ones.
    #[test]
    fn both_forms_are_read_as_the_same_lora() {
        let layer = TrainedLayer {
            down: vec![1.0, 2.0, 3.0, 0.0, 0.0, 1.0],
            up: vec![1.0, 0.0, 0.0, -1.0],
        };
        let layers = BTreeMap::from([("blocks.2.attention.to_q".to_owned(), layer)]);
        let lora = TrainedLora { rank: 2, alpha: 6.0, layers };
        let peft = LoraFile::from(lora.for_peft()).with_adapter_config(Some(lora.adapter_config()));
        for file in [peft, LoraFile::from(lora.for_diffusers())] {
            let mut model = model();
            let read = Lora::read(&file, &model, 1.0).unwrap();
            model.add_loras(vec![read]).unwrap();
            let values = model.weights[&Part::PRIOR].values("blocks.2.attention.to_q.weight");
            assert_eq!(values.unwrap(), [4.0, 7.0, 10.0, 1.0, 1.0, -2.0]);
        }
    }
}
