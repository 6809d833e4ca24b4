// What this browser can do, found out without any download.

import { storageSupport } from './cache.js';
import type { Support, SupportReason } from './types.js';

/** Exports a function that makes a `v128`: valid only where SIMD is known. */
const SIMD_MODULE = new Uint8Array([
  0, 97, 115, 109, 1, 0, 0, 0, 1, 5, 1, 96, 0, 1, 123, 3, 2, 1, 0, 10, 10, 1, 8, 0, 65, 0, 253, 15,
  253, 98, 11,
]);

const SOFTWARE = /swiftshader|llvmpipe|lavapipe|softpipe|basic render|software/i;

const MESSAGES: Record<SupportReason | 'webgpu', string> = {
  webgpu: 'Pictures are computed by the GPU.',
  'insecure-context': 'Browsers allow this only on pages served over https or from localhost.',
  'no-webgpu': 'This browser has no WebGPU, so pictures are computed by the CPU, which is slower.',
  'no-adapter':
    'WebGPU finds no GPU that it can use, so pictures are computed by the CPU, which is slower.',
  'software-adapter': 'WebGPU is only emulated here, so pictures are computed directly by the CPU.',
  'no-wasm-simd': 'This browser has neither WebGPU nor WebAssembly SIMD: please update it.',
};

/**
 * Finds out what runs here, without any download. Works in pages and workers; never rejects but for
 * an abort, with the signal's reason.
 */
export async function checkSupport(
  options: {
    signal?: AbortSignal;
    powerPreference?: 'low-power' | 'high-performance';
  } = {},
): Promise<Support> {
  const { signal, powerPreference } = options;
  signal?.throwIfAborted();
  const storage = await storageSupport();
  const gpu = globalThis.navigator?.gpu;
  // Old drivers make browsers reject here.
  const adapter = await gpu?.requestAdapter({ powerPreference }).catch(() => null);
  signal?.throwIfAborted();

  const info = adapter && describe(adapter);
  const gpuProblem = !gpu
    ? 'no-webgpu'
    : !info
      ? 'no-adapter'
      : info.software
        ? 'software-adapter'
        : undefined;
  const hasSimd = WebAssembly.validate(SIMD_MODULE);
  // Node has no such property.
  const isInsecure = globalThis.isSecureContext === false;
  const reason = isInsecure
    ? 'insecure-context'
    : gpuProblem && !hasSimd
      ? 'no-wasm-simd'
      : gpuProblem;
  return {
    ok: reason !== 'insecure-context' && reason !== 'no-wasm-simd',
    device: reason ? 'cpu' : 'webgpu',
    reason,
    adapter: info ?? undefined,
    features: {
      shaderF16: adapter?.features.has('shader-f16') ?? false,
      subgroups: adapter?.features.has('subgroups') ?? false,
    },
    limits: adapter
      ? {
          maxBufferSize: adapter.limits.maxBufferSize,
          maxStorageBufferBindingSize: adapter.limits.maxStorageBufferBindingSize,
        }
      : undefined,
    storage,
    message: MESSAGES[reason ?? 'webgpu'],
  };
}

function describe(adapter: GPUAdapter): NonNullable<Support['adapter']> {
  const { vendor, architecture, device, description, isFallbackAdapter } = adapter.info;
  // Where the flag was before it moved into `info`.
  const { isFallbackAdapter: wasFallback } = adapter as { isFallbackAdapter?: boolean };
  const software =
    Boolean(isFallbackAdapter || wasFallback) ||
    SOFTWARE.test([vendor, architecture, device, description].join(' '));
  return { vendor, architecture, description, software };
}
