// The worker of this package.

import { absoluteUrl } from './http.js';

/**
 * Starts it, wherever its script lies. Browsers start no worker from another origin, such as a CDN's,
 * but let one of the page's own import that script. The URL, which bundlers change, is known to the
 * constructor alone.
 */
export function startWorker(): Worker {
  const OwnOrigin = Worker;
  class AnyOrigin extends OwnOrigin {
    constructor(url: string | URL, options?: WorkerOptions) {
      super(isForeign(url) ? importerOf(absoluteUrl(url), options?.type) : url, options);
    }
  }
  // Fails without a word where a page has frozen what is global.
  Reflect.set(globalThis, 'Worker', AnyOrigin);
  try {
    // Bundlers find the worker by this very expression.
    return new Worker(new URL('./worker.js', import.meta.url), { type: 'module' });
  } finally {
    Reflect.set(globalThis, 'Worker', OwnOrigin);
  }
}

/** Whether a script is on another origin; for a page without one, such as a file, all are. */
function isForeign(url: string | URL): boolean {
  const { protocol, origin } = new URL(absoluteUrl(url));
  const isOfServer = ['http:', 'https:', 'file:'].includes(protocol);
  return isOfServer && (origin === 'null' || origin !== globalThis.origin);
}

/** The URL of a script that is nothing but another one. */
function importerOf(url: string, type: WorkerType = 'classic'): string {
  const name = JSON.stringify(url);
  const script = type === 'module' ? `import ${name};` : `importScripts(${name});`;
  // A page without an origin starts modules from data: alone; on other pages such a worker would be cut
  // off from what they store.
  return globalThis.origin === 'null'
    ? `data:text/javascript,${encodeURIComponent(script)}`
    : URL.createObjectURL(new Blob([script], { type: 'text/javascript' }));
}
