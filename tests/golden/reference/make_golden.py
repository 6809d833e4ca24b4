"""Makes a small Würstchen with random weights and what the reference Python code computes with it.

The folder has the layout of the published models (`wuerstchen-prior/`, `wuerstchen/`, `effnet/`),
the same weights in the authors' fused layout (`original/`), and in `golden/` inputs, outputs of
whole blocks, results of the pipelines and of one training step. `wuerstchen verify FOLDER` computes
all of it again in Rust and compares.

The sizes are odd on purpose: five-by-five kernels, an odd time embedding, three levels of which the
middle one has neither attention nor an image embedding, a padding token that is no end token,
pictures that are not square.

    python make_golden.py --out ../small --seed 20
"""

import argparse
import copy
import json
import re
import tempfile
from functools import partial
from pathlib import Path
from unittest import mock

import torch
import torch.nn.functional as F
from diffusers import DDPMWuerstchenScheduler
from diffusers.pipelines.wuerstchen import (
    DEFAULT_STAGE_C_TIMESTEPS,
    pipeline_wuerstchen,
    pipeline_wuerstchen_prior,
)
from diffusers.schedulers import scheduling_ddpm_wuerstchen
from models import BOS, DECODER, EOS, LENGTH, PRIOR, Models, encode, make_tokenizer, normalise
from safetensors.torch import save_file
from torch import nn
from torchvision.transforms import v2 as transforms

HEIGHT, WIDTH = 256, 128
EMBEDDING, LATENTS = (6, 3), (64, 32)  # what the pipelines make of that size
PART = (32, 16)  # of the latents, where the decoder runs by itself
PROMPT, NEGATIVE = "A Shiba Inu in a spacesuit, floating above Venus!", "blurred, low quality"
PRIOR_GUIDANCE, DECODER_GUIDANCE = 4.0, 2.0
PROMPTS = [
    "", " ", "teapot", PROMPT, NEGATIVE, "A BADGER's sett isn't BLUE; it's #2: 50% 2.71",
    "crème brûlée – “Größe” … 大阪 🦡 e\u0301", "  tabs\tand\nlines  and\u00a0more  ",
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
    x, r = torch.randn(2, DECODER["c_in"], *PART), torch.tensor([0.8127, 0.1493])
    effnet = 20 * torch.randn(2, DECODER["effnet_embd"], *EMBEDDING)
    clip = torch.randn(2, LENGTH, DECODER["clip_embd"])
    model = models.decoder
    with Outputs(model, DECODER_KEPT) as tensors:
        y = model(x, r, effnet, clip)
    tensors |= {"x": x, "r": r, "effnet": effnet, "clip": clip, "y": y}
    tensors["a"], tensors["b"] = model(x, r, effnet, clip, return_noise=False)
    tensors["r_embed"] = model.gen_r_embedding(r)
    tensors["clip_embed"] = model.gen_c_embeddings(clip)
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
        distances = torch.cdist(latents.permute(0, 2, 3, 1).flatten(0, 2), codes)
        margin = distances.topk(2, largest=False).values.diff(dim=1).min().item()
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
    result = model(ids, attention_mask=mask, output_hidden_states=True)
    tensors = {f"hidden_states.{i}": h for i, h in enumerate(result.hidden_states)}
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
    stage_c = torch.tensor(DEFAULT_STAGE_C_TIMESTEPS, dtype=torch.float64)
    tensors = {"t": t, "default_stage_c_timesteps": stage_c}
    for scaler in (0.5, 1.0, 2.0):
        alphas = DDPMWuerstchenScheduler(scaler=scaler)._alpha_cumprod(t, "cpu")
        tensors[f"alpha_cumprod.scaler{scaler}"] = alphas
    lists = {
        "stagec": {"timesteps": DEFAULT_STAGE_C_TIMESTEPS},
        "custom": {"timesteps": [1.0, 0.81, 0.42, 0.13, 0.0]},
        "n12": {"num_inference_steps": 12},
        "n60": {"num_inference_steps": 60},
    }
    for name, times in lists.items():
        scheduler = DDPMWuerstchenScheduler()
        scheduler.set_timesteps(**times)
        x, predictions = [torch.randn(2, 2, 2, 3)], []
        with Noises() as noises:
            for time in scheduler.timesteps[:-1]:
                predictions.append(torch.randn_like(x[0]))
                x.append(scheduler.step(predictions[-1], time.expand(2), x[-1]).prev_sample)
        tensors[f"timesteps.{name}"] = scheduler.timesteps
        for key, values in {"x": x, "pred": predictions, "noise": noises}.items():
            tensors[f"steps.{name}.{key}"] = torch.stack(values)
    x0, noise = torch.randn(4, 2, 3, 4), torch.randn(4, 2, 3, 4)
    t = torch.tensor([0.03, 0.4, 0.77, 1.0])
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
    pipeline, tensors = models.prior_pipeline(), {}
    guided = {"guidance_scale": PRIOR_GUIDANCE, "negative_prompt": NEGATIVE}
    variants = {
        "prior_cfg": {**guided, "num_inference_steps": 4},
        "prior_nocfg": {"guidance_scale": 0.0, "num_inference_steps": 3},
        "prior_stagec": {"guidance_scale": PRIOR_GUIDANCE, "timesteps": DEFAULT_STAGE_C_TIMESTEPS},
        "prior_n2": {**guided, "num_inference_steps": 2, "num_images_per_prompt": 2},
    }
    for name, arguments in variants.items():
        arguments |= {"prompt": PROMPT, "height": HEIGHT, "width": WIDTH}
        result, seen = sample(pipeline, name, **arguments)
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
        assert torch.equal(result.images, unclamped.clamp(0, 1))  # so it need not be kept
        levels = (result.images.permute(0, 2, 3, 1) * 255).round().to(torch.uint8)
        tensors |= seen | {f"{name}.unclamped": unclamped, f"{name}.image_u8": levels}
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
    x0, noise = 3 * torch.randn(2, *shape), torch.randn(2, *shape)
    t = torch.tensor([0.8611, 0.3127])
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
    effnet = torch.randn(2, DECODER["effnet_embd"], 3, 2)
    clip = torch.randn(2, LENGTH, DECODER["clip_embd"])
    predict = lambda model, xt, t: model(xt, t, effnet, clip)  # noqa: E731
    inputs = {"effnet": effnet, "clip": clip}
    return train_diffusion(models.decoder, (DECODER["c_in"], *PART), inputs, predict)


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
    weights = dict(models.vqgan.state_dict())
    weights["vquantizer.codebook.weight"] = weights.pop("vquantizer.embedding.weight")
    torch.save({"state_dict": weights}, folder / "vqgan_f4_v1_500k.pt")
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
        models = Models(fast)
        models.prior_pipeline().save_pretrained(out / "wuerstchen-prior")
        # A tokenizer that was used saves its padding and truncation: the second one has them.
        tokens = golden_tokenizer(slow, fast)
        models.decoder_pipeline().save_pretrained(out / "wuerstchen")
    save_effnet(models, out / "effnet")
    save_original(models, out / "original")

    stages = (golden_prior, golden_decoder, golden_vqgan, golden_effnet)
    measured = {stage.__name__.removeprefix("golden_"): stage(models) for stage in stages}
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
