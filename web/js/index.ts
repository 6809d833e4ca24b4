// The package: pictures from text, computed in a worker.

import { load as loadThrough, workerConnector } from './client.js';
import type { LoadOptions, Wuerstchen } from './types.js';

export { cache } from './cache.js';
export { WuerstchenError, type ErrorCode } from './errors.js';
export { inspect } from './manifest.js';
export { checkSupport } from './support.js';
export type * from './types.js';

/**
 * Loads a model: fetches what is not in the cache, verifies it, brings it to the device, and
 * compares the device's results with the model's own before the first picture.
 *
 * Rejects with a {@link WuerstchenError}, or with the reason of `signal`. The engine lives in a
 * worker; a worker or a GPU that fails is replaced, and the job that it interrupted runs once more.
 */
export async function load(options: LoadOptions): Promise<Wuerstchen> {
  if (options?.worker === false) return (await import('./core.js')).load(options);
  const makeWorker = options?.worker ?? startWorker;
  return loadThrough(options, workerConnector(makeWorker));
}

function startWorker(): Worker {
  // Bundlers find the worker by this very expression.
  return new Worker(new URL('./worker.js', import.meta.url), { type: 'module' });
}
