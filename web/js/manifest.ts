// The manifest of a model: fetching, checking, and what it tells people.

import { openCache, type ModelCache } from './cache.js';
import { WuerstchenError } from './errors.js';
import { brokenOff, request } from './http.js';
import { checkedLookOptions } from './options.js';
import { openSite, toModelSource, type ModelSite } from './picked.js';
import { onAbort, throwIfAborted } from './signals.js';
import type { Defaults, Dtype, LookOptions, ModelInfo, ModelRef, Stage } from './types.js';
import { isObject } from './values.js';

const FORMAT = 2;

/** Largest size of a file beside the manifest: of a shard or of the contents. */
const MAX_FILE_BYTES = 16 * 2 ** 20;

/** A file beside the manifest: a piece of the weights, or what is needed to read them. */
export interface Shard {
  readonly file: string;
  readonly bytes: number;
  /** Hex digits. */
  readonly sha256: string;
}

/** `manifest.json`: what people want to know before a download, and what there is to download. */
export interface Manifest {
  readonly format: typeof FORMAT;
  /** The name with digits of the content's hash, the key of the model in a cache. */
  readonly id: string;
  readonly name: string;
  readonly licence: string;
  readonly provenance: string;
  readonly defaults: Defaults;
  readonly stages: Record<Stage, { params: number; bytes: number; dtype: Dtype }>;
  /** Whether the contents have golden vectors, which every device has to reproduce. */
  readonly selfTest: boolean;
  /** Whether the model takes pictures as prompts; left out if not. */
  readonly picturePrompts?: boolean;
  /** Configs, tokenizers, where the tensors lie, golden vectors: what the WebAssembly reads. */
  readonly contents: Shard;
  readonly shards: readonly Shard[];
}

/**
 * The manifest at a URL, and its text for the WebAssembly. The stored copy is used only if the network fails, because a
 * manifest is small, and a new one names new shards.
 */
export async function fetchManifest(
  url: string,
  cache: ModelCache,
  fetcher: typeof fetch,
  signal?: AbortSignal,
): Promise<{ manifest: Manifest; text: string }> {
  let text: string;
  try {
    const response = await request(fetcher, url, { cache: 'no-cache', signal });
    text = await response.text().catch((cause) => {
      throw brokenOff(url, cause);
    });
  } catch (error) {
    throwIfAborted(signal);
    const isOffline = error instanceof WuerstchenError && error.retryable;
    const stored = isOffline ? await cache.manifest(url) : undefined;
    if (stored === undefined) throw error;
    return { manifest: parseManifest(stored, url), text: stored };
  }
  return { manifest: parseManifest(text, url), text };
}

/** Reads and checks a manifest; `url` is for messages. */
export function parseManifest(text: string, url: string): Manifest {
  let manifest: Manifest;
  try {
    manifest = JSON.parse(text);
  } catch (cause) {
    throw new WuerstchenError('integrity', `${url} is not JSON: ${cause}`, { cause });
  }
  const check = (holds: boolean, what: string) => {
    if (!holds) throw new WuerstchenError('integrity', `${url}: ${what}`);
  };
  check(typeof manifest === 'object' && manifest !== null, 'a manifest must be an object');
  check(
    manifest.format === FORMAT,
    `this version reads manifest format ${FORMAT}, got ${manifest.format}`,
  );
  check(isObject(manifest.contents), 'contents are missing');
  if (manifest.selfTest !== true) {
    throw new WuerstchenError(
      'integrity',
      `${url} has no golden vectors to test devices with, as models of "wuerstchen import" have none: ` +
        'run "wuerstchen export web" to make a browser bundle with them',
      {
        retryable: false,
        hint: 'Serve the folder that "wuerstchen export web -m MODEL -o FOLDER" writes.',
      },
    );
  }
  for (const field of ['id', 'name', 'licence', 'provenance'] as const) {
    check(typeof manifest[field] === 'string', `${field} must be a string`);
  }
  check(isPlainName(manifest.id), `id must be a plain name, got "${manifest.id}"`);
  check(isObject(manifest.defaults), 'defaults are missing');
  for (const stage of ['text', 'prior', 'decoder', 'vqgan'] as const) {
    check(isObject(manifest.stages?.[stage]), `stage ${stage} is missing`);
  }
  check(Array.isArray(manifest.shards), 'shards are missing');
  check(manifest.shards.every(isObject), 'every shard must be an object');
  for (const { file, bytes, sha256 } of [manifest.contents, ...manifest.shards]) {
    check(isPlainName(file), `file "${file}" must have a plain name`);
    check(
      Number.isInteger(bytes) && bytes > 0 && bytes <= MAX_FILE_BYTES,
      `${file} must have 1 to ${MAX_FILE_BYTES} bytes, got ${bytes}`,
    );
    check(/^[0-9a-f]{64}$/.test(sha256), `${file} must have a sha256 of 64 hex digits`);
  }
  return manifest;
}

/** Whether a name stays in its folder. */
function isPlainName(name: unknown): boolean {
  return typeof name === 'string' && name !== '' && !/[/\\:]|\.\./.test(name);
}

/** The name under which a file is stored. */
export function shardName(manifest: Manifest, shard: Shard): string {
  return `${manifest.id}/${shard.sha256}`;
}

/** The facts about a model that people want to know before a download. */
export async function modelInfo(manifest: Manifest, cache: ModelCache): Promise<ModelInfo> {
  const stored = new Map((await cache.list()).map(({ name, bytes }) => [name, bytes]));
  const sum = (shards: readonly Shard[]) => shards.reduce((bytes, shard) => bytes + shard.bytes, 0);
  const isStored = (shard: Shard) => stored.get(shardName(manifest, shard)) === shard.bytes;
  const { id, name, licence, provenance, stages, defaults } = manifest;
  const files = [manifest.contents, ...manifest.shards];
  const cachedBytes = sum(files.filter(isStored));
  const bytes = sum(files);
  const picturePrompts = manifest.picturePrompts === true;
  return { id, name, licence, provenance, bytes, cachedBytes, stages, defaults, picturePrompts };
}

/**
 * What a model is and how much of it lies in this browser's cache; fetches only the manifest.
 * Rejects with `network` or `integrity`.
 */
export async function inspect(model: ModelRef, options: LookOptions = {}): Promise<ModelInfo> {
  return look(model, options, ({ manifest, cache }) => modelInfo(manifest, cache));
}

/** A model of which only the manifest has been fetched. */
export interface Looked extends ModelSite {
  readonly manifest: Manifest;
  readonly cache: ModelCache;
  readonly signal: AbortSignal;
}

/** Fetches a model's manifest and looks at the model, without an engine. */
export async function look<T>(
  model: ModelRef,
  options: LookOptions,
  at: (looked: Looked) => Promise<T>,
): Promise<T> {
  const { signal, cache: choice } = checkedLookOptions(model, options);
  throwIfAborted(signal);
  // `fetch` takes only signals of its own window.
  const controller = new AbortController();
  const ignore = onAbort(signal, (reason) => controller.abort(reason));
  try {
    const cache = await openCache(choice);
    const site = await openSite(toModelSource(model), cache, (...asked) => fetch(...asked));
    const { manifest } = await fetchManifest(site.url, cache, site.fetch, controller.signal);
    return await at({ ...site, manifest, cache, signal: controller.signal });
  } finally {
    ignore();
  }
}
