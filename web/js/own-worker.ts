// The worker of this package.

import { absoluteUrl } from './http.js';

/** Starts it, wherever its script lies. */
export function startWorker(): Worker {
  try {
    return newWorker();
  } catch (error) {
    if (!(error instanceof DOMException && error.name === 'SecurityError')) throw error;
    return withImporters(newWorker);
  }
}

function newWorker(): Worker {
  // Bundlers find the worker by this very expression.
  return new Worker(new URL('./worker.js', import.meta.url), { type: 'module' });
}

/**
 * Browsers start no worker whose script lies on another origin, such as a CDN's, but let one of the
 * page's own import it. The URL, which bundlers change, is known to the constructor alone.
 */
function withImporters(make: () => Worker): Worker {
  const { Worker: OwnOrigin } = globalThis;
  globalThis.Worker = class extends OwnOrigin {
    constructor(url: string | URL, options?: WorkerOptions) {
      super(importerOf(absoluteUrl(url), options?.type), options);
    }
  };
  try {
    return make();
  } finally {
    globalThis.Worker = OwnOrigin;
  }
}

/** The URL of a script that is nothing but another one. */
function importerOf(url: string, type: WorkerType = 'classic'): string {
  const name = JSON.stringify(url);
  const script = type === 'module' ? `import ${name};` : `importScripts(${name});`;
  // A page without an origin, such as a file or a sandboxed frame, starts modules from data: alone;
  // on other pages such a worker would be cut off from what they store.
  return globalThis.origin === 'null'
    ? `data:text/javascript,${encodeURIComponent(script)}`
    : URL.createObjectURL(new Blob([script], { type: 'text/javascript' }));
}
