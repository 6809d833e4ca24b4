// The package: pictures from text, computed in a worker.

import { load as loadThrough } from './client.js';
import { workerConnector } from './connector.js';
import { WuerstchenError } from './errors.js';
import { startWorker } from './own-worker.js';
import type { LoadOptions, Wuerstchen } from './types.js';
import { messageOf } from './values.js';

export { cache } from './cache.js';
export { WuerstchenError, type ErrorCode } from './errors.js';
export { inspect } from './manifest.js';
export { checkSupport } from './support.js';
export type * from './types.js';
export { vocabulary } from './vocabulary.js';

/**
 * Loads a model: fetches the files that are not in the cache, verifies them, loads them onto the device, and
 * compares the device's results with the recorded ones in the model before the first picture.
 *
 * Rejects with a {@link WuerstchenError}, or with the reason of `signal`. The engine runs in a worker. A worker or a
 * GPU that fails is replaced: a job that lost the GPU runs once more, and that of a failed worker rejects.
 */
export async function load(options: LoadOptions): Promise<Wuerstchen> {
  if (options?.worker === false) return (await importCore()).load(options);
  const makeWorker = options?.worker ?? startWorker;
  return loadThrough(options, workerConnector(makeWorker));
}

async function importCore(): Promise<typeof import('./core.js')> {
  try {
    return await import('./core.js');
  } catch (cause) {
    const message = `core.js could not be loaded: ${messageOf(cause)}`;
    const hint = 'Serve all files of this package.';
    throw new WuerstchenError('network', message, { hint, cause });
  }
}
