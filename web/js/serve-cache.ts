// The caller's side of its cache, which an engine in another thread uses.

import { toErrorData } from './errors.js';
import type { Answer, Call } from './remote-cache.js';
import type { CacheAdapter } from './types.js';

/** Answers the calls that come through a port. */
export function serveCache(adapter: CacheAdapter, port: MessagePort): void {
  port.onmessage = async ({ data: { id, method, args } }: MessageEvent<Call>) => {
    try {
      port.postMessage({ id, value: await adapter[method](...args) } satisfies Answer);
    } catch (error) {
      port.postMessage({ id, error: toErrorData(error) } satisfies Answer);
    }
  };
}
