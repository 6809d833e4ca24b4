#!/usr/bin/env bash
# Builds what index.html runs, after `bash web/build.sh`.
set -euo pipefail
cd "$(dirname "$0")/../.."
target="${CARGO_TARGET_DIR:-target}"
# Nobody fetches it: what is linked in half the time may be larger.
cargo rustc --profile web --target wasm32-unknown-unknown --package wuerstchen-browser-tests -- \
    -C lto=thin -C codegen-units=4 -C opt-level=1
"$target/release/wuerstchen-link" glue web \
    "$target/wasm32-unknown-unknown/web/wuerstchen_browser_tests.wasm" tests/browser/pkg
# What the page fetches of each model: its files and its goldens. The goldens of LoRAs and of other models lie
# beside the small one.
list() {
    (cd "tests/golden/$1" && find "${@:2}" -name '*.json' -o -name '*.txt' -o -name '*.safetensors') |
        sort >"tests/browser/pkg/$1.txt"
}
list small effnet golden wuerstchen wuerstchen-prior
list cascade golden original stable-cascade stable-cascade-prior
list v1 golden
# The weights of v1 are PyTorch's, which no browser reads.
rm -rf tests/browser/pkg/v1
"$target/release/wuerstchen" import tests/golden/v1 --dtype f32 -o tests/browser/pkg/v1
