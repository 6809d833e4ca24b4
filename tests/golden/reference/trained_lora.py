"""Trains a LoRA of the small model with this program, and computes with diffusers and peft what it changes.

`trained/` gets the LoRA in both forms, and `golden.safetensors` with a prediction of the prior without and with
it, which `tests/tests/lora.rs` compares with what this program computes. The script fails unless diffusers and
peft compute the same.

    python trained_lora.py --program ../../../target/release/wuerstchen --model ../small --out ../small/lora/trained

Besides the packages of requirements.txt it needs peft 0.14.0, accelerate 1.2.1 and Pillow.
"""

import argparse
import shutil
import subprocess
import tempfile
from pathlib import Path

import torch
from diffusers import WuerstchenPriorPipeline
from diffusers.pipelines.wuerstchen import WuerstchenPrior
from PIL import Image
from peft import LoraConfig, inject_adapter_in_model, set_peft_model_state_dict
from safetensors.torch import load_file, save_file

# The scale is multiplied elsewhere in both forms: roundings of f32, relative to the norm.
BOUND = 1e-4


def pictures(folder):
    folder.mkdir()
    for i, size in enumerate([(512, 512), (768, 384), (384, 768), (600, 500)]):
        Image.new("RGB", size, (60 * i, 255 - 60 * i, 90)).save(folder / f"{i}.png")
        (folder / f"{i}.txt").write_text(f"a field {i}\n")


def train(program, model, folder):
    config = Path(__file__).resolve().parents[3] / "configs/lora.toml"
    changes = [
        f"corpus.folder={folder / 'pictures'}",
        "lora.rank=3",
        "lora.alpha=6",
        "c.steps=20",
        "c.batch_size=2",
        "c.sample_every=20",
        "c.optimizer.learning_rate=0.02",
        "samples.prior_steps=2",
    ]
    command = [program, "train", "lora", "-m", model, "-c", config, "-o", folder / "run"]
    command += ["--cache", folder / "cache", "--device", "cpu"]
    subprocess.run(command + [a for change in changes for a in ("--set", change)], check=True)


def error(found, expected):
    return ((found - expected).norm() / expected.norm()).item()


@torch.no_grad()
def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--program", type=Path, required=True, help="the built program")
    parser.add_argument("--model", type=Path, required=True, help="the folder of make_golden.py")
    parser.add_argument("--out", type=Path, help="a new folder [default: only compare]")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(23)
    path = arguments.model / "wuerstchen-prior/prior"

    with tempfile.TemporaryDirectory() as folder:
        folder = Path(folder)
        pictures(folder / "pictures")
        train(arguments.program, arguments.model, folder)

        prior = WuerstchenPrior.from_pretrained(path).eval()
        config = prior.config
        x = torch.randn(2, config["c_in"], 6, 3)
        t = torch.tensor([0.9, 0.35])
        c = torch.randn(2, 7, config["c_cond"])
        tensors = {"x": x, "t": t, "c": c, "without": prior(x, t, c)}

        pipeline = WuerstchenPriorPipeline(
            tokenizer=None, text_encoder=None, prior=prior, scheduler=None
        )
        pipeline.load_lora_weights(folder / "run", weight_name="pytorch_lora_weights.safetensors")
        tensors["with"] = prior(x, t, c)

        by_peft = WuerstchenPrior.from_pretrained(path).eval()
        own = LoraConfig.from_pretrained(folder / "run/peft")
        inject_adapter_in_model(own, by_peft)
        weights = load_file(folder / "run/peft/adapter_model.safetensors")
        weights = {name.removeprefix("base_model.model."): w for name, w in weights.items()}
        loaded = set_peft_model_state_dict(by_peft, weights)
        assert not loaded.unexpected_keys, loaded.unexpected_keys

        changes = error(tensors["without"], tensors["with"])
        peft = error(by_peft(x, t, c), tensors["with"])
        print(f"the LoRA changes the prediction by {changes:.3g} of its norm")
        print(f"peft's prediction differs from diffusers' by {peft:.3g}")
        assert changes > 0.01 and peft < BOUND

        if arguments.out:
            arguments.out.mkdir(parents=True)
            shutil.copytree(folder / "run/peft", arguments.out / "peft")
            shutil.copy(folder / "run/pytorch_lora_weights.safetensors", arguments.out)
            save_file(tensors, arguments.out / "golden.safetensors")


if __name__ == "__main__":
    main()
