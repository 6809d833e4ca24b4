"""What the reference code of the metrics of pictures computes, with weights and pictures that a formula draws.

The networks have their published sizes, so that their weights are too large for a repository: `drawn` is
repeated in the tests (`crates/wuerstchen-train/tests/metrics.rs`).

    pip install -r requirements.txt lpips==0.1.4 pytorch-fid==0.3.0 clean-fid==0.1.35 scikit-image==0.26.0
    python make_metrics.py --out ../metrics.safetensors
"""

import argparse
import re
from pathlib import Path

import lpips
import numpy as np
import torch
from cleanfid.resize import build_resizer
from pytorch_fid import inception as fid
from pytorch_fid.fid_score import calculate_frechet_distance
from safetensors.torch import save_file
from skimage.metrics import structural_similarity
from transformers import CLIPConfig, CLIPImageProcessor, CLIPModel, CLIPTokenizer

CLIP_PAIRS = [("e", 48, 70, "a red circle"), ("f", 60, 33, "a"), ("g", 28, 28, "two blue birds")]


def drawn(name, shape):
    """Numbers in [-1, 1) that depend on the name: an FNV-1a hash and murmur's finaliser."""
    seed = 0x811C9DC5
    for byte in name.encode():
        seed = (seed ^ byte) * 0x01000193 % 2**32
    x = (np.arange(np.prod(shape), dtype=np.uint64) * 0x9E3779B9 + seed) % 2**32
    x = (x ^ x >> 16) * 0x85EBCA6B % 2**32
    x = (x ^ x >> 13) * 0xC2B2AE35 % 2**32
    x = x ^ x >> 16
    return torch.from_numpy((x / 2**31 - 1).astype(np.float32)).reshape(shape)


def picture(name, shape):
    return (drawn(name, shape) + 1) / 2


def byte_picture(name, height, width):
    return (picture(name, [height, width, 3]) * 255).to(torch.uint8).numpy()


def draw_weights(model, rename=lambda name: name):
    """Kernels keep the size of what they convolve; nothing is 0, so that no term can be forgotten unseen."""
    for name, tensor in model.state_dict().items():
        name = rename(name)
        if name is None or name.endswith("num_batches_tracked"):
            continue
        value = drawn(name, list(tensor.shape))
        if name.startswith("lin"):
            value = (value + 1) / 2
        elif tensor.ndim == 4:
            value = value * (6 / tensor[0].numel()) ** 0.5
        elif re.search(r"(running_var|bn\.weight|norm\d?\.weight)$", name):
            value = 1 + value / 2
        elif tensor.ndim == 2:
            value = value * (3 / tensor.shape[1]) ** 0.5
        else:
            value = value / 10
        tensor.copy_(value)


def lpips_name(name):
    if name.startswith("net.slice"):
        return "features." + name.split(".", 2)[2]
    # `lins` are the same tensors as `lin0` to `lin4`.
    return name if name[:3] == "lin" and name[3] != "s" else None


def make_lpips(net):
    model = lpips.LPIPS(pretrained=False, net=net, pnet_rand=True, verbose=False)
    with torch.no_grad():
        draw_weights(model, lpips_name)
    a = picture("a", [2, 3, 40, 33]).requires_grad_()
    distance = model(a, picture("b", [2, 3, 40, 33]), normalize=True).flatten()
    distance.sum().backward()
    return {f"lpips/{net}/distance": distance.detach(), f"lpips/{net}/gradient": a.grad}


def make_inception():
    # The package changes what torchvision's network computes, not its weights.
    model = fid._inception_v3(num_classes=1008, aux_logits=False, weights=None)
    draw_weights(model)
    fid.load_state_dict_from_url = lambda *_, **__: model.state_dict()
    network = fid.InceptionV3([3], resize_input=False, normalize_input=False).eval()
    resize = build_resizer("clean")
    images = [byte_picture("c", 48, 70), byte_picture("d", 350, 310)]
    resized = torch.stack([torch.from_numpy(resize(image)).permute(2, 0, 1) for image in images])
    # As clean-fid feeds its copy of the network (`InceptionV3W`).
    features = network((resized - 128) / 128)[0].flatten(1)
    return {"fid/resized": resized[:, :, ::23, ::23].contiguous(), "fid/features": features}


CLIP_TEXT = {
    "vocab_size": 0, "hidden_size": 16, "intermediate_size": 40, "num_hidden_layers": 2,
    "num_attention_heads": 2, "max_position_embeddings": 12, "hidden_act": "gelu",
    "layer_norm_eps": 1e-5, "projection_dim": 10,
}  # fmt: skip
CLIP_IMAGES = {
    "hidden_size": 24, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 3,
    "image_size": 28, "patch_size": 7, "hidden_act": "quick_gelu", "layer_norm_eps": 1e-5,
    "projection_dim": 10,
}  # fmt: skip


def make_clip():
    folder = Path(__file__).parent / "../small/wuerstchen-prior/tokenizer"
    tokenizer = CLIPTokenizer.from_pretrained(folder)
    end = tokenizer.eos_token_id
    text = CLIP_TEXT | {"vocab_size": len(tokenizer), "eos_token_id": end}
    config = CLIPConfig(text_config=text, vision_config=CLIP_IMAGES, projection_dim=10)
    model = CLIPModel(config).eval()
    draw_weights(model)
    size = {"shortest_edge": 28}
    preparation = CLIPImageProcessor(size=size, crop_size={"height": 28, "width": 28})
    scores = []
    for name, height, width, caption in CLIP_PAIRS:
        pixels = preparation(byte_picture(name, height, width), return_tensors="pt")
        tokens = tokenizer([caption], padding="max_length", max_length=12, return_tensors="pt")
        output = model(**tokens, **pixels)
        scores.append(100 * (output.text_embeds * output.image_embeds).sum().clamp(min=0))
    return {"clip": torch.stack(scores)}


def make_frechet():
    """Of features of fewer pictures than channels, whose covariances are singular, and of more."""
    tensors = {}
    for name, counts in [("few", (9, 7)), ("many", (60, 80))]:
        a, b = (drawn(f"{name}{i}", [count, 16]).double() for i, count in enumerate(counts))
        b = b * 0.7 + 0.1
        statistics = [(x.numpy().mean(0), np.cov(x.numpy(), rowvar=False)) for x in (a, b)]
        distance = calculate_frechet_distance(*statistics[0], *statistics[1])
        tensors[f"frechet/{name}"] = torch.tensor([float(distance)], dtype=torch.float64)
    return tensors


def make_ssim():
    a, b = byte_picture("a", 40, 33), byte_picture("b", 40, 33)
    b = (a.astype(float) * 0.8 + b.astype(float) * 0.2).astype(np.uint8)
    ssim = structural_similarity(
        a, b, data_range=255, channel_axis=2, gaussian_weights=True, use_sample_covariance=False
    )
    mse = ((a.astype(float) - b.astype(float)) ** 2).mean()
    psnr = 10 * np.log10(255**2 / mse)
    return {"ssim": torch.tensor([ssim, psnr], dtype=torch.float64)}


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--out", required=True)
    args = parser.parse_args()
    torch.set_num_threads(1)
    tensors = make_lpips("vgg") | make_lpips("alex")
    with torch.no_grad():
        tensors |= make_inception() | make_clip() | make_frechet() | make_ssim()
    for name, tensor in tensors.items():
        print(name, list(tensor.shape), tensor.flatten()[:3].tolist())
    save_file(tensors, args.out)


main()
