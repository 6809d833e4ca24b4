// The engine's side of a cache that a caller has in another thread.

import { fromErrorData, type ErrorData } from './errors.js';
import type { CacheAdapter } from './types.js';

type Method = keyof CacheAdapter;

export interface Call {
  readonly id: number;
  readonly method: Method;
  readonly args: [name: string, bytes: Uint8Array];
}

export interface Answer {
  readonly id: number;
  readonly value?: unknown;
  readonly error?: ErrorData;
}

/** The cache at the other end of a port. */
export function remoteCache(port: MessagePort): CacheAdapter {
  const waiting = new Map<number, (answer: Answer) => void>();
  let calls = 0;
  port.onmessage = ({ data }: MessageEvent<Answer>) => {
    waiting.get(data.id)?.(data);
    waiting.delete(data.id);
  };
  const call = (method: Method, ...args: unknown[]) =>
    new Promise<unknown>((resolve, reject) => {
      const id = calls++;
      waiting.set(id, ({ value, error }) =>
        error ? reject(fromErrorData(error)) : resolve(value),
      );
      port.postMessage({ id, method, args });
    });
  return {
    get: (name) => call('get', name) as ReturnType<CacheAdapter['get']>,
    put: (name, bytes) => call('put', name, bytes) as ReturnType<CacheAdapter['put']>,
    delete: (name) => call('delete', name) as ReturnType<CacheAdapter['delete']>,
    list: () => call('list') as ReturnType<CacheAdapter['list']>,
  };
}
