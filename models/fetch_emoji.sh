#!/usr/bin/env bash
# Fetches what the corpus `emoji` is drawn with: the art of four packs, and the names and keywords of
# emoji. Each package has a pinned version, and its hash is checked.
# Usage: models/fetch_emoji.sh [FOLDER]; the default is where `wuerstchen train` looks for it.
set -euo pipefail
folder="${1:-${XDG_CACHE_HOME:-$HOME/.cache}/wuerstchen/emoji}"
mkdir -p "$folder"
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

# fetch FOLDER PACKAGE SHA512: unpacks the package to $folder/FOLDER.
fetch() {
    if [ "$(cat "$folder/$1/.package" 2>/dev/null)" = "$2" ]; then
        echo "$2 is there"
        return
    fi
    local archive
    archive="$work/$(npm pack --silent --pack-destination "$work" "$2")"
    if [ "$(openssl dgst -sha512 -binary "$archive" | base64 -w 0)" != "$3" ]; then
        echo "$2: expected the SHA-512 hash $3, found another" >&2
        exit 1
    fi
    rm -rf "${folder:?}/$1"
    mkdir -p "$folder/$1"
    tar -xzf "$archive" -C "$folder/$1" --strip-components 1
    echo "$2" >"$folder/$1/.package"
    echo "fetched $2"
}

fetch noto @iconify-json/noto@1.2.9 \
    DQiuXENbun41ch+XPSV55H9FaWKpHTyz46YIKtSaKYD4fIDDzL1tR6H4np/T38jfrTAeI3rcKF0mqHYeZVAuaw==
fetch noto-v1 @iconify-json/noto-v1@1.2.5 \
    /DsVMius69Q0fRS53z7QK1TROSuar606jiIx+laXtdsYGMXpf6LtHBx6CGfoo3UHHb/XpBsw+1L1x3eyPqMuVA==
fetch fluent-emoji-flat @iconify-json/fluent-emoji-flat@1.2.6 \
    RY47RgPb47fYUiyrA64sIOL0+UU02s29sXpNBbIQRBUlPlfNFTKUmZDERGuxDs/7yNGWqQYvuaSYM1M4fRXlUw==
fetch twemoji @iconify-json/twemoji@1.2.5 \
    uKpuIEV0v6K5BW3Mjdyl+XKFVAbbcPxAgifKvEMtZoUZB5+YiY5zaMm2uNNCxyXzAWU9yNLlj41WU6/mvgALsw==
fetch emojibase-data emojibase-data@17.0.0 \
    Yvgb5AWoHViHV/gq1qr5ZAarcBip+B27/ZLRsUJkbgAEaLlZ/fof9g882LTpmEpyhBNEC0m2SEmItljHsTygjA==

cat >"$folder/ATTRIBUTION.md" <<'TEXT'
# Attribution

Pictures of the corpus `emoji` are drawn with the art of these packs, and models learn from them:

| art | by | licence |
| --- | --- | --- |
| Noto Emoji, current and before 2018 | Google | Apache License 2.0 |
| Fluent Emoji, flat | Microsoft Corporation | MIT |
| Twemoji | Copyright 2020 Twitter, Inc and other contributors | CC-BY 4.0 |

The art is scaled, put on coloured backgrounds, and some of it is tinted. The packs are those of
Iconify. Names and keywords are Unicode's annotations as emojibase (MIT) has them.
TEXT
echo "the art is in $folder"
