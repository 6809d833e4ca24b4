#!/usr/bin/env bash
# Builds what index.html runs. `bash web/build.sh` comes first: it installs the tools.
set -euo pipefail
cd "$(dirname "$0")/../.."
target="${CARGO_TARGET_DIR:-target}"
cargo build --profile web --target wasm32-unknown-unknown --package wuerstchen-browser-tests
"$target/tools/bin/wasm-bindgen" --target web --out-dir tests/browser/pkg \
    "$target/wasm32-unknown-unknown/web/wuerstchen_browser_tests.wasm"
(cd tests/golden/small && find . -name '*.json' -o -name '*.txt' -o -name '*.safetensors') |
    sed 's|^\./||' >tests/browser/pkg/files.txt
