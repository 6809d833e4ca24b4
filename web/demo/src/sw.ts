/// <reference lib="webworker" />
// Keeps the page itself for offline use, but no model weights: the package stores those elsewhere and verifies them.

export type {};

declare const __FILES__: readonly string[];
declare const __VERSION__: string;
declare const self: ServiceWorkerGlobalScope;

const PREFIX = 'wuerstchen-page-';
const NAME = PREFIX + __VERSION__;
const FILES = __FILES__;

/** WebAssembly is large and only one of the two builds is used: the page names it. */
const isWasm = (file: string) => file.endsWith('.wasm');

self.addEventListener('install', (event) => {
  const shell = ['./', ...FILES.filter((file) => !isWasm(file) && file !== 'index.html')];
  // Past the browser's own cache, which may still have the page of an earlier version.
  const requests = shell.map((file) => new Request(file, { cache: 'reload' }));
  event.waitUntil(caches.open(NAME).then((cache) => cache.addAll(requests)));
});

self.addEventListener('activate', (event) => {
  event.waitUntil(
    caches.keys().then(async (names) => {
      const old = names.filter((name) => name.startsWith(PREFIX) && name !== NAME);
      await Promise.all(old.map((name) => caches.delete(name)));
      await self.clients.claim();
    }),
  );
});

self.addEventListener('message', (event) => {
  const { device } = event.data as { device: string };
  const used = FILES.filter((file) => isWasm(file) && file.includes(device));
  event.waitUntil(
    caches.open(NAME).then(async (cache) => {
      const missing = [];
      for (const file of used) if (!(await cache.match(file))) missing.push(file);
      await cache.addAll(missing);
    }),
  );
});

self.addEventListener('fetch', (event) => {
  const { request } = event;
  const url = new URL(request.url);
  const scope = self.registration.scope;
  if (request.method !== 'GET' || !url.href.startsWith(scope)) return;
  const file = url.pathname.slice(new URL(scope).pathname.length);
  const isPage = file === '' || file === 'index.html';
  if (!isPage && !FILES.includes(file)) return;
  event.respondWith(
    caches
      .open(NAME)
      .then((cache) => cache.match(isPage ? './' : file))
      .then((stored) => stored ?? fetch(request))
      .then(isolated),
  );
});

/**
 * Isolates the page from other origins, also if its server does not: then several threads can compute from the second
 * visit on.
 */
function isolated(response: Response): Response {
  const { body, status, statusText } = response;
  // A redirection has no status that a new response could have.
  if (status === 0) return response;
  const headers = new Headers(response.headers);
  headers.set('cross-origin-opener-policy', 'same-origin');
  headers.set('cross-origin-embedder-policy', 'require-corp');
  return new Response(body, { status, statusText, headers });
}
