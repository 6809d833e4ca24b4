// The React hook without a page: its functions work in a rendering on the server, where no state is kept.

import assert from 'node:assert/strict';
import { test } from 'node:test';

import { createElement } from 'react';
import { renderToString } from 'react-dom/server.edge';

import { useWuerstchen, type UseWuerstchen } from '../../js/react.js';
import type { LoadOptions } from '../../js/types.js';
import { deferred, MODEL_URL, SHARD_URLS, World } from './fake.js';

/** What the hook gives to a component. */
function hookOf(world: World, options: Partial<LoadOptions> = {}): UseWuerstchen {
  let hook: UseWuerstchen | undefined;
  function Component() {
    const { cache, makeWorker: worker } = world;
    hook = useWuerstchen({ model: MODEL_URL, cache, worker, ...options });
    return null;
  }
  renderToString(createElement(Component));
  assert.ok(hook);
  return hook;
}

/** Holds the load at a shard until it is released. */
function holdLoad(world: World) {
  const reached = deferred();
  const gate = deferred();
  const url = SHARD_URLS[0]!;
  const answer = world.server.answers.get(url)!;
  world.server.answers.set(url, async () => {
    reached.resolve();
    await gate.promise;
    return answer();
  });
  return { reached: reached.promise, release: () => gate.resolve() };
}

const job = (prompt: string) => ({ prompt, format: 'blob', preview: false }) as const;

const end = (world: World) => world.workers.forEach((worker) => worker.terminate());

test('a call that takes the place of another one while the model loads uses the same load', async () => {
  const world = new World();
  const { reached, release } = holdLoad(world);
  const { generate, stop } = hookOf(world);
  const first = generate(job('a'));
  await reached;
  const own = new AbortController();
  const second = generate({ ...job('b'), signal: own.signal });
  assert.equal(await first, undefined, 'it ends before the load does');
  own.abort();
  assert.equal(await second, undefined);
  const third = generate(job('c'));
  release();
  assert.equal((await third)?.settings.prompt, 'c');
  // The model is loaded, so that only pictures can be stopped.
  stop();
  assert.equal((await generate(job('d')))?.settings.prompt, 'd');
  assert.deepEqual([world.workers.length, world.cpu.prompts], [1, ['c', 'd']]);
  end(world);
});

test('a stop ends the load, and the next call begins another one', async () => {
  const world = new World();
  const { reached, release } = holdLoad(world);
  const { generate, stop } = hookOf(world);
  const stopped = generate(job('a'));
  await reached;
  stop();
  assert.equal(await stopped, undefined);
  release();
  assert.equal((await generate(job('b')))?.settings.prompt, 'b');
  assert.deepEqual(
    world.workers.map((worker) => worker.isTerminated),
    [true, false],
  );
  end(world);
});

test('a call whose signal is aborted begins no load', async () => {
  const world = new World();
  const { generate } = hookOf(world);
  assert.equal(await generate({ ...job('a'), signal: AbortSignal.abort() }), undefined);
  assert.equal(world.workers.length, 0);
});

test('an engine in a worker that recovers is kept', async () => {
  const world = new World();
  const { generate } = hookOf(world);
  world.cpu.beforeStep = async () => {
    throw new WebAssembly.RuntimeError('unreachable');
  };
  assert.equal(await generate(job('a')), undefined);
  world.cpu.beforeStep = async () => {};
  assert.equal((await generate(job('b')))?.settings.prompt, 'b');
  assert.deepEqual(
    world.workers.map((worker) => worker.isTerminated),
    [true, false],
    'the fresh worker has made the picture',
  );
  end(world);
});
