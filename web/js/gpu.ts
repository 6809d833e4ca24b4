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

/** Runs `open` and watches the device that it requests, if it does. */
export async function watchDevice(open: () => Promise<void>): Promise<GpuWatch | undefined> {
  let watch: GpuWatch | undefined;
  const { prototype } = GPUAdapter;
  const { requestDevice } = prototype;
  prototype.requestDevice = async function (this: GPUAdapter, descriptor) {
    const device = await requestDevice.call(this, descriptor);
    watch = new GpuWatch(device);
    return device;
  };
  try {
    await open();
  } finally {
    // Devices of others in this thread are none of our business.
    prototype.requestDevice = requestDevice;
  }
  return watch;
}
