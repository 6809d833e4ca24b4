// Models that need no server: in files that a person picked or dropped, or in the browser's storage.

import type { ModelCache } from './cache.js';
import { WuerstchenError } from './errors.js';
import { absoluteUrl } from './http.js';
import type { ModelRef } from './types.js';
import { isObject, isUrl, messageOf } from './values.js';

/** A file with its place in the folder that was picked; files lose it on their way to a worker. */
interface PickedFile {
  readonly path: string;
  readonly file: Blob;
}

/** A {@link ModelRef} as it travels to a worker: an absolute URL, files, or what is stored. */
export type ModelSource = string | readonly PickedFile[] | { readonly stored: string };

/** Where the files of a model come from. */
export interface ModelSite {
  /** The URL of the manifest; `fetch` gets the files beside it. */
  readonly url: string;
  readonly fetch: typeof fetch;
}

const MANIFEST = 'manifest.json';

export function toModelSource(model: ModelRef): ModelSource {
  if (isUrl(model)) return manifestUrl(model);
  if (isObject(model) && 'stored' in model) return { stored: model.stored };
  return Array.from(model as ArrayLike<File>, (file) => {
    return { path: file.webkitRelativePath || file.name, file };
  });
}

/** The URL of a model's manifest, which may be given as that of its folder. */
function manifestUrl(model: string | URL): string {
  const url = new URL(absoluteUrl(model, 'model'));
  if (/^https?:$/.test(url.protocol) && url.pathname.endsWith('/')) url.pathname += MANIFEST;
  return url.href;
}

/** The site of a model: its URL, and the `fetch` that gets its files. */
export async function openSite(
  model: ModelSource,
  cache: ModelCache,
  fetcher: typeof fetch,
): Promise<ModelSite> {
  if (typeof model === 'string') return { url: model, fetch: fetcher };
  if ('stored' in model) return storedSite(model.stored, cache);
  return pickedSite(model as readonly PickedFile[]);
}

/** The URL under which the manifest of a model without a server is stored. */
export function storedUrl(id: string): string {
  return `https://stored.invalid/${encodeURIComponent(id)}/${MANIFEST}`;
}

/** The site of a model in picked files, which answers as a server would. */
function pickedSite(files: readonly PickedFile[]): ModelSite {
  const named = new Map(files.map(({ path, file }) => [path, file]));
  const depth = (path: string) => path.split('/').length;
  const manifests = [...named.keys()].filter((path) => path.split('/').at(-1) === MANIFEST);
  // If the folder holds several models, the manifest nearest to its root is taken.
  const [manifest, other] = manifests.sort((a, b) => depth(a) - depth(b));
  if (!manifest) {
    throw new WuerstchenError(
      'invalid-argument',
      `there is no ${MANIFEST} among the ${files.length} files`,
      {
        hint: 'Pick the folder that "wuerstchen export web -m MODEL -o FOLDER" writes, or all files in it.',
        field: 'model',
      },
    );
  }
  if (other && depth(other) === depth(manifest)) {
    const message = `there are two models among the files, ${manifest} and ${other}`;
    throw new WuerstchenError('invalid-argument', message, {
      hint: 'Pick the folder of one of them.',
      field: 'model',
    });
  }
  const folder = manifest.slice(0, -MANIFEST.length);
  return {
    url: `https://picked.invalid/${MANIFEST}`,
    fetch: async (input) => {
      const name = decodeURIComponent(new URL(String(input)).pathname.slice(1));
      const file = named.get(folder + name);
      if (!file) {
        throw new WuerstchenError('integrity', `${name} is not among the files`, {
          hint: 'Pick the whole folder, or all files in it.',
          field: 'model',
          retryable: false,
        });
      }
      return new Response(await contentOf(file, name, 'model'));
    },
  };
}

/** The content of a file that a person picked for an option. Rejects with `integrity` if it is gone. */
export async function contentOf(file: Blob, name: string, field: string): Promise<ArrayBuffer> {
  return file.arrayBuffer().catch((cause) => {
    const message = `${name} cannot be read: ${messageOf(cause)}`;
    throw new WuerstchenError('integrity', message, {
      hint: 'Pick the file again: it was moved or changed.',
      field,
      retryable: false,
      cause,
    });
  });
}

/** The site of a model that is only in the cache. */
async function storedSite(id: string, cache: ModelCache): Promise<ModelSite> {
  const missing = (what: string) =>
    new WuerstchenError('invalid-argument', `${what} is not stored here`, {
      field: 'model',
      hint: '`cache.list()` tells what is; what a browser has deleted must be loaded anew.',
      retryable: false,
    });
  const text = await cache.manifestOf(id);
  if (text === undefined) throw missing(`the model "${id}"`);
  return {
    url: storedUrl(id),
    fetch: async (input) => {
      if (String(input) !== storedUrl(id)) throw missing(`all of the model "${id}"`);
      return new Response(text, { headers: { 'content-type': 'application/json' } });
    },
  };
}
