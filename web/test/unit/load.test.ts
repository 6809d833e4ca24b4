import assert from 'node:assert/strict';
import { test } from 'node:test';

import { WuerstchenError } from '../../js/errors.js';
import type { LoadEvent, Measured } from '../../js/types.js';
import {
  CONTENTS,
  deferred,
  describe,
  makeManifest,
  MODEL_URL,
  SHARD_URLS,
  SHARDS,
  WASM,
  WASM_URL,
  World,
} from './fake.js';

const [FIRST = '', SECOND = ''] = SHARD_URLS;

test('a load tells its phases and brings every shard to the device', async () => {
  const world = new World();
  const events: LoadEvent[] = [];
  await using engine = await world.load({ onProgress: (event) => events.push(event) });
  assert.deepEqual(world.cpu.shards, SHARDS);
  assert.equal(world.cpu.contents, new TextDecoder().decode(CONTENTS));
  for (const name of ['shard-0.bin', 'shard-1.bin']) {
    const types = events
      .filter((event) => 'file' in event && event.file === name)
      .map(({ type }) => type);
    assert.deepEqual([...new Set(types)], ['download', 'verify', 'upload']);
  }
  assert.deepEqual(
    events.slice(-3).map(({ type }) => type),
    ['compile', 'selftest', 'ready'],
  );
  assert.equal(engine.info.bytes, 5000 + CONTENTS.length);
  assert.equal(engine.info.cachedBytes, engine.info.bytes);
  assert.equal(engine.device, 'cpu');
});

test('the next files are fetched while one is on its way, a few at a time, and used in their order', async () => {
  const world = new World();
  const bytes = [1, 2, 3, 4, 5, 6, 7].map((k) => new Uint8Array(100 + k).fill(k));
  const shards = bytes.map((shard, k) => describe(`shard-${k}.bin`, shard));
  world.server.answers.set(MODEL_URL, () => Response.json({ ...makeManifest(), shards }));
  const first = deferred<Response>();
  const asked: number[] = [];
  bytes.forEach((shard, k) =>
    world.server.answers.set(`https://example.test/model/shard-${k}.bin`, () => {
      asked.push(k);
      return k === 0 ? first.promise : new Response(shard);
    }),
  );
  const loading = world.load();
  const pause = (ms: number) => new Promise((resolve) => setTimeout(resolve, ms));
  for (let i = 0; i < 1000 && asked.length < 4; i++) await pause(10);
  // There is no fifth.
  await pause(50);
  assert.deepEqual(asked, [0, 1, 2, 3]);
  assert.deepEqual(world.cpu.shards, []);
  first.resolve(new Response(bytes[0]));
  await using _engine = await loading;
  assert.deepEqual(asked, [0, 1, 2, 3, 4, 5, 6]);
  assert.deepEqual(world.cpu.shards, bytes);
});

test('what is stored is not fetched again, and works without a network', async () => {
  const world = new World();
  await (await world.load()).dispose();
  world.server.answers.clear();
  world.server.answers.set(MODEL_URL, () => Promise.reject(new TypeError('offline')));
  world.server.answers.set(WASM_URL, () => new Response(WASM));
  await using engine = await world.load();
  assert.equal(world.server.shardRequests, 2);
  assert.equal(engine.info.id, 'fake-1234');
});

test('what the device reaches is measured where it is asked for', async () => {
  const world = new World();
  const measured: unknown[] = [];
  const onProgress = (event: LoadEvent) => event.type === 'measured' && measured.push(event);
  await (await world.load({ onProgress })).dispose();
  assert.deepEqual(measured, []);
  await (await world.load({ onProgress, measure: true })).dispose();
  const work: Measured['work'] = [];
  assert.deepEqual(measured, [
    { type: 'measured', multiplyAddsPerSec: 1e9, bytesPerSec: 2e9, products: null, work },
  ]);
});

test('a damaged cache entry is fetched anew and replaced', async () => {
  const world = new World();
  await (await world.load()).dispose();
  const name = `fake-1234/${makeManifest().shards[1]?.sha256}`;
  assert.ok(world.cache.entries.has(name));
  world.cache.entries.set(name, new Uint8Array(2000));
  await using _engine = await world.load();
  assert.equal(world.server.asked.filter((url) => url === SECOND).length, 2);
  assert.deepEqual(world.cache.entries.get(name), SHARDS[1]);
});

test('corrupt bytes are an integrity error and are not stored', async () => {
  const world = new World();
  world.server.answers.set(FIRST, () => new Response(new Uint8Array(3000)));
  await assert.rejects(world.load(), {
    code: 'integrity',
    message: /^shard-0\.bin has other bytes/,
  });
  const name = `fake-1234/${makeManifest().shards[0]?.sha256}`;
  assert.equal(world.cache.entries.has(name), false);
  assert.equal(world.cpu.shards.length, 0);
  assert.equal(world.workers[0]?.isTerminated, true);
});

test('a truncated shard is asked for again and then an integrity error', async () => {
  const world = new World();
  world.server.answers.set(FIRST, () => new Response(new Uint8Array(2999)));
  const message = `${FIRST} must have 3000 bytes, got 2999`;
  await assert.rejects(world.load(), { code: 'integrity', message });
  assert.equal(world.server.asked.filter((url) => url === FIRST).length, 3);
});

test('an HTML page and a 404 are network errors with the URL', async () => {
  const world = new World();
  const headers = { 'content-type': 'TEXT/HTML; charset=utf-8' };
  world.server.answers.set(SECOND, () => new Response('<!doctype html>', { headers }));
  const message = `${SECOND} is an HTML page, not the expected file`;
  await assert.rejects(world.load(), { code: 'network', message, retryable: false });
  world.server.answers.delete(SECOND);
  await assert.rejects(world.load(), {
    code: 'network',
    message: `${SECOND} answered with status 404`,
  });
  assert.equal(world.server.asked.filter((url) => url === SECOND).length, 2);
});

test('an overloaded server is asked again', async () => {
  const world = new World();
  let requests = 0;
  const answers = [503, 429].map((status) => new Response('', { status }));
  world.server.answers.set(FIRST, () => answers[requests++] ?? new Response(SHARDS[0]));
  await using _engine = await world.load();
  assert.equal(requests, 3);
});

test('a full store does not keep a model from loading, and is told', async () => {
  const world = new World();
  let puts = 0;
  world.cache.put = async () => {
    puts += 1;
    throw new WuerstchenError('quota', 'no room');
  };
  await using engine = await world.load();
  assert.equal(engine.support.storage.backend, 'memory');
  assert.match(engine.support.message, /The model is not kept: no room\.$/);
  // Those that were on their way at once, and no manifest.
  assert.ok(puts <= 3, `${puts}`);
});

test('a download can be aborted with the reason of the signal, and begun anew', async () => {
  const world = new World();
  const controller = new AbortController();
  const reason = new RangeError('enough');
  world.server.answers.set(FIRST, () => {
    controller.abort(reason);
    return new Promise(() => {});
  });
  await assert.rejects(world.load({ signal: controller.signal }), (error) => error === reason);
  assert.equal(world.workers[0]?.isTerminated, true);
  world.server.answers.set(FIRST, () => new Response(SHARDS[0]));
  await using engine = await world.load();
  assert.equal(engine.state, 'ready');
});

test('an engine in the calling thread ends when its load is aborted, though a cache answers late', async () => {
  const world = new World();
  const controller = new AbortController();
  const ended = deferred();
  const asked = deferred();
  const answer = deferred<undefined>();
  world.cache.get = () => {
    asked.resolve();
    return answer.promise;
  };
  const loading = world.loadHere({ signal: controller.signal }, ended.resolve);
  await asked.promise;
  controller.abort();
  await assert.rejects(loading, { name: 'AbortError' });
  answer.resolve(undefined);
  await ended.promise;
});

test('manifests that lead out of their folder or to another format are refused', async () => {
  const refuse = async (change: object, message: RegExp) => {
    const world = new World();
    world.server.answers.set(MODEL_URL, () => Response.json({ ...makeManifest(), ...change }));
    await assert.rejects(world.load(), { code: 'integrity', message });
    assert.equal(world.server.shardRequests, 0);
  };
  const [shard] = makeManifest().shards;
  await refuse({ format: 1 }, /reads manifest format 2, got 1$/);
  await refuse({ contents: null }, /contents are missing$/);
  await refuse({ id: '../x' }, /id must be a plain name/);
  for (const file of ['../x', 'a/b', 'https:x', 'a\\b']) {
    await refuse({ shards: [{ ...shard, file }] }, /must have a plain name$/);
  }
  await refuse({ shards: [{ ...shard, bytes: 2 ** 30 }] }, /bytes, got 1073741824$/);
  await refuse({ shards: [{ ...shard, sha256: 'AB' }] }, /64 hex digits$/);
  await refuse({ stages: {} }, /stage text is missing$/);
});

test('a model that was not written for browsers is refused before a shard is fetched', async () => {
  const world = new World();
  // What `wuerstchen import` writes.
  world.server.answers.set(MODEL_URL, () => Response.json({ ...makeManifest(), selfTest: false }));
  const error = await world.load().then(
    () => undefined,
    (reason: WuerstchenError) => reason,
  );
  assert.ok(error instanceof WuerstchenError);
  assert.match(
    error.message,
    /manifest\.json has no golden vectors .* run "wuerstchen export web"/,
  );
  assert.match(error.hint ?? '', /wuerstchen export web -m MODEL -o FOLDER/);
  assert.deepEqual([error.code, error.retryable], ['integrity', false]);
  assert.equal(world.server.shardRequests, 0);
});

test('a failed self-test names what is wrong', async () => {
  const world = new World();
  world.cpu.selfTestOk = false;
  const message = 'the self-test failed: prior is off by 0.5, allowed is 0.1';
  await assert.rejects(world.load(), { code: 'internal', message });
});

test('a WebGPU that is not there cannot be forced', async () => {
  await assert.rejects(new World().load({ device: 'webgpu' }), { code: 'unsupported' });
});
