"""Makes a small Würstchen with random weights and what the reference Python code computes with it.

The folder has the layout of the published models (`wuerstchen-prior/`, `wuerstchen/`, `effnet/`),
the same weights in the authors' fused layout (`original/`), and in `golden/` inputs, outputs of
whole blocks, results of the pipelines and of one training step. `wuerstchen verify FOLDER` computes
all of it again in Rust and compares.

The sizes are odd on purpose: five-by-five kernels, an odd time embedding, three levels of which the
middle one has neither attention nor an image embedding, a padding token that is no end token,
pictures that are not square. No weight is zero, so that no term can be forgotten unseen: a fresh
model has zeros in the response norms, the time mappers, the gammas and the last convolution.

    python make_golden.py --out ../small --seed 20
"""

import argparse
import copy
import json
import re
import tempfile
from collections import Counter
from functools import partial
from pathlib import Path
from unittest import mock

import torch
import torch.nn.functional as F
from diffusers import (
    DDPMWuerstchenScheduler,
    WuerstchenCombinedPipeline,
    WuerstchenDecoderPipeline,
    WuerstchenPriorPipeline,
)
from diffusers.pipelines.wuerstchen import (
    DEFAULT_STAGE_C_TIMESTEPS,
    PaellaVQModel,
    WuerstchenDiffNeXt,
    WuerstchenPrior,
    pipeline_wuerstchen,
    pipeline_wuerstchen_prior,
)
from diffusers.schedulers import scheduling_ddpm_wuerstchen
from safetensors.torch import save_file
from torch import nn
from torchvision.models.efficientnet import EfficientNet, FusedMBConvConfig, MBConvConfig
from torchvision.transforms import v2 as transforms
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer, CLIPTokenizerFast
from transformers.models.clip.tokenization_clip import bytes_to_unicode

PRIOR = {"c_in": 6, "c": 24, "c_cond": 20, "c_r": 17, "depth": 3, "nhead": 3, "dropout": 0.1}
DECODER = {
    "c_in": 4, "c_out": 4, "c_r": 17, "patch_size": 2, "c_cond": 20, "c_hidden": [8, 12, 24],
    "nhead": [2, -1, 4], "blocks": [1, 2, 1], "level_config": ["CTA", "CT", "CTA"],
    "inject_effnet": [True, False, True], "effnet_embd": 6, "clip_embd": 28, "kernel_size": 5,
    "dropout": 0.1,
}  # fmt: skip
VQGAN = {
    "levels": 2, "bottleneck_blocks": 3, "embed_dim": 12, "latent_channels": 4,
    "num_vq_embeddings": 48, "scale_factor": 0.3764,
}  # fmt: skip
PRIOR_TEXT = {"hidden_size": 20, "num_hidden_layers": 2, "num_attention_heads": 4}
DECODER_TEXT = {"hidden_size": 28, "num_hidden_layers": 3, "num_attention_heads": 2}
EFFNET = [  # expansion, kernel, stride, channels in and out, layers
    FusedMBConvConfig(1, 3, 1, 6, 6, 1),
    FusedMBConvConfig(4, 3, 2, 6, 10, 2),
    FusedMBConvConfig(4, 3, 2, 10, 8, 1),
    MBConvConfig(4, 3, 2, 8, 16, 1),
    MBConvConfig(6, 3, 1, 16, 16, 2),
    MBConvConfig(6, 3, 2, 16, 24, 1),
]
EFFNET_HEAD = 40
HEIGHT, WIDTH = 256, 128
EMBEDDING, LATENTS = (6, 3), (64, 32)  # what the pipelines make of that size
PROMPT, NEGATIVE = "A Shiba Inu in a spacesuit, floating above Venus!", "blurred, low quality"
PRIOR_GUIDANCE, DECODER_GUIDANCE = 4.0, 2.0
LENGTH = 77
BOS, EOS, PAD = "<|startoftext|>", "<|endoftext|>", "!"
CORPUS = """a shiba inu in a spacesuit floating above venus blurred low quality the quality of the
light over the mountains a painting of a lighthouse in a storm the sleepy badger walks along the
sleepy river at night a photo of a teapot isn't it what they've we'll the the the a a in in of"""
PROMPTS = [
    "", " ", "teapot", PROMPT, NEGATIVE, "A BADGER's sett isn't BLUE; it's #2: 50% 2.71",
    "crème brûlée – “Größe” … 大阪 🦡 e\u0301", "  tabs\tand\nlines   and\u00a0more  ",
    f"{BOS}light{EOS} house", "the sleepy badger walks along the river " * 12,
    "we'll they've you're I'm he'd don't", "z" * 150, "don’t!? wait!!! 12345",
]  # fmt: skip
RESIZES = [
    ((12, 12), (8, 8)), ((1, 1), (4, 4)), ((24, 24), (16, 16)), ((24, 24), (24, 24)),
    ((24, 24), (32, 32)), ((24, 24), (64, 64)), ((2, 3), (1, 1)), ((36, 24), (24, 16)),
    ((3, 3), (2, 2)), ((3, 3), (4, 4)), ((3, 3), (8, 8)), ((4, 6), (2, 3)), ((5, 7), (3, 11)),
    ((6, 3), (32, 16)), ((6, 3), (8, 4)), ((6, 9), (4, 6)),
]  # fmt: skip

# The modules whose outputs are kept: whole blocks.
PRIOR_KEPT = r"blocks\.\d+|projection|cond_mapper|out"
DECODER_KEPT = r"(down|up)_blocks\.\d+\.\d+|effnet_mappers\.\d+|clip_mapper|embedding|clf"
VQGAN_KEPT = r"(down|up)_blocks\.\d+|in_block|out_block"
EFFNET_KEPT = r"backbone\.\d|backbone\.[1-6]\.\d|mapper"
TEXT_KEPT = r"text_model\.embeddings|text_model\.encoder\.layers\.\d+"


class Compressor(nn.Module):
    """The semantic compressor as the authors build it."""

    def __init__(self):
        super().__init__()
        norm = partial(nn.BatchNorm2d, eps=1e-3)
        net = EfficientNet(EFFNET, 0.0, 0.0, norm_layer=norm, last_channel=EFFNET_HEAD)
        self.backbone = net.features
        channels = PRIOR["c_in"]
        conv = nn.Conv2d(EFFNET_HEAD, channels, 1, bias=False)
        self.mapper = nn.Sequential(conv, nn.BatchNorm2d(channels))

    def forward(self, x):
        return self.mapper(self.backbone(x))


class Models:
    """Everything that has weights, and the tokenizer."""

    def __init__(self, tokenizer):
        self.tokenizer = tokenizer
        self.prior = randomise(WuerstchenPrior(**PRIOR))
        self.decoder = randomise(WuerstchenDiffNeXt(**DECODER))
        self.vqgan = calibrate(randomise(PaellaVQModel(**VQGAN)), "encode", (4, 3, 32, 32))
        self.effnet = calibrate(randomise(Compressor()), "forward", (4, 3, 64, 64))
        self.prior_text = self.text(PRIOR_TEXT)
        self.text = self.text(DECODER_TEXT)

    def text(self, sizes):
        ids = {f"{k}_token_id": getattr(self.tokenizer, f"{k}_token_id") for k in ("bos", "eos", "pad")}
        config = CLIPTextConfig(
            vocab_size=len(self.tokenizer), intermediate_size=2 * sizes["hidden_size"],
            projection_dim=sizes["hidden_size"], hidden_act="gelu", **sizes, **ids,
        )  # fmt: skip
        return randomise(CLIPTextModel(config))

    def prior_pipeline(self):
        scheduler = DDPMWuerstchenScheduler()
        return quiet(WuerstchenPriorPipeline(self.tokenizer, self.prior_text, self.prior, scheduler))

    def decoder_pipeline(self):
        scheduler = DDPMWuerstchenScheduler()
        return quiet(WuerstchenDecoderPipeline(
            self.tokenizer, self.text, self.decoder, scheduler, self.vqgan
        ))  # fmt: skip

    def combined_pipeline(self):
        schedulers = [DDPMWuerstchenScheduler() for _ in range(2)]
        pipeline = WuerstchenCombinedPipeline(
            self.tokenizer, self.text, self.decoder, schedulers[0], self.vqgan,
            self.tokenizer, self.prior_text, self.prior, schedulers[1],
        )  # fmt: skip
        return quiet(pipeline)


def quiet(pipeline):
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


@torch.no_grad()
def randomise(model):
    """Gives every parameter a random value of a size at which signals keep theirs."""
    for name, p in model.named_parameters():
        fan_in = p[0].numel() ** 0.5 if p.ndim > 1 else 1.0
        mean, std = 0.0, 1.0 / fan_in
        if name.endswith("bias"):
            std = 0.08
        elif name.endswith(("gamma", "gammas")):
            std = 0.4
        elif name.endswith("beta"):
            std = 0.1
        elif p.ndim == 1:  # a norm's weight
            mean, std = 1.0, 0.15
        elif name.endswith(".mapper.weight"):  # of the time embedding
            std = 0.25 / fan_in
        elif name.endswith("vquantizer.embedding.weight"):
            std = 1.0
        elif name.endswith("_embedding.weight"):
            std = 0.4
        if name.startswith("effnet_mappers") and name.endswith("weight"):
            std = 0.1 / fan_in  # image embeddings are of the order of 42
        # The last layers: a prediction close to the input keeps the samplings from exploding.
        if name in ("out.1.weight", "clf.1.weight"):
            std = 0.1 / fan_in
        elif name in ("out.1.bias", "clf.1.bias"):
            std = 0.02
        elif name == "out_block.0.weight":
            std = 0.25 / fan_in
        elif name == "out_block.0.bias":
            mean, std = 0.5, 0.02
        p.copy_(mean + std * torch.randn(p.shape))
        if name == "clf.1.bias":
            p[len(p) // 2 :] += 3.0  # the denominator, behind a sigmoid
    return model.eval()


@torch.no_grad()
def calibrate(model, method, shape):
    """Takes the statistics of all batch norms from a few random batches."""
    norms = [m for m in model.modules() if isinstance(m, nn.BatchNorm2d)]
    for norm in norms:
        norm.train()
        norm.momentum = None  # a plain mean
    for _ in range(3):
        x = torch.rand(shape)
        if method == "encode":
            model.encode(x, return_dict=False)
        else:
            model(normalise(x))
    for norm in norms:
        norm.momentum = 0.1
    return model.eval()


normalise = transforms.Normalize([0.485, 0.456, 0.406], [0.229, 0.224, 0.225])


def make_tokenizer(folder):
    """A byte-pair vocabulary in the form of CLIP's, with merges learnt from a few sentences."""
    base = list(bytes_to_unicode().values())
    counts = Counter(re.findall(r"'s|'t|'re|'ve|'m|'ll|'d|[a-z]+", CORPUS))
    words = {word: [*word[:-1], word[-1] + "</w>"] for word in counts}
    merges = []
    while len(merges) < 100:
        pairs = Counter()
        for word, parts in words.items():
            for pair in zip(parts, parts[1:]):
                pairs[pair] += counts[word]
        best = min(pairs, key=lambda pair: (-pairs[pair], pair))
        merges.append(best)
        for parts in words.values():
            for i in reversed(range(len(parts) - 1)):
                if tuple(parts[i : i + 2]) == best:
                    parts[i : i + 2] = ["".join(best)]
    tokens = [*base, *(c + "</w>" for c in base), *map("".join, merges), BOS, EOS]
    assert len(set(tokens)) == len(tokens)
    folder.mkdir(parents=True, exist_ok=True)
    vocab, rules = folder / "vocab.json", folder / "merges.txt"
    vocab.write_text(json.dumps({token: i for i, token in enumerate(tokens)}))
    rules.write_text("#version: 0.2\n" + "".join(f"{a} {b}\n" for a, b in merges))
    options = {"pad_token": PAD, "model_max_length": LENGTH}
    slow, fast = (kind(str(vocab), str(rules), **options) for kind in (CLIPTokenizer, CLIPTokenizerFast))
    return slow, fast


def encode(tokenizer, prompts):
    options = {"padding": "max_length", "max_length": LENGTH, "truncation": True}
    return tokenizer(prompts, return_tensors="pt", **options)


class Outputs:
    """Keeps what the modules whose names match a pattern give out."""

    def __init__(self, model, kept):
        self.tensors, self.hooks = {}, []
        for name, module in model.named_modules():
            if re.fullmatch(kept, name):
                self.hooks.append(module.register_forward_hook(partial(self.keep, name)))

    def keep(self, name, _module, _inputs, output):
        output = output[0] if isinstance(output, tuple) else output
        self.tensors[f"act/{name}:out"] = output.detach().clone()

    def __enter__(self):
        return self.tensors

    def __exit__(self, *_):
        for hook in self.hooks:
            hook.remove()


class Noises:
    """Records every noise that the pipelines and the scheduler draw, in order."""

    def __init__(self):
        self.drawn = []
        modules = [pipeline_wuerstchen, pipeline_wuerstchen_prior, scheduling_ddpm_wuerstchen]
        draw = scheduling_ddpm_wuerstchen.randn_tensor

        def record(*args, **kwargs):
            self.drawn.append(draw(*args, **kwargs))
            return self.drawn[-1].clone()

        self.patches = [mock.patch.object(m, "randn_tensor", record) for m in modules]

    def __enter__(self):
        for patch in self.patches:
            patch.start()
        return self.drawn

    def __exit__(self, *_):
        for patch in self.patches:
            patch.stop()


@torch.no_grad()
def golden_prior(models):
    x, c = torch.randn(2, PRIOR["c_in"], *EMBEDDING), torch.randn(2, LENGTH, PRIOR["c_cond"])
    r = torch.tensor([0.9371, 0.2113])
    model = models.prior
    with Outputs(model, PRIOR_KEPT) as tensors:
        tensors |= {"x": x, "c": c, "r": r, "y": model(x, r, c)}
    tensors["r_embed"], tensors["c_embed"] = model.gen_r_embedding(r), model.cond_mapper(c)
    exact = copy.deepcopy(model).double()(x.double(), r.double(), c.double())
    return tensors, error(tensors["y"], exact)


@torch.no_grad()
def golden_decoder(models):
    x, clip = torch.randn(2, DECODER["c_in"], *LATENTS), torch.randn(2, LENGTH, DECODER["clip_embd"])
    effnet, r = 20 * torch.randn(2, DECODER["effnet_embd"], *EMBEDDING), torch.tensor([0.8127, 0.1493])
    model = models.decoder
    with Outputs(model, DECODER_KEPT) as tensors:
        y = model(x, r, effnet, clip)
    tensors |= {"x": x, "r": r, "effnet": effnet, "clip": clip, "y": y}
    tensors["a"], tensors["b"] = model(x, r, effnet, clip, return_noise=False)
    tensors["r_embed"], tensors["clip_embed"] = model.gen_r_embedding(r), model.gen_c_embeddings(clip)
    exact = copy.deepcopy(model).double()(*(v.double() for v in (x, r, effnet, clip)))
    return tensors, error(y, exact)


@torch.no_grad()
def golden_vqgan(models):
    model, codes = models.vqgan, models.vqgan.vquantizer.embedding.weight
    margin = 0.0
    while margin < 1e-4:  # rounding must not choose between two codes
        image = torch.rand(2, 3, 24, 40)
        with Outputs(model, VQGAN_KEPT) as tensors:
            latents = model.encode(image, return_dict=False)[0]
            decoded = model.decode(latents, force_not_quantize=True).sample
        nearest = torch.cdist(latents.permute(0, 2, 3, 1).reshape(-1, 4), codes).topk(2, largest=False)
        margin = nearest.values.diff(dim=1).min().item()
    quantized, _, (_, _, indices) = model.vquantizer(latents)
    indices = indices.reshape(2, *latents.shape[2:])
    tensors |= {
        "image": image,
        "latents": latents,
        "encode_scaled": latents / model.config.scale_factor,
        "quantized": quantized,
        "indices": indices,
        "codebook_loss": F.mse_loss(quantized, latents),
        "decoded": decoded,
        "decoded_quantized": model.decode(quantized, force_not_quantize=True).sample,
    }
    exact = copy.deepcopy(model).double().decode(latents.double()).sample
    report = {"margin": margin, "codes_used": len(indices.unique())}
    return tensors, {**error(decoded, exact), **report}


@torch.no_grad()
def golden_effnet(models):
    model, x = models.effnet, torch.randn(2, 3, 64, 32)
    with Outputs(model, EFFNET_KEPT) as tensors:
        latents = model(x)
    picture = torch.rand(1, 3, 81, 100)
    resized = transforms.Resize(64, transforms.InterpolationMode.BILINEAR, antialias=True)(picture)
    cropped = transforms.CenterCrop(64)(resized)
    tensors |= {
        "x": x,
        "latents": latents,
        "scaled": (latents + 1.0) / 42.0,
        "picture": picture,
        "resized": resized,
        "cropped": cropped,
        "normalised": normalise(cropped),
        "latents_picture": model(normalise(cropped)),
    }
    return tensors, error(latents, copy.deepcopy(model).double()(x.double()))


@torch.no_grad()
def golden_clip(tokenizer, model):
    inputs = encode(tokenizer, [PROMPT, "", PROMPTS[9]])
    ids, mask = inputs.input_ids, inputs.attention_mask
    with Outputs(model, TEXT_KEPT) as tensors:
        result = model(ids, attention_mask=mask, output_hidden_states=True)
    tensors |= {f"hidden_states.{i}": h for i, h in enumerate(result.hidden_states)}
    tensors |= {"input_ids": ids, "attention_mask": mask}
    tensors["last_hidden_state"] = result.last_hidden_state
    tensors["last_hidden_state.no_mask"] = model(ids).last_hidden_state
    return tensors


def golden_tokenizer(slow, fast):
    rows = []
    for prompt in PROMPTS:
        row = {key: value[0].tolist() for key, value in encode(fast, [prompt]).items()}
        differs = encode(slow, [prompt]).input_ids[0].tolist() != row["input_ids"]
        rows.append({"prompt": prompt, **row, "slow_differs": differs})
    ids = {"bos": fast.bos_token_id, "eos": fast.eos_token_id, "pad": fast.pad_token_id}
    return {"vocab_size": len(fast), **ids, "rows": rows}


def golden_interpolate():
    tensors = {}
    for source, target in RESIZES:
        pair = "_".join(f"{h}x{w}" for h, w in (source, target))
        x = torch.randn(1, 2, *source)
        tensors[f"{pair}:in"] = x
        tensors[f"{pair}:out"] = F.interpolate(
            x, size=target, mode="bicubic", antialias=True, align_corners=True
        )
    return tensors


def golden_scheduler():
    t = torch.linspace(0, 1, 41)
    tensors = {"t": t, "default_stage_c_timesteps": torch.tensor(DEFAULT_STAGE_C_TIMESTEPS, dtype=torch.float64)}
    for scaler in (0.5, 1.0, 2.0):
        alphas = DDPMWuerstchenScheduler(scaler=scaler)._alpha_cumprod(t, "cpu")
        tensors[f"alpha_cumprod.scaler{scaler}"] = alphas
    lists = {"stagec": DEFAULT_STAGE_C_TIMESTEPS, "custom": [1.0, 0.81, 0.42, 0.13, 0.0], "n12": 12, "n60": 60}
    for name, times in lists.items():
        scheduler = DDPMWuerstchenScheduler()
        if isinstance(times, int):
            scheduler.set_timesteps(times)
        else:
            scheduler.set_timesteps(timesteps=times)
        x, predictions = [torch.randn(2, 2, 2, 3)], []
        with Noises() as noises:
            for time in scheduler.timesteps[:-1]:
                predictions.append(torch.randn_like(x[0]))
                x.append(scheduler.step(predictions[-1], time.expand(2), x[-1]).prev_sample)
        tensors[f"timesteps.{name}"] = scheduler.timesteps
        for key, values in {"x": x, "pred": predictions, "noise": noises}.items():
            tensors[f"steps.{name}.{key}"] = torch.stack(values)
    x0, noise, t = torch.randn(4, 2, 3, 4), torch.randn(4, 2, 3, 4), torch.tensor([0.03, 0.4, 0.77, 1.0])
    scheduler = DDPMWuerstchenScheduler()
    tensors |= {"add_noise.x0": x0, "add_noise.noise": noise, "add_noise.t": t}
    tensors["add_noise.y"] = scheduler.add_noise(x0, noise, t)
    tensors["p2_weight"] = p2_weight(t)
    return tensors


def p2_weight(t):
    alpha = DDPMWuerstchenScheduler()._alpha_cumprod(t, "cpu")
    return (1 + alpha / (1 - alpha)) ** -1


def sample(pipeline, name, **arguments):
    """Runs a pipeline; gives its result and the tensors of that variant."""
    latents = []

    def keep(_pipeline, _step, _time, tensors):
        latents.append(tensors["latents"].clone())
        return tensors

    with Noises() as noises:
        result = pipeline(output_type="pt", callback_on_step_end=keep, **arguments)
    times = pipeline.scheduler.timesteps.float()
    values = {"initial": noises[0], "step_noise": torch.stack(noises[1:]), "timesteps": times}
    values["latents"] = torch.stack(latents)
    assert len(noises) == len(times) == len(latents) + 1
    return result, {f"{name}.{key}": value for key, value in values.items()}


def golden_pipeline(models):
    pipeline, tensors, embeddings = models.prior_pipeline(), {}, None
    guided = {"guidance_scale": PRIOR_GUIDANCE, "negative_prompt": NEGATIVE}
    variants = {
        "prior_cfg": {**guided, "num_inference_steps": 4},
        "prior_nocfg": {"guidance_scale": 0.0, "num_inference_steps": 3},
        "prior_stagec": {"guidance_scale": PRIOR_GUIDANCE, "timesteps": DEFAULT_STAGE_C_TIMESTEPS},
        "prior_n2": {**guided, "num_inference_steps": 2, "num_images_per_prompt": 2},
    }
    for name, arguments in variants.items():
        result, seen = sample(pipeline, name, prompt=PROMPT, height=HEIGHT, width=WIDTH, **arguments)
        tensors |= seen | {f"{name}.image_embeddings": result.image_embeddings}
        assert result.image_embeddings.shape[2:] == EMBEDDING
    embeddings = tensors["prior_cfg.image_embeddings"]
    pipeline, vqgan = models.decoder_pipeline(), models.vqgan
    for name, scale in {"dec_nocfg": 0.0, "dec_cfg": DECODER_GUIDANCE}.items():
        result, seen = sample(
            pipeline, name, image_embeddings=embeddings, prompt=PROMPT, negative_prompt=NEGATIVE,
            num_inference_steps=2, guidance_scale=scale,
        )  # fmt: skip
        last = seen[f"{name}.latents"][-1]
        assert last.shape[2:] == LATENTS
        with torch.no_grad():
            unclamped = vqgan.decode(vqgan.config.scale_factor * last).sample
        image = result.images
        assert torch.equal(image, unclamped.clamp(0, 1))
        levels = (image.permute(0, 2, 3, 1) * 255).round().to(torch.uint8)
        tensors |= seen | {f"{name}.unclamped": unclamped, f"{name}.image": image}
        tensors[f"{name}.image_u8"] = levels
    return tensors


def golden_combined(models):
    with Noises() as noises:
        result = models.combined_pipeline()(
            prompt=PROMPT, negative_prompt=NEGATIVE, height=HEIGHT, width=WIDTH, output_type="pt",
            prior_guidance_scale=PRIOR_GUIDANCE, prior_num_inference_steps=3, num_inference_steps=2,
        )  # fmt: skip
    return {"image": result.images} | {f"noise.{i}": noise for i, noise in enumerate(noises)}


def train_diffusion(model, shape, inputs, predict):
    """One step of the authors' training without dropout, with AdamW as PyTorch has it."""
    x0, noise, t = torch.randn(2, *shape), torch.randn(2, *shape), torch.tensor([0.8611, 0.3127])
    xt = DDPMWuerstchenScheduler().add_noise(x0, noise, t)
    model = copy.deepcopy(model)
    pred = predict(model, xt, t)
    loss, weight = (pred - noise).square().mean(dim=(1, 2, 3)), p2_weight(t)
    total = (loss * weight).mean()
    total.backward()
    tensors = {"x0": x0, "noise": noise, "t": t, "xt": xt, "pred": pred, "loss": loss}
    tensors |= inputs | {"weight": weight, "total": total} | gradients(model)
    tensors["grad_norm"] = nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    torch.optim.AdamW(model.parameters(), lr=1e-4).step()
    return tensors | {f"after/{name}": p for name, p in model.named_parameters()}


def gradients(model):
    return {f"grad/{name}": p.grad.clone() for name, p in model.named_parameters()}


def golden_train_prior(models):
    c = torch.randn(2, LENGTH, PRIOR["c_cond"])
    predict = lambda model, xt, t: model(xt, t, c)  # noqa: E731
    return train_diffusion(models.prior, (PRIOR["c_in"], *EMBEDDING), {"c": c}, predict)


def golden_train_decoder(models):
    """On a part of the latents, which is enough and small."""
    effnet, clip = torch.randn(2, DECODER["effnet_embd"], 3, 2), torch.randn(2, LENGTH, DECODER["clip_embd"])
    predict = lambda model, xt, t: model(xt, t, effnet, clip)  # noqa: E731
    inputs = {"effnet": effnet, "clip": clip}
    return train_diffusion(models.decoder, (DECODER["c_in"], 32, 16), inputs, predict)


def golden_train_vqgan(models):
    model, image = copy.deepcopy(models.vqgan), torch.rand(2, 3, 24, 40)
    latents = model.encode(image, return_dict=False)[0]
    quantized, vq_loss, _ = model.vquantizer(latents)
    rec = model.decode(quantized, force_not_quantize=True).sample
    total = F.mse_loss(rec, image) + vq_loss
    total.backward()
    return {"image": image, "rec": rec, "vq_loss": vq_loss, "total": total} | gradients(model)


def error(value, exact):
    """How far the reference in f32 is from itself in f64."""
    return {"max_abs": (value - exact).abs().max().item(), "std": value.std().item()}


def fused(weights):
    """The weights of a diffusion model under the names, and in the layout, of the authors."""
    result = {}
    for name, value in weights.items():
        if match := re.fullmatch(r"(.*attention)\.to_(q|k|v)\.(weight|bias)", name):
            block, part, kind = match.groups()
            if part == "q":
                parts = [weights[f"{block}.to_{p}.{kind}"] for p in "qkv"]
                result[f"{block}.attn.in_proj_{kind}"] = torch.cat(parts)
        else:
            result[name.replace("attention.to_out.0", "attention.attn.out_proj")] = value
    return result


def save_original(models, folder):
    folder.mkdir()
    names = {k.replace("quantizer.embedding", "quantizer.codebook"): v for k, v in models.vqgan.state_dict().items()}
    torch.save({"state_dict": names}, folder / "vqgan_f4_v1_500k.pt")
    compressor = dict(models.effnet.state_dict())
    stage_b = {"state_dict": fused(models.decoder.state_dict()), "effnet_state_dict": compressor}
    torch.save(stage_b, folder / "model_v2_stage_b.pt")
    stage_c = {"ema_state_dict": fused(models.prior.state_dict())}
    torch.save(stage_c, folder / "model_v2_stage_c.pt")


def save_effnet(models, folder):
    folder.mkdir()
    save_file(models.effnet.state_dict(), folder / "diffusion_pytorch_model.safetensors")
    config = {"_class_name": "EfficientNetEncoder", "effnet": "small", "c_latent": PRIOR["c_in"]}
    write_json(folder / "config.json", config | {"backbone_bn_eps": 1e-3, "mapper_bn_eps": 1e-5})


def write_json(path, value):
    path.write_text(json.dumps(value, indent=1) + "\n")


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, required=True, help="a new folder")
    parser.add_argument("--seed", type=int, default=20)
    arguments = parser.parse_args()
    torch.set_num_threads(1)  # sums in one order
    torch.use_deterministic_algorithms(True)
    torch.manual_seed(arguments.seed)

    out = arguments.out
    out.mkdir(parents=True)  # never writes into what is there
    with tempfile.TemporaryDirectory() as folder:
        slow, fast = make_tokenizer(Path(folder))
        tokens = golden_tokenizer(slow, fast)
        models = Models(fast)
        models.prior_pipeline().save_pretrained(out / "wuerstchen-prior")
        models.decoder_pipeline().save_pretrained(out / "wuerstchen")
    save_effnet(models, out / "effnet")
    save_original(models, out / "original")

    measured = {f.__name__[7:]: f(models) for f in (golden_prior, golden_decoder, golden_vqgan, golden_effnet)}
    goldens = {name: tensors for name, (tensors, _) in measured.items()} | {
        "clip_prior": golden_clip(fast, models.prior_text),
        "clip_decoder": golden_clip(fast, models.text),
        "interpolate": golden_interpolate(),
        "scheduler": golden_scheduler(),
        "pipeline": golden_pipeline(models),
        "combined": golden_combined(models),
        "train_prior": golden_train_prior(models),
        "train_decoder": golden_train_decoder(models),
        "train_vqgan": golden_train_vqgan(models),
    }
    golden = out / "golden"
    golden.mkdir()
    for name, tensors in goldens.items():
        tensors = {key: value.detach().contiguous().clone() for key, value in tensors.items()}
        assert all(t.isfinite().all() for t in tensors.values()), name
        save_file(tensors, golden / f"{name}.safetensors")
    write_json(golden / "pipeline.json", {
        "prompt": PROMPT, "negative": NEGATIVE, "prior_guidance": PRIOR_GUIDANCE,
        "decoder_guidance": DECODER_GUIDANCE, "height": HEIGHT, "width": WIDTH,
    })  # fmt: skip
    (golden / "tokenizer.json").write_text(json.dumps(tokens) + "\n")
    kinds = ("prior", "decoder", "vqgan", "effnet", "prior_text", "text")
    sizes = {k: sum(p.numel() for p in getattr(models, k).parameters()) for k in kinds}
    errors = {name: report for name, (_, report) in measured.items()}
    write_json(out / "report.json", {"seed": arguments.seed, "params": sizes, "fp64": errors})


if __name__ == "__main__":
    main()
