import assert from 'node:assert/strict';
import { test } from 'node:test';
import { setTimeout as pause } from 'node:timers/promises';

import { ModelCache } from '../../js/cache.js';
import { fetchFiles } from '../../js/fetch-files.js';
import type { Manifest } from '../../js/manifest.js';
import { CONTENTS, describe, makeManifest, MemoryCache, MODEL_URL } from './fake.js';

/** More files than are fetched ahead, so that arrays are used again; each shorter than the one before. */
const SHARDS = Array.from({ length: 9 }, (_, k) => new Uint8Array(900 - 100 * k).fill(k + 1));
const FILES = [CONTENTS, ...SHARDS];

const manifest: Manifest = {
  ...(makeManifest() as unknown as Manifest),
  shards: SHARDS.map((bytes, k) => describe(`shard-${k}.bin`, bytes)),
};

async function fetchShard(url: URL | RequestInfo): Promise<Response> {
  const number = /shard-(\d)\.bin$/.exec(String(url))?.[1];
  return new Response(number ? SHARDS[Number(number)] : CONTENTS);
}

const refuse = async (): Promise<Response> => {
  throw new TypeError('no network');
};

/** A cache of the browser's kind, which copies what it gets, and takes its time. */
class Files extends MemoryCache {
  override async get(name: string, room?: Uint8Array) {
    const bytes = this.entries.get(name);
    if (!bytes || !room) return bytes;
    room.set(bytes);
    return room.subarray(0, bytes.length);
  }

  override async put(name: string, bytes: Uint8Array) {
    await pause(2);
    this.entries.set(name, bytes.slice());
  }

  async file() {
    return undefined;
  }
}

/** The bytes of all files of the model, each as it is when it comes. */
async function load(cache: MemoryCache, fetch: typeof fetchShard): Promise<Uint8Array[]> {
  const source = { url: MODEL_URL, cache: new ModelCache(cache, 'memory'), fetch, emit() {} };
  const files: Uint8Array[] = [];
  for await (const { bytes } of fetchFiles(manifest, source)) {
    files.push(bytes.slice());
    await pause(1);
  }
  return files;
}

const byLength = (files: Iterable<Uint8Array>) =>
  [...files].sort((one, other) => one.length - other.length);

test('files that share arrays come whole, are stored whole, and come whole from storage', async () => {
  const cache = new Files();
  assert.deepEqual(await load(cache, fetchShard), FILES);
  assert.deepEqual(byLength(cache.entries.values()), byLength(FILES));
  assert.deepEqual(await load(cache, refuse), FILES);
});

test("a caller's cache may keep the arrays that it gets, which are no larger than the files", async () => {
  const cache = new MemoryCache();
  assert.deepEqual(await load(cache, fetchShard), FILES);
  assert.deepEqual(byLength(cache.entries.values()), byLength(FILES));
  for (const bytes of cache.entries.values()) assert.equal(bytes.buffer.byteLength, bytes.length);
});
