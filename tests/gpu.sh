#!/usr/bin/env bash
# What there is to learn on a hardware GPU, within a quarter of an hour: whether everything runs there, how fast each
# stage and each shader is, and how fast training is.
#
#     bash tests/gpu.sh target/release/wuerstchen results
#
# Every step writes what it prints into the folder `results`, and goes on if it fails; the last lines say what failed.
# A software GPU runs it too, for a try; its times mean nothing.
set -uo pipefail
if [ $# != 2 ]; then
    echo "usage: bash tests/gpu.sh PROGRAM FOLDER, such as target/release/wuerstchen and results" >&2
    exit 2
fi
program="$(realpath "$1")"
mkdir -p "$2"
results="$(realpath "$2")"
cd "$(dirname "$0")/.."
failed=()

# Runs a command for at most so many seconds, as a step of this name.
step() {
    local name="$1" seconds="$2" start=$SECONDS
    shift 2
    if timeout --kill-after=5 "$seconds" "$@" > "$results/$name.out" 2> "$results/$name.err"; then
        printf '%-18s %4d s\n' "$name" $((SECONDS - start))
    else
        printf '%-18s %4d s  failed: %s\n' "$name" $((SECONDS - start)) "$(tail -1 "$results/$name.err")"
        failed+=("$name")
    fi
}

step devices 20 "$program" devices --json
# Correct before fast: every tensor of the reference, and the built-in model's picture beside the CPU's.
step verify 90 "$program" verify tests/golden/small --device gpu
step verify-v1 90 "$program" verify tests/golden/v1 --device gpu
step verify-cascade 90 "$program" verify tests/golden/cascade --device gpu
step picture 60 "$program" generate "a red circle on a white background" --seed 1 --device gpu -o "$results/gpu.png"
step picture-f16 60 "$program" generate "a red circle on a white background" --seed 1 --device gpu --tiling small \
    --precision f16 -o "$results/f16.png"
step picture-cpu 60 "$program" generate "a red circle on a white background" --seed 1 --device cpu -o "$results/cpu.png"
step kernels 120 "$program" bench --kernels --device gpu
step stages 120 "$program" bench --device gpu
step stages-emoji 120 "$program" bench --config configs/emoji.toml --device gpu
step launches 60 "$program" bench --launches
echo "results are in $results"
if [ ${#failed[@]} -gt 0 ]; then
    echo "failed: ${failed[*]}"
    exit 1
fi
