"""Würstchen at its published size, with random weights: made, run in PyTorch, compared.

The published weights are 12 GB; these stand in for them, in the same layout and with outputs of
order 1. Needs 24 GB of memory, 15 GB of disk (for f32), and

    pip install torch==2.5.1 diffusers==0.32.2 transformers==4.47.1 safetensors numpy

    python tests/full_size/full_size.py make DIR [--dtype f32|f16] [--parts prior ...] [--original]
    python tests/full_size/full_size.py compare DIR --program target/release/wuerstchen

`make` writes a model folder, `--original` the authors' .pt files beside it. `compare` times one
prediction of Stage C (24x24, 77 tokens, guided), one of Stage B (256x256 latents) and Stage A's
decoding to 1024 px on two threads, in PyTorch and in `wuerstchen bench`, one after the other, and
prints times, peak memory, their ratios and the relative error between both as JSON.
"""

import argparse
import json
import os
import resource
import subprocess
import sys
import time
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

SEED = 20230601
# Folder of every part, and the name of its file.
PARTS = {
    "prior": ("wuerstchen-prior/prior", "diffusion_pytorch_model"),
    "prior_text": ("wuerstchen-prior/text_encoder", "model"),
    "decoder": ("wuerstchen/decoder", "diffusion_pytorch_model"),
    "decoder_text": ("wuerstchen/text_encoder", "model"),
    "vqgan": ("wuerstchen/vqgan", "diffusion_pytorch_model"),
    "compressor": ("effnet", "diffusion_pytorch_model"),
}


def clip(width, layers, heads):
    from transformers import CLIPTextConfig, CLIPTextModel

    return CLIPTextModel(CLIPTextConfig(
        vocab_size=49408, hidden_size=width, intermediate_size=4 * width, hidden_act="gelu",
        num_hidden_layers=layers, num_attention_heads=heads, max_position_embeddings=77,
    ))


def model(part):
    """The module of a part, on whatever device is the default."""
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
    return compressor()


def compressor():
    """EfficientNetV2-S features and the mapper, under torchvision's names."""
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
    whole.mapper = nn.Sequential(nn.Conv2d(1280, 16, 1, bias=False), nn.BatchNorm2d(16))
    return whole


def random_weights(part):
    """Weights of order 1/sqrt(inputs), drawn by the names' order from one seed."""
    with torch.device("meta"):
        shapes = {k: (v.shape, v.dtype) for k, v in model(part).state_dict().items()}
    generator = torch.Generator().manual_seed(SEED + list(PARTS).index(part))
    weights = {}
    for name, (shape, dtype) in sorted(shapes.items()):
        if dtype != torch.float32:  # counters of batch norms
            weights[name] = torch.zeros(shape, dtype=dtype)
            continue
        value = torch.randn(shape, generator=generator)
        last = name.rsplit(".", 1)[-1]
        norm = "norm" in name or (part == "compressor" and len(shape) == 1)
        if last == "running_var":
            value = value.abs() * 0.1 + 1
        elif norm and last == "weight":
            value = 1 + 0.1 * value
        elif len(shape) < 2 or last in ("gamma", "beta", "gammas", "bias", "running_mean"):
            value *= 0.1
        elif "embedding" in name and part in ("prior_text", "decoder_text"):
            value *= 0.02
        else:
            inputs = shape[1] * (shape[2] * shape[3] if len(shape) == 4 else 1)
            value /= inputs**0.5
        if part == "prior" and name.startswith("out.1."):
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
    root = Path(args.dir)
    halve = (lambda t: t.half() if t.is_floating_point() else t) if args.dtype == "f16" else (lambda t: t)
    suffix = ".fp16" if args.dtype == "f16" else ""
    for part in args.parts:
        weights = {name: halve(value) for name, value in random_weights(part).items()}
        folder, file = PARTS[part]
        (root / folder).mkdir(parents=True, exist_ok=True)
        save_file(weights, root / folder / f"{file}{suffix}.safetensors")
        if part not in ("compressor",):
            config = model_config(part)
            (root / folder / "config.json").write_text(json.dumps(config))
        if args.original and part in ("prior", "decoder", "vqgan", "compressor"):
            (root / "original").mkdir(exist_ok=True)
            name, key = {
                "prior": ("model_v2_stage_c.pt", "ema_state_dict"),
                "decoder": ("model_v2_stage_b.pt", "state_dict"),
                "vqgan": ("vqgan_f4_v1_500k.pt", "state_dict"),
                "compressor": ("effnet.pt", "effnet_state_dict"),
            }[part]
            torch.save({key: fused(weights)}, root / "original" / name)
        print(part, sum(v.numel() for v in weights.values()), flush=True)
    constants(root)


def model_config(part):
    with torch.device("meta"):
        return dict(model(part).config.to_dict() if "text" in part else model(part).config)


def constants(root):
    """The pipelines' constants, as published."""
    index = {"wuerstchen-prior": {"latent_mean": 42.0, "latent_std": 1.0, "resolution_multiple": 42.67},
             "wuerstchen": {"latent_dim_scale": 10.67}}
    for folder, values in index.items():
        (root / folder / "scheduler").mkdir(parents=True, exist_ok=True)
        (root / folder / "model_index.json").write_text(json.dumps(values))
        scheduler = {"scaler": 1.0, "s": 0.008}
        (root / folder / "scheduler/scheduler_config.json").write_text(json.dumps(scheduler))
        tokenizer(root / folder / "tokenizer")


def tokenizer(folder):
    """A stand-in with CLIP's vocabulary size: bytes, bytes at the end of a word, and words."""
    from transformers.models.clip.tokenization_clip import bytes_to_unicode

    folder.mkdir(parents=True, exist_ok=True)
    characters = list(bytes_to_unicode().values())
    words = characters + [c + "</w>" for c in characters]
    words += [f"word{i}</w>" for i in range(49408 - 2 - len(words))]
    words += ["<|startoftext|>", "<|endoftext|>"]
    (folder / "vocab.json").write_text(json.dumps({word: i for i, word in enumerate(words)}))
    (folder / "merges.txt").write_text("#version: 0.2\n")
    config = {"tokenizer_class": "CLIPTokenizer", "model_max_length": 77,
              "pad_token": "<|endoftext|>", "bos_token": "<|startoftext|>",
              "eos_token": "<|endoftext|>", "unk_token": "<|endoftext|>"}
    (folder / "tokenizer_config.json").write_text(json.dumps(config))


def inputs():
    generator = torch.Generator().manual_seed(SEED)
    randn = lambda *shape: torch.randn(shape, generator=generator)
    return {
        "prior": {"x": randn(2, 16, 24, 24), "text": randn(2, 77, 1280), "t": torch.tensor([0.7, 0.7])},
        "decoder": {"x": randn(1, 4, 256, 256), "embedding": randn(1, 16, 24, 24),
                    "text": randn(1, 77, 1024), "t": torch.tensor([0.7])},
        "vqgan": {"latents": randn(1, 4, 256, 256)},
    }


def predict(part, module, given):
    if part == "prior":
        return module(given["x"], given["t"], given["text"])
    if part == "decoder":
        return module(given["x"], given["t"], given["embedding"], given["text"])
    return module.decode(given["latents"] * 0.3764, force_not_quantize=True).sample


def run_torch(args):
    """Runs one part in this process, whose peak memory is then its own."""
    torch.set_num_threads(args.threads)
    torch.set_grad_enabled(False)
    folder, file = PARTS[args.part]
    with torch.device("meta"):
        module = model(args.part).eval()
    weights = load_file(Path(args.dir) / folder / f"{file}.safetensors")
    module.load_state_dict(weights, assign=True)
    given = inputs()[args.part]
    secs = []
    for _ in range(args.runs):
        start = time.perf_counter()
        out = predict(args.part, module, given)
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
    work = Path(args.dir)
    save_file({f"{part}/{k}": v for part in args.parts for k, v in inputs()[part].items()},
              work / "inputs.safetensors")
    report = {}
    for part in args.parts:
        torch_out, our_out = work / "torch.safetensors", work / "ours.safetensors"
        theirs, their_peak = measured([sys.executable, __file__, "torch", args.dir, "--part", part,
                                       "--threads", str(args.threads), "--runs", str(args.runs),
                                       "--out", str(torch_out)], args.threads)
        ours, our_peak = measured([args.program, "bench", "-m", args.dir, "--stage", part, "--device",
                                   "cpu", "--inputs", str(work / "inputs.safetensors"), "--runs",
                                   str(args.runs), "--dump", str(our_out)], args.threads)
        a = load_file(our_out)[f"{part}/out"].double()
        b = load_file(torch_out)[f"{part}/out"].double()
        weights = sum(v.numel() * v.element_size() for v in load_file(
            work / PARTS[part][0] / f"{PARTS[part][1]}.safetensors").values())
        report[part] = {
            "torch_secs": min(theirs["secs"]), "secs": min(ours["secs"]),
            "ratio": min(ours["secs"]) / min(theirs["secs"]),
            "relative_error": ((a - b).norm() / b.norm()).item(),
            "output_std": b.std().item(),
            "peak_bytes": our_peak, "torch_peak_bytes": their_peak,
            "peak_to_weights": our_peak / weights,
        }
        print(json.dumps({part: report[part]}), flush=True)
    return report


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    commands = parser.add_subparsers(required=True)
    command = commands.add_parser("make")
    command.add_argument("dir")
    command.add_argument("--dtype", choices=["f32", "f16"], default="f32")
    command.add_argument("--parts", nargs="+", choices=PARTS, default=list(PARTS))
    command.add_argument("--original", action="store_true")
    command.set_defaults(run=make)
    command = commands.add_parser("compare")
    command.add_argument("dir")
    command.add_argument("--program", required=True)
    command.add_argument("--parts", nargs="+", default=["prior", "decoder", "vqgan"])
    command.add_argument("--threads", type=int, default=2)
    command.add_argument("--runs", type=int, default=2)
    command.set_defaults(run=compare)
    command = commands.add_parser("torch")
    command.add_argument("dir")
    command.add_argument("--part", required=True)
    command.add_argument("--threads", type=int, default=2)
    command.add_argument("--runs", type=int, default=2)
    command.add_argument("--out", required=True)
    command.set_defaults(run=run_torch)
    args = parser.parse_args()
    args.run(args)


if __name__ == "__main__":
    main()
