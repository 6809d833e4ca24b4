// Attention of every head, softmax(q · kᵀ / √D) · v, without its weights in memory.
//
// A workgroup makes 64 channels, or all of a narrower head, of 32 queries of one head. It goes through the
// keys 32 at a time: it computes the scores of a tile, their weights relative to the largest score so far, and
// the terms that these add to the sums. When a larger score comes, the sums so far are scaled down.
// Source: FlashAttention (arXiv 2205.14135), Algorithm 1.
// A shader is this file and separate_tokens.wgsl or joined_tokens.wgsl, which read the tokens.
// Twin: `reference::attention` in crates/wuerstchen-kernels/src/attention.rs.

alias elem = f32;

struct Sizes {
    batch: u32, // B
    queries: u32, // Q
    keys: u32, // K
    more_keys: u32, // L, which come after the K; 0 for none
    heads: u32,
    quads: u32, // D / 4
}

const WORKGROUP_SIZE = 64u; // matches `WORKGROUP_SIZE` in wgsl.rs
const SIDE = 8u; // quads of queries, and of keys, of a tile; invocations along its sides
const TILE = 32u; // queries and keys of a tile; matches `ATTENTION_TILE` in wgsl.rs
const PART = 16u; // quads of channels of a workgroup; matches it too
const LOWEST = -3e38; // below every score

// A tile of q and one of k [32 channels, quads of queries or keys]; later a tile of v [32 keys, 16 quads of channels].
var<workgroup> tile: array<vec4<f32>, 512>;
const K_TILE = 256u; // where k begins
var<workgroup> weights: array<vec4<f32>, 256>; // [keys, quads of queries]
var<workgroup> parts: array<vec4<f32>, WORKGROUP_SIZE>; // [quads of queries, quads of keys]

// `sums` + the products of four numbers of `a` with four of `b`: column i is that of a[i].
fn add_products(sums: mat4x4<f32>, a: vec4<f32>, b: vec4<f32>) -> mat4x4<f32> {
    return mat4x4<f32>(
        fma(b, a.xxxx, sums[0]),
        fma(b, a.yyyy, sums[1]),
        fma(b, a.zzzz, sums[2]),
        fma(b, a.wwww, sums[3]),
    );
}

fn scale_columns(m: mat4x4<f32>, by: vec4<f32>) -> mat4x4<f32> {
    return mat4x4<f32>(m[0] * by.x, m[1] * by.y, m[2] * by.z, m[3] * by.w);
}

fn largest(a: vec4<f32>) -> f32 {
    return max(max(a.x, a.y), max(a.z, a.w));
}

// Four channels of a key. `start` and `more_start` are the places of these channels in key 0 of k and of more_k.
fn key_quad(number: u32, start: u32, more_start: u32) -> vec4<f32> {
    if number < sizes.keys {
        return key(start + number * token_width());
    }
    return vec4<f32>(more_k[more_start + (number - sizes.keys) * sizes.heads * sizes.quads]);
}

// Four channels of a value, likewise.
fn value_quad(number: u32, start: u32, more_start: u32) -> vec4<f32> {
    if number < sizes.keys {
        return value(start + number * token_width());
    }
    return vec4<f32>(more_v[more_start + (number - sizes.keys) * sizes.heads * sizes.quads]);
}

// The place of a quad of queries or keys among those of channels 4·c to 4·c + 3, as in tiled_product.wgsl.
fn place(quad: u32, c: u32) -> u32 {
    return quad ^ ((2u * c) & 7u);
}

// Writes the transpose of four rows of four channels each.
fn put_rows(to: u32, rows: mat4x4<f32>) {
    let channels = transpose(rows);
    tile[to] = channels[0];
    tile[to + SIDE] = channels[1];
    tile[to + 2u * SIDE] = channels[2];
    tile[to + 3u * SIDE] = channels[3];
}

fn put(number: u32, at: u32, sums: vec4<f32>) {
    if number < sizes.queries {
        y[at] = vec4<elem>(sums);
    }
}

@compute @workgroup_size(WORKGROUP_SIZE)
fn main(
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(num_workgroups) groups: vec3<u32>,
    @builtin(local_invocation_index) invocation: u32,
) {
    let quads = sizes.quads;
    let row = sizes.heads * quads; // quads of a token of y
    let width = token_width();
    let index = group.y * groups.x + group.x;
    // Workgroups beyond the last one make its outputs again, so that all reach the barriers alike.
    let tiles = (sizes.queries + TILE - 1u) / TILE;
    let channel_parts = (quads + PART - 1u) / PART;
    let head = min(index / (tiles * channel_parts), sizes.batch * sizes.heads - 1u);
    let first_query = index / channel_parts % tiles * TILE;
    let first_channel = index % channel_parts * PART;
    let is_wide = quads - first_channel > SIDE; // more than 8 quads of channels
    let picture = head / sizes.heads;
    let of_head = head % sizes.heads * quads;
    let q_start = picture * sizes.queries * width + of_head;
    let k_start = picture * sizes.keys * width + of_head;
    let more_start = picture * sizes.more_keys * row + of_head;
    let keys = sizes.keys + sizes.more_keys;
    let scale = inverseSqrt(4.0 * f32(quads));

    // The rows that this invocation copies, and its scores; the scores of a query are a column.
    let own_channel = invocation % SIDE;
    let own_quad = invocation / SIDE;
    let to = 4u * own_channel * SIDE + place(own_quad, own_channel);
    let offsets = vec4<u32>(0u, 1u, 2u, 3u);
    let q_rows = q_start + min(first_query + 4u * own_quad + offsets, vec4<u32>(sizes.queries - 1u)) * width;
    let down = invocation / SIDE;
    let across = invocation % SIDE;

    var highest = vec4<f32>(LOWEST); // score of each query so far
    var total = vec4<f32>(); // of the weights of this invocation's keys
    var sums = mat4x4<f32>();
    var right = mat4x4<f32>();
    for (var first_key = 0u; first_key < keys; first_key += TILE) {
        let own_keys = min(first_key + 4u * own_quad + offsets, vec4<u32>(keys - 1u));
        var scores = mat4x4<f32>();
        for (var c = 0u; c < quads; c += SIDE) {
            var q_block = mat4x4<f32>();
            var k_block = mat4x4<f32>();
            let channel = c + own_channel;
            if channel < quads {
                let q_at = q_rows + channel;
                q_block = mat4x4<f32>(
                    query(q_at.x),
                    query(q_at.y),
                    query(q_at.z),
                    query(q_at.w),
                );
                k_block = mat4x4<f32>(
                    key_quad(own_keys.x, k_start + channel, more_start + channel),
                    key_quad(own_keys.y, k_start + channel, more_start + channel),
                    key_quad(own_keys.z, k_start + channel, more_start + channel),
                    key_quad(own_keys.w, k_start + channel, more_start + channel),
                );
            }
            put_rows(to, q_block * scale);
            put_rows(K_TILE + to, k_block);
            workgroupBarrier();
            for (var i = 0u; i < SIDE; i += 1u) {
                var at_q = 4u * i * SIDE + place(down, i);
                var at_k = K_TILE + 4u * i * SIDE + place(across, i);
                for (var j = 0u; j < 4u; j += 1u) {
                    scores = add_products(scores, tile[at_q], tile[at_k]);
                    at_q += SIDE;
                    at_k += SIDE;
                }
            }
            workgroupBarrier();
        }

        // Keys beyond the last one have no weight.
        let exists = first_key + 4u * across + offsets < vec4<u32>(keys);
        let lowest = vec4<f32>(LOWEST);
        scores = mat4x4<f32>(
            select(lowest, scores[0], exists),
            select(lowest, scores[1], exists),
            select(lowest, scores[2], exists),
            select(lowest, scores[3], exists),
        );
        parts[invocation] =
            vec4<f32>(largest(scores[0]), largest(scores[1]), largest(scores[2]), largest(scores[3]));
        workgroupBarrier();
        let before = highest;
        for (var i = 0u; i < SIDE; i += 1u) {
            highest = max(highest, parts[down * SIDE + i]);
        }
        let shrink = exp(before - highest);
        let weight = mat4x4<f32>(
            exp(scores[0] - highest.x),
            exp(scores[1] - highest.y),
            exp(scores[2] - highest.z),
            exp(scores[3] - highest.w),
        );
        let by_key = transpose(weight);
        total = total * shrink + by_key[0] + by_key[1] + by_key[2] + by_key[3];
        sums = scale_columns(sums, shrink);
        right = scale_columns(right, shrink);

        let weights_to = 4u * across * SIDE + down;
        weights[weights_to] = by_key[0];
        weights[weights_to + SIDE] = by_key[1];
        weights[weights_to + 2u * SIDE] = by_key[2];
        weights[weights_to + 3u * SIDE] = by_key[3];
        for (var i = invocation; i < TILE * PART; i += WORKGROUP_SIZE) {
            let number = first_key + i / PART;
            let channel = first_channel + i % PART;
            var quad = vec4<f32>();
            if number < keys && channel < quads {
                quad = value_quad(number, k_start + channel, more_start + channel);
            }
            tile[i] = quad;
        }
        workgroupBarrier();
        for (var i = 0u; i < TILE; i += 1u) {
            let weight_of_key = weights[i * SIDE + down];
            sums = add_products(sums, weight_of_key, tile[i * PART + across]);
            if is_wide {
                right = add_products(right, weight_of_key, tile[i * PART + SIDE + across]);
            }
        }
        workgroupBarrier();
    }

    parts[invocation] = total;
    workgroupBarrier();
    total = vec4<f32>();
    for (var i = 0u; i < SIDE; i += 1u) {
        total += parts[down * SIDE + i];
    }
    sums = scale_columns(sums, 1.0 / total);
    right = scale_columns(right, 1.0 / total);
    let first = first_query + 4u * down;
    let channel = first_channel + across;
    let at = (picture * sizes.queries + first) * row + of_head + channel;
    if channel < quads {
        put(first, at, sums[0]);
        put(first + 1u, at + row, sums[1]);
        put(first + 2u, at + 2u * row, sums[2]);
        put(first + 3u, at + 3u * row, sums[3]);
    }
    if channel + SIDE < quads {
        put(first, at + SIDE, right[0]);
        put(first + 1u, at + SIDE + row, right[1]);
        put(first + 2u, at + SIDE + 2u * row, right[2]);
        put(first + 3u, at + SIDE + 3u * row, right[3]);
    }
}
