"""Makes a Würstchen with random weights of the size of the browser benchmark, and its ONNX files.

The folder has the layout of the published models (`wuerstchen-prior/`, `wuerstchen/`), goldens of
the three networks in `golden/`, so that `wuerstchen verify FOLDER` compares ours with PyTorch's, and
the same networks as `prior.onnx`, `decoder.onnx` and `vqgan.onnx`, whose inputs and outputs have the
goldens' names. Pictures have 128 pixels a side, image embeddings 6, latents 32.

    python make_networks.py --out FOLDER
"""

import argparse
import json
import warnings
from pathlib import Path
from unittest import mock

import torch
from diffusers import (
    DDPMWuerstchenScheduler,
    WuerstchenDecoderPipeline,
    WuerstchenPriorPipeline,
)
from diffusers.pipelines.wuerstchen import PaellaVQModel, WuerstchenDiffNeXt, WuerstchenPrior
from models import LENGTH, calibrate, make_tokenizer, randomise
from safetensors.torch import save_file
from torch import nn
from torch.nn.functional import interpolate
from transformers import CLIPTextConfig, CLIPTextModel

WIDTH = 256  # of text embeddings
PRIOR = {"c_in": 16, "c": 256, "c_cond": WIDTH, "c_r": 64, "depth": 8, "nhead": 4}
DECODER = {
    "c_in": 4, "c_out": 4, "c_r": 64, "patch_size": 2, "c_cond": 256, "c_hidden": [96, 192, 256],
    "nhead": [-1, 3, 4], "blocks": [2, 3, 4], "level_config": ["CT", "CTA", "CTA"],
    "inject_effnet": [False, True, True], "effnet_embd": 16, "clip_embd": WIDTH, "kernel_size": 3,
}  # fmt: skip
VQGAN = {
    "levels": 2, "bottleneck_blocks": 6, "embed_dim": 192, "latent_channels": 4,
    "num_vq_embeddings": 1024, "scale_factor": 0.3764,
}  # fmt: skip
TEXT = {"hidden_size": WIDTH, "num_hidden_layers": 2, "num_attention_heads": 4}
SIDE, EMBEDDING, LATENTS = 128, 6, 32


class Call(nn.Module):
    """A call of a network with tensors alone: the exporter takes options for inputs."""

    def __init__(self, model, call=None):
        super().__init__()
        self.model, self.call = model, call or model

    def forward(self, *inputs):
        return self.call(*inputs)


def decode(vqgan):
    """Stage A's way back, past the codes."""
    return lambda latents: vqgan.decode(latents, force_not_quantize=True).sample


def text_encoder(tokenizer):
    ids = {key: getattr(tokenizer, key) for key in ("bos_token_id", "eos_token_id", "pad_token_id")}
    return randomise(CLIPTextModel(CLIPTextConfig(
        vocab_size=len(tokenizer), intermediate_size=4 * WIDTH, projection_dim=WIDTH,
        hidden_act="gelu", **TEXT, **ids,
    )))  # fmt: skip


def resize(x, size, **options):
    """`interpolate` as two products with matrices: ONNX has no bicubic resize with antialiasing."""

    def matrix(old, new):
        rows = torch.eye(old).reshape(1, old, old, 1).expand(1, old, old, 2)
        return interpolate(rows, (new, 2), **options)[0, :, :, 0]

    (height, width), (new_height, new_width) = x.shape[-2:], map(int, size)
    return matrix(int(height), new_height).T @ x @ matrix(int(width), new_width)


def save(out, name, model, inputs, result):
    """Writes the network as ONNX; its inputs and its result are a golden."""
    with torch.no_grad():
        tensors = inputs | {result: model(*inputs.values())}
    path = str(out / f"{name}.onnx")
    with mock.patch.object(nn.functional, "interpolate", resize):
        torch.onnx.export(
            model, tuple(inputs.values()), path, input_names=list(inputs),
            output_names=[result], opset_version=17,
        )  # fmt: skip
    return tensors


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, required=True, help="a new folder")
    parser.add_argument("--seed", type=int, default=30)
    arguments = parser.parse_args()
    torch.manual_seed(arguments.seed)
    warnings.simplefilter("ignore")  # the sizes that the exporter takes for constants are

    out = arguments.out
    out.mkdir(parents=True)  # never writes into what is there
    _, tokenizer = make_tokenizer(out / "tokenizer")
    prior = randomise(WuerstchenPrior(**PRIOR))
    decoder = randomise(WuerstchenDiffNeXt(**DECODER))
    vqgan = calibrate(randomise(PaellaVQModel(**VQGAN)), "encode", (2, 3, SIDE, SIDE))
    # A little off the quotients of the sides, so that rounding leads to the sides.
    WuerstchenPriorPipeline(
        tokenizer, text_encoder(tokenizer), prior, DDPMWuerstchenScheduler(),
        resolution_multiple=SIDE / (EMBEDDING - 0.01),
    ).save_pretrained(out / "wuerstchen-prior")  # fmt: skip
    WuerstchenDecoderPipeline(
        tokenizer, text_encoder(tokenizer), decoder, DDPMWuerstchenScheduler(), vqgan,
        latent_dim_scale=(LATENTS + 0.01) / EMBEDDING,
    ).save_pretrained(out / "wuerstchen")  # fmt: skip
    defaults = {
        "width": SIDE, "height": SIDE, "prior_steps": 1, "prior_guidance_scale": 4.0,
        "decoder_steps": 1, "decoder_guidance_scale": 0.0, "sampler": "ddpm",
    }  # fmt: skip
    card = {"name": "benchmark", "licence": "none", "provenance": "Random.", "defaults": defaults}
    (out / "wuerstchen.json").write_text(json.dumps(card, indent=1) + "\n")

    normal = torch.randn
    text = normal(2, LENGTH, WIDTH)
    image = torch.rand(1, 3, SIDE, SIDE)
    latents = vqgan.encode(image, return_dict=False)[0].detach()
    goldens = {
        "prior": save(out, "prior", Call(prior), {
            "x": normal(2, PRIOR["c_in"], EMBEDDING, EMBEDDING), "r": torch.tensor([0.6, 0.6]),
            "c": text,
        }, "y"),
        "decoder": save(out, "decoder", Call(decoder), {
            "x": normal(1, DECODER["c_in"], LATENTS, LATENTS), "r": torch.tensor([0.6]),
            "effnet": 20 * normal(1, DECODER["effnet_embd"], EMBEDDING, EMBEDDING),
            "clip": text[:1],
        }, "y"),
        "vqgan": save(out, "vqgan", Call(vqgan, decode(vqgan)), {"latents": latents}, "decoded"),
    }  # fmt: skip
    goldens["vqgan"]["image"] = image
    (out / "golden").mkdir()
    for name, tensors in goldens.items():
        tensors = {key: value.detach().contiguous().clone() for key, value in tensors.items()}
        assert all(t.isfinite().all() for t in tensors.values()), name
        save_file(tensors, out / "golden" / f"{name}.safetensors")


if __name__ == "__main__":
    main()
