// What this browser can do, found out without any download.

import { storageSupport } from './cache.js';
import { checkedSupportOptions } from './options.js';
import { patiently } from './patience.js';
import { throwIfAborted } from './signals.js';
import type { Support, SupportOptions, SupportReason } from './types.js';
import { messageOf } from './values.js';
import { hasSimd, hasWasm } from './wasm-support.js';

const SOFTWARE = /swiftshader|llvmpipe|lavapipe|softpipe|basic render|software/i;

const MESSAGES: Record<SupportReason | 'webgpu', string> = {
  webgpu: 'Pictures are computed by the GPU.',
  'insecure-context': 'Browsers allow this only on pages served over https or from localhost.',
  'no-webgpu': 'This browser has no WebGPU, so pictures are computed by the CPU, which is slower.',
  'no-adapter':
    'WebGPU finds no GPU that it can use, so pictures are computed by the CPU, which is slower.',
  'software-adapter': 'WebGPU is only emulated here, so pictures are computed directly by the CPU.',
  'no-wasm-simd': 'This browser has neither WebGPU nor WebAssembly SIMD: please update it.',
  'no-wasm': 'This browser has no WebAssembly, or was told not to run it (a lockdown mode).',
};

/**
 * Finds out what runs here, without any download. It works in pages and workers. Rejects with `invalid-argument`, or
 * with the reason of `signal`.
 */
export async function checkSupport(options: SupportOptions = {}): Promise<Support> {
  const { signal, powerPreference } = checkedSupportOptions(options);
  throwIfAborted(signal);
  const storage = await storageSupport();
  const gpu = await findGpu(powerPreference);
  throwIfAborted(signal);

  // Node has no such property.
  const isInsecure = globalThis.isSecureContext === false;
  const reason = isInsecure
    ? 'insecure-context'
    : !hasWasm()
      ? 'no-wasm'
      : gpu.problem && !hasSimd()
        ? 'no-wasm-simd'
        : gpu.problem;
  const detail = reason === gpu.problem && gpu.detail ? ` (WebGPU says: ${gpu.detail})` : '';
  return {
    ok: !isInsecure && reason !== 'no-wasm' && reason !== 'no-wasm-simd',
    device: reason ? 'cpu' : 'webgpu',
    reason,
    adapter: gpu.adapter,
    features: gpu.features ?? { shaderF16: false, subgroups: false },
    limits: gpu.limits,
    storage,
    message: MESSAGES[reason ?? 'webgpu'] + detail,
  };
}

/** What WebGPU offers. */
interface Gpu extends Partial<Pick<Support, 'adapter' | 'features' | 'limits'>> {
  /** Why it is not used. */
  readonly problem?: SupportReason;
  /** The message of the browser or the driver about the problem. */
  readonly detail?: string;
}

async function findGpu(powerPreference: GPUPowerPreference | undefined): Promise<Gpu> {
  const gpu = globalThis.navigator?.gpu;
  if (!gpu) return { problem: 'no-webgpu' };
  try {
    const found = await patiently(gpu.requestAdapter({ powerPreference }), 'the GPU');
    if (!found) return { problem: 'no-adapter' };
    const adapter = describe(found);
    // Some browsers lack members that others have.
    const { features, limits } = found as Partial<GPUAdapter>;
    return {
      problem: adapter.software ? 'software-adapter' : undefined,
      adapter,
      features: {
        shaderF16: features?.has('shader-f16') ?? false,
        subgroups: features?.has('subgroups') ?? false,
      },
      limits: limits && {
        maxBufferSize: limits.maxBufferSize,
        maxStorageBufferBindingSize: limits.maxStorageBufferBindingSize,
      },
    };
  } catch (error) {
    // With old drivers, browsers reject.
    return { problem: 'no-adapter', detail: messageOf(error) };
  }
}

function describe(adapter: GPUAdapter): NonNullable<Support['adapter']> {
  const { info = {} } = adapter as { info?: Partial<GPUAdapterInfo> };
  const { vendor = '', architecture = '', device = '', description = '' } = info;
  // Older browsers have the flag here; newer ones have it in `info`.
  const { isFallbackAdapter: wasFallback } = adapter as { isFallbackAdapter?: boolean };
  const software =
    Boolean(info.isFallbackAdapter || wasFallback) ||
    SOFTWARE.test([vendor, architecture, device, description].join(' '));
  return { vendor, architecture, description, software };
}
