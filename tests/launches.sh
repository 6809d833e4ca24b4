#!/usr/bin/env bash
# Counts what one step of Stage C and of Stage B costs a GPU's queue: submits, buffer writes and dispatches.
#
#     sudo bash tests/launches.sh target/release/wuerstchen
#     sudo bash tests/launches.sh target/release/wuerstchen -m MODEL -W 128 -H 128
#
# A picture is made with one step and with three of a stage, and half of the difference is a step. What follows the
# program is given to `generate`; without it, the model is `shapes`. The counters are probes in the program's own
# functions: this needs Linux, root, perf, nm and readelf, and a release build that is not stripped. A software GPU
# counts as well as a hardware one.
set -euo pipefail
program="$(realpath "$1")"
shift
if [ $# = 0 ]; then set -- -m "$(dirname "$0")/../models/shapes.safetensors"; fi
arguments=("$@")
scratch="$(mktemp -d)"
trap 'rm -r "$scratch"' EXIT
events=/sys/kernel/tracing/uprobe_events
[ -e "$events" ] || mount -t tracefs nodev /sys/kernel/tracing

# The offset of a function in the program's file.
offset() {
    local address segment
    address=$((16#$(nm -C "$program" | sed -n "s/^\([0-9a-f]*\) [tT] $1\$/\1/p" | head -1)))
    readelf -lW "$program" | awk '$1 == "LOAD" { print $2, $3, $5 }' |
        while read -r file virtual size; do
            if ((address >= virtual && address < virtual + size)); then
                printf '0x%x' $((address - virtual + file))
            fi
        done
}
echo > "$events"
echo "p:wuerstchen/submits $program:$(offset wgpu::api::queue::Queue::submit)" >> "$events"
echo "p:wuerstchen/writes $program:$(offset wgpu::api::queue::Queue::write_buffer)" >> "$events"
echo "p:wuerstchen/dispatches $program:$(offset wgpu::api::compute_pass::ComputePass::dispatch_workgroups)" >> "$events"

# Counts of a picture with $1 steps of Stage C and $2 of Stage B.
count() {
    perf stat -x ' ' -e 'wuerstchen:submits,wuerstchen:writes,wuerstchen:dispatches' -o "$scratch/counts" \
        "$program" generate "a red circle" "${arguments[@]}" -o "$scratch/out.png" --device gpu --prior-steps "$1" \
        --decoder-steps "$2" --tiling small > "$scratch/log" 2>&1 || { cat "$scratch/log" >&2; return 1; }
    awk '/wuerstchen:/ { print $1 }' "$scratch/counts"
}
counts="$(count 1 1)"
base=($counts)
for stage in C B; do
    if [ "$stage" = C ]; then counts="$(count 3 1)"; else counts="$(count 1 3)"; fi
    more=($counts)
    awk -v stage="$stage" -v s=$((more[0] - base[0])) -v w=$((more[1] - base[1])) -v d=$((more[2] - base[2])) \
        'BEGIN { printf "a step of Stage %s: %.1f submits, %.1f buffer writes, %.1f dispatches\n", stage, s / 2, w / 2, d / 2 }'
done
