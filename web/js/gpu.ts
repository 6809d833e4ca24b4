// Watches the GPU device that WebAssembly makes, because its errors would reach nobody otherwise.

import { orCrash } from './crashes.js';
import { asWuerstchenError, WuerstchenError } from './errors.js';
import { patiently } from './patience.js';

export const CPU_HINT = "Leave device out, or set it to 'cpu'.";

/** What happens to one GPU device. */
export class GpuWatch {
  /** Resolves to the reason once the device has gone away. */
  readonly lost: Promise<string>;
  /** Whether its shaders can have numbers in f16. */
  readonly hasHalves: boolean;
  /** The first error that has not been taken yet. */
  #error: WuerstchenError | undefined;

  constructor(device: GPUDevice) {
    this.hasHalves = device.features.has('shader-f16');
    this.lost = device.lost.then(({ reason, message }) => message || reason);
    device.addEventListener('uncapturederror', ({ error }) => {
      const code = isOutOfMemory(error) ? 'out-of-memory' : 'shader';
      const message = `the GPU reports: ${error.message}`;
      this.#error ??= new WuerstchenError(code, message, { hint: CPU_HINT });
    });
  }

  get hasError(): boolean {
    return this.#error !== undefined;
  }

  /** The error, which is then forgotten: the device goes on. */
  takeError(): WuerstchenError | undefined {
    const error = this.#error;
    this.#error = undefined;
    return error;
  }
}

function isOutOfMemory(error: GPUError): boolean {
  return typeof GPUOutOfMemoryError !== 'undefined' && error instanceof GPUOutOfMemoryError;
}

/** As {@link watch}; any failure to get a device is an error `unsupported`. */
export async function watchDevice(
  open: () => Promise<void>,
  powerPreference: GPUPowerPreference | undefined,
): Promise<GpuWatch | undefined> {
  try {
    return await patiently(orCrash(watch(open, powerPreference)), 'the GPU');
  } catch (cause) {
    const error = asWuerstchenError(cause);
    if (error.code !== 'internal') throw error;
    const message = `WebGPU gives no device: ${error.message}`;
    throw new WuerstchenError('unsupported', message, { hint: CPU_HINT, cause });
  }
}

/**
 * Runs `open` and watches the device that it requests, if it does. WebAssembly has a preference of
 * its own for an adapter; the caller's takes its place.
 */
async function watch(
  open: () => Promise<void>,
  powerPreference: GPUPowerPreference | undefined,
): Promise<GpuWatch | undefined> {
  let device: GpuWatch | undefined;
  let refusal: unknown;
  const { gpu } = navigator;
  const { prototype } = GPUAdapter;
  const { requestDevice } = prototype;
  const requestAdapter = gpu.requestAdapter.bind(gpu);
  const note = (error: unknown) => {
    refusal = error;
    throw error;
  };
  gpu.requestAdapter = (options) =>
    requestAdapter(powerPreference ? { ...options, powerPreference } : options).catch(note);
  prototype.requestDevice = async function (this: GPUAdapter, descriptor) {
    const made = await requestDevice.call(this, descriptor).catch(note);
    device = new GpuWatch(made);
    return made;
  };
  try {
    await open();
  } catch (error) {
    // The browser's own error is clearer than the one that WebAssembly makes of it.
    throw refusal ?? error;
  } finally {
    // Other code in this thread must get its adapters and devices as before.
    gpu.requestAdapter = requestAdapter;
    prototype.requestDevice = requestDevice;
  }
  return device;
}
