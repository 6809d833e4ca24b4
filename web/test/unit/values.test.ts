import assert from 'node:assert/strict';
import { test } from 'node:test';
import { runInNewContext } from 'node:vm';

import { checkSupport, inspect } from '../../js/index.js';
import { toErrorData } from '../../js/errors.js';
import { toPixels } from '../../js/pixels.js';
import type { GenerateOptions } from '../../js/types.js';
import { deferred, MODEL_URL, SHARD_URLS, World } from './fake.js';

const format = 'blob';

test('a picture that WebAssembly has no memory for is refused', async () => {
  const picture = { width: 12_000, height: 12_000, data: new Uint8Array() };
  await assert.rejects(toPixels(picture, 'image'), {
    code: 'invalid-argument',
    field: 'image',
    message: 'image must have at most 134217728 pixels, got 12000 x 12000',
  });
});

/** A signal as old browsers and libraries have it. */
class PlainSignal extends EventTarget {
  aborted = false;

  abort() {
    this.aborted = true;
    this.dispatchEvent(new Event('abort'));
  }
}

const plainSignal = () => new PlainSignal() as PlainSignal & AbortSignal;
const isAbort = { name: 'AbortError' };

test('pixels of another realm are pixels', async () => {
  const world = new World();
  await using engine = await world.load();
  for (const type of ['Uint8Array', 'Uint8ClampedArray']) {
    const data: Uint8Array = runInNewContext(`new ${type}([1, 2, 3, 4])`);
    assert.ok(!(data instanceof Uint8Array));
    await engine.generate({ prompt: 'a', image: { width: 1, height: 1, data }, format });
    assert.deepEqual([...(world.cpu.request.image?.rgba ?? [])], [1, 2, 3, 4]);
  }
});

test('arrays of another realm are arrays', async () => {
  const world = new World();
  await using engine = await world.load();
  const timesteps = runInNewContext('[1, 0.5, 0]');
  await engine.generate({ prompt: 'a', timesteps, format });
  assert.deepEqual(world.cpu.request.options.timesteps, [1, 0.5, 0]);
});

test('a signal without reason and throwIfAborted aborts a load, a job and a stream', async () => {
  const world = new World();
  const loading = plainSignal();
  world.server.answers.set(SHARD_URLS[0]!, () => {
    loading.abort();
    return new Promise(() => {});
  });
  await assert.rejects(world.load({ signal: loading }), isAbort);
  await assert.rejects(inspect(MODEL_URL, { signal: loading }), isAbort);

  await using engine = await new World().load();
  const run = (start: (options: GenerateOptions) => Promise<unknown>) => {
    const signal = plainSignal();
    const job = start({ prompt: 'a', format, signal });
    signal.abort();
    return assert.rejects(job, isAbort);
  };
  await run((options) => engine.generate(options));
  await run((options) => engine.stream(options).result);
  const aborted = plainSignal();
  aborted.abort();
  await assert.rejects(engine.generate({ prompt: 'a', signal: aborted }), isAbort);
  await assert.rejects(engine.stream({ prompt: 'a', signal: aborted }).result, isAbort);
  await engine.generate({ prompt: 'b', format });
});

test('a signal is not listened to once its job has ended', async () => {
  await using engine = await new World().load();
  const signal = plainSignal();
  let listeners = 0;
  signal.addEventListener = () => void listeners++;
  signal.removeEventListener = () => void listeners--;
  await engine.generate({ prompt: 'a', format, signal });
  await engine.stream({ prompt: 'a', format, signal }).result;
  assert.equal(listeners, 0);
});

test('a stream rejects what is no option as a job does', async () => {
  await using engine = await new World().load();
  const code = 'invalid-argument';
  for (const options of [undefined, null, 5, {}, { prompt: 'a', signal: 5 }]) {
    const stream = engine.stream(options as unknown as GenerateOptions);
    await assert.rejects(stream.result, { name: 'WuerstchenError', code });
    await assert.rejects(
      async () => {
        for await (const _ of stream);
      },
      { code },
    );
  }
});

test('half a pair of surrogates becomes U+FFFD in every text', async () => {
  const world = new World();
  await using engine = await world.load();
  const cut = 'a star \u{1f600}'.slice(0, 8);
  const whole = 'a star \ufffd';
  const job = { prompt: cut, negativePrompt: cut, promptTo: cut, frames: 2, format } as const;
  const { settings } = await engine.generate(job);
  assert.equal(settings.prompt, whole);
  assert.deepEqual(
    [world.cpu.prompts[0], JSON.parse(world.cpu.request.json).promptTo],
    [whole, whole],
  );
  assert.equal(world.cpu.request.options.negativePrompt, whole);
  const fine = '\ufeffschön \u{1f600}';
  await engine.generate({ prompt: fine, format });
  assert.equal(world.cpu.prompts[1], fine);
});

test('what cannot be copied ends its own job, also behind another', async () => {
  const world = new World();
  await using engine = await world.load();
  const gate = deferred();
  world.cpu.beforeStep = () => gate.promise;
  const first = engine.generate({ prompt: 'a', format });
  const data = new Uint8Array(4);
  const pixels = { width: 1, height: 1, data };
  const detached = new Uint8Array(4);
  structuredClone(detached.buffer, { transfer: [detached.buffer] });
  const closed = { [Symbol.toStringTag]: 'ImageBitmap', close() {} } as unknown as ImageBitmap;
  const refused: Partial<GenerateOptions>[] = [
    { image: closed },
    { image: { ...pixels, data: detached } },
    { image: pixels, mask: closed },
    { picturePrompts: [pixels, closed] },
  ];
  const names = ['image', 'image', 'mask', 'picturePrompts'];
  for (const [index, options] of refused.entries()) {
    await assert.rejects(engine.generate({ prompt: 'b', ...options, format }), (error: any) => {
      assert.deepEqual([error.name, error.code], ['WuerstchenError', 'invalid-argument']);
      assert.equal(error.field, names[index]);
      assert.match(error.message, new RegExp(`^${names[index]} `));
      assert.ok(error.hint);
      return true;
    });
  }
  gate.resolve();
  await first;
  assert.equal(engine.state, 'ready');
  await engine.generate({ prompt: 'c', format });
  assert.deepEqual(world.cpu.prompts, ['a', 'c']);
});

test('a picture may be changed and transferred once its job is in the queue', async () => {
  const world = new World();
  await using engine = await world.load();
  const first = engine.generate({ prompt: 'a', format });
  const data = new Uint8Array(4).fill(7);
  const second = engine.generate({ prompt: 'b', image: { width: 1, height: 1, data }, format });
  structuredClone(data.buffer, { transfer: [data.buffer] });
  await Promise.all([first, second]);
  assert.deepEqual([...(world.cpu.request.image?.rgba ?? [])], [7, 7, 7, 7]);
});

test('pixels are copied from proxies, accessors, and a part of a large memory', async () => {
  const world = new World();
  await using engine = await world.load();
  const memory = new ArrayBuffer(2 ** 24);
  const data = new Uint8Array(memory, 400, 4).fill(7);
  const pixels = { width: 1, height: 1, data, clone() {} };
  class Picture {
    get width() {
      return 1;
    }
    get height() {
      return 1;
    }
    get data() {
      return data;
    }
  }
  for (const image of [pixels, new Proxy(pixels, {}), new Picture()]) {
    await engine.generate({ prompt: 'a', image, timesteps: new Proxy([1, 0], {}), format });
    const rgba = world.cpu.request.image?.rgba;
    assert.deepEqual([...(rgba ?? [])], [7, 7, 7, 7]);
    assert.equal(rgba?.buffer.byteLength, 4);
  }
});

test('options are read once', async () => {
  const world = new World();
  await using engine = await world.load();
  let reads = 0;
  const options = { prompt: 'a', format } as GenerateOptions;
  Object.defineProperty(options, 'seed', { enumerable: true, get: () => (reads++ ? 'x' : 1) });
  assert.equal((await engine.generate(options)).seed, 1n);
});

test('what cannot be looked at is refused by the name of its option', async () => {
  await using engine = await new World().load();
  const { proxy, revoke } = Proxy.revocable({}, {});
  revoke();
  const refusal = { code: 'invalid-argument', field: 'image' };
  await assert.rejects(engine.generate({ prompt: 'a', image: proxy as Blob }), refusal);
  const model = { length: 2 ** 32 } as unknown as FileList;
  const noModel = { code: 'invalid-argument', field: 'model' };
  await assert.rejects(new World().load({ model }), noModel);
  await assert.rejects(new World().load({ lora: [,] as never }), { ...noModel, field: 'lora' });
  const holes = { ...refusal, field: 'picturePrompts' };
  await assert.rejects(engine.generate({ prompt: 'a', picturePrompts: [,] as never }), holes);
  await assert.rejects(inspect(MODEL_URL, null as never), { code: 'invalid-argument' });
  await assert.rejects(checkSupport({ powerPreference: 'x' as never }), {
    code: 'invalid-argument',
    field: 'powerPreference',
  });
});

test('a job for which memory lacks on its way ends alone', async () => {
  const world = new World();
  await using engine = await world.load();
  const [worker] = world.workers;
  assert.ok(worker);
  const post = worker.postMessage;
  worker.postMessage = () => {
    throw new DOMException('out of memory', 'DataCloneError');
  };
  await assert.rejects(engine.generate({ prompt: 'a' }), { code: 'out-of-memory' });
  worker.postMessage = post;
  assert.equal(engine.state, 'ready');
  await engine.generate({ prompt: 'b', format });
});

test('values that cannot be shown as text are refused by the name of their option', async () => {
  await using engine = await new World().load();
  const nothing = Object.create(null);
  for (const value of [nothing, Symbol('x'), () => {}, [nothing]]) {
    const options = { prompt: 'a', width: value } as unknown as GenerateOptions;
    const message = /^width must be a whole number below 2\^32, got /;
    const refusal = { code: 'invalid-argument', field: 'width', message };
    await assert.rejects(engine.generate(options), refusal);
  }
});

test('whatever can be thrown gets a code and a message', () => {
  const thrown: [unknown, string][] = [
    [Object.create(null), '[object Object]'],
    [Symbol('x'), 'Symbol(x)'],
    [undefined, 'undefined'],
    ['text', 'text'],
    [runInNewContext('new TypeError("elsewhere")'), 'elsewhere'],
  ];
  for (const [value, message] of thrown) {
    const { code, message: found, hint } = toErrorData(value);
    assert.deepEqual([code, found, typeof hint], ['internal', message, 'string']);
  }
  const coded = runInNewContext('Object.assign(new Error("big"), { code: "quota" })');
  assert.equal(toErrorData(coded).code, 'quota');
});
