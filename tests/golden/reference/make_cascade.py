"""Makes two small U-Nets of Stable Cascade with random weights and what diffusers computes with them.

`stage_c/` and `stage_b/` have a `config.json`, weights, and in `golden.safetensors` a prediction.

    python make_cascade.py --out ../small/cascade --seed 22
"""

import argparse
import json
from pathlib import Path

import torch
from diffusers.models.unets.unet_stable_cascade import StableCascadeUNet
from safetensors.torch import save_file

C, T, A = "SDCascadeResBlock", "SDCascadeTimestepBlock", "SDCascadeAttnBlock"
COMMON = {"timestep_ratio_embedding_dim": 10, "clip_text_pooled_in_channels": 14, "clip_seq": 3}
STAGE_C = COMMON | {
    "in_channels": 6, "out_channels": 6, "patch_size": 1, "conditioning_dim": 9,
    "block_out_channels": [8, 12], "num_attention_heads": [2, 3],
    "down_num_layers_per_block": [1, 2], "up_num_layers_per_block": [2, 1],
    "block_types_per_layer": [[C, T, A], [C, T, A]], "clip_text_in_channels": 11,
    "clip_image_in_channels": 7, "kernel_size": 5, "self_attn": [True, False],
    "timestep_conditioning_type": ["sca", "crp"], "switch_level": [True],
}  # fmt: skip
STAGE_B = COMMON | {
    "in_channels": 4, "out_channels": 4, "patch_size": 2, "conditioning_dim": 10,
    "block_out_channels": [8, 12, 6], "num_attention_heads": [-1, 0, 2],
    "down_num_layers_per_block": [1, 2, 1], "up_num_layers_per_block": [1, 2, 1],
    "down_blocks_repeat_mappers": [1, 1, 1], "up_blocks_repeat_mappers": [1, 3, 2],
    "block_types_per_layer": [[C, T], [C, T], [C, T, A]], "effnet_in_channels": 6,
    "pixel_mapper_in_channels": 3, "kernel_size": 3, "dropout": [0, 0, 0.1], "self_attn": True,
    "timestep_conditioning_type": ["sca"],
}  # fmt: skip


def randomise(model):
    """No weight is zero, so that no term can be forgotten unseen."""
    for name, p in model.named_parameters():
        fan_in = p[0].numel() ** 0.5 if p.ndim > 1 else 1.0
        std = {"gamma": 0.4, "beta": 0.1, "bias": 0.1}.get(name.rsplit(".", 1)[-1], 1.0 / fan_in)
        p.copy_(std * torch.randn(p.shape))
    return model.eval()


def make(folder, config, size, inputs):
    folder.mkdir()
    model = randomise(StableCascadeUNet(**config))
    x, t = torch.randn(2, config["in_channels"], *size), torch.tensor([0.8, 0.15])
    pooled = torch.randn(2, 1, config["clip_text_pooled_in_channels"])
    output = model(x, t, clip_text_pooled=pooled, **inputs).sample.contiguous()
    tensors = {"x": x, "t": t, "clip_text_pooled": pooled, "output": output} | inputs
    save_file(tensors, folder / "golden.safetensors")
    save_file(model.state_dict(), folder / "diffusion_pytorch_model.safetensors")
    # Only what was chosen, the rest by its defaults.
    config = dict(model.config) | {"_class_name": "StableCascadeUNet"}
    config.pop("_use_default_values", None)
    (folder / "config.json").write_text(json.dumps(config, indent=1) + "\n")


@torch.no_grad()
def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, required=True, help="a new folder")
    parser.add_argument("--seed", type=int, default=22)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(arguments.seed)
    arguments.out.mkdir(parents=True)
    text, image = torch.randn(2, 5, 11), torch.randn(2, 1, 7)
    make(arguments.out / "stage_c", STAGE_C, (6, 4), {"clip_text": text, "clip_img": image})
    make(arguments.out / "stage_b", STAGE_B, (16, 24), {"effnet": torch.randn(2, 6, 3, 5)})


if __name__ == "__main__":
    main()
