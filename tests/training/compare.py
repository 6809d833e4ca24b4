"""Samples a second in training, here and in PyTorch, by turns.

    pip install torch==2.5.1 torchvision==0.20.1 diffusers==0.32.2 transformers==4.48.3 numpy
    python3 tests/training/compare.py --program target/release/wuerstchen [--config FILE] [--rounds 3]

Both sides train networks of the sizes and batch sizes in the config, from random weights, with AdamW and
clipped gradients. PyTorch has it easier: its pictures and tokens are ready in memory, and it keeps no moving average.
`wuerstchen bench` draws and tokenizes every batch, and averages the weights. Stage B appears twice: with pictures that
the frozen Stage A encodes in each update, and with latents that are ready on both sides.

Prints one line for each stage: both medians and their ratio, above 1 if this program is faster.
"""

import argparse
import json
import statistics
import subprocess
import time
import tomllib
from functools import partial
from pathlib import Path

import torch
from diffusers.pipelines.wuerstchen import PaellaVQModel, WuerstchenDiffNeXt, WuerstchenPrior
from torch import nn
from torch.nn.functional import mse_loss
from torchvision.models.efficientnet import EfficientNet, FusedMBConvConfig, MBConvConfig
from transformers import CLIPTextConfig, CLIPTextModel

ROOT = Path(__file__).resolve().parents[2]
VOCABULARY = 128  # the built-in corpus has fewer words


class StageA(nn.Module):
    """Pictures to latents and back, with the losses of pixels and of the codebook."""

    def __init__(self, config):
        super().__init__()
        self.vqgan = PaellaVQModel(**config["model"]["vqgan"])
        self.shape = (config["a"]["batch_size"], 3, config["image_size"], config["image_size"])

    def inputs(self):
        return [torch.rand(self.shape)]

    def loss(self, pictures):
        latents = self.vqgan.encode(pictures, return_dict=False)[0]
        quantized, codebook = self.vqgan.vquantizer(latents)[:2]
        pixels = self.vqgan.decode(quantized, force_not_quantize=True, return_dict=False)[0]
        error = pixels - pictures
        return error.abs().mean() + 2 * error.square().mean() + codebook


class Compressor(nn.Module):
    """EfficientNetV2 of the config's stages, and the mapper."""

    def __init__(self, sizes):
        super().__init__()
        channels, stages = sizes["stem"], []
        for stage in sizes["stages"]:
            kind = FusedMBConvConfig if stage["block"] == "fused" else MBConvConfig
            stages.append(kind(
                stage["expand"], 3, stage["stride"], channels, stage["channels"], stage["layers"]
            ))  # fmt: skip
            channels = stage["channels"]
        norm = partial(nn.BatchNorm2d, eps=1e-3)
        net = EfficientNet(stages, 0.0, 0.0, norm_layer=norm, last_channel=sizes["head"])
        self.backbone = net.features
        mapper = nn.Conv2d(sizes["head"], sizes["c_latent"], 1, bias=False)
        self.mapper = nn.Sequential(mapper, nn.BatchNorm2d(sizes["c_latent"]))

    def forward(self, pictures):
        return self.mapper(self.backbone(pictures))


def text_encoder(sizes, length):
    return CLIPTextModel(CLIPTextConfig(
        vocab_size=VOCABULARY, max_position_embeddings=length, hidden_act="gelu",
        intermediate_size=4 * sizes["hidden_size"], projection_dim=sizes["hidden_size"], **sizes,
    ))  # fmt: skip


class StageB(nn.Module):
    """Pictures to image embeddings, and latents from those and the text. Stage A is frozen, so that it takes no
    gradient; where the latents are ready, it does not run."""

    def __init__(self, config, latents_are_ready):
        super().__init__()
        self.vqgan = None
        if not latents_are_ready:
            self.vqgan = PaellaVQModel(**config["model"]["vqgan"]).eval().requires_grad_(False)
        model = config["model"]
        self.decoder = WuerstchenDiffNeXt(**model["decoder"])
        self.text = text_encoder(model["decoder_text"], model["max_tokens"])
        self.compressor = Compressor(model["compressor"])
        self.batch, self.side = config["b"]["batch_size"], config["image_size"]
        self.length = model["max_tokens"]
        self.latents = (self.batch, 4, *[self.side // 2 ** model["vqgan"]["levels"]] * 2)

    def inputs(self):
        pictures = torch.rand(self.batch, 3, self.side, self.side)
        tokens = torch.randint(VOCABULARY, (self.batch, self.length))
        return [pictures, tokens, torch.randn(self.latents)]

    def loss(self, pictures, tokens, latents):
        if self.vqgan is not None:
            with torch.no_grad():
                latents = self.vqgan.encode(pictures, return_dict=False)[0]
        noise, times = torch.randn_like(latents), torch.rand(self.batch)
        embedding = self.compressor(pictures)
        text = self.text(tokens).last_hidden_state
        return mse_loss(self.decoder(latents + noise, times, embedding, clip=text), noise)


class StageC(nn.Module):
    """Image embeddings from text. The compressor is frozen, so that it takes no gradient."""

    def __init__(self, config):
        super().__init__()
        model = config["model"]
        self.prior = WuerstchenPrior(**model["prior"])
        self.text = text_encoder(model["prior_text"], model["max_tokens"])
        self.compressor = Compressor(model["compressor"]).eval().requires_grad_(False)
        self.batch, self.side = config["c"]["batch_size"], config["image_size"]
        self.length = model["max_tokens"]

    def inputs(self):
        pictures = torch.rand(self.batch, 3, self.side, self.side)
        return [pictures, torch.randint(VOCABULARY, (self.batch, self.length))]

    def loss(self, pictures, tokens):
        with torch.no_grad():
            latents = self.compressor(pictures)
        noise, times = torch.randn_like(latents), torch.rand(self.batch)
        text = self.text(tokens).last_hidden_state
        return mse_loss(self.prior(latents + noise, times, text), noise)


def torch_speed(stage, max_grad_norm, updates):
    """Samples a second of PyTorch: the median of some updates after a first one."""
    learnt = [p for p in stage.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(learnt, lr=1e-4)
    inputs, seconds = stage.inputs(), []
    for _ in range(updates + 1):
        start = time.perf_counter()
        optimizer.zero_grad()
        stage.loss(*inputs).backward()
        nn.utils.clip_grad_norm_(learnt, max_grad_norm)
        optimizer.step()
        seconds.append(time.perf_counter() - start)
    return len(inputs[0]) / statistics.median(seconds[1:])


def our_speeds(program, config, updates):
    """Samples a second of this program, by stage."""
    command = [program, "bench", "--config", config, "--runs", str(updates), "--device", "cpu"]
    report = json.loads(subprocess.run(command, capture_output=True, text=True, check=True).stdout)
    return {line["stage"]: line["samples_per_sec"] for line in report["training"]}


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--program", required=True, help="the wuerstchen binary")
    parser.add_argument("--config", default=str(ROOT / "configs/shapes.toml"))
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--updates", type=int, default=10, help="timed in each round")
    args = parser.parse_args()
    config = tomllib.loads(Path(args.config).read_text())
    torch.manual_seed(1)
    stages = {
        "a": StageA(config),
        "b": StageB(config, latents_are_ready=False),
        "b, cached latents": StageB(config, latents_are_ready=True),
        "c": StageC(config),
    }
    clip = {name: config[name[0]]["optimizer"].get("max_grad_norm", 1.0) for name in stages}
    ours = {name: [] for name in stages}
    theirs = {name: [] for name in stages}
    for _ in range(args.rounds):
        for name, speed in our_speeds(args.program, args.config, args.updates).items():
            ours[name].append(speed)
        for name, stage in stages.items():
            theirs[name].append(torch_speed(stage, clip[name], args.updates))
    print(f"PyTorch {torch.__version__}, {torch.get_num_threads()} threads; samples a second")
    for name in stages:
        here, there = statistics.median(ours[name]), statistics.median(theirs[name])
        spread = f"{min(ours[name]):.0f}-{max(ours[name]):.0f}"
        their_spread = f"{min(theirs[name]):.0f}-{max(theirs[name]):.0f}"
        print(f"stage {name}: here {here:.0f} ({spread}), PyTorch {there:.0f} ({their_spread}), "
              f"ratio {here / there:.2f}")  # fmt: skip


if __name__ == "__main__":
    main()
