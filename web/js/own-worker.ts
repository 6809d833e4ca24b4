// The worker of this package.

import { absoluteUrl } from './http.js';

/**
 * Starts the worker, wherever its script lies. Browsers start no worker from another origin, such as a CDN's, but a
 * worker of the page's own origin may import that script. Only the constructor gets to know the URL, because bundlers
 * change it.
 */
export function startWorker(): Worker {
  const OwnOrigin = Worker;
  class AnyOrigin extends OwnOrigin {
    constructor(url: string | URL, options?: WorkerOptions) {
      super(isForeign(url) ? importerOf(absoluteUrl(url), options?.type) : url, options);
    }
  }
  // If a page has frozen its globals, this fails silently.
  Reflect.set(globalThis, 'Worker', AnyOrigin);
  try {
    // Bundlers find the worker by this very expression.
    return new Worker(new URL('./worker.js', import.meta.url), { type: 'module' });
  } finally {
    Reflect.set(globalThis, 'Worker', OwnOrigin);
  }
}

/** Whether a script is on another origin. For a page without an origin, such as a local file, every script is. */
function isForeign(url: string | URL): boolean {
  const { protocol, origin } = new URL(absoluteUrl(url));
  const isOfServer = ['http:', 'https:', 'file:'].includes(protocol);
  return isOfServer && (origin === 'null' || origin !== globalThis.origin);
}

/** The URL of a script that only imports another one. */
function importerOf(url: string, type: WorkerType = 'classic'): string {
  const name = JSON.stringify(url);
  const script = type === 'module' ? `import ${name};` : `importScripts(${name});`;
  // A page without an origin can start modules only from data: URLs. On other pages such a worker would have no access
  // to their storage.
  return globalThis.origin === 'null'
    ? `data:text/javascript,${encodeURIComponent(script)}`
    : URL.createObjectURL(new Blob([script], { type: 'text/javascript' }));
}
