"""Trains both kinds of Stage B on the built-in corpus and compares them: over tokens (v1) and over latents (v2).

    python3 tests/training/stage_b_kinds.py --program target/release/wuerstchen --output DIR [--minutes 10]

Both runs have the Stage A, the compressor's sizes, the corpus and the seed of configs/shapes-v1.toml. The Stage B over
latents is as wide as its multiply-adds allow that are nearest to those of the one over tokens. Stage B of each run
is trained for as long, by the clock. `wuerstchen eval` then asks what a parser reads off true scenes that passed
through the compressor and Stages B and A.
"""

import argparse
import json
import subprocess
import time
import tomllib
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
CONFIG = ROOT / "configs/shapes-v1.toml"


def run(program, *arguments):
    result = subprocess.run([program, *map(str, arguments)], capture_output=True, text=True)
    if result.returncode != 0:
        raise SystemExit(f"{' '.join(map(str, arguments))}: {result.stderr}")
    return result.stdout


def decoder_of_latents(width):
    """The table of a Stage B over latents, of the same depth."""
    return f"""[model.decoder]
c_in = 4
c_out = 4
c_r = 64
patch_size = 2
c_cond = 64
c_hidden = [{width}, {2 * width}]
nhead = [-1, 4]
blocks = [1, 2]
level_config = ["CT", "CTA"]
inject_effnet = [true, true]
effnet_embd = 16
clip_embd = 64
kernel_size = 3
dropout = 0.0
"""


def config_of_latents(width):
    """configs/shapes-v1.toml with another Stage B."""
    lines, inside = [], False
    for line in CONFIG.read_text().splitlines():
        if line.startswith("["):
            inside = line.startswith("[model.decoder]")
            if inside:
                lines += decoder_of_latents(width).splitlines()
        dropped = inside or line.startswith(("[defaults.tokens]", "temperature", "token_sampling"))
        if not dropped and not line.startswith("text_loss"):
            lines.append(line)
    return "\n".join(lines) + "\n"


def stage_b(program, config):
    report = json.loads(run(program, "bench", "-c", config, "--runs", 3))
    found = {line["stage"]: line for line in report["generation"]}
    return found["decoder"]["multiply_adds"], found["decoder"]["secs"]


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--program", required=True)
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--minutes", type=float, default=10)
    parser.add_argument("--prompts", type=int, default=128)
    args = parser.parse_args()
    args.output.mkdir(parents=True, exist_ok=True)
    wanted, _ = stage_b(args.program, CONFIG)
    candidates = []
    for width in range(32, 81, 4):
        path = args.output / f"latents-{width}.toml"
        path.write_text(config_of_latents(width))
        candidates.append((abs(stage_b(args.program, path)[0] - wanted), path))
    for kind, config in [("tokens", CONFIG), ("latents", min(candidates)[1])]:
        folder = args.output / kind
        seconds = int(60 * args.minutes)
        steps = ["--set", "b.steps=1000000", "--set", "b.sample_every=1000000"]
        steps += ["--set", "b.optimizer.cooldown=0.0"]
        train = lambda stage, *more: run(
            args.program, "train", stage, "-c", config, "-o", folder, "--device", "cpu", *steps, *more
        )
        train("a")
        begun = time.time()
        train("b", "--max-seconds", seconds)
        metrics = (folder / "b/metrics.jsonl").read_text().splitlines()
        train("c", "--set", "c.steps=1")
        multiply_adds, secs = stage_b(args.program, config)
        sampling = tomllib.loads(Path(config).read_text())["defaults"]
        rows = run(
            args.program, "eval", "-m", folder / "model.safetensors", "--scenes", "shapes", "--prompts",
            args.prompts, "--json",
        )
        for row in map(json.loads, rows.splitlines()):
            if row["source"] in ("reconstructed_ab", "reconstructed_a") and row["split"] == "seen":
                print(json.dumps({"stage_b": kind, **row}))
        print(json.dumps({
            "stage_b": kind,
            "multiply_adds": multiply_adds,
            "secs": secs,
            "steps_of_sampling": sampling["decoder_steps"],
            "updates": len(metrics),
            "train_secs": time.time() - begun,
        }), flush=True)


if __name__ == "__main__":
    main()
