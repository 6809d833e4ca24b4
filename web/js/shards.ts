// Brings the shards of a model one after the other, from the cache or the network.

import type { ModelCache } from './cache.js';
import { WuerstchenError } from './errors.js';
import { sha256 } from './hash.js';
import { besides, brokenOff, request } from './http.js';
import { shardName, type Manifest, type Shard } from './manifest.js';
import type { LoadEvent } from './types.js';

const ATTEMPTS = 3;

/** Doubles with every attempt. */
const FIRST_PAUSE_MS = 500;

/** Progress within a file is told this often at most. */
const PROGRESS_MS = 100;

/** What the fetching of shards needs besides the manifest. */
export interface ShardSource {
  /** The manifest's; shards lie beside it. */
  readonly url: string;
  readonly cache: ModelCache;
  readonly fetch: typeof fetch;
  readonly emit: (event: LoadEvent) => void;
  readonly signal?: AbortSignal;
}

/**
 * Yields every shard, verified, in the manifest's order. Only the bytes of one are held at a time,
 * if the caller lets go of them too.
 */
export async function* fetchShards(
  manifest: Manifest,
  source: ShardSource,
): AsyncGenerator<Uint8Array, void, void> {
  const { cache, signal, emit } = source;
  const progress = new DownloadProgress(manifest, emit);
  for (const shard of manifest.shards) {
    signal?.throwIfAborted();
    const name = shardName(manifest, shard);
    const stored = await readStored(shard, name, source);
    progress.begin(shard, stored !== undefined);
    const bytes = stored ?? (await download(shard, source, progress));
    progress.end();
    if (!stored) {
      emit({ type: 'verify', file: shard.file });
      if (!(await isIntact(bytes, shard))) {
        throw new WuerstchenError('integrity', `${shard.file} has other bytes than its sha256`, {
          hint: 'The files of the model do not belong together, or something changed them.',
        });
      }
      signal?.throwIfAborted();
      await cache.put(name, bytes);
    }
    signal?.throwIfAborted();
    yield bytes;
  }
}

/** The stored bytes if they are intact; a damaged entry is deleted. */
async function readStored(
  shard: Shard,
  name: string,
  { cache, emit }: ShardSource,
): Promise<Uint8Array | undefined> {
  const bytes = await cache.get(name);
  if (!bytes) return undefined;
  emit({ type: 'verify', file: shard.file });
  if (await isIntact(bytes, shard)) return bytes;
  await cache.delete(name);
  return undefined;
}

async function isIntact(bytes: Uint8Array, shard: Shard): Promise<boolean> {
  return bytes.length === shard.bytes && (await sha256(bytes)) === shard.sha256;
}

/** Fetches a shard; failures that may pass are tried again after a pause. */
async function download(
  shard: Shard,
  source: ShardSource,
  progress: DownloadProgress,
): Promise<Uint8Array> {
  for (let attempt = 1; ; attempt++) {
    try {
      return await downloadOnce(shard, source, progress);
    } catch (error) {
      const mayPass = error instanceof WuerstchenError && error.retryable;
      if (!mayPass || attempt === ATTEMPTS) throw error;
      await pause(FIRST_PAUSE_MS * 2 ** (attempt - 1), source.signal);
    }
  }
}

async function downloadOnce(
  shard: Shard,
  { url: manifestUrl, fetch, signal }: ShardSource,
  progress: DownloadProgress,
): Promise<Uint8Array> {
  const url = besides(manifestUrl, shard.file);
  // The HTTP cache would keep a second copy, or bring back a damaged one.
  const response = await request(fetch, url, { cache: 'no-store', signal });
  const bytes = new Uint8Array(shard.bytes);
  let loaded = 0;
  const reader = response.body?.getReader();
  try {
    for (;;) {
      const chunk = await reader?.read();
      if (!chunk || chunk.done) break;
      if (loaded + chunk.value.length > bytes.length) throw lengthError(url, shard, 'more');
      bytes.set(chunk.value, loaded);
      loaded += chunk.value.length;
      progress.update(loaded);
    }
  } catch (cause) {
    signal?.throwIfAborted();
    if (cause instanceof WuerstchenError) throw cause;
    throw brokenOff(url, cause);
  } finally {
    // Stops the transfer where the loop was left early; does nothing after its end.
    void reader?.cancel().catch(() => undefined);
  }
  if (loaded < bytes.length) throw lengthError(url, shard, `${loaded}`);
  return bytes;
}

function lengthError(url: string, shard: Shard, found: string): WuerstchenError {
  const message = `${url} must have ${shard.bytes} bytes, got ${found}`;
  return new WuerstchenError('integrity', message);
}

function pause(ms: number, signal?: AbortSignal): Promise<void> {
  return new Promise((resolve, reject) => {
    const abort = () => {
      clearTimeout(timer);
      reject(signal?.reason);
    };
    const timer = setTimeout(() => {
      signal?.removeEventListener('abort', abort);
      resolve();
    }, ms);
    signal?.addEventListener('abort', abort, { once: true });
  });
}

/** Counts bytes and tells about them. */
class DownloadProgress {
  readonly #emit: (event: LoadEvent) => void;
  readonly #total: number;
  #file: Shard | undefined;
  #fromCache = false;
  /** Bytes of the files before this one. */
  #before = 0;
  /** Bytes from the network, and the time since the first of its files was begun. */
  #fetched = 0;
  #begun: number | undefined;
  #told = -Infinity;

  constructor(manifest: Manifest, emit: (event: LoadEvent) => void) {
    this.#emit = emit;
    this.#total = manifest.shards.reduce((sum, { bytes }) => sum + bytes, 0);
  }

  begin(file: Shard, fromCache: boolean): void {
    this.#file = file;
    this.#fromCache = fromCache;
    if (!fromCache) this.#begun ??= performance.now();
  }

  /** `loaded` starts again from 0 with another attempt. */
  update(loaded: number): void {
    if (performance.now() - this.#told >= PROGRESS_MS) this.#tell(loaded);
  }

  end(): void {
    const bytes = this.#file?.bytes ?? 0;
    this.#tell(bytes);
    this.#before += bytes;
    if (!this.#fromCache) this.#fetched += bytes;
  }

  #tell(loaded: number): void {
    if (!this.#file) return;
    this.#told = performance.now();
    const fetched = this.#fetched + (this.#fromCache ? 0 : loaded);
    const seconds = this.#begun === undefined ? 0 : (this.#told - this.#begun) / 1000;
    const bytesPerSecond = seconds > 0 ? fetched / seconds : 0;
    const overall = this.#before + loaded;
    const etaMs =
      bytesPerSecond > 0 ? ((this.#total - overall) / bytesPerSecond) * 1000 : undefined;
    this.#emit({
      type: 'download',
      file: this.#file.file,
      loaded,
      total: this.#file.bytes,
      overall: { loaded: overall, total: this.#total, bytesPerSecond, etaMs },
      fromCache: this.#fromCache,
    });
  }
}
