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
# The model and its goldens; the goldens of LoRAs and of other models lie beside them.
(cd tests/golden/small && find effnet golden wuerstchen wuerstchen-prior \
    -name '*.json' -o -name '*.txt' -o -name '*.safetensors') >tests/browser/pkg/files.txt
