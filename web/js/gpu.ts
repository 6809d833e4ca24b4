// Watches the GPU device that WebAssembly makes: its errors reach nobody otherwise.

import { WuerstchenError } from './errors.js';

/** What happens to one GPU device. */
export class GpuWatch {
  /** Resolves to the reason once the device has gone away. */
  readonly lost: Promise<string>;
  /** The first error that nobody has taken. */
  #error: WuerstchenError | undefined;

  constructor(device: GPUDevice) {
    this.lost = device.lost.then(({ reason, message }) => message || reason);
    device.addEventListener('uncapturederror', ({ error }) => {
      const code = error instanceof GPUOutOfMemoryError ? 'out-of-memory' : 'shader';
      this.#error ??= new WuerstchenError(code, `the GPU reports: ${error.message}`);
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

/**
 * Runs `open` and watches the device that it requests, if it does. WebAssembly has a preference of
 * its own for an adapter; the caller's takes its place.
 */
export async function watchDevice(
  open: () => Promise<void>,
  powerPreference: GPUPowerPreference | undefined,
): Promise<GpuWatch | undefined> {
  let watch: GpuWatch | undefined;
  const { gpu } = navigator;
  const { prototype } = GPUAdapter;
  const { requestDevice } = prototype;
  const requestAdapter = gpu.requestAdapter.bind(gpu);
  gpu.requestAdapter = (options) =>
    requestAdapter(powerPreference ? { ...options, powerPreference } : options);
  prototype.requestDevice = async function (this: GPUAdapter, descriptor) {
    const device = await requestDevice.call(this, descriptor);
    watch = new GpuWatch(device);
    return device;
  };
  try {
    await open();
  } finally {
    // Adapters and devices of others in this thread are none of our business.
    gpu.requestAdapter = requestAdapter;
    prototype.requestDevice = requestDevice;
  }
  return watch;
}
