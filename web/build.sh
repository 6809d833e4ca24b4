#!/usr/bin/env bash
# Builds everything of the browser: the WebAssembly, the npm package, the built-in model's bundle, the
# demo page (web/demo/dist). Needs rustup, Chromium, which tells what to split, and
# Node.js.
# `build.sh compile` stops where cargo's part is done, `build.sh package` goes on from there.
set -euo pipefail
cd "$(dirname "$0")/.."
target="${CARGO_TARGET_DIR:-target}"
step() { printf '\n== %s\n' "$*"; }

# One build for each device, so that no visitor fetches what does not run.
devices=(cpu webgpu)

compile() {
    step "tools"
    command -v "${CHROMIUM:-/usr/bin/chromium}" >/dev/null || {
        echo "Chromium is missing: install it, or set CHROMIUM to where it lies" >&2
        exit 1
    }
    rustup target add wasm32-unknown-unknown
    npm --prefix web ci --no-audit --no-fund
    # All of the workspace: one set of features, so that nothing is built twice.
    cargo build --release --workspace --bins

    for device in "${devices[@]}"; do
        step "WebAssembly for $device"
        # What is linked at "s" has no loop vectorised, whatever its crate asks for. On the CPU vectors save a sixth
        # of the time for 70 KB; a GPU's program has no such loops.
        level='"s"'
        if [ "$device" = cpu ]; then level=2; fi
        cargo build --profile web --target wasm32-unknown-unknown \
            --package wuerstchen-web --no-default-features --features "$device" \
            --config "profile.web.package.wuerstchen-web.opt-level=$level"
        wasm="$target/wasm32-unknown-unknown/web/wuerstchen_web.wasm"
        glue="web/pkg/$device"
        mkdir -p "$glue"
        cmp -s "$wasm" "$glue/wuerstchen_web.wasm" || cp "$wasm" "$glue"
    done
}

package() {
    for device in "${devices[@]}"; do
        step "glue for $device"
        glue="web/pkg/$device"
        link="$target/release/wuerstchen-link"
        if [ ! "$glue/whole.wasm" -nt "$glue/wuerstchen_web.wasm" ] || [ ! "$glue/whole.wasm" -nt "$link" ]; then
            "$link" glue bundler "$glue/wuerstchen_web.wasm" "$glue"
            # Names and debug sections are of no use to visitors; -Oz would save 2 % in twice the time.
            npx --prefix web wasm-opt -Os --enable-simd --enable-bulk-memory --enable-sign-ext \
                --enable-nontrapping-float-to-int --enable-mutable-globals --enable-reference-types \
                --enable-multivalue --strip-debug --strip-producers \
                -o "$glue/whole.wasm" "$glue/wuerstchen_web_bg.wasm"
        fi
    done

    step "the models for the browser: the built-in one, and a small one for tests"
    rm -rf web/pkg/model web/pkg/shapes
    cp -r models/emoji web/pkg/model
    "$target/release/wuerstchen" export web -m models/shapes.safetensors -o web/pkg/shapes

    step "npm package"
    npm --prefix web run build
    npm --prefix web run build:wasm

    step "demo page"
    npm --prefix web/demo run build
    cp -r web/pkg/model web/demo/dist/model

    printf '\nweb/demo/dist is ready: %s/release/wuerstchen serve\n' "$target"
}

case "${1-}" in
"")
    compile
    package
    ;;
compile | package) "$1" ;;
*)
    echo "expected compile, package or nothing, got $1" >&2
    exit 2
    ;;
esac
