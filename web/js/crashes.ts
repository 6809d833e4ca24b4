// Errors of WebAssembly that nobody can catch: they are thrown in a task of their own, so the caller's promise never
// settles.

import { Crash, WuerstchenError } from './errors.js';
import { isObject } from './values.js';

/** The events of such an error; which one comes depends on how the browser starts tasks. */
const EVENTS = ['error', 'unhandledrejection'] as const;

/** Whether an instance of WebAssembly cannot be used any more after this. */
export function isFatal(thrown: unknown): boolean {
  if (thrown instanceof Crash) return true;
  return typeof WebAssembly !== 'undefined' && thrown instanceof WebAssembly.RuntimeError;
}

/** Settles as `work` does, or rejects with a {@link Crash} of WebAssembly meanwhile. */
export function orCrash<T>(work: Promise<T>): Promise<T> {
  return new Promise((resolve, reject) => {
    const hear = (event: ErrorEvent | PromiseRejectionEvent) => {
      const thrown: unknown = 'reason' in event ? event.reason : event.error;
      if (!cameThroughWasm(thrown)) return;
      event.preventDefault();
      reject(new Crash(thrown));
    };
    // Node has no such events.
    for (const type of EVENTS) globalThis.addEventListener?.(type, hear);
    const ignore = () => {
      for (const type of EVENTS) globalThis.removeEventListener?.(type, hear);
    };
    work.then(resolve, reject).finally(ignore);
  });
}

/**
 * Whether an error came through WebAssembly. Ours do, because only functions that WebAssembly calls throw them here;
 * the stack of any other has WebAssembly's frames, which all browsers write alike.
 */
function cameThroughWasm(thrown: unknown): boolean {
  if (thrown instanceof WuerstchenError || isFatal(thrown)) return true;
  return isObject(thrown) && 'stack' in thrown && /wasm-function\[/.test(String(thrown.stack));
}
