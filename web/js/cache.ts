// The caches that keep weights between visits. A file appears under its name whole or not at all.

import { asWuerstchenError, WuerstchenError } from './errors.js';
import { sha256 } from './hash.js';
import type { CacheAdapter, CachedModel, LoadOptions, Support } from './types.js';
import { classOf, show } from './values.js';

const FOLDER = 'wuerstchen-web';

/** Ends the names of files that are still being written, or whose writing broke off. */
const PART = '.part';

/** Ends the names of files that Chromium writes in the place of others; it deletes them itself. */
const SWAP = '.crswap';

/** Names of quota errors. The second and third are Firefox's, for origins and for disks. */
const QUOTA_ERRORS = [
  'QuotaExceededError',
  'NS_ERROR_DOM_QUOTA_REACHED',
  'NS_ERROR_FILE_NO_DEVICE_SPACE',
];

/** TypeScript has no `move`, and `createSyncAccessHandle` only for workers. */
interface FileHandle extends FileSystemFileHandle {
  move(name: string): Promise<void>;
  createSyncAccessHandle?(options?: { mode: 'read-only' }): Promise<{
    getSize(): number;
    read(bytes: Uint8Array): number;
    write(bytes: Uint8Array): number;
    truncate(size: number): void;
    close(): void;
  }>;
}

/** A cache in the browser's storage. It keeps none of the arrays that it is given. */
interface FileCache extends CacheAdapter {
  /** The bytes of a name. They are in `room` if they fit and this browser can read them there, else in a new array. */
  get(name: string, room?: Uint8Array): Promise<Uint8Array | undefined>;
  /** The file of a name; its bytes stay where they are. */
  file(name: string): Promise<Blob | undefined>;
}

function isFileCache(cache: CacheAdapter | undefined): cache is FileCache {
  return cache !== undefined && 'file' in cache;
}

/** The origin private file system; undefined where it is missing or closed (private windows). */
async function openOpfs(): Promise<FileCache | undefined> {
  // Without `move` a file cannot be put in its place at once. Without locks two tabs would write the same part.
  const canMove = 'FileSystemFileHandle' in globalThis && 'move' in FileSystemFileHandle.prototype;
  if (!canMove || !globalThis.navigator?.locks) return undefined;
  const folder = await orNothing(async () => {
    const root = await navigator.storage.getDirectory();
    return root.getDirectoryHandle(FOLDER, { create: true });
  });
  if (!folder) return undefined;
  const remove = (file: string) => folder.removeEntry(file).catch(ignoreMissing);
  const locked = <T>(name: string, work: () => Promise<T>, mode: LockMode = 'exclusive') =>
    navigator.locks.request(`${FOLDER}/${name}`, { mode }, work);
  const open = (name: string) =>
    folder.getFileHandle(encodeURIComponent(name)).catch(ignoreMissing);
  return {
    file: async (name) => (await open(name))?.getFile(),
    get(name, room) {
      const work = async () => {
        const handle = await open(name);
        if (!handle) return undefined;
        const there = room && (await orNothing(() => readInto(room, handle as FileHandle)));
        return there ?? new Uint8Array(await (await handle.getFile()).arrayBuffer());
      };
      return locked(name, work, 'shared');
    },
    put(name, bytes) {
      return locked(name, async () => {
        const file = encodeURIComponent(name);
        const part = (await folder.getFileHandle(file + PART, { create: true })) as FileHandle;
        try {
          await write(part, bytes);
          const { size } = await part.getFile();
          if (size !== bytes.length) throw quotaError(name, `${size} bytes were written`);
          await remove(file);
          await part.move(file);
        } catch (error) {
          await remove(file + PART);
          throw isQuotaError(error) ? quotaError(name, String(error)) : error;
        }
      });
    },
    delete(name) {
      // Another tab may be writing the part.
      const whole = name.endsWith(PART) ? name.slice(0, -PART.length) : name;
      return locked(whole, () => remove(encodeURIComponent(name)));
    },
    async list() {
      const entries: { name: string; bytes: number }[] = [];
      for await (const [file, handle] of folder.entries()) {
        const name = storedName(file);
        if (handle.kind !== 'file' || name === undefined) continue;
        // Another tab may write the file, or delete it meanwhile.
        const stored = await orNothing(() => (handle as FileSystemFileHandle).getFile());
        if (stored) entries.push({ name, bytes: stored.size });
      }
      return entries;
    },
  };
}

/** The content of a file in `room`; undefined if it does not fit, or can be read there only in a worker. */
async function readInto(room: Uint8Array, handle: FileHandle): Promise<Uint8Array | undefined> {
  // Browsers that know no modes open the file for one tab at a time, and fail in the others.
  const access = await handle.createSyncAccessHandle?.({ mode: 'read-only' });
  try {
    if (!access || access.getSize() > room.length) return undefined;
    const bytes = room.subarray(0, access.getSize());
    return access.read(bytes) === bytes.length ? bytes : undefined;
  } finally {
    access?.close();
  }
}

async function write(handle: FileHandle, bytes: Uint8Array): Promise<void> {
  if (handle.createSyncAccessHandle) {
    const access = await handle.createSyncAccessHandle();
    try {
      access.truncate(0);
      // This does not flush, which would take longer than everything else. If a power failure cuts off a file, its
      // hash shows it.
      access.write(bytes);
    } finally {
      access.close();
    }
  } else {
    const stream = await handle.createWritable();
    await stream.write(bytes as Uint8Array<ArrayBuffer>);
    await stream.close();
  }
}

/** The Cache API; undefined where it is missing or closed. */
async function openCacheApi(): Promise<FileCache | undefined> {
  const cache = await orNothing(() => globalThis.caches?.open(FOLDER));
  if (!cache) return undefined;
  // Keys have to be URLs; nothing is ever fetched from these.
  const origin = `https://${FOLDER}.invalid/`;
  const key = (name: string) => origin + encodeURIComponent(name);
  return {
    file: async (name) => (await cache.match(key(name)))?.blob(),
    async get(name) {
      const response = await cache.match(key(name));
      return response && new Uint8Array(await response.arrayBuffer());
    },
    async put(name, bytes) {
      const headers = { 'content-length': String(bytes.length) };
      try {
        await cache.put(key(name), new Response(bytes as Uint8Array<ArrayBuffer>, { headers }));
      } catch (error) {
        throw isQuotaError(error) ? quotaError(name, String(error)) : error;
      }
    },
    async delete(name) {
      await cache.delete(key(name));
    },
    async list() {
      const requests = await cache.keys();
      const entries = requests.map(async (request) => {
        const name = storedName(request.url.slice(origin.length));
        if (name === undefined) return [];
        const length = (await cache.match(request))?.headers.get('content-length');
        return [{ name, bytes: Number(length ?? 0) }];
      });
      return (await Promise.all(entries)).flat();
    },
  };
}

/** The name that a file of this package has; undefined for files of others, such as the browser's own of a write. */
function storedName(file: string): string | undefined {
  try {
    const name = decodeURIComponent(file);
    return /^[^/]+\/[^/]+$/.test(name) && !name.endsWith(SWAP) ? name : undefined;
  } catch {
    return undefined;
  }
}

/** The answer of the storage; undefined where it refuses, as in sandboxed frames. */
async function orNothing<T>(ask: () => T | Promise<T>): Promise<T | undefined> {
  try {
    return await ask();
  } catch {
    return undefined;
  }
}

function ignoreMissing(error: unknown): undefined {
  if (!(error instanceof DOMException && error.name === 'NotFoundError')) throw error;
}

function isQuotaError(error: unknown): boolean {
  const { name } = Object(error) as { name?: unknown };
  return typeof name === 'string' && QUOTA_ERRORS.includes(name);
}

function quotaError(name: string, cause: string): WuerstchenError {
  return new WuerstchenError('quota', `no room to store ${name}: ${cause}`, {
    hint: 'Delete stored models, or leave the private window.',
  });
}

function isEntry(value: unknown): boolean {
  const { name, bytes } = Object(value) as { [K in 'name' | 'bytes']?: unknown };
  return typeof name === 'string' && typeof bytes === 'number';
}

/** The part of a stored manifest's name that follows the model's id. */
const MANIFEST = '/manifest:';

/** The key of a manifest. It is a hash, because a URL can be too long for a file's name, and its query a secret. */
async function manifestKey(url: string): Promise<string> {
  return MANIFEST + (await sha256(new TextEncoder().encode(url)));
}

/** The cache of a load. It may fail to store or to find files, but it never makes a load fail. */
export class ModelCache {
  readonly #adapter: CacheAdapter | FileCache | undefined;
  /** Why nothing more is stored. */
  problem?: WuerstchenError;

  constructor(
    adapter: CacheAdapter | FileCache | undefined,
    readonly backend: Support['storage']['backend'],
  ) {
    this.#adapter = adapter;
  }

  /** The stored bytes of a name, where they fit in `room` if possible. */
  async get(name: string, room?: Uint8Array): Promise<Uint8Array | undefined> {
    const adapter = this.#adapter;
    const bytes = await orNothing(() =>
      isFileCache(adapter) ? adapter.get(name, room) : adapter?.get(name),
    );
    if (classOf(bytes) === 'ArrayBuffer') return new Uint8Array(bytes as ArrayBuffer);
    // Anything else of a caller's adapter counts as nothing.
    return classOf(bytes) === 'Uint8Array' ? (bytes as Uint8Array) : undefined;
  }

  /** The stored file of a name, for reading later; undefined if there is none in the browser's storage. */
  async file(name: string): Promise<Blob | undefined> {
    const adapter = this.#adapter;
    return isFileCache(adapter) ? orNothing(() => adapter.file(name)) : undefined;
  }

  async put(name: string, bytes: Uint8Array): Promise<void> {
    if (this.problem) return;
    const adapter = this.#adapter;
    try {
      // A caller's adapter may keep the array, which may be a part of a larger one and be used again.
      await adapter?.put(name, isFileCache(adapter) ? bytes : bytes.slice());
    } catch (error) {
      this.problem = asWuerstchenError(error);
    }
  }

  async delete(name: string): Promise<void> {
    await orNothing(() => this.#adapter?.delete(name));
  }

  async list(): Promise<{ name: string; bytes: number }[]> {
    const entries: unknown = await orNothing(() => this.#adapter?.list());
    return Array.isArray(entries) ? entries.filter(isEntry) : [];
  }

  /** The text of the manifest that was last loaded from a URL. */
  async manifest(url: string): Promise<string | undefined> {
    const entries = await this.list();
    if (entries.length === 0) return undefined;
    const key = await manifestKey(url);
    const entry = entries.find(({ name }) => name.endsWith(key));
    const bytes = entry && (await this.get(entry.name));
    return bytes && new TextDecoder().decode(bytes);
  }

  /** The text of a manifest of a model. */
  async manifestOf(id: string): Promise<string | undefined> {
    const isWhole = (name: string) => name.startsWith(id + MANIFEST) && !name.endsWith(PART);
    const entry = (await this.list()).find(({ name }) => isWhole(name));
    const bytes = entry && (await this.get(entry.name));
    return bytes && new TextDecoder().decode(bytes);
  }

  async putManifest(id: string, url: string, text: string): Promise<void> {
    if (text === (await this.manifest(url))) return;
    const key = await manifestKey(url);
    // There is one for each URL, and one for each model, because a signed URL of the same model differs every time.
    for (const { name } of await this.list()) {
      if (name.endsWith(key) || name.startsWith(id + MANIFEST)) await this.delete(name);
    }
    await this.put(id + key, new TextEncoder().encode(text));
  }
}

/** The cache that a load asks for; for `auto`, the best one that this browser has. */
export async function openCache(choice: LoadOptions['cache'] = 'auto'): Promise<ModelCache> {
  if (typeof choice === 'object') return new ModelCache(choice, 'memory');
  const opfs = choice === 'auto' || choice === 'opfs' ? await openOpfs() : undefined;
  if (opfs) return new ModelCache(opfs, 'opfs');
  const cacheApi = choice === 'auto' || choice === 'cache' ? await openCacheApi() : undefined;
  return new ModelCache(cacheApi, cacheApi ? 'cache' : 'memory');
}

/** What this browser can store. */
export async function storageSupport(): Promise<Support['storage']> {
  const { backend } = await openCache();
  // Firefox never answers the questions below in workers of pages that may not store anything.
  if (backend === 'memory') return { backend, persisted: false };
  const { quota, usage } = (await orNothing(() => navigator.storage.estimate())) ?? {};
  const free = quota === undefined ? undefined : Math.max(0, quota - (usage ?? 0));
  const persisted = (await orNothing(() => navigator.storage.persisted())) ?? false;
  return { backend, quota, free, persisted };
}

/** Asks this browser to keep what is stored, which it may do or not. */
export async function persist(): Promise<void> {
  await orNothing(() => navigator.storage.persist());
}

/** Everything of this package in every store of this browser, as `[store, entries]`. */
async function stores() {
  const adapters = [await openOpfs(), await openCacheApi()].filter((store) => store !== undefined);
  const list = (store: CacheAdapter) => orNothing(() => store.list());
  return Promise.all(adapters.map(async (store) => [store, (await list(store)) ?? []] as const));
}

/** The models that are stored in this browser. */
export const cache = {
  /** Every model with its size in bytes. */
  async list(): Promise<CachedModel[]> {
    const sizes = new Map<string, number>();
    for (const { name, bytes } of (await stores()).flatMap(([, entries]) => entries)) {
      const id = modelId(name);
      sizes.set(id, (sizes.get(id) ?? 0) + bytes);
    }
    return [...sizes].map(([id, bytes]) => ({ id, bytes }));
  },

  /** Bytes of all models. */
  async size(): Promise<number> {
    return (await cache.list()).reduce((sum, { bytes }) => sum + bytes, 0);
  },

  /**
   * Deletes one model, or all of them. Loaded models go on working, unless only one of their parts is on the device at
   * a time.
   */
  async delete(id?: string): Promise<void> {
    if (id !== undefined && typeof id !== 'string') {
      const message = `id must be a string, got ${show(id)}`;
      throw new WuerstchenError('invalid-argument', message, { field: 'id' });
    }
    for (const [store, entries] of await stores()) {
      for (const { name } of entries) {
        if (id !== undefined && modelId(name) !== id) continue;
        await store.delete(name).catch((error) => {
          throw asWuerstchenError(error);
        });
      }
    }
  },
};

/** All names are `id/what`. */
function modelId(name: string): string {
  return name.slice(0, name.indexOf('/'));
}
