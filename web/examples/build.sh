#!/usr/bin/env bash
# Builds every example with the package as it would be published, away from this repository, and
# checks what comes out. Needs web/dist. With a folder as the argument, the sites are kept there.
set -euo pipefail
examples="$(cd "$(dirname "$0")" && pwd)"
work="$(mktemp -d)"
trap 'rm -rf "$work"' EXIT
sites="$(realpath -m "${1:-$work/sites}")"
export NEXT_TELEMETRY_DISABLED=1

step() { printf '\n== %s\n' "$*"; }
fail() { printf 'error: %s\n' "$*" >&2; exit 1; }

# copy NAME: the sources of an example, without what a developer's own build has left there.
copy() {
    mkdir "$work/$1"
    tar -C "$examples/$1" --exclude node_modules --exclude .next --exclude model -cf - . |
        tar -C "$work/$1" -xf -
}

# install NAME: the dependencies, with the package from the tarball.
install() {
    copy "$1"
    npm --prefix "$work/$1" install --no-audit --no-fund "$tarball"
}

# keep FOLDER SITE ENGINES: checks a built site and puts it among the others. ENGINES is how many
# scripts hold the engine: the worker is one, the code for the calling thread another.
keep() {
    local folder="$1" site="$2" engines="$3" file found
    for file in "$work"/package/dist/*.wasm; do
        found="$(find "$folder" -name '*.wasm' -exec cmp -s {} "$file" \; -print | wc -l)"
        [ "$found" -eq 1 ] || fail "$site has ${file##*/} $found times, not once"
    done
    found="$(find "$folder" -name '*.wasm' | wc -l)"
    [ "$found" -eq 4 ] || fail "$site has $found WebAssembly files, not 4"
    # A message that only the engine has.
    found="$(find "$folder" -name '*.js' -exec grep -lF 'no model is loaded' {} + | wc -l)"
    [ "$found" -eq "$engines" ] || fail "$site has the engine in $found scripts, not $engines"
    cp -r "$folder" "$sites/$site"
}

[ -f "$examples/../dist/index.js" ] || fail "web/dist is missing: run npm run build in web/"
mkdir -p "$sites"
for site in plain vite next next-webpack; do
    [ ! -e "$sites/$site" ] || fail "$sites/$site exists already"
done

step "package"
(cd "$examples/.." && npm pack --silent --pack-destination "$work")
tarball="$(echo "$work"/wuerstchen-web-*.tgz)"
tar -C "$work" -xzf "$tarball"

step "plain"
copy plain
cp -r "$work/package/dist" "$work/plain/wuerstchen-web"
keep "$work/plain" plain 2

step "Vite"
install vite
npm --prefix "$work/vite" run check
npm --prefix "$work/vite" run build
keep "$work/vite/dist" vite 2

step "import in Node"
for entry in wuerstchen-web wuerstchen-web/core; do
    (cd "$work/vite" && node --input-type=module --eval "
        const { load } = await import('$entry');
        if (typeof load !== 'function') throw new Error('$entry exports no load');
    ")
done

step "Next.js with Turbopack"
install next
npm --prefix "$work/next" run build
# Turbopack also copies the worker as a plain file, which no page fetches.
keep "$work/next/out" next 3

step "Next.js with webpack"
rm -rf "$work/next/.next" "$work/next/out"
npm --prefix "$work/next" run build -- --webpack
keep "$work/next/out" next-webpack 2

printf '\nall examples are built\n'
