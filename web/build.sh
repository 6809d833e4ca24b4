#!/usr/bin/env bash
# Builds everything of the browser: the two WebAssembly files, the npm package, the built-in model's
# bundle, the demo page (web/demo/dist). Installs the tools it needs.
set -euo pipefail
cd "$(dirname "$0")/.."
target="${CARGO_TARGET_DIR:-target}"
bindgen=0.2.130 # the version of the wasm-bindgen crate
step() { printf '\n== %s\n' "$*"; }

step "tools"
rustup target add wasm32-unknown-unknown
if [ "$("$target/tools/bin/wasm-bindgen" --version 2>/dev/null)" != "wasm-bindgen $bindgen" ]; then
    cargo install wasm-bindgen-cli --version "$bindgen" --root "$target/tools"
fi
npm --prefix web ci --no-audit --no-fund

# One file for each device, so that no visitor fetches what does not run.
for device in cpu webgpu; do
    step "WebAssembly for $device"
    cargo build --profile web --target wasm32-unknown-unknown \
        --package wuerstchen-web --no-default-features --features "$device"
    wasm="$target/wasm32-unknown-unknown/web/wuerstchen_web.wasm"
    built="web/pkg/$device/wuerstchen_web_bg.wasm"
    if [ ! -f "$built" ] || ! cmp -s "$wasm" "$target/tools/$device.wasm"; then
        "$target/tools/bin/wasm-bindgen" --target web --out-dir "web/pkg/$device" "$wasm"
        # Names and debug sections are of no use to visitors; -Oz would save 2 % in twice the time.
        npx --prefix web wasm-opt -Os --enable-simd --enable-bulk-memory --enable-sign-ext \
            --enable-nontrapping-float-to-int --enable-mutable-globals --enable-reference-types \
            --enable-multivalue --strip-debug --strip-producers \
            -o "$built" "$built"
        cp "$wasm" "$target/tools/$device.wasm"
    fi
done

step "npm package"
npm --prefix web run build

step "demo page"
npm --prefix web/demo run build

step "the built-in model for the browser"
# All of the workspace: one set of features, so that nothing is built twice.
cargo build --release --workspace --bins
"$target/release/wuerstchen" export web -o web/demo/dist/model

printf '\nweb/demo/dist is ready: %s/release/wuerstchen serve\n' "$target"
