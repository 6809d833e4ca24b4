// Errors of WebAssembly that nobody can catch: they are thrown in a task of their own, so the caller's promise never
// settles.

import { Crash } from './errors.js';
import { isObject } from './values.js';

/** The events of such an error; which one comes depends on how the browser starts tasks. */
const EVENTS = ['error', 'unhandledrejection'] as const;

/** Whether an instance of WebAssembly cannot be used any more after this. */
export function isFatal(thrown: unknown): boolean {
  if (thrown instanceof Crash) return true;
  return typeof WebAssembly !== 'undefined' && thrown instanceof WebAssembly.RuntimeError;
}

/** Settles as `work` does, or rejects with a {@link Crash} of WebAssembly meanwhile. */
export async function orCrash<T>(work: Promise<T>): Promise<T> {
  let hear!: (event: ErrorEvent | PromiseRejectionEvent) => void;
  const crash = new Promise<never>((_, reject) => {
    hear = (event) => {
      const thrown: unknown = 'reason' in event ? event.reason : event.error;
      if (!cameThroughWasm(thrown)) return;
      event.preventDefault();
      reject(new Crash(thrown));
    };
  });
  // Node has no such events.
  for (const type of EVENTS) globalThis.addEventListener?.(type, hear);
  try {
    return await Promise.race([work, crash]);
  } finally {
    for (const type of EVENTS) globalThis.removeEventListener?.(type, hear);
  }
}

/**
 * Whether an error came through WebAssembly: its stack then has WebAssembly's frames, which all browsers write alike.
 * Other errors, of this package too, may be the page's own in the calling thread.
 */
function cameThroughWasm(thrown: unknown): boolean {
  if (isFatal(thrown)) return true;
  return isObject(thrown) && 'stack' in thrown && /wasm-function\[/.test(String(thrown.stack));
}
