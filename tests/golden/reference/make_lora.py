"""Makes two LoRAs for the small prior with peft, and what diffusers computes with both.

`style/` is a folder as peft saves it, with `adapter_config.json` and an alpha that is not the rank;
`detail.safetensors` is a file as diffusers saves it. `golden.safetensors` has a prediction of the
prior without and with both, of the weights 0.8 and -0.5.

    python make_lora.py --model ../small --out ../small/lora

Besides the packages of requirements.txt it needs peft 0.14.0 and accelerate 1.2.1.
"""

import argparse
import json
from pathlib import Path

import torch
from diffusers import WuerstchenPriorPipeline
from diffusers.pipelines.wuerstchen import WuerstchenPrior
from diffusers.utils import convert_state_dict_to_diffusers
from diffusers.utils.peft_utils import set_weights_and_activate_adapters
from peft import LoraConfig, get_peft_model_state_dict
from safetensors.torch import save_file

WEIGHTS = {"style": 0.8, "detail": -0.5}


@torch.no_grad()
def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", type=Path, required=True, help="the folder of make_golden.py")
    parser.add_argument("--out", type=Path, required=True, help="a new folder")
    parser.add_argument("--seed", type=int, default=21)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(arguments.seed)
    arguments.out.mkdir(parents=True)

    prior = WuerstchenPrior.from_pretrained(arguments.model / "wuerstchen-prior/prior").eval()
    config = prior.config
    x = torch.randn(2, config["c_in"], 6, 3)
    t = torch.tensor([0.9, 0.35])
    c = torch.randn(2, 7, config["c_cond"])
    tensors = {"x": x, "t": t, "c": c, "without": prior(x, t, c)}

    # Without training, B would be zero and the LoRA nothing.
    common = {"init_lora_weights": False, "lora_dropout": 0.0}
    attention = ["to_q", "to_k", "to_v", "to_out.0"]
    style = LoraConfig(r=4, lora_alpha=10, target_modules=attention, **common)
    prior.add_adapter(style, "style")
    prior.add_adapter(LoraConfig(r=2, lora_alpha=2, target_modules=attention[1:3], **common), "detail")
    for name, p in prior.named_parameters():
        if "lora_" in name:
            p.copy_(torch.randn(p.shape) / p.shape[1] ** 0.5)
    set_weights_and_activate_adapters(prior, list(WEIGHTS), list(WEIGHTS.values()))
    tensors["with"] = prior(x, t, c)
    save_file(tensors, arguments.out / "golden.safetensors")

    folder = arguments.out / "style"
    folder.mkdir()
    weights = get_peft_model_state_dict(prior, adapter_name="style")
    weights = {f"base_model.model.{k}": v.contiguous() for k, v in weights.items()}
    save_file(weights, folder / "adapter_model.safetensors")
    style.save_pretrained(folder)
    path = folder / "adapter_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()), indent=1) + "\n")

    weights = get_peft_model_state_dict(prior, adapter_name="detail")
    WuerstchenPriorPipeline.save_lora_weights(
        arguments.out, convert_state_dict_to_diffusers(weights), weight_name="detail.safetensors"
    )


if __name__ == "__main__":
    main()
