#!/usr/bin/env bash
# Runs every check: format, lints, tests (on the CPU and on whatever Vulkan device there is, a
# software one if need be), documentation, the browser package and its tests. Installs what it needs.
set -euo pipefail
cd "$(dirname "$0")/.."
step() { printf '\n== %s (%d s)\n' "$*" "$SECONDS"; }

step "install what is missing"
if [ -z "${WUERSTCHEN_GPU_TESTS:-}" ] && ! ls /usr/share/vulkan/icd.d/*.json >/dev/null 2>&1; then
    # A software Vulkan device for the shader tests; WUERSTCHEN_GPU_TESTS=no does without.
    if command -v apt-get >/dev/null && [ "$(id -u)" = 0 ]; then
        apt-get update -qq && apt-get install -y -qq mesa-vulkan-drivers libvulkan1 >/dev/null
    else
        echo "no Vulkan driver: install one, or set WUERSTCHEN_GPU_TESTS=no" >&2
        exit 1
    fi
fi
if ! command -v "${CHROMIUM:-/usr/bin/chromium}" >/dev/null ||
    ! command -v "${FIREFOX:-/usr/bin/firefox-esr}" >/dev/null; then
    if command -v apt-get >/dev/null && [ "$(id -u)" = 0 ]; then
        apt-get update -qq && apt-get install -y -qq chromium firefox-esr >/dev/null
    else
        echo "the browser tests need Chromium and Firefox: install them, or set CHROMIUM and FIREFOX" >&2
        exit 1
    fi
fi
export XDG_RUNTIME_DIR="${XDG_RUNTIME_DIR:-/tmp}" # Mesa complains without one
rustup component add rustfmt clippy

# Training over MPI is built where MPI is.
features=()
if command -v mpicc >/dev/null; then features=(--features wuerstchen-mpi/mpi); fi

step "format"
cargo fmt --all --check

step "tests"
# One profile and one set of features for everything: a second one costs ten minutes.
cargo test --release --workspace "${features[@]}" --no-run

# From here on most of the work is one core's, linking WebAssembly or a browser's: several run side by
# side, and the lints, for which nothing waits, when a core is free.
lints() {
    nice cargo clippy --quiet --jobs 1 --release --workspace --all-targets "${features[@]}" -- -D warnings &&
        RUSTDOCFLAGS="-D warnings" nice cargo doc --quiet --jobs 1 --release --workspace "${features[@]}" --no-deps
}
halves="$(mktemp -d)"
# If the first half of the browser's tests fails, the second one has not told yet how it went.
trap 'kill $(jobs -p) 2>/dev/null || true; cat "$halves/log" 2>/dev/null || true' EXIT
bash web/build.sh compile &
web=$!
cargo test --release --workspace "${features[@]}"

if command -v mpicc >/dev/null; then
    bash tests/mpi.sh
else
    echo "left out: training over MPI, as there is no mpicc; tests/mpi.sh installs it"
    left_out=" but those of MPI"
fi

step "lints and documentation, beside what follows"
lints &
lints=$!

step "the browser"
wait "$web"
bash tests/browser/build.sh &
page=$!
bash web/build.sh package
wait "$page"
# A browser's tests keep about one core busy: these run side by side, and the second half tells in the end how it went.
(
    cd web
    npm run test:verify
    bash examples/build.sh "$halves/sites"
    npm run test:examples -- "$halves/sites"
) >"$halves/log" 2>&1 &
second=$!
cd web
npm run check
npm test
npm run lint:package
npm --prefix demo test
npm run test:browser
cd ..
ended=0
wait "$second" || ended=$?
cat "$halves/log"
rm "$halves/log"
[ "$ended" = 0 ]

wait "$lints"
step "all checks${left_out-} passed"
