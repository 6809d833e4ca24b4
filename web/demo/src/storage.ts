// The page's storage in this browser: model weights, and the page itself for offline use.

import type { DeviceKind } from 'wuerstchen-web';
import { cache } from 'wuerstchen-web';
import { element, formatBytes } from './dom';

const text = element('storage-text', HTMLParagraphElement);
const remove = element('storage-delete', HTMLButtonElement);
const persist = element('storage-persist', HTMLButtonElement);
const offline = element('offline', HTMLElement);

export function initStorage(onDelete: () => void): void {
  remove.addEventListener('click', async () => {
    await cache.delete();
    await showStorage();
    element('storage-title', HTMLHeadingElement).focus();
    onDelete();
  });
  persist.addEventListener('click', async () => {
    const kept = await navigator.storage.persist();
    await showStorage();
    if (!kept) text.append(' This browser decides by itself what it keeps, and declined.');
  });
  document.addEventListener('visibilitychange', () => {
    // Another tab may have stored a model, or deleted all of them.
    if (document.visibilityState === 'visible') void showStorage();
  });
  const showConnection = () => {
    offline.hidden = navigator.onLine;
  };
  addEventListener('online', showConnection);
  addEventListener('offline', showConnection);
  showConnection();
  if (import.meta.env.PROD && 'serviceWorker' in navigator) {
    // Without a service worker the page works too, but not offline.
    navigator.serviceWorker.register(new URL('sw.js', document.baseURI)).catch(() => {});
  }
}

/** Shows how much is stored. */
export async function showStorage(): Promise<void> {
  const size = await cache.size();
  // Asked only where something is stored: a browser that stores nothing may refuse to answer.
  const persisted = size > 0 ? await navigator.storage?.persisted?.() : undefined;
  const kept = persisted ? ', and the browser keeps them even when space is short' : '';
  text.textContent =
    size === 0
      ? 'No model is stored in this browser.'
      : `${formatBytes(size)} of model weights are stored in this browser${kept}.`;
  remove.hidden = size === 0;
  persist.hidden = size === 0 || persisted !== false;
}

/** Asks the service worker, once there is one, to keep the WebAssembly that this device uses. */
export function keepForOffline(device: DeviceKind): void {
  void navigator.serviceWorker?.ready.then(({ active }) => active?.postMessage({ device }));
}
