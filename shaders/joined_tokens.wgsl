// The tokens of attention, if one product made the query, the key and the value of each token, one after the other.

@group(0) @binding(0) var<storage, read_write> y: array<vec4<elem>>; // [B, Q, heads · D / 4]
@group(0) @binding(1) var<storage, read_write> qkv: array<vec4<elem>>; // [B, Q, 3 · heads · D / 4]
@group(0) @binding(2) var<storage, read_write> more_k: array<vec4<elem>>; // [B, L, heads · D / 4]
@group(0) @binding(3) var<storage, read_write> more_v: array<vec4<elem>>; // [B, L, heads · D / 4]
@group(0) @binding(4) var<storage, read> sizes: Sizes;

// Number of quads from one token to the next.
fn token_width() -> u32 {
    return 3u * sizes.heads * sizes.quads;
}

fn query(at: u32) -> vec4<f32> {
    return vec4<f32>(qkv[at]);
}

fn key(at: u32) -> vec4<f32> {
    return vec4<f32>(qkv[at + sizes.heads * sizes.quads]);
}

fn value(at: u32) -> vec4<f32> {
    return vec4<f32>(qkv[at + 2u * sizes.heads * sizes.quads]);
}
