"""Würstchen at its published sizes, with random weights: made, run in PyTorch, compared.

The published weights are 12 GB; these stand in for them, in the same layout and with outputs of
order 1. Needs 24 GB of memory, 15 GB of disk (for f32), and

    pip install torch==2.5.1 diffusers==0.32.2 transformers==4.47.1 safetensors numpy

    python tests/full_size/full_size.py make DIR [--version v2|cascade|cascade-large]
        [--dtype f32|f16|bf16] [--parts prior ...] [--original]
    python tests/full_size/full_size.py compare DIR --program target/release/wuerstchen
        [--version v2|cascade|cascade-large] [--turns 1]

`make` writes a model folder, `--original` the authors' .pt files of v2 beside it. The two sizes of Stable
Cascade differ in the prior and the decoder alone. `compare` times one prediction of Stage C (24x24, 77 tokens,
guided), one of Stage B (256x256 latents) and Stage A's decoding to 1024 px on two threads, in PyTorch and in
`wuerstchen bench`, one after the other, as often as `--turns` says, and prints the shortest times, peak
memory, their ratios and the relative error between both as JSON.
"""

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

SEED = 20230601
CASCADE = {
    "prior": ("stable-cascade-prior/prior", "diffusion_pytorch_model"),
    "text": ("stable-cascade-prior/text_encoder", "model"),
    "image_encoder": ("stable-cascade-prior/image_encoder", "model"),
    "decoder": ("stable-cascade/decoder", "diffusion_pytorch_model"),
    "vqgan": ("stable-cascade/vqgan", "diffusion_pytorch_model"),
    "compressor": ("effnet_encoder", "diffusion_pytorch_model"),
    "previewer": ("previewer", "diffusion_pytorch_model"),
}
# Of every version the parts, their folders and the names of their files.
VERSIONS = {
    "v2": {
        "prior": ("wuerstchen-prior/prior", "diffusion_pytorch_model"),
        "prior_text": ("wuerstchen-prior/text_encoder", "model"),
        "decoder": ("wuerstchen/decoder", "diffusion_pytorch_model"),
        "decoder_text": ("wuerstchen/text_encoder", "model"),
        "vqgan": ("wuerstchen/vqgan", "diffusion_pytorch_model"),
        "compressor": ("effnet", "diffusion_pytorch_model"),
    },
    "cascade": CASCADE,
    "cascade-large": CASCADE,
}


def clip(width, layers, heads):
    from transformers import CLIPTextConfig, CLIPTextModel

    return CLIPTextModel(CLIPTextConfig(
        vocab_size=49408, hidden_size=width, intermediate_size=4 * width, hidden_act="gelu",
        num_hidden_layers=layers, num_attention_heads=heads, max_position_embeddings=77,
    ))


def model(version, part):
    """The module of a part, on whatever device is the default."""
    if version != "v2":
        return cascade_model(version, part)
    from diffusers.pipelines.wuerstchen import PaellaVQModel, WuerstchenDiffNeXt, WuerstchenPrior

    if part == "prior":
        return WuerstchenPrior(c_in=16, c=1536, c_cond=1280, c_r=64, depth=32, nhead=24)
    if part == "decoder":
        return WuerstchenDiffNeXt()
    if part == "vqgan":
        return PaellaVQModel()
    if part == "prior_text":
        return clip(1280, 32, 20)
    if part == "decoder_text":
        return clip(1024, 24, 16)
    return compressor(affine=True)


def cascade_model(version, part):
    from diffusers.pipelines.wuerstchen import PaellaVQModel
    from transformers import (
        CLIPTextConfig, CLIPTextModelWithProjection, CLIPVisionConfig, CLIPVisionModelWithProjection,
    )

    large = version == "cascade-large"
    if part == "prior":
        return cascade_prior(2048, 32, (8, 24)) if large else cascade_prior(1536, 24, (4, 12))
    if part == "decoder" and large:
        return cascade_decoder((320, 640, 1280, 1280), (0, 0, 20, 20), (2, 6, 28, 6), (3, 3, 2, 2))
    if part == "decoder":
        return cascade_decoder((320, 576, 1152, 1152), (0, 9, 18, 18), (2, 4, 14, 4), (2, 2, 2, 2))
    if part == "text":
        return CLIPTextModelWithProjection(CLIPTextConfig(
            vocab_size=49408, hidden_size=1280, intermediate_size=5120, hidden_act="gelu",
            num_hidden_layers=32, num_attention_heads=20, max_position_embeddings=77,
            projection_dim=1280, eos_token_id=49407,
        ))
    if part == "image_encoder":
        return CLIPVisionModelWithProjection(CLIPVisionConfig(
            hidden_size=1024, intermediate_size=4096, num_hidden_layers=24, num_attention_heads=16,
            image_size=224, patch_size=14, projection_dim=768, hidden_act="quick_gelu",
        ))
    if part == "vqgan":
        return PaellaVQModel()
    if part == "compressor":
        return compressor(affine=False)
    return previewer()


CASCADE_BLOCKS = ("SDCascadeResBlock", "SDCascadeTimestepBlock", "SDCascadeAttnBlock")


def cascade_prior(width, heads, layers):
    from diffusers.models.unets.unet_stable_cascade import StableCascadeUNet

    return StableCascadeUNet(
        in_channels=16, out_channels=16, patch_size=1, conditioning_dim=width,
        block_out_channels=(width, width), num_attention_heads=(heads, heads),
        down_num_layers_per_block=layers, up_num_layers_per_block=layers[::-1],
        block_types_per_layer=(CASCADE_BLOCKS, CASCADE_BLOCKS), clip_text_in_channels=1280,
        clip_text_pooled_in_channels=1280, clip_image_in_channels=768,
        timestep_conditioning_type=("sca", "crp"), switch_level=(False,),
    )


def cascade_decoder(widths, heads, layers, repeats):
    from diffusers.models.unets.unet_stable_cascade import StableCascadeUNet

    # Attention at the two coarsest levels alone, whatever the heads of the others are.
    blocks = (CASCADE_BLOCKS[:2], CASCADE_BLOCKS[:2], CASCADE_BLOCKS, CASCADE_BLOCKS)
    return StableCascadeUNet(
        in_channels=4, out_channels=4, patch_size=2, conditioning_dim=1280,
        block_out_channels=widths, num_attention_heads=heads,
        down_num_layers_per_block=layers, up_num_layers_per_block=layers[::-1],
        down_blocks_repeat_mappers=(1, 1, 1, 1), up_blocks_repeat_mappers=repeats,
        block_types_per_layer=blocks, clip_text_pooled_in_channels=1280, effnet_in_channels=16,
        pixel_mapper_in_channels=3, dropout=(0, 0, 0.1, 0.1), timestep_conditioning_type=("sca",),
    )


def previewer():
    """Image embeddings to small pictures, under the authors' names."""
    from torch import nn

    def stage(i, o, kernel=3):
        return [nn.Conv2d(i, o, kernel, padding=kernel // 2), nn.GELU(), nn.BatchNorm2d(o)]

    def double(i, o):
        return [nn.ConvTranspose2d(i, o, 2, 2), nn.GELU(), nn.BatchNorm2d(o)]

    whole = nn.Module()
    whole.blocks = nn.Sequential(
        *stage(16, 512, 1), *stage(512, 512), *double(512, 256), *stage(256, 256), *double(256, 128),
        *stage(128, 128), *double(128, 128), *stage(128, 128), nn.Conv2d(128, 3, 1),
    )
    return whole


def compressor(affine):
    """EfficientNetV2-S features and the mapper, under torchvision's names; v2's mapper ends in an affine norm."""
    from torch import nn

    def conv_norm(i, o, k, stride=1, groups=1, act=True):
        layers = [nn.Conv2d(i, o, k, stride, k // 2, groups=groups, bias=False),
                  nn.BatchNorm2d(o, eps=1e-3)]
        return nn.Sequential(*layers, *([nn.SiLU()] if act else []))

    class Squeeze(nn.Module):
        def __init__(self, channels, squeezed):
            super().__init__()
            self.fc1, self.fc2 = nn.Conv2d(channels, squeezed, 1), nn.Conv2d(squeezed, channels, 1)

    class Block(nn.Module):
        def __init__(self, fused, i, o, expand, stride):
            super().__init__()
            inner = i * expand
            if fused and expand == 1:
                layers = [conv_norm(i, o, 3, stride)]
            elif fused:
                layers = [conv_norm(i, inner, 3, stride), conv_norm(inner, o, 1, act=False)]
            else:
                layers = [conv_norm(i, inner, 1), conv_norm(inner, inner, 3, stride, inner),
                          Squeeze(inner, max(1, i // 4)), conv_norm(inner, o, 1, act=False)]
            self.block = nn.Sequential(*layers)

    stages = [(True, 1, 24, 2, 1), (True, 4, 48, 4, 2), (True, 4, 64, 4, 2),
              (False, 4, 128, 6, 2), (False, 6, 160, 9, 1), (False, 6, 256, 15, 2)]
    layers, width = [conv_norm(3, 24, 3, 2)], 24
    for fused, expand, channels, count, stride in stages:
        blocks = []
        for i in range(count):
            blocks.append(Block(fused, width, channels, expand, stride if i == 0 else 1))
            width = channels
        layers.append(nn.Sequential(*blocks))
    layers.append(conv_norm(width, 1280, 1))
    whole = nn.Module()
    whole.backbone = nn.Sequential(*layers)
    whole.mapper = nn.Sequential(nn.Conv2d(1280, 16, 1, bias=False), nn.BatchNorm2d(16, affine=affine))
    return whole


def random_weights(version, part):
    """Weights of order 1/sqrt(inputs), drawn by the names' order from one seed."""
    with torch.device("meta"):
        shapes = {k: (v.shape, v.dtype) for k, v in model(version, part).state_dict().items()}
    generator = torch.Generator().manual_seed(SEED + list(VERSIONS[version]).index(part))
    weights = {}
    for name, (shape, dtype) in sorted(shapes.items()):
        if dtype != torch.float32:  # counters of batch norms
            weights[name] = torch.zeros(shape, dtype=dtype)
            continue
        value = torch.randn(shape, generator=generator)
        last = name.rsplit(".", 1)[-1]
        is_normed = part in ("compressor", "previewer") and len(shape) == 1
        norm = "norm" in name or "layrnorm" in name or is_normed
        if last == "running_var":
            value = value.abs() * 0.1 + 1
        elif norm and last == "weight":
            value = 1 + 0.1 * value
        elif len(shape) < 2 or last in ("gamma", "beta", "gammas", "bias", "running_mean"):
            value *= 0.1
        elif "embedding" in name and part in ("prior_text", "decoder_text", "text"):
            value *= 0.02
        else:
            inputs = shape[1] * (shape[2] * shape[3] if len(shape) == 4 else 1)
            value /= inputs**0.5
        if version == "v2" and part == "prior" and name.startswith("out.1."):
            value *= 0.1  # the prior divides by |1 - b|: outputs of order 1 need a small b
        weights[name] = value
    return weights


def fused(weights):
    """The authors' names: attention projections in one matrix, a codebook."""
    original = {}
    for name, value in weights.items():
        if ".to_q." in name:
            both = [weights[name.replace("to_q", other)] for other in ("to_k", "to_v")]
            block, kind = name.split(".to_q.")
            original[f"{block}.attn.in_proj_{kind}"] = torch.cat([value, *both])
        elif ".to_k." not in name and ".to_v." not in name:
            name = name.replace(".to_out.0.", ".attn.out_proj.")
            original[name.replace("vquantizer.embedding", "vquantizer.codebook")] = value
    return original


def make(args):
    root, version = Path(args.dir), args.version
    suffix, dtype = {"f32": ("", torch.float32), "f16": (".fp16", torch.float16),
                     "bf16": (".bf16", torch.bfloat16)}[args.dtype]
    as_stored = lambda t: t.to(dtype) if t.is_floating_point() else t
    for part in args.parts or VERSIONS[version]:
        weights = {name: as_stored(value) for name, value in random_weights(version, part).items()}
        folder, file = VERSIONS[version][part]
        (root / folder).mkdir(parents=True, exist_ok=True)
        save_file(weights, root / folder / f"{file}{suffix}.safetensors")
        if part not in ("compressor", "previewer"):
            config = model_config(version, part)
            (root / folder / "config.json").write_text(json.dumps(config))
        if args.original and version == "v2" and part in ("prior", "decoder", "vqgan", "compressor"):
            (root / "original").mkdir(exist_ok=True)
            name, key = {
                "prior": ("model_v2_stage_c.pt", "ema_state_dict"),
                "decoder": ("model_v2_stage_b.pt", "state_dict"),
                "vqgan": ("vqgan_f4_v1_500k.pt", "state_dict"),
                "compressor": ("effnet.pt", "effnet_state_dict"),
            }[part]
            torch.save({key: fused(weights)}, root / "original" / name)
        print(part, sum(v.numel() for v in weights.values()), flush=True)
    constants(root, version)


def model_config(version, part):
    with torch.device("meta"):
        config = model(version, part).config
    return config.to_dict() if hasattr(config, "to_dict") else dict(config)


def constants(root, version):
    """The pipelines' constants, as published."""
    index = {"wuerstchen-prior": {"latent_mean": 42.0, "latent_std": 1.0, "resolution_multiple": 42.67},
             "wuerstchen": {"latent_dim_scale": 10.67}}
    if version != "v2":
        index = {"stable-cascade-prior": {"_class_name": "StableCascadePriorPipeline",
                                          "resolution_multiple": 42.67},
                 "stable-cascade": {"_class_name": "StableCascadeDecoderPipeline",
                                    "latent_dim_scale": 10.67}}
    for folder, values in index.items():
        (root / folder / "scheduler").mkdir(parents=True, exist_ok=True)
        (root / folder / "model_index.json").write_text(json.dumps(values))
        scheduler = {"scaler": 1.0, "s": 0.008}
        (root / folder / "scheduler/scheduler_config.json").write_text(json.dumps(scheduler))
        tokenizer(root / folder / "tokenizer")


def tokenizer(folder):
    """A stand-in with CLIP's vocabulary size: bytes, bytes at the end of a word, and merges of both."""
    from itertools import islice, product
    from transformers.models.clip.tokenization_clip import bytes_to_unicode

    folder.mkdir(parents=True, exist_ok=True)
    characters = list(bytes_to_unicode().values())
    words = characters + [c + "</w>" for c in characters]
    merges = list(islice(product(characters, words[256:]), 49408 - 2 - len(words)))
    words += [first + last for first, last in merges]
    words += ["<|startoftext|>", "<|endoftext|>"]
    (folder / "vocab.json").write_text(json.dumps({word: i for i, word in enumerate(words)}))
    lines = ["#version: 0.2", *(" ".join(merge) for merge in merges)]
    (folder / "merges.txt").write_text("\n".join(lines) + "\n", encoding="utf-8")
    config = {"tokenizer_class": "CLIPTokenizer", "model_max_length": 77,
              "pad_token": "<|endoftext|>", "bos_token": "<|startoftext|>",
              "eos_token": "<|endoftext|>", "unk_token": "<|endoftext|>"}
    (folder / "tokenizer_config.json").write_text(json.dumps(config))


def inputs(version):
    generator = torch.Generator().manual_seed(SEED)
    randn = lambda *shape: torch.randn(shape, generator=generator)
    if version != "v2":
        return {
            "prior": {"x": randn(2, 16, 24, 24), "text": randn(2, 77, 1280), "pooled": randn(2, 1280),
                      "t": torch.tensor([0.7, 0.7])},
            "decoder": {"x": randn(1, 4, 256, 256), "embedding": randn(1, 16, 24, 24),
                        "pooled": randn(1, 1280), "t": torch.tensor([0.7])},
            "vqgan": {"latents": randn(1, 4, 256, 256)},
        }
    return {
        "prior": {"x": randn(2, 16, 24, 24), "text": randn(2, 77, 1280), "t": torch.tensor([0.7, 0.7])},
        "decoder": {"x": randn(1, 4, 256, 256), "embedding": randn(1, 16, 24, 24),
                    "text": randn(1, 77, 1024), "t": torch.tensor([0.7])},
        "vqgan": {"latents": randn(1, 4, 256, 256)},
    }


def predict(version, part, module, given):
    if version != "v2" and part != "vqgan":
        pooled = given["pooled"].unsqueeze(1)
        if part == "decoder":
            return module(given["x"], given["t"], pooled, effnet=given["embedding"]).sample
        # Without a picture prompt there are zeros in its place.
        pictures = torch.zeros(len(pooled), 1, 768)
        return module(given["x"], given["t"], pooled, given["text"], pictures).sample
    if part == "prior":
        return module(given["x"], given["t"], given["text"])
    if part == "decoder":
        return module(given["x"], given["t"], given["embedding"], given["text"])
    return module.decode(given["latents"] * 0.3764, force_not_quantize=True).sample


def run_torch(args):
    """Runs one part in this process, whose peak memory is then its own."""
    torch.set_num_threads(args.threads)
    torch.set_grad_enabled(False)
    folder, file = VERSIONS[args.version][args.part]
    with torch.device("meta"):
        module = model(args.version, args.part).eval()
    weights = load_file(Path(args.dir) / folder / f"{file}.safetensors")
    module.load_state_dict(weights, assign=True)
    given = inputs(args.version)[args.part]
    secs = []
    for _ in range(args.runs):
        start = time.perf_counter()
        out = predict(args.version, args.part, module, given)
        secs.append(time.perf_counter() - start)
    save_file({f"{args.part}/out": out.contiguous()}, args.out)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    print(json.dumps({"secs": secs, "peak_bytes": peak}))


def measured(command, threads):
    """The JSON that a command prints last, and its peak memory."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss
    environment = {**os.environ, "RAYON_NUM_THREADS": str(threads), "OMP_NUM_THREADS": str(threads)}
    time_file = "/usr/bin/time"
    wrapped = [time_file, "-f", "%M", *command] if os.path.exists(time_file) else command
    done = subprocess.run(wrapped, capture_output=True, text=True, env=environment)
    if done.returncode:
        sys.exit(done.stderr)
    if wrapped is command:
        peak = max(resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss, before)
    else:
        peak = int(done.stderr.split()[-1])
    return json.loads(done.stdout.strip().splitlines()[-1]), peak * 1024


def compare(args):
    # The program writes nothing into the folder of a model that it reads.
    scratch = tempfile.TemporaryDirectory()
    work = Path(scratch.name)
    save_file({f"{part}/{k}": v for part in args.parts for k, v in inputs(args.version)[part].items()},
              work / "inputs.safetensors")
    report = {}
    for part in args.parts:
        torch_out, our_out = work / "torch.safetensors", work / "ours.safetensors"
        in_torch = [sys.executable, __file__, "torch", args.dir, "--version", args.version, "--part", part,
                    "--threads", str(args.threads), "--runs", str(args.runs), "--out", str(torch_out)]
        here = [args.program, "bench", "-m", args.dir, "--stage", part, "--device", "cpu", "--inputs",
                str(work / "inputs.safetensors"), "--runs", str(args.runs), "--dump", str(our_out)]
        turns = [(measured(in_torch, args.threads), measured(here, args.threads))
                 for _ in range(args.turns)]
        their_secs, secs = (min(s for turn in turns for s in turn[side][0]["secs"]) for side in (0, 1))
        their_peak, peak = (max(turn[side][1] for turn in turns) for side in (0, 1))
        a = load_file(our_out)[f"{part}/out"].double()
        b = load_file(torch_out)[f"{part}/out"].double()
        folder, file = VERSIONS[args.version][part]
        weights = (Path(args.dir) / folder / f"{file}.safetensors").stat().st_size
        report[part] = {
            "torch_secs": their_secs, "secs": secs, "ratio": secs / their_secs,
            "relative_error": ((a - b).norm() / b.norm()).item(),
            "output_std": b.std().item(),
            "peak_bytes": peak, "torch_peak_bytes": their_peak,
            "peak_to_weights": peak / weights,
        }
        print(json.dumps({part: report[part]}), flush=True)
    return report


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    commands = parser.add_subparsers(required=True)
    command = commands.add_parser("make")
    command.add_argument("dir")
    command.add_argument("--version", choices=VERSIONS, default="v2")
    command.add_argument("--dtype", choices=["f32", "f16", "bf16"], default="f32")
    command.add_argument("--parts", nargs="+", help="all parts of the version if left out")
    command.add_argument("--original", action="store_true")
    command.set_defaults(run=make)
    command = commands.add_parser("compare")
    command.add_argument("dir")
    command.add_argument("--version", choices=VERSIONS, default="v2")
    command.add_argument("--program", required=True)
    command.add_argument("--turns", type=int, default=1)
    command.add_argument("--parts", nargs="+", default=["prior", "decoder", "vqgan"])
    command.add_argument("--threads", type=int, default=2)
    command.add_argument("--runs", type=int, default=2)
    command.set_defaults(run=compare)
    command = commands.add_parser("torch")
    command.add_argument("dir")
    command.add_argument("--version", choices=VERSIONS, default="v2")
    command.add_argument("--part", required=True)
    command.add_argument("--threads", type=int, default=2)
    command.add_argument("--runs", type=int, default=2)
    command.add_argument("--out", required=True)
    command.set_defaults(run=run_torch)
    args = parser.parse_args()
    for part in getattr(args, "parts", None) or []:
        if part not in VERSIONS[args.version]:
            parser.error(f"{args.version} has no part {part}, only {', '.join(VERSIONS[args.version])}")
    args.run(args)


if __name__ == "__main__":
    main()
