import assert from 'node:assert/strict';
import { test } from 'node:test';

import { checkSupport } from '../../js/support.js';
import type { Stage } from '../../js/types.js';
import { deferred, SHARD_URLS, SHARDS, World } from './fake.js';

const [FIRST = ''] = SHARD_URLS;

class FakeDevice extends EventTarget {
  readonly #lost = deferred<{ reason: string; message: string }>();
  readonly lost = this.#lost.promise;

  constructor(readonly features: ReadonlySet<string>) {
    super();
  }

  lose(message: string) {
    this.#lost.resolve({ reason: 'unknown', message });
  }

  report(error: Error) {
    this.dispatchEvent(Object.assign(new Event('uncapturederror'), { error }));
  }
}

class FakeOutOfMemory extends Error {}

const devices: FakeDevice[] = [];

class FakeAdapter {
  readonly info = { vendor: 'acme', architecture: 'a1', device: '', description: 'Acme A1' };
  readonly features = new Set(['shader-f16']);
  readonly limits = { maxBufferSize: 1, maxStorageBufferBindingSize: 1 };

  async requestDevice() {
    const device = new FakeDevice(this.features);
    devices.push(device);
    return device;
  }
}

const gpu = {
  requestAdapter: async (_options?: GPURequestAdapterOptions): Promise<FakeAdapter | null> =>
    new FakeAdapter(),
};
Object.defineProperty(globalThis, 'navigator', { value: { gpu }, configurable: true });
Object.assign(globalThis, { GPUAdapter: FakeAdapter, GPUOutOfMemoryError: FakeOutOfMemory });

function gpuWorld(): World {
  const world = new World();
  world.webgpu.openDevice = async () => {
    await (await gpu.requestAdapter())?.requestDevice();
  };
  return world;
}

test('support is WebGPU for a hardware adapter, else the CPU with the reason', async (t) => {
  const hardware = await checkSupport();
  assert.deepEqual([hardware.ok, hardware.device, hardware.reason], [true, 'webgpu', undefined]);
  assert.equal(hardware.features.shaderF16, true);
  let adapter: FakeAdapter | null = new FakeAdapter();
  adapter.info.description = 'llvmpipe (LLVM 15)';
  t.mock.method(gpu, 'requestAdapter', async () => adapter);
  const software = await checkSupport();
  assert.deepEqual(
    [software.ok, software.device, software.reason],
    [true, 'cpu', 'software-adapter'],
  );
  adapter = null;
  assert.equal((await checkSupport()).reason, 'no-adapter');
});

test("the caller's power preference reaches the adapter that computes", async (t) => {
  const world = gpuWorld();
  const asked: unknown[] = [];
  t.mock.method(gpu, 'requestAdapter', async (options?: GPURequestAdapterOptions) => {
    asked.push(options?.powerPreference);
    return new FakeAdapter();
  });
  await using engine = await world.load({ powerPreference: 'low-power' });
  assert.equal(engine.device, 'webgpu');
  assert.deepEqual(asked, ['low-power', 'low-power']);
});

test('a device is told how to multiply, and says that it has no f16', async (t) => {
  const world = gpuWorld();
  await using plain = await world.load();
  await using halves = await world.load({ tiling: 'small', precision: 'f16' });
  assert.equal(halves.support.message, plain.support.message);
  const adapter = new FakeAdapter();
  adapter.features.clear();
  t.mock.method(gpu, 'requestAdapter', async () => adapter);
  await using exact = await world.load({ precision: 'f16' });
  assert.match(exact.support.message, / Products are in f32: this device has no f16\.$/);
  assert.deepEqual(world.webgpu.products, [
    ['auto', 'f32'],
    ['small', 'f16'],
    ['auto', 'f16'],
  ]);
  await assert.rejects(world.load({ tiling: 'tiny' as 'small' }), { field: 'tiling' });
  const untiled = world.load({ tiling: 'direct', precision: 'f16' });
  await assert.rejects(untiled, { code: 'invalid-argument', field: 'precision' });
});

test('a GPU that is lost under a job is replaced, and the job runs once more', async () => {
  const world = gpuWorld();
  await using engine = await world.load();
  assert.equal(engine.device, 'webgpu');
  const events: string[] = [];
  engine.addEventListener('lost', ({ detail }) => events.push(`lost: ${detail.reason}`));
  engine.addEventListener('recovered', ({ type }) => events.push(type));
  world.webgpu.beforeStep = () => {
    world.webgpu.beforeStep = async () => {};
    devices.at(-1)?.lose('driver reset');
    // What waits for a lost GPU may wait for ever.
    return new Promise(() => {});
  };
  const result = await engine.generate({ prompt: 'a', format: 'blob' });
  assert.equal(result.images.length, 1);
  assert.deepEqual(events, ['lost: driver reset', 'recovered']);
  assert.deepEqual(world.webgpu.prompts, ['a', 'a']);
  assert.equal(world.server.shardRequests, 2, 'the second worker loads from the cache');
});

test('a job that loses the GPU twice fails, and the next one runs', async () => {
  const world = gpuWorld();
  await using engine = await world.load();
  world.webgpu.beforeStep = () => {
    devices.at(-1)?.lose('driver reset');
    return new Promise(() => {});
  };
  const job = engine.generate({ prompt: 'a' });
  await assert.rejects(job, { code: 'device-lost', retryable: true, message: /driver reset/ });
  world.webgpu.beforeStep = async () => {};
  await engine.generate({ prompt: 'b', format: 'blob' });
});

test('errors that WebGPU reports to nobody fail the job', async () => {
  const world = gpuWorld();
  await using engine = await world.load();
  let error: Error = new Error('invalid module');
  const stages = new Set<Stage>();
  world.webgpu.beforeStep = async (stage) => {
    stages.add(stage);
    if (stage === 'prior') devices.at(-1)?.report(error);
  };
  const generate = () => engine.generate({ prompt: 'a', format: 'blob' });
  await assert.rejects(generate(), { code: 'shader', message: /invalid module/ });
  assert.deepEqual([...stages], ['text', 'prior'], 'nothing is computed after the error');
  error = new FakeOutOfMemory('no memory');
  await assert.rejects(generate(), { code: 'out-of-memory' });
  world.webgpu.beforeStep = async () => {};
  await generate();
});

test('a device that was asked for is the one that is told', async () => {
  await using engine = await gpuWorld().load({ device: 'cpu' });
  const { device, message } = engine.support;
  assert.deepEqual([engine.device, device], ['cpu', 'cpu']);
  assert.equal(message, 'Pictures are computed by the CPU, as it was asked for.');
});

test('a load that loses its GPU stops, and only that on the CPU goes on', async () => {
  const world = gpuWorld();
  const late = deferred<Response>();
  world.server.answers.set(FIRST, () => {
    devices.at(-1)?.lose('driver reset');
    world.server.answers.set(FIRST, () => new Response(SHARDS[0]));
    return late.promise;
  });
  await using engine = await world.load();
  assert.equal(engine.device, 'cpu');
  late.resolve(new Response(SHARDS[0]));
  await new Promise((resolve) => setTimeout(resolve, 50));
  assert.deepEqual([world.cpu.shards, world.webgpu.shards], [SHARDS, []]);
});

test('a GPU that computes wrongly is left for the CPU, unless it is forced', async () => {
  const world = gpuWorld();
  world.webgpu.selfTestOk = false;
  await using engine = await world.load();
  assert.deepEqual([engine.device, engine.support.device], ['cpu', 'cpu']);
  assert.match(engine.support.message, /the self-test failed: prior is off by 0\.5/);
  await assert.rejects(world.load({ device: 'webgpu' }), { code: 'shader' });
});

test('a GPU that fails in any way is left for the CPU, with its reason; forced, it is an error', async () => {
  const reject = (error: unknown) => async () => {
    throw error;
  };
  const failures: [string, () => Promise<void>, RegExp][] = [
    ['unsupported', reject(new DOMException('a limit is too high', 'OperationError')), /too high/],
    ['unsupported', reject(new WebAssembly.RuntimeError('unreachable')), /unreachable/],
    ['unsupported', reject(new TypeError('info is undefined')), /info is undefined/],
    ['unsupported', reject('a text'), /a text/],
    ['shader', reject(Object.assign(new Error('too small'), { code: 'shader' })), /too small/],
    [
      'device-lost',
      async () => {
        await (await gpu.requestAdapter())?.requestDevice();
        devices.at(-1)?.lose('driver reset');
      },
      /went away: driver reset/,
    ],
  ];
  for (const [code, openDevice, message] of failures) {
    const world = gpuWorld();
    world.webgpu.openDevice = openDevice;
    await using engine = await world.load();
    assert.deepEqual([engine.device, engine.support.device], ['cpu', 'cpu']);
    assert.match(engine.support.message, message);
    assert.match(engine.support.message, /^The GPU cannot be used \(.*\), so the CPU computes\.$/);
    await engine.generate({ prompt: 'a', format: 'blob' });
    await assert.rejects(world.load({ device: 'webgpu' }), (error: any) => {
      assert.deepEqual([error.name, error.code], ['WuerstchenError', code]);
      assert.ok(error.hint || code === 'shader');
      return true;
    });
  }
});

test("the browser's own words tell why there is no device", async (t) => {
  const world = gpuWorld();
  t.mock.method(FakeAdapter.prototype, 'requestDevice', async () => {
    throw new DOMException('a limit is too high', 'OperationError');
  });
  const { openDevice } = world.webgpu;
  world.webgpu.openDevice = () =>
    openDevice().catch(() => {
      throw new Error('JsValue(OperationError)');
    });
  await using engine = await world.load();
  assert.match(engine.support.message, /WebGPU gives no device: a limit is too high\)/);
});

test('a panic while the model goes to the GPU leaves it for the CPU', async (t) => {
  const world = gpuWorld();
  const build = world.webgpu.build;
  t.mock.method(world.webgpu, 'build', () => {
    const made = build.call(world.webgpu);
    t.mock.method(made.module.Loader.prototype, 'finish', () => {
      throw new WebAssembly.RuntimeError('unreachable');
    });
    t.mock.method(made.module.Loader.prototype, 'free', () => assert.fail('after a panic'));
    return made;
  });
  await using engine = await world.load();
  assert.equal(engine.device, 'cpu');
});

test('a model that is damaged is so on the CPU, too', async () => {
  const world = gpuWorld();
  world.server.answers.set(SHARD_URLS[0] ?? '', () => new Response(new Uint8Array(3000)));
  await assert.rejects(world.load(), { code: 'integrity' });
  assert.equal(world.server.asked.filter((url) => url === SHARD_URLS[0]).length, 1);
});

test('adapters that lack members, and requests for them that fail, are no failure of support', async (t) => {
  const adapter = new FakeAdapter();
  const found: [unknown, string, RegExp][] = [
    [Object.create(adapter, { info: { value: undefined } }), 'webgpu', /by the GPU/],
    [Object.create(adapter, { features: { value: undefined } }), 'webgpu', /by the GPU/],
    [Object.create(adapter, { limits: { value: undefined } }), 'webgpu', /by the GPU/],
    [Promise.reject(new Error('driver is too old')), 'cpu', /driver is too old/],
    [null, 'cpu', /finds no GPU/],
    [undefined, 'cpu', /finds no GPU/],
  ];
  for (const [answer, device, message] of found) {
    t.mock.method(gpu, 'requestAdapter', async () => answer);
    const support = await checkSupport();
    assert.deepEqual([support.ok, support.device], [true, device]);
    assert.match(support.message, message);
  }
  t.mock.method(gpu, 'requestAdapter', () => {
    throw new TypeError('odd');
  });
  assert.equal((await checkSupport()).reason, 'no-adapter');
});

test('a GPU that never answers is given up', async (t) => {
  t.mock.timers.enable({ apis: ['setTimeout'] });
  t.mock.method(gpu, 'requestAdapter', () => {
    queueMicrotask(() => t.mock.timers.tick(60_000));
    return new Promise(() => {});
  });
  const { device, message } = await checkSupport();
  assert.equal(device, 'cpu');
  assert.match(message, /has not answered for 60 s/);
});
