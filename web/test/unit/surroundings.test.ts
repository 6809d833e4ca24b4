import assert from 'node:assert/strict';
import { afterEach, test } from 'node:test';

import { cache, checkSupport, inspect, load } from '../../js/index.js';
import { ModelCache } from '../../js/cache.js';
import { load as loadThrough } from '../../js/client.js';
import { workerConnector } from '../../js/connector.js';
import { start } from '../../js/start.js';
import type { LoadOptions } from '../../js/types.js';
import type { Wasm } from '../../js/wasm.js';
import { CONTENTS, makeManifest, MemoryCache, MODEL_URL, SHARDS, WASM_URL, World } from './fake.js';

const untouched = ['caches', 'navigator', 'WebAssembly', 'Worker'].map(
  (name) => [name, Object.getOwnPropertyDescriptor(globalThis, name)] as const,
);

afterEach(() => {
  for (const [name, descriptor] of untouched) {
    if (descriptor) Object.defineProperty(globalThis, name, descriptor);
    else Reflect.deleteProperty(globalThis, name);
  }
});

function provide(name: string, get: () => unknown): void {
  Object.defineProperty(globalThis, name, { get, configurable: true });
}

const refuse = (): never => {
  throw new DOMException('not in a sandbox', 'SecurityError');
};

function servedAt(world: World, base: string, query: string): string {
  world.server.answers.set(`${base}manifest.json${query}`, () => Response.json(makeManifest()));
  world.server.answers.set(`${base}contents.json${query}`, () => new Response(CONTENTS));
  for (const [k, bytes] of SHARDS.entries()) {
    world.server.answers.set(`${base}shard-${k}.bin${query}`, () => new Response(bytes));
  }
  return `${base}manifest.json${query}`;
}

test('shards have the query of the manifest, which may be what grants access', async () => {
  const world = new World();
  const model = servedAt(world, 'https://signed.test/m/', '?sig=a%2Fb&expires=9');
  await using _engine = await world.load({ model });
  const shards = world.server.asked.filter((url) => url.includes('shard'));
  assert.deepEqual(
    shards,
    [0, 1].map((k) => `https://signed.test/m/shard-${k}.bin?sig=a%2Fb&expires=9`),
  );
});

test('a model whose signature differs every time is stored once, without the signature', async () => {
  const world = new World();
  for (const sig of ['one', 'two', 'three']) {
    const model = servedAt(world, 'https://signed.test/m/', `?sig=${sig}`);
    await (await world.load({ model })).dispose();
  }
  assert.equal(world.server.asked.filter((url) => url.includes('shard')).length, 2);
  const names = [...world.cache.entries.keys()];
  assert.equal(names.length, 4, 'contents, two shards and a manifest');
  assert.ok(
    names.every((name) => name.length < 120 && !/sig|three/.test(name)),
    `${names}`,
  );
});

test('models of one path and different queries are kept apart without a network', async () => {
  const files = new ModelCache(new MemoryCache(), 'memory');
  await files.putManifest('a-1', 'https://x.test/manifest.json?model=a', 'A');
  await files.putManifest('b-1', 'https://x.test/manifest.json?model=b', 'B');
  assert.equal(await files.manifest('https://x.test/manifest.json?model=a'), 'A');
  await files.putManifest('a-2', 'https://x.test/manifest.json?model=a', 'A2');
  assert.equal(await files.manifest('https://x.test/manifest.json?model=a'), 'A2');
  assert.equal((await files.list()).length, 2);
});

test('a manifest that nothing can lie beside is refused', async () => {
  const world = new World();
  const model = 'data:application/json,x';
  world.server.answers.set(model, () => Response.json(makeManifest()));
  await assert.rejects(world.load({ model }), {
    code: 'invalid-argument',
    message: /beside data:/,
  });
});

test('storage that may not even be looked at does not keep a model from loading', async () => {
  provide('caches', refuse);
  provide('navigator', () => ({
    get storage() {
      return refuse();
    },
  }));
  const { ok, storage } = await checkSupport().catch(() => assert.fail('it never rejects'));
  assert.deepEqual([ok, storage.backend], [true, 'memory']);
  assert.deepEqual(await cache.list(), []);
  await cache.delete();
  await using engine = await new World().load({ cache: 'auto', persist: true });
  assert.equal(engine.support.storage.backend, 'memory');
});

test('an adapter that fails in any way does not keep a model from loading', async () => {
  const failing = { get: refuse, put: refuse, delete: refuse, list: refuse };
  const failures: object[] = [
    failing,
    { ...failing, get: async () => 'text', put: () => Promise.reject(null) },
    { ...failing, get: async () => () => {}, put: async () => () => {} },
    { ...failing, get: async () => null, list: async () => null },
    {
      ...failing,
      get: async () => 5,
      list: async () => [null, 'a/b', { name: 5 }, { name: 'a/b' }],
    },
  ];
  for (const adapter of failures) {
    await using engine = await new World().load({ cache: adapter as LoadOptions['cache'] });
    assert.equal(engine.info.cachedBytes, 0);
  }
});

test('an adapter without all of its functions is refused', async () => {
  const { get, put, list } = new MemoryCache();
  for (const adapter of [{}, { get, put, list }]) {
    await assert.rejects(new World().load({ cache: adapter as LoadOptions['cache'] }), {
      code: 'invalid-argument',
      field: 'cache',
      message: /an adapter with get, put, delete and list, got/,
    });
  }
});

test('an adapter may give buffers, as IndexedDB does', async (t) => {
  const store = new MemoryCache();
  const cache = {
    get: async (name: string) => store.entries.get(name)?.slice().buffer ?? null,
    put: store.put.bind(store),
    delete: store.delete.bind(store),
    list: store.list.bind(store),
  };
  for (const requests of [2, 0]) {
    const world = new World();
    await (await world.load({ cache })).dispose();
    assert.equal(world.server.shardRequests, requests);
  }
  t.mock.method(globalThis, 'fetch', new World().server.fetch);
  const found = await inspect(MODEL_URL, { cache });
  assert.equal(found.cachedBytes, found.bytes);
  await assert.rejects(inspect(MODEL_URL, { cash: cache } as never), { field: 'cash' });
});

test('a model may be given by its folder', async () => {
  const world = new World();
  const model = new URL('./?signature=1', MODEL_URL);
  const asked = `${MODEL_URL}?signature=1`;
  world.server.answers.set(asked, () => Response.json(makeManifest()));
  await assert.rejects(world.load({ model }), { message: /contents\.json\?signature=1/ });
  assert.ok(world.server.asked.includes(asked));
});

test('only a name deletes a stored model', async () => {
  await assert.rejects(cache.delete({ id: 'fake-1234' } as never), {
    code: 'invalid-argument',
    field: 'id',
    message: 'id must be a string, got [object Object]',
  });
});

test('no room is known by every name that browsers have for it', async () => {
  for (const name of ['QuotaExceededError', 'NS_ERROR_DOM_QUOTA_REACHED']) {
    const store = { put: () => Promise.reject(new DOMException('full.', name)) };
    provide('caches', () => ({ open: async () => store }));
    await using engine = await new World().load({ cache: 'cache' });
    assert.equal(engine.support.storage.backend, 'memory');
    assert.match(engine.support.message, /The model is not kept: no room to store .*full\.$/);
  }
});

test('an engine tells where its own model is stored', async () => {
  const store = { match: async () => undefined, put: async () => {}, keys: async () => [] };
  provide('caches', () => ({ open: async () => store }));
  assert.equal((await checkSupport()).storage.backend, 'cache');
  for (const [cache, backend] of [
    ['auto', 'cache'],
    ['none', 'memory'],
  ] as const) {
    await using engine = await new World().load({ cache });
    assert.equal(engine.support.storage.backend, backend);
  }
});

test('the part of a manifest whose writing broke off is not read', async () => {
  const store = new MemoryCache();
  const name = 'a-1/manifest:0123';
  await store.put(`${name}.part`, new TextEncoder().encode('{"fo'));
  const files = new ModelCache(store, 'memory');
  assert.equal(await files.manifestOf('a-1'), undefined);
  await store.put(name, new TextEncoder().encode('{}'));
  assert.equal(await files.manifestOf('a-1'), '{}');
});

test('a worker that cannot be made is an error that says what to do', async () => {
  const cache = new MemoryCache();
  const attempt = (makeWorker: () => unknown) =>
    loadThrough({ model: MODEL_URL, cache }, workerConnector(makeWorker as () => Worker));
  await assert.rejects(attempt(refuse), (error: any) => {
    assert.deepEqual([error.name, error.code], ['WuerstchenError', 'unsupported']);
    assert.match(error.message, /not in a sandbox/);
    assert.match(error.hint, /worker: false/);
    return true;
  });
  for (const made of [undefined, Promise.resolve(), {}]) {
    await assert.rejects(
      attempt(() => made),
      { code: 'invalid-argument', message: /^worker must/ },
    );
  }
});

test('a worker whose script cannot be loaded is an error that says what to do', async () => {
  class Silent {
    onerror: ((event: object) => void) | undefined;
    postMessage() {
      queueMicrotask(() => this.onerror?.({ message: '', preventDefault() {} }));
    }
    terminate() {}
  }
  provide('Worker', () => Silent);
  await assert.rejects(load({ model: MODEL_URL }), (error: any) => {
    assert.deepEqual([error.name, error.code], ['WuerstchenError', 'network']);
    assert.match(error.hint, /worker-src/);
    return true;
  });
});

test('a worker with another script is refused', async (t) => {
  t.mock.timers.enable({ apis: ['setTimeout'] });
  class Other {
    onmessage: ((event: object) => void) | undefined;
    constructor(readonly answer: object | undefined) {}
    postMessage() {
      const { answer } = this;
      if (answer) queueMicrotask(() => this.onmessage?.({ data: answer }));
      else queueMicrotask(() => t.mock.timers.tick(60_000));
    }
    terminate() {}
  }
  for (const [answer, message] of [
    [undefined, /does not answer$/],
    [{ type: 'ready' }, /sends other messages$/],
  ] as const) {
    const connector = workerConnector(() => new Other(answer) as unknown as Worker);
    const loading = loadThrough({ model: MODEL_URL, cache: 'none' }, connector);
    const refusal = { code: 'invalid-argument', field: 'worker', message };
    await assert.rejects(loading, refusal);
  }
});

test('files of others beside the models are left alone', async () => {
  const origin = 'https://wuerstchen-web.invalid/';
  const deleted: string[] = [];
  const store = {
    keys: async () =>
      ['100%', 'else', 'a-1%2Fx.part.crswap', 'a-1%2F0f'].map((file) => ({ url: origin + file })),
    match: async () => new Response('', { headers: { 'content-length': '7' } }),
    delete: async (url: string) => deleted.push(url),
  };
  provide('caches', () => ({ open: async () => store }));
  assert.deepEqual(await cache.list(), [{ id: 'a-1', bytes: 7 }]);
  await cache.delete();
  assert.deepEqual(deleted, [`${origin}a-1%2F0f`]);
});

test('a bundle that does not know where its files lie says what to do', async () => {
  const world = new World();
  const build = world.cpu.build();
  world.cpu.build = () => ({ ...build, first: () => new URL('engine.wasm', 'blob:null/1') });
  await assert.rejects(world.load(), {
    code: 'invalid-argument',
    field: 'wasmUrl',
    hint: /wasmUrl/,
  });
});

test('a fetch that gives no response is the fault of its option', async () => {
  const world = new World();
  world.server.answers.set(MODEL_URL, () => undefined as never);
  await assert.rejects(world.load(), { code: 'invalid-argument', field: 'fetch' });
});

test('a page that has frozen what is global starts a worker all the same', async () => {
  let started = 0;
  class Frozen {
    onerror: ((event: object) => void) | undefined;
    constructor() {
      started += 1;
    }
    postMessage() {
      queueMicrotask(() => this.onerror?.({ message: 'enough', preventDefault() {} }));
    }
    terminate() {}
  }
  Object.defineProperty(globalThis, 'Worker', { value: Frozen, configurable: true });
  await assert.rejects(load({ model: MODEL_URL }), { code: 'internal', message: /enough/ });
  assert.equal(started, 1);
});

test('a worker on another origin is imported by one of this origin', async () => {
  const started: string[] = [];
  class SameOriginWorker {
    onerror: ((event: object) => void) | undefined;
    constructor(url: string | URL) {
      if (!String(url).startsWith('blob:')) refuse();
      started.push(String(url));
    }
    postMessage() {
      queueMicrotask(() => this.onerror?.({ message: 'enough', preventDefault() {} }));
    }
    terminate() {}
  }
  Object.defineProperty(globalThis, 'Worker', {
    value: SameOriginWorker,
    writable: true,
    configurable: true,
  });
  await assert.rejects(load({ model: MODEL_URL }), { code: 'internal', message: /enough/ });
  assert.equal(started.length, 1);
  const script = await (await fetch(started[0]!)).text();
  assert.match(script, /^import ".*worker\.js";$/);
  assert.equal(globalThis.Worker, SameOriginWorker);
});

test('messages that cannot be read fail the job, and the next one runs', async () => {
  const world = new World();
  await using engine = await world.load();
  const [worker] = world.workers as unknown as [Worker];
  world.cpu.beforeStep = () => {
    worker.onmessageerror?.(new MessageEvent('messageerror'));
    return new Promise(() => {});
  };
  await assert.rejects(engine.generate({ prompt: 'a' }), { code: 'internal' });
  world.cpu.beforeStep = async () => {};
  await engine.generate({ prompt: 'b', format: 'blob' });
});

test('WebAssembly that a policy forbids, or that is missing, is known before any download', async (t) => {
  let requests = 0;
  const fetch = async () => {
    requests += 1;
    return new Response();
  };
  const begin = () =>
    start({} as Wasm, { first: WASM_URL, rest: WASM_URL }, { fetch, mayBlock: true, threads: 1 });
  t.mock.method(WebAssembly, 'Module', () => {
    throw new WebAssembly.CompileError('refused by a policy');
  });
  await assert.rejects(begin(), (error: any) => {
    assert.deepEqual([error.code, /wasm-unsafe-eval/.test(error.hint)], ['unsupported', true]);
    return true;
  });
  t.mock.restoreAll();
  provide('WebAssembly', () => undefined);
  await assert.rejects(begin(), { code: 'unsupported' });
  const { ok, reason } = await checkSupport();
  assert.deepEqual([ok, reason], [false, 'no-wasm']);
  assert.equal(requests, 0);
});

test('WebAssembly of another version, or none, is an integrity error with the URL', async () => {
  for (const bytes of [new Uint8Array([1, 2, 3]), new TextEncoder().encode('not found')]) {
    const world = new World();
    world.server.answers.set(WASM_URL, () => new Response(bytes));
    await assert.rejects(world.load(), { code: 'integrity', message: /^https:.*engine\.wasm/ });
  }
});

test('what is no URL is refused', async () => {
  for (const model of [undefined, null, 5, {}]) {
    const code = 'invalid-argument';
    await assert.rejects(inspect(model as unknown as string), { code });
    await assert.rejects(load({ model: model as unknown as string }), { code });
  }
});
