#!/usr/bin/env bash
# Makes docs/samples.png: what the built-in model makes of 48 prompts, the first seed each, none left out.
# Usage: docs/samples.sh path/to/wuerstchen   (needs ImageMagick)
set -euo pipefail
binary=$1
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
prompts=(
    "a cat face" "a slice of pizza" "a red apple on a blue background" "a rocket"
    "a dog" "a house" "a car" "a tree"
    "a banana" "a fox" "a heart" "a star"
    "a ghost" "a guitar" "a cup of coffee" "a fish"
    "a frog" "a cake" "an umbrella" "a bee"
    "a penguin" "a robot" "a crown" "a strawberry"
    "a soccer ball" "a blue dog" "a flower" "a sun"
    "a moon" "a bicycle" "an airplane" "a hamburger"
    "a mushroom" "a lion" "a monkey" "a snowman"
    "a key" "a book" "a bell" "a camera"
    "an egg" "a lemon" "a watermelon" "a pumpkin"
    "a whale" "an octopus" "a butterfly" "a cactus"
)
printf '%s\n' "${prompts[@]}" >"$folder/prompts.txt"
"$binary" generate --prompts "$folder/prompts.txt" -o "$folder/out.png" --device cpu 2>/dev/null
for i in "${!prompts[@]}"; do
    convert "$folder/out-$i.png" -resize 112x112 -background white -gravity north \
        -size 112x32 -pointsize 12 "caption:${prompts[$i]}" -append "$folder/$i-captioned.png"
done
montage $(seq -f "$folder/%g-captioned.png" 0 $((${#prompts[@]} - 1))) \
    -tile 8x -geometry +4+4 -depth 8 "png24:$(dirname "$0")/samples.png"
