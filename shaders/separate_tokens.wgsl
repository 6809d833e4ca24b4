// The tokens of attention, if queries, keys and values lie in tensors of their own.

@group(0) @binding(0) var<storage, read_write> y: array<vec4<elem>>; // [B, Q, heads · D / 4]
@group(0) @binding(1) var<storage, read_write> q: array<vec4<elem>>; // [B, Q, heads · D / 4]
@group(0) @binding(2) var<storage, read_write> k: array<vec4<elem>>; // [B, K, heads · D / 4]
@group(0) @binding(3) var<storage, read_write> v: array<vec4<elem>>; // [B, K, heads · D / 4]
@group(0) @binding(4) var<storage, read_write> more_k: array<vec4<elem>>; // [B, L, heads · D / 4]
@group(0) @binding(5) var<storage, read_write> more_v: array<vec4<elem>>; // [B, L, heads · D / 4]
@group(0) @binding(6) var<storage, read> sizes: Sizes;

// Number of quads from one token to the next.
fn token_width() -> u32 {
    return sizes.heads * sizes.quads;
}

fn query(at: u32) -> vec4<f32> {
    return vec4<f32>(q[at]);
}

fn key(at: u32) -> vec4<f32> {
    return vec4<f32>(k[at]);
}

fn value(at: u32) -> vec4<f32> {
    return vec4<f32>(v[at]);
}
