// The pictures made before, kept in IndexedDB with their settings.

import { element, entry, make } from './dom';
import { titleOf, type Settings } from './settings';

interface Picture {
  readonly id: number;
  readonly settings: Settings;
  /** Number of the picture in its run. */
  readonly index: number;
  /** A PNG that carries its settings, too. */
  readonly png: Blob;
  /** What it was made with besides the settings, such as a picture; pictures of older versions do not say so. */
  readonly besides?: readonly string[];
}

const list = element('history', HTMLUListElement);
const clear = element('history-clear', HTMLButtonElement);
const note = element('history-note', HTMLParagraphElement);
const heading = element('pictures-title', HTMLHeadingElement);
const dialog = element('entry', HTMLDialogElement);
const large = element('entry-picture', HTMLImageElement);
const store = 'pictures';
const usualNote = note.textContent;

/** The list's entries of the pictures that the browser keeps, by their ids. */
const kept = new Map<number, HTMLLIElement>();

let database: IDBDatabase | undefined;
let open: { picture: Picture; item: HTMLLIElement } | undefined;

function done<T>(request: IDBRequest<T>): Promise<T> {
  return new Promise((resolve, reject) => {
    request.onsuccess = () => resolve(request.result);
    request.onerror = () => reject(request.error);
  });
}

const pictures = (mode: IDBTransactionMode) =>
  database?.transaction(store, mode).objectStore(store);

/** Shows the stored pictures; where the browser cannot store any, pictures stay until the page closes. */
export async function initHistory(
  onReuse: (settings: Settings, besides: readonly string[]) => void,
): Promise<void> {
  clear.addEventListener('click', () => {
    const count = list.childElementCount;
    if (!confirm(count === 1 ? 'Delete the picture?' : `Delete all ${count} pictures?`)) return;
    pictures('readwrite')?.clear();
    kept.clear();
    for (const item of list.querySelectorAll('li')) discard(item);
    describe();
    heading.focus();
  });
  element('entry-reuse', HTMLButtonElement).addEventListener('click', () => {
    dialog.close();
    if (open) onReuse(open.picture.settings, open.picture.besides ?? []);
  });
  element('entry-download', HTMLButtonElement).addEventListener('click', () => {
    if (open) downloadPng(open.picture.png, open.picture.settings, open.picture.index);
  });
  element('entry-delete', HTMLButtonElement).addEventListener('click', () => {
    dialog.close();
    if (open) remove(open.picture, open.item);
  });
  element('entry-close', HTMLButtonElement).addEventListener('click', () => dialog.close());

  try {
    const request = indexedDB.open('wuerstchen-demo', 1);
    request.onupgradeneeded = () => request.result.createObjectStore(store, { keyPath: 'id' });
    database = await done(request);
    await follow();
    document.addEventListener('visibilitychange', () => {
      // A browser that has lost the pictures since cannot be asked again.
      if (document.visibilityState === 'visible') follow().catch(() => {});
    });
  } catch {
    note.textContent = 'This browser keeps no pictures for this page: they go when it closes.';
  }
}

/** Shows what the browser keeps: other tabs may have made pictures, and deleted some. */
async function follow(): Promise<void> {
  const stored = (await done(pictures('readonly')!.getAll())) as Picture[];
  const ids = new Set(stored.map(({ id }) => id));
  for (const [id, item] of kept) {
    if (ids.has(id)) continue;
    kept.delete(id);
    discard(item);
  }
  for (const picture of stored) {
    if (!kept.has(picture.id)) kept.set(picture.id, add(picture));
  }
  describe();
}

/** Keeps a picture. */
export function remember(
  settings: Settings,
  index: number,
  png: Blob,
  besides: readonly string[],
): void {
  const picture = { id: Date.now() + index / 100, settings, index, png, besides };
  const item = add(picture);
  const transaction = pictures('readwrite')?.put(picture).transaction;
  // Without room, the transaction may fail only at its end.
  transaction?.addEventListener('abort', () => {
    note.textContent = 'There was no room to keep the last picture: it goes when the page closes.';
  });
  transaction?.addEventListener('complete', () => {
    note.textContent = usualNote;
    kept.set(picture.id, item);
  });
  describe();
}

function add(picture: Picture): HTMLLIElement {
  const title = titleOf(picture.settings);
  const image = make('img', { src: URL.createObjectURL(picture.png), alt: '' });
  const button = make('button', { type: 'button' }, image, make('span', { dir: 'auto' }, title));
  const item = make('li', {}, button);
  button.addEventListener('click', () => {
    open = { picture, item };
    large.src = image.src;
    large.alt = title;
    element('entry-title', HTMLHeadingElement).textContent = title;
    element('entry-facts', HTMLDListElement).replaceChildren(...facts(picture));
    dialog.showModal();
  });
  list.prepend(item);
  return item;
}

function facts({ settings, besides = [] }: Picture): HTMLElement[] {
  const rows: [string, unknown][] = [
    ['Not', settings.negativePrompt],
    ['Seed', settings.seed],
    ['Size', settings.width && `${settings.width} × ${settings.height}`],
    ['Prior steps', settings.priorSteps],
    ['Prior guidance', settings.priorGuidanceScale],
    ['Decoder steps', settings.decoderSteps],
    ['Decoder guidance', settings.decoderGuidanceScale],
    ['Made with', besides.length > 0 ? besides.join(', ') : undefined],
  ];
  return rows.filter(([, value]) => value !== undefined).map(([k, v]) => entry(k, String(v)));
}

function remove(picture: Picture, item: HTMLLIElement): void {
  pictures('readwrite')?.delete(picture.id);
  const next = item.nextElementSibling ?? item.previousElementSibling;
  kept.delete(picture.id);
  discard(item);
  describe();
  (next?.querySelector('button') ?? heading).focus();
}

/** Takes a picture out of the list. */
function discard(item: HTMLLIElement): void {
  const image = item.querySelector('img');
  if (image) URL.revokeObjectURL(image.src);
  item.remove();
}

function describe(): void {
  clear.hidden = list.childElementCount === 0;
}

/** Saves a PNG under a name made of its prompt and seed. */
export function downloadPng(png: Blob, settings: Settings, index: number): void {
  const words = titleOf(settings)
    .toLowerCase()
    .replace(/[^\p{L}\p{N}]+/gu, '-')
    .slice(0, 60)
    .replace(/^-|-$/g, '');
  const number = index === 0 ? '' : `-${index + 1}`;
  const href = URL.createObjectURL(png);
  make('a', { href, download: `${words || 'picture'}-${settings.seed}${number}.png` }).click();
  // By then the download has read the blob.
  setTimeout(() => URL.revokeObjectURL(href), 60_000);
}
