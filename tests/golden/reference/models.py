"""The small Würstchen that the goldens are made with: sizes, random weights, tokenizer.

No weight is zero, so that no term can be forgotten unseen: a fresh model has zeros in the response
norms, the time mappers, the gammas and the last convolution.
"""

import json
import re
from collections import Counter
from functools import partial

import torch
from diffusers import (
    DDPMWuerstchenScheduler,
    WuerstchenCombinedPipeline,
    WuerstchenDecoderPipeline,
    WuerstchenPriorPipeline,
)
from diffusers.pipelines.wuerstchen import PaellaVQModel, WuerstchenDiffNeXt, WuerstchenPrior
from torch import nn
from torchvision.models.efficientnet import EfficientNet, FusedMBConvConfig, MBConvConfig
from torchvision.transforms import v2 as transforms
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer, CLIPTokenizerFast
from transformers.models.clip.tokenization_clip import bytes_to_unicode

PRIOR = {"c_in": 6, "c": 24, "c_cond": 18, "c_r": 17, "depth": 3, "nhead": 3, "dropout": 0.1}
DECODER = {
    "c_in": 4, "c_out": 4, "c_r": 17, "patch_size": 2, "c_cond": 22, "c_hidden": [8, 12, 24],
    "nhead": [2, -1, 4], "blocks": [1, 2, 1], "level_config": ["CTA", "CT", "CTA"],
    "inject_effnet": [True, False, True], "effnet_embd": 6, "clip_embd": 20, "kernel_size": 5,
    "dropout": 0.1,
}  # fmt: skip
VQGAN = {
    "levels": 2, "bottleneck_blocks": 3, "embed_dim": 12, "latent_channels": 4,
    "num_vq_embeddings": 48, "scale_factor": 0.3764,
}  # fmt: skip
PRIOR_TEXT = {"hidden_size": 18, "num_hidden_layers": 2, "num_attention_heads": 3}
DECODER_TEXT = {"hidden_size": 20, "num_hidden_layers": 3, "num_attention_heads": 2}
EFFNET = [  # expansion, kernel, stride, channels in and out, layers
    FusedMBConvConfig(1, 3, 1, 8, 8, 1),
    FusedMBConvConfig(4, 3, 2, 8, 10, 2),
    FusedMBConvConfig(4, 3, 2, 10, 8, 1),
    MBConvConfig(4, 3, 2, 8, 16, 1),
    MBConvConfig(6, 3, 1, 16, 16, 2),
    MBConvConfig(6, 3, 2, 16, 24, 1),
]
EFFNET_HEAD = 28
LENGTH = 77
BOS, EOS, PAD = "<|startoftext|>", "<|endoftext|>", "!"
CORPUS = """a shiba inu in a spacesuit floating above venus blurred low quality the quality of the
light over the mountains a painting of a lighthouse in a storm the sleepy badger walks along the
sleepy river at night a photo of a teapot isn't it what they've we'll the the the a a in in of"""


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
        keys = ["bos_token_id", "eos_token_id", "pad_token_id"]
        ids = {key: getattr(self.tokenizer, key) for key in keys}
        config = CLIPTextConfig(
            vocab_size=len(self.tokenizer), intermediate_size=2 * sizes["hidden_size"],
            projection_dim=sizes["hidden_size"], hidden_act="gelu", **sizes, **ids,
        )  # fmt: skip
        return randomise(CLIPTextModel(config))

    def prior_pipeline(self):
        return quiet(WuerstchenPriorPipeline(
            self.tokenizer, self.prior_text, self.prior, DDPMWuerstchenScheduler()
        ))  # fmt: skip

    def decoder_pipeline(self):
        return quiet(WuerstchenDecoderPipeline(
            self.tokenizer, self.text, self.decoder, DDPMWuerstchenScheduler(), self.vqgan
        ))  # fmt: skip

    def combined_pipeline(self):
        return quiet(WuerstchenCombinedPipeline(
            self.tokenizer, self.text, self.decoder, DDPMWuerstchenScheduler(), self.vqgan,
            self.tokenizer, self.prior_text, self.prior, DDPMWuerstchenScheduler(),
        ))  # fmt: skip


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
    """Byte pairs in the form of CLIP's, with merges learnt from a few sentences; slow and fast."""
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
    paths, options = (str(vocab), str(rules)), {"pad_token": PAD, "model_max_length": LENGTH}
    return CLIPTokenizer(*paths, **options), CLIPTokenizerFast(*paths, **options)


def encode(tokenizer, prompts):
    options = {"padding": "max_length", "max_length": LENGTH, "truncation": True}
    return tokenizer(prompts, return_tensors="pt", **options)
