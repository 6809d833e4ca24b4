// Gets a file of a model from the cache or the network.

import type { ModelCache } from './cache.js';
import { WuerstchenError } from './errors.js';
import { sha256 } from './hash.js';
import { besides, brokenOff, request } from './http.js';
import { shardName, type Manifest, type Shard } from './manifest.js';
import type { LoadEvent } from './types.js';

const ATTEMPTS = 3;

/** The pause before the second attempt; it doubles with every further one. */
const FIRST_PAUSE_MS = 500;

/** The shortest time between reports of progress within a file. */
const PROGRESS_MS = 100;

/** What fetching shards needs besides the manifest. */
export interface ShardSource {
  /** The URL of the manifest; shards lie beside it. */
  readonly url: string;
  readonly cache: ModelCache;
  readonly fetch: typeof fetch;
  readonly emit: (event: LoadEvent) => void;
  readonly signal?: AbortSignal;
}

/** A file that has arrived intact. */
export interface Brought {
  readonly bytes: Uint8Array;
  /** Resolves when the file is in the cache or cannot be put there; never rejects. */
  readonly stored: Promise<void>;
}

/** The contents of a model alone, verified. */
export async function fetchContents(manifest: Manifest, source: ShardSource): Promise<Uint8Array> {
  const file = manifest.contents;
  const progress = new DownloadProgress([file], source.emit);
  const { bytes, stored } = await bring(file, shardName(manifest, file), source, progress);
  await stored;
  return bytes;
}

/**
 * Gets a file from the cache, or from the network and puts it into the cache. Its bytes may be in `room`, which must
 * have room for all of them.
 */
export async function bring(
  file: Shard,
  name: string,
  source: ShardSource,
  progress: DownloadProgress,
  room?: Uint8Array,
): Promise<Brought> {
  const { cache, signal, emit } = source;
  const kept = await readStored(file, name, source, room);
  signal?.throwIfAborted();
  if (kept) {
    progress.update(file, file.bytes, true);
    return { bytes: kept, stored: Promise.resolve() };
  }
  const bytes = room?.subarray(0, file.bytes) ?? new Uint8Array(file.bytes);
  await download(file, source, progress, bytes);
  emit({ type: 'verify', file: file.file });
  if (!(await isIntact(bytes, file))) {
    throw new WuerstchenError('integrity', `${file.file} has other bytes than its sha256`, {
      hint: 'The files of the model do not belong together, or something changed them.',
    });
  }
  signal?.throwIfAborted();
  return { bytes, stored: cache.put(name, bytes) };
}

/** The stored bytes if they are intact; a damaged entry is deleted. */
async function readStored(
  shard: Shard,
  name: string,
  { cache, emit }: ShardSource,
  room?: Uint8Array,
): Promise<Uint8Array | undefined> {
  const bytes = await cache.get(name, room);
  if (!bytes) return undefined;
  emit({ type: 'verify', file: shard.file });
  if (await isIntact(bytes, shard)) return bytes;
  await cache.delete(name);
  return undefined;
}

async function isIntact(bytes: Uint8Array, shard: Shard): Promise<boolean> {
  return bytes.length === shard.bytes && (await sha256(bytes)) === shard.sha256;
}

/** Fetches a shard into `bytes`; failures that may pass are tried again after a pause. */
async function download(
  shard: Shard,
  source: ShardSource,
  progress: DownloadProgress,
  bytes: Uint8Array,
): Promise<void> {
  for (let attempt = 1; ; attempt++) {
    try {
      return await downloadOnce(shard, source, progress, bytes);
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
  bytes: Uint8Array,
): Promise<void> {
  const url = besides(manifestUrl, shard.file);
  // The HTTP cache would keep a second copy, or return a damaged one again.
  const response = await request(fetch, url, { cache: 'no-store', signal });
  let loaded = 0;
  const reader = response.body?.getReader();
  try {
    for (;;) {
      const chunk = await reader?.read();
      if (!chunk || chunk.done) break;
      if (loaded + chunk.value.length > bytes.length) throw lengthError(url, shard, 'more');
      bytes.set(chunk.value, loaded);
      loaded += chunk.value.length;
      progress.update(shard, loaded, false);
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

/** Counts bytes and reports them. */
export class DownloadProgress {
  readonly #emit: (event: LoadEvent) => void;
  readonly #total: number;
  /** Bytes of each file. */
  readonly #loaded = new Map<Shard, number>();
  #overall = 0;
  /** Bytes from the network, and the time of the first of them. */
  #fetched = 0;
  #begun: number | undefined;
  #told = -Infinity;

  constructor(files: readonly Shard[], emit: (event: LoadEvent) => void) {
    this.#emit = emit;
    this.#total = files.reduce((sum, { bytes }) => sum + bytes, 0);
  }

  /** Reports that `loaded` bytes of the file have arrived. Another attempt starts again from 0. */
  update(file: Shard, loaded: number, fromCache: boolean): void {
    const now = performance.now();
    const added = loaded - (this.#loaded.get(file) ?? 0);
    this.#loaded.set(file, loaded);
    this.#overall += added;
    if (!fromCache) {
      this.#begun ??= now;
      this.#fetched += added;
    }
    if (loaded < file.bytes && now - this.#told < PROGRESS_MS) return;
    this.#told = now;
    const seconds = this.#begun === undefined ? 0 : (now - this.#begun) / 1000;
    const bytesPerSecond = seconds > 0 ? this.#fetched / seconds : 0;
    const left = this.#total - this.#overall;
    this.#emit({
      type: 'download',
      file: file.file,
      loaded,
      total: file.bytes,
      overall: {
        loaded: this.#overall,
        total: this.#total,
        bytesPerSecond,
        etaMs: bytesPerSecond > 0 ? (left / bytesPerSecond) * 1000 : undefined,
      },
      fromCache,
    });
  }
}
