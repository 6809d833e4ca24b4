// What goes wrong in browsers: aborts, lost devices, damaged and missing files, full storage.

import assert from 'node:assert/strict';
import { test } from 'node:test';
import { context, openPage, page, site, useFreshPages } from './site.ts';

const MODEL = '/pkg/shapes/manifest.json';
const BUILT_IN = '/pkg/model/manifest.json';
const SHARD = '**/shard-000.bin';

useFreshPages('--enable-precise-memory-info');

/** Loads the model on the CPU; what came of it, and what was fetched. */
function load(
  options: object = {},
): Promise<{ ok: boolean; code?: string; message: string; fromCache: number; storage?: string }> {
  return page.evaluate(
    async ({ model, options }) => {
      const { load } = (window as any).wuerstchen;
      const cached = new Set<string>();
      const onProgress = (event: any) => {
        if (event.type === 'download' && event.fromCache) cached.add(event.file);
      };
      try {
        const engine = await load({ model, device: 'cpu', onProgress, ...options });
        const result = await engine.generate({
          prompt: 'a blue star',
          priorSteps: 1,
          decoderSteps: 1,
        });
        const message = `${result.images.length}`;
        const storage = engine.support.storage.backend;
        await engine.dispose();
        return { ok: true, message, fromCache: cached.size, storage };
      } catch (error: any) {
        return {
          ok: false,
          code: error.code,
          message: String(error.message),
          fromCache: cached.size,
        };
      }
    },
    { model: MODEL, options },
  );
}

test('the second load comes from the cache, and works offline', async () => {
  const first = await load();
  assert.deepEqual([first.ok, first.fromCache], [true, 0], first.message);
  await context.route('**/shapes/*', (route) => route.abort('internetdisconnected'));
  const second = await load();
  assert.equal(second.ok, true, second.message);
  assert.ok(second.fromCache > 1);
});

test('the Cache API keeps a model as well', async () => {
  assert.equal((await load({ cache: 'cache' })).ok, true);
  await context.route('**/shapes/*', (route) => route.abort('internetdisconnected'));
  const second = await load({ cache: 'cache' });
  assert.equal(second.ok, true, second.message);
  assert.ok(second.fromCache > 1);
  const elsewhere = await load({ cache: 'opfs' });
  assert.deepEqual([elsewhere.ok, elsewhere.code], [false, 'network']);
});

test('a damaged shard is an integrity error that names it and is not kept', async () => {
  await context.route(SHARD, async (route) => {
    const response = await route.fetch();
    const body = await response.body();
    body[100] = (body[100] ?? 0) ^ 1;
    await route.fulfill({ response, body });
  });
  const damaged = await load();
  assert.deepEqual([damaged.ok, damaged.code], [false, 'integrity']);
  assert.match(damaged.message, /shard-000\.bin/);
  await context.unroute(SHARD);
  assert.equal((await load()).ok, true);
});

test('a truncated shard fails and is not kept', async () => {
  await context.route(SHARD, async (route) => {
    const response = await route.fetch();
    const body = (await response.body()).subarray(0, 1000);
    const headers = { ...response.headers(), 'content-length': '1000' };
    await route.fulfill({ status: 200, headers, body });
  });
  const truncated = await load();
  assert.equal(truncated.ok, false);
  assert.match(truncated.message, /shard-000\.bin/);
  await context.unroute(SHARD);
  const again = await load();
  assert.deepEqual([again.ok, again.fromCache > 0], [true, true], again.message);
});

test('a page instead of a shard, and a missing shard, are network errors that name it', async () => {
  for (const [status, contentType] of [
    [200, 'text/html'],
    [404, 'text/plain'],
  ] as const) {
    await context.route(SHARD, (route) =>
      route.fulfill({ status, contentType, body: '<!doctype html>' }),
    );
    const failed = await load({ cache: 'none' });
    assert.deepEqual([failed.ok, failed.code], [false, 'network'], failed.message);
    assert.match(failed.message, /shard-000\.bin/);
    await context.unroute(SHARD);
  }
});

test('a full disk does not stop the load', async () => {
  const session = await context.newCDPSession(page);
  const origin = new URL(site.url).origin;
  await session.send('Storage.overrideQuotaForOrigin', { origin, quotaSize: 1 << 20 });
  const loaded = await load();
  assert.deepEqual([loaded.ok, loaded.storage], [true, 'memory'], loaded.message);
});

test('what is left of a write that broke off is counted and deleted, but no write under way', async () => {
  const outcome = await page.evaluate(async () => {
    const { cache } = (window as any).wuerstchen;
    const root = await navigator.storage.getDirectory();
    const folder = await root.getDirectoryHandle('wuerstchen-web', { create: true });
    const name = `${encodeURIComponent('gone-1/0123')}.part`;
    const stream = await (await folder.getFileHandle(name, { create: true })).createWritable();
    await stream.write('12345');
    await stream.close();
    let end = () => {};
    const writing = new Promise<void>((resolve) => (end = resolve));
    void navigator.locks.request('wuerstchen-web/gone-1/0123', () => writing);
    const deletion = cache.delete('gone-1');
    await new Promise((resolve) => setTimeout(resolve, 100));
    const meanwhile = await cache.list();
    end();
    await deletion;
    return [meanwhile, await cache.list()];
  });
  assert.deepEqual(outcome, [[{ id: 'gone-1', bytes: 5 }], []]);
});

test('two tabs load at once', async () => {
  const other = await openPage(context, site);
  const inOther = other.evaluate(async (model) => {
    const engine = await (window as any).wuerstchen.load({ model, device: 'cpu' });
    return engine.selfTest.ok;
  }, MODEL);
  const [first, second] = await Promise.all([load(), inOther]);
  assert.deepEqual([first.ok, second], [true, true], first.message);
  const third = await load();
  assert.ok(third.ok && third.fromCache > 1);
});

// The built-in model needs nothing of the rest for a picture from a prompt.
test('where the rest of the code is missing the job fails, and the next one tries again', async () => {
  await context.route('**/*_rest.wasm', (route) => route.abort('internetdisconnected'));
  await page.evaluate(async (model) => {
    const engine = await (window as any).wuerstchen.load({ model, device: 'cpu' });
    const job = { prompt: 'a blue star', priorSteps: 1, decoderSteps: 1 };
    const image = { width: 64, height: 64, data: new Uint8Array(64 * 64 * 4).fill(255) };
    (window as any).jobs = {
      plain: () => engine.generate(job),
      fromPicture: () => engine.generate({ ...job, image }),
    };
  }, BUILT_IN);
  const make = (job: string) =>
    page.evaluate(
      (job) =>
        (window as any).jobs[job]().then(
          () => 'made',
          (error: any) => `${error.code}: ${error.message}`,
        ),
      job,
    );
  assert.equal(await make('plain'), 'made');
  assert.match(
    await make('fromPicture'),
    /^network: .*wuerstchen_cpu_rest\.wasm could not be fetched/,
  );
  assert.equal(await make('plain'), 'made');
  await context.unroute('**/*_rest.wasm');
  assert.equal(await make('fromPicture'), 'made');
});

test('an abort of the download rejects, and the next load works', async () => {
  const aborted = await page.evaluate(async (model) => {
    const controller = new AbortController();
    const onProgress = (event: any) => {
      if (event.type === 'download' && event.loaded > 0) controller.abort();
    };
    try {
      await (window as any).wuerstchen.load({
        model,
        device: 'cpu',
        onProgress,
        signal: controller.signal,
      });
    } catch (error: any) {
      return error.name;
    }
    return 'loaded';
  }, MODEL);
  assert.equal(aborted, 'AbortError');
  assert.equal((await load()).ok, true);
});

test('an abort of a job ends it long before its last step, and the next job works', async () => {
  const outcome = await page.evaluate(async (model) => {
    // The client tells nothing of a job that was aborted, so the steps are counted as the worker tells them.
    let steps = 0;
    const { Worker } = window;
    window.Worker = class extends Worker {
      constructor(...args: ConstructorParameters<typeof Worker>) {
        super(...args);
        this.addEventListener('message', ({ data }) => {
          if (data.type === 'event' && data.event.type === 'step') steps++;
        });
      }
    };
    const engine = await (window as any).wuerstchen.load({ model, device: 'cpu' });
    const controller = new AbortController();
    const onProgress = (event: any) => {
      if (event.type === 'step' && event.stage === 'prior' && event.step === 3) controller.abort();
    };
    const { signal } = controller;
    const prompt = 'a red circle';
    const aborted = engine.generate({ prompt, priorSteps: 1000, onProgress, signal });
    const error = await aborted.then(
      () => 'made',
      (reason: any) => reason.name,
    );
    // It begins once the worker has ended the other.
    const next = await engine.generate({ prompt, priorSteps: 2, decoderSteps: 1 });
    return { error, steps, images: next.images.length };
  }, MODEL);
  assert.equal(outcome.error, 'AbortError');
  // The worker makes a few more while the abort is on its way.
  assert.ok(outcome.steps > 3 && outcome.steps < 500, `${outcome.steps} steps`);
  assert.equal(outcome.images, 1);
});

test('what the model cannot make is an error that says what it can', async () => {
  const message = await page.evaluate(async (model) => {
    const engine = await (window as any).wuerstchen.load({ model, device: 'cpu' });
    return engine.generate({ prompt: 'x', width: 65 }).then(
      () => 'made',
      (error: any) => `${error.code}, ${error.field}: ${error.message}`,
    );
  }, MODEL);
  assert.match(message, /^invalid-argument, width: width must be .* 64 and 80, got 65$/);
});

test('a lost GPU is set up anew; a job that loses it twice fails, and the next one works', async () => {
  const workers: import('playwright-core').Worker[] = [];
  page.on('worker', (worker) => workers.push(worker));
  await page.evaluate(async (model) => {
    const engine = await (window as any).wuerstchen.load({
      model,
      device: 'webgpu',
      worker: () => new Worker('/test/browser/spy-worker.js', { type: 'module' }),
    });
    const events: string[] = [];
    for (const type of ['lost', 'recovered'])
      engine.addEventListener(type, () => events.push(type));
    Object.assign(window, { engine, events });
  }, MODEL);
  const generate = () =>
    page.evaluate(() => {
      const options = { prompt: 'a red circle', priorSteps: 3, decoderSteps: 1 };
      const made = (window as any).engine.generate(options);
      return made.then(
        (result: any) => result.images.length,
        (error: any) => error.code,
      );
    });
  const lose = () => workers.at(-1)?.evaluate('testDevice.destroy()');

  const twice = generate();
  await lose();
  await page.waitForFunction('events.at(-1) === "recovered"', undefined, { timeout: 0 });
  await lose();
  assert.equal(await twice, 'device-lost');
  assert.equal(await generate(), 1);
  assert.deepEqual(await page.evaluate('events'), ['lost', 'recovered', 'lost', 'recovered']);
});

test('fifty engines come and go in the same memory', async () => {
  const session = await context.newCDPSession(page);
  const heap = async () => {
    await session.send('HeapProfiler.collectGarbage');
    const { usedSize } = await session.send('Runtime.getHeapUsage');
    return usedSize;
  };
  const cycle = (count: number) =>
    page.evaluate(
      async ({ model, count }) => {
        for (let i = 0; i < count; i++) {
          const engine = await (window as any).wuerstchen.load({ model, device: 'cpu' });
          await engine.dispose();
        }
      },
      { model: MODEL, count },
    );
  await cycle(3);
  const first = await heap();
  await cycle(47);
  const growth = (await heap()) - first;
  assert.ok(growth < 1 << 20, `${growth} bytes more`);
  // Each worker has a WebAssembly memory of its own, which goes with it.
  const closed = page.workers().map((worker) => worker.waitForEvent('close'));
  await Promise.all(closed);
});

/** The page's memory while a model of one shard is loaded in its own thread: that of WebAssembly, and the heap. */
test('a load holds no more than what is on its way and the engine', async () => {
  const bytes = await page.evaluate(async (model) => {
    const memories: WebAssembly.Memory[] = [];
    for (const name of ['instantiate', 'instantiateStreaming'] as const) {
      const original = WebAssembly[name] as any;
      (WebAssembly as any)[name] = async (...parameters: any[]) => {
        const result = await original(...parameters);
        const { memory } = (result.instance ?? result).exports;
        // The rest of the code shares that of the first file.
        if (memory) memories.push(memory);
        return result;
      };
    }
    const { load } = (window as any).wuerstchen;
    const heap = () => (performance as any).memory.usedJSHeapSize;
    let peak = 0;
    const before = heap();
    const onProgress = () => {
      const wasm = memories.reduce((sum, memory) => sum + memory.buffer.byteLength, 0);
      peak = Math.max(peak, wasm + heap() - before);
    };
    const engine = await load({ model, device: 'cpu', worker: false, cache: 'none', onProgress });
    await engine.dispose();
    return { peak, memories: memories.length };
  }, MODEL);
  assert.equal(bytes.memories, 1);
  assert.ok(bytes.peak < (16 << 20) + 64e6, `${bytes.peak} bytes`);
});
