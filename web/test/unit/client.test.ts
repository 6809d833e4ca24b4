import assert from 'node:assert/strict';
import { test } from 'node:test';

import type { GenerateEvent, Stage } from '../../js/types.js';
import { deferred, WASM_URL, World } from './fake.js';

/** Holds the first job at its first step of the prior. */
function hold(world: World) {
  const reached = deferred();
  const gate = deferred();
  world.cpu.beforeStep = async (stage: Stage) => {
    if (stage !== 'prior') return;
    reached.resolve();
    await gate.promise;
  };
  return { reached: reached.promise, release: () => gate.resolve() };
}

const isAbort = { name: 'AbortError' };

test('jobs run one at a time in their order and tell their positions', async () => {
  const world = new World();
  await using engine = await world.load();
  const { reached, release } = hold(world);
  const positions: Record<string, number[]> = { b: [], c: [] };
  const generate = (prompt: string) =>
    engine.generate({
      prompt,
      format: 'blob',
      onProgress: (event) => event.type === 'queued' && positions[prompt]?.push(event.position),
    });
  const jobs = ['a', 'b', 'c'].map(generate);
  await reached;
  assert.deepEqual(world.cpu.prompts, ['a']);
  assert.equal(engine.state, 'busy');
  release();
  await Promise.all(jobs);
  assert.deepEqual(world.cpu.prompts, ['a', 'b', 'c']);
  assert.deepEqual(positions, { b: [1], c: [2, 1] });
  assert.equal(engine.state, 'ready');
});

test('a job tells its stages and steps up to the whole', async () => {
  await using engine = await new World().load();
  const events: GenerateEvent[] = [];
  await engine.generate({ prompt: 'a', format: 'blob', onProgress: (event) => events.push(event) });
  const stages = events.flatMap((event) => (event.type === 'stage' ? event.stage : []));
  assert.deepEqual(stages, ['text', 'prior', 'decoder', 'vqgan']);
  const overall = events.flatMap((event) => (event.type === 'step' ? event.overall : []));
  assert.deepEqual(
    overall,
    [1, 2, 3, 4, 5, 6, 7, 8].map((done) => done / 8),
  );
});

test('a result has the picture, the settings and the intermediates', async () => {
  const world = new World();
  await using engine = await world.load();
  const seed = 2n ** 64n - 1n;
  const options = {
    prompt: 'a',
    seed,
    format: 'blob',
    intermediates: true,
    priorSteps: 3,
  } as const;
  const result = await engine.generate(options);
  assert.equal(
    world.cpu.request.json,
    '{"prompts":["a"],"options":{"seed":18446744073709551615,"priorSteps":3}}',
  );
  assert.equal(result.seed, seed);
  assert.deepEqual(result.settings, { prompt: 'a', seed, priorSteps: 3 });
  assert.deepEqual(result.unread, { unknownWords: ['zebra'] });
  assert.deepEqual([result.width, result.height], [64, 32]);
  const [image] = result.images;
  assert.ok(image instanceof Blob && image.type === 'image/png' && image.size === 4);
  assert.deepEqual(result.intermediates?.imageEmbedding.shape, [1, 2, 1, 1]);
  assert.deepEqual(result.intermediates?.imageEmbedding.values, new Float32Array([0.25, 0.5]));
});

test('a seed is drawn where none is given, and told', async () => {
  const world = new World();
  await using engine = await world.load();
  const { seed } = await engine.generate({ prompt: 'a', format: 'blob' });
  assert.match(world.cpu.request.json, new RegExp(`"options":{"seed":${seed}}}$`));
  const other = await engine.generate({ prompt: 'a', format: 'blob' });
  assert.notEqual(seed, other.seed);
});

test('aborting a running job rejects it at once, and the next job runs', async () => {
  const world = new World();
  await using engine = await world.load();
  const { reached, release } = hold(world);
  const controller = new AbortController();
  const aborted = engine.generate({ prompt: 'a', format: 'blob', signal: controller.signal });
  await reached;
  const next = engine.generate({ prompt: 'b', format: 'blob' });
  controller.abort();
  await assert.rejects(aborted, isAbort);
  assert.deepEqual(world.cpu.prompts, ['a']);
  release();
  assert.equal((await next).images.length, 1);
  assert.deepEqual(world.cpu.prompts, ['a', 'b']);
});

test('an abort stops the steps of the job', async () => {
  const world = new World();
  await using engine = await world.load();
  const controller = new AbortController();
  const steps: string[] = [];
  world.cpu.beforeStep = async (stage, step) => void steps.push(`${stage} ${step}`);
  const job = engine.generate({
    prompt: 'a',
    format: 'blob',
    signal: controller.signal,
    onProgress: (event) => event.type === 'step' && event.stage === 'prior' && controller.abort(),
  });
  await assert.rejects(job, isAbort);
  await engine.generate({ prompt: 'b', format: 'blob' });
  // How far the first one came depends on when the message arrives, but it did not end.
  assert.equal(steps.filter((step) => step === 'vqgan 1').length, 1);
});

test('aborting a queued job takes it out of the queue, with the reason of the signal', async () => {
  const world = new World();
  await using engine = await world.load();
  const { reached, release } = hold(world);
  const first = engine.generate({ prompt: 'a', format: 'blob' });
  await reached;
  const controller = new AbortController();
  const queued = engine.generate({ prompt: 'b', format: 'blob', signal: controller.signal });
  const reason = new RangeError('changed my mind');
  controller.abort(reason);
  await assert.rejects(queued, (error) => error === reason);
  release();
  await first;
  await engine.generate({ prompt: 'c', format: 'blob' });
  assert.deepEqual(world.cpu.prompts, ['a', 'c']);
});

test('a stream yields the events and has the result', async () => {
  await using engine = await new World().load();
  const stream = engine.stream({ prompt: 'a', format: 'blob' });
  const types: string[] = [];
  for await (const { type } of stream) types.push(type);
  assert.equal(types.filter((type) => type === 'step').length, 8);
  assert.equal((await stream.result).images.length, 1);
});

test('leaving a stream aborts its job', async () => {
  const world = new World();
  await using engine = await world.load();
  const gate = deferred();
  world.cpu.beforeStep = (stage) => (stage === 'vqgan' ? gate.promise : Promise.resolve());
  const stream = engine.stream({ prompt: 'a', format: 'blob' });
  for await (const event of stream) if (event.type === 'step') break;
  await assert.rejects(stream.result, isAbort);
  gate.resolve();
  await engine.generate({ prompt: 'b', format: 'blob' });
  assert.deepEqual(world.cpu.prompts, ['a', 'b']);
});

test('disposing rejects what is running and what waits, and ends the worker', async () => {
  const world = new World();
  const engine = await world.load();
  const { reached } = hold(world);
  const jobs = ['a', 'b'].map((prompt) => engine.generate({ prompt, format: 'blob' }));
  const ends = jobs.map((job) => assert.rejects(job, { code: 'disposed' }));
  await reached;
  await engine.dispose();
  await Promise.all(ends);
  assert.equal(engine.state, 'disposed');
  assert.equal(world.workers[0]?.isTerminated, true);
  await assert.rejects(engine.generate({ prompt: 'c' }), { code: 'disposed' });
});

test('errors of the WebAssembly keep their code, field and message over the thread border', async () => {
  const world = new World();
  await using engine = await world.load();
  const message = 'width must be a size that the model can make, the nearest being 64 and 96';
  world.cpu.beforeStep = async () => {
    throw Object.assign(new Error(message), { code: 'invalid-argument', field: 'width' });
  };
  const job = engine.generate({ prompt: 'a', width: 70 });
  await assert.rejects(job, {
    name: 'WuerstchenError',
    code: 'invalid-argument',
    field: 'width',
    message,
    retryable: false,
  });
  world.cpu.beforeStep = async () => {};
  await engine.generate({ prompt: 'b', format: 'blob' });
});

test('after a panic a fresh worker takes over', async () => {
  const world = new World();
  await using engine = await world.load();
  world.cpu.beforeStep = async () => {
    throw new WebAssembly.RuntimeError('unreachable');
  };
  await assert.rejects(engine.generate({ prompt: 'a' }), { code: 'internal' });
  assert.equal(engine.state, 'lost');
  world.cpu.beforeStep = async () => {};
  await engine.generate({ prompt: 'b', format: 'blob' });
  assert.deepEqual(
    world.workers.map((worker) => worker.isTerminated),
    [true, false],
  );
  assert.equal(world.server.shardRequests, 2, 'the second worker loads from the cache');
});

test('a worker that cannot be replaced fails the jobs, and the next job tries again', async () => {
  const world = new World();
  await using engine = await world.load();
  const events: string[] = [];
  for (const type of ['lost', 'recovered'] as const) {
    engine.addEventListener(type, () => events.push(type));
  }
  const { answers } = world.server;
  const wasm = answers.get(WASM_URL)!;
  const panic = async () => {
    throw new WebAssembly.RuntimeError('unreachable');
  };
  answers.set(WASM_URL, () => new Response('', { status: 404 }));
  world.cpu.beforeStep = panic;
  const generate = (prompt: string) => engine.generate({ prompt, format: 'blob' });
  const ends = [
    assert.rejects(generate('a'), { code: 'internal' }),
    assert.rejects(generate('b'), { code: 'network' }),
  ];
  await Promise.all(ends);
  await assert.rejects(generate('c'), { code: 'network' });
  assert.deepEqual([engine.state, events], ['lost', ['lost']]);
  answers.set(WASM_URL, wasm);
  world.cpu.beforeStep = async () => {};
  await Promise.all([generate('d'), generate('e')]);
  assert.deepEqual([engine.state, events], ['ready', ['lost', 'recovered']]);
  assert.equal(world.workers.length, 4, 'one of the load, and one of each attempt');
});

test('an engine in the calling thread stays lost, and is not freed by WebAssembly that has stopped', async () => {
  const world = new World();
  const ended = deferred();
  const engine = await world.loadHere({}, ended.resolve);
  world.cpu.beforeStep = async () => {
    throw new WebAssembly.RuntimeError('unreachable');
  };
  await assert.rejects(engine.generate({ prompt: 'a' }), { code: 'internal' });
  await ended.promise;
  await assert.rejects(engine.generate({ prompt: 'b' }), { code: 'internal' });
  assert.deepEqual([engine.state, world.cpu.freed], ['lost', 0]);

  const other = deferred();
  await (await world.loadHere({}, other.resolve)).dispose();
  await other.promise;
  assert.equal(world.cpu.freed, 1);
});

test('a picture to start from reaches the engine with its mask', async () => {
  const world = new World();
  await using engine = await world.load();
  const data = new Uint8ClampedArray(2 * 3 * 4).fill(5);
  const image = { width: 2, height: 3, data };
  const mask = { width: 2, height: 3, data: new Uint8Array(24).fill(255) };
  await engine.generate({ prompt: 'a', image, mask, strength: 0.5, format: 'blob' });
  const { request } = world.cpu;
  assert.deepEqual([request.image?.width, [...(request.image?.rgba ?? [])]], [2, [...data]]);
  assert.deepEqual([request.mask?.width, [...(request.mask?.rgba ?? [])]], [2, [...mask.data]]);
  assert.equal(request.options.strength, 0.5);
  await engine.generate({ prompt: 'a', format: 'blob' });
  assert.equal(world.cpu.request.image, undefined);

  await assert.rejects(engine.generate({ prompt: 'a', image: { ...image, width: 4 } }), {
    code: 'invalid-argument',
    message: /^image must be a Blob, an ImageBitmap or an ImageData/,
  });
});

test('pictures reach the engine as a part of the prompt', async () => {
  const world = new World();
  await using engine = await world.load();
  const picture = (value: number) => ({ width: 1, height: 1, data: new Uint8Array(4).fill(value) });
  const picturePrompts = [picture(1), picture(2)];
  await engine.generate({ prompt: '', picturePrompts, recipe: 'authors', format: 'blob' });
  const found = world.cpu.request.picturePrompts.map(({ rgba }) => rgba);
  assert.deepEqual(
    found,
    picturePrompts.map(({ data }) => data),
  );
  assert.equal(world.cpu.request.options.recipe, 'authors');
  await engine.generate({ prompt: 'a', format: 'blob' });
  assert.deepEqual(world.cpu.request.picturePrompts, []);
  await assert.rejects(engine.generate({ prompt: 'a', picturePrompts: [] }), {
    code: 'invalid-argument',
    message: /^picturePrompts must be an array of Blobs, ImageBitmaps or ImageData/,
  });
});

test('a picture to follow reaches the engine with its mask and its scale', async () => {
  const world = new World();
  await using engine = await world.load();
  const picture = (value: number) => ({ width: 1, height: 1, data: new Uint8Array(4).fill(value) });
  const [controlImage, controlMask] = [picture(1), picture(2)];
  const control = { controlImage, controlMask, controlScale: 0.5 };
  await engine.generate({ prompt: 'a', ...control, format: 'blob' });
  const { request } = world.cpu;
  assert.deepEqual(request.controlImage?.rgba, controlImage.data);
  assert.deepEqual(request.controlMask?.rgba, controlMask.data);
  assert.equal(request.options.controlScale, 0.5);
  await assert.rejects(engine.generate({ prompt: 'a', controlImage: 'photo.png' as never }), {
    code: 'invalid-argument',
    message: /^controlImage must be a Blob, an ImageBitmap or an ImageData/,
  });
});

test('frames reach the engine with where they go', async () => {
  const world = new World();
  await using engine = await world.load();
  const picture = (value: number) => ({ width: 1, height: 1, data: new Uint8Array(4).fill(value) });
  const [image, imageTo] = [picture(1), picture(2)];
  const way = { promptTo: 'b', frames: 3, imageTo };
  await engine.generate({ prompt: 'a', image, ...way, format: 'blob' });
  const { promptTo, frames } = JSON.parse(world.cpu.request.json);
  assert.deepEqual([promptTo, frames], ['b', 3]);
  assert.deepEqual(world.cpu.request.imageTo?.rgba, imageTo.data);
  assert.deepEqual(Object.keys(world.cpu.request.options), ['seed']);

  await assert.rejects(engine.generate({ prompt: 'a', promptTo: 2 as never }), {
    code: 'invalid-argument',
    message: /promptTo must be a string/,
  });
});

test('unknown options and wrong types are named', async () => {
  await using engine = await new World().load();
  const code = 'invalid-argument';
  const generate = (options: object) => engine.generate(options as { prompt: string });
  const none = { code, field: 'prompt', message: 'prompt must be a string, got undefined' };
  await assert.rejects(generate({}), none);
  await assert.rejects(generate({ prompt: 'a', guidance: 4 }), {
    code,
    field: 'guidance',
    message: 'there is no option "guidance"',
  });
  await assert.rejects(generate({ prompt: 'a', width: NaN }), {
    code,
    message: 'width must be a whole number below 2^32, got NaN',
  });
  await assert.rejects(generate({ prompt: 'a', seed: 2n ** 64n }), { code });
  const pixels = (width: unknown, height: unknown, length: number) => ({
    width,
    height,
    data: new Uint8Array(length),
  });
  const wrong: [string, unknown][] = [
    ['image', pixels(0.5, 32, 64)],
    ['image', pixels(-2, -2, 16)],
    ['mask', pixels('2', '2', 16)],
    ['count', 2 ** 32],
    ['timesteps', Object.assign(new Array<number>(3), { 0: 1, 2: 0 })],
    ['preview', { evry: 2 }],
  ];
  for (const [field, value] of wrong) {
    await assert.rejects(generate({ prompt: 'a', [field]: value }), { code, field });
  }
  for (const wasmUrl of [{ cpuWasm: 'x' }, ['x'], { cpu: null }]) {
    const options = { wasmUrl } as unknown as { wasmUrl: { cpu: string } };
    await assert.rejects(new World().load(options), { code, field: 'wasmUrl' });
  }
  await assert.rejects(new World().load({ fetch }), { code, message: /worker: false/ });
});
