#!/usr/bin/env bash
# Makes docs/samples.png: pictures of the built-in model under their prompts, the first seed each.
# Usage: docs/samples.sh path/to/wuerstchen   (needs ImageMagick)
set -euo pipefail
binary=$1
folder=$(mktemp -d)
prompts=(
    "a large red square on a white background"
    "a large blue circle on a beige background"
    "a small green star on a navy background"
    "a large yellow heart on a black background"
    "a large pink diamond on a gray background"
    "a large purple triangle on a white background"
    "a large orange cross on a teal background"
    "a large cyan ring on a navy background"
    "a red circle left of a blue square on a white background"
    "a yellow star above a green square on a black background"
    "two small pink hearts on a beige background"
    "a blue diamond below an orange circle on a gray background"
)
for i in "${!prompts[@]}"; do
    "$binary" generate "${prompts[$i]}" -m "$(dirname "$0")/../models/shapes.safetensors" -o "$folder/$i.png" --device cpu 2>/dev/null
    convert "$folder/$i.png" -filter point -resize 300% \
        -background white -gravity center -size 192x44 -pointsize 13 "caption:${prompts[$i]}" \
        -append "$folder/$i-captioned.png"
done
montage $(seq -f "$folder/%g-captioned.png" 0 $((${#prompts[@]} - 1))) \
    -tile 4x -geometry +8+8 "$(dirname "$0")/samples.png"
