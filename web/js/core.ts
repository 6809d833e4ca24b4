// The same functions with the engine in the calling thread, for callers with workers of their own.

import { load as loadThrough } from './client.js';
import { workerConnector, type Connector } from './connector.js';
import { builds } from './glue.js';
import { serve, type EngineMessage } from './serve.js';
import type { LoadOptions, Wuerstchen } from './types.js';

export { cache } from './cache.js';
export { WuerstchenError, type ErrorCode } from './errors.js';
export { inspect } from './manifest.js';
export { checkSupport } from './support.js';
export type * from './types.js';
export { vocabulary } from './vocabulary.js';

/**
 * As `load` of the main entry, but the engine computes in the calling thread and blocks it during each step,
 * unless `worker` is a function that makes a worker. In the calling thread a GPU that is lost stays lost: its jobs
 * reject with `device-lost`.
 */
export async function load(options: LoadOptions): Promise<Wuerstchen> {
  const makeWorker = options?.worker;
  return loadThrough(
    options,
    makeWorker ? workerConnector(makeWorker) : threadConnector(options?.fetch),
  );
}

/** Engines in this thread. */
function threadConnector(fetcher: typeof fetch = (...request) => fetch(...request)): Connector {
  return {
    isWorker: false,
    connect(hear) {
      const { port1, port2 } = new MessageChannel();
      serve(port2, { builds, fetch: fetcher, mayBlock: false });
      port1.onmessage = ({ data }: MessageEvent<EngineMessage>) => hear(data);
      return {
        say: (message, transfer = []) => port1.postMessage(message, transfer),
        close: () => port1.postMessage({ type: 'close' }),
      };
    },
  };
}
