// Callers' abort signals may come from other windows, or from libraries and browsers that lack `reason` and
// `throwIfAborted`.

import { isObject } from './values.js';

export function isSignal(value: unknown): value is AbortSignal {
  if (!isObject(value)) return false;
  const { aborted, addEventListener, removeEventListener } = value as Partial<AbortSignal>;
  return (
    typeof aborted === 'boolean' &&
    typeof addEventListener === 'function' &&
    typeof removeEventListener === 'function'
  );
}

export function throwIfAborted(signal: AbortSignal | undefined): void {
  if (signal?.aborted) throw reasonOf(signal);
}

/** Calls `abort` with the reason at an abort, until the function that it returns is called. */
export function onAbort(
  signal: AbortSignal | undefined,
  abort: (reason: unknown) => void,
): () => void {
  if (!signal) return () => {};
  const listener = () => abort(reasonOf(signal));
  signal.addEventListener('abort', listener);
  return () => signal.removeEventListener('abort', listener);
}

/** Settles as `work` does, or rejects with the reason at an abort, while the work goes on. */
export async function unlessAborted<T>(work: Promise<T>, signal: AbortSignal): Promise<T> {
  throwIfAborted(signal);
  let ignore = () => {};
  const aborted = new Promise<never>((_, reject) => {
    ignore = onAbort(signal, reject);
  });
  try {
    return await Promise.race([work, aborted]);
  } finally {
    ignore();
  }
}

function reasonOf(signal: AbortSignal): unknown {
  return signal.reason ?? new DOMException('This operation was aborted', 'AbortError');
}
