// `device: 'auto'` where there is a GPU, and WebGPU fails in one way or another: the CPU computes, and
// the message says why.

import assert from 'node:assert/strict';
import { after, before, test } from 'node:test';
import type { Browser } from 'playwright-core';
import { launch, openPage, Site, web } from './site.ts';

/** The software GPU passes for a hardware one. */
const HARDWARE = `Object.defineProperty(GPUAdapter.prototype, 'info', { configurable: true,
  value: { vendor: 'acme', architecture: '', device: '', description: 'Acme' } });`;

/** Runs `then` with each device, `made`, before WebAssembly has it. */
const onDevice = (then: string) => `const { requestDevice } = GPUAdapter.prototype;
  GPUAdapter.prototype.requestDevice = async function (descriptor) {
    const made = await requestDevice.call(this, descriptor);
    ${then};
    return made;
  };`;

const lacking = (type: string, member: string) =>
  `Object.defineProperty(${type}.prototype, '${member}', { value: undefined });`;

/** How WebGPU fails, and what the message says of it. */
const FAILURES: readonly [name: string, script: string, message: RegExp][] = [
  ['no adapter', 'navigator.gpu.requestAdapter = async () => null;', /finds no GPU/],
  [
    'a driver that rejects the request for an adapter',
    "navigator.gpu.requestAdapter = () => Promise.reject(new Error('too old'));",
    /finds no GPU .*too old/,
  ],
  [
    'a driver that rejects the request for a device',
    `${HARDWARE} GPUAdapter.prototype.requestDevice = () => Promise.reject(new Error('too much'));`,
    /cannot be used \(WebGPU gives no device: too much\)/,
  ],
  [
    'adapters without information',
    `${lacking('GPUAdapter', 'info')}
    GPUAdapter.prototype.requestDevice = () => Promise.reject(new Error('too much'));`,
    /too much/,
  ],
  // These stop WebAssembly in a task that nobody waits for.
  ['adapters without features', HARDWARE + lacking('GPUAdapter', 'features'), /no device: .*'has'/],
  [
    'adapters without limits',
    HARDWARE + lacking('GPUAdapter', 'limits'),
    /no device: .*maxTexture/,
  ],
  [
    'devices without a queue',
    HARDWARE +
      onDevice("Object.defineProperty(made, 'queue', { get() { throw new Error('no queue'); } })"),
    /no queue/,
  ],
  [
    'pipelines that cannot be made',
    `${HARDWARE} GPUDevice.prototype.createComputePipeline = () => { throw new Error('no pipeline'); };`,
    /no pipeline/,
  ],
  ['a device that is lost at once', HARDWARE + onDevice('made.destroy()'), /went away/],
  [
    'a device that is lost while the model is loaded',
    HARDWARE + onDevice('setTimeout(() => made.destroy(), 300)'),
    /went away/,
  ],
  ['a browser without GPUAdapter', `${HARDWARE} delete globalThis.GPUAdapter;`, /GPUAdapter/],
];

let site: Site;
let browser: Browser;

before(async () => {
  site = await Site.open(web);
  browser = await launch();
});

after(async () => {
  await browser.close();
  site.close();
});

for (const [name, script, message] of FAILURES) {
  for (const place of ['page', 'worker']) {
    test(`${name}, in a ${place}`, async () => {
      const context = await browser.newContext();
      await context.route('**/dist/worker.js', async (route) => {
        const response = await route.fetch();
        await route.fulfill({ response, body: `${script}\n${await response.text()}` });
      });
      const page = await openPage(context, site);
      if (place === 'page') await page.evaluate(script);
      const [device, found, images] = await page.evaluate(async (place) => {
        const { load } = (window as any).wuerstchen;
        const worker = place === 'page' ? false : undefined;
        const engine = await load({ model: '/pkg/shapes/manifest.json', worker });
        const job = { prompt: 'a red circle', priorSteps: 1, decoderSteps: 1 };
        const { images } = await engine.generate(job);
        return [engine.device, engine.support.message, images.length];
      }, place);
      assert.deepEqual([device, images], ['cpu', 1]);
      assert.match(found, message);
      await context.close();
    });
  }
}

test('where WebAssembly stops in a job, the job fails and the engine says that it is lost', async () => {
  const page = await openPage(browser, site);
  const outcome = await page.evaluate(async () => {
    const { load, WuerstchenError } = (window as any).wuerstchen;
    const model = '/pkg/shapes/manifest.json';
    const engine = await load({ model, device: 'webgpu', worker: false });
    GPUDevice.prototype.createBindGroup = () => {
      throw new Error('no bind group');
    };
    const job = engine.generate({ prompt: 'a red circle', priorSteps: 1, decoderSteps: 1 });
    const error = await job.catch((reason: unknown) => reason);
    return [error instanceof WuerstchenError, error.message, engine.state];
  });
  assert.deepEqual(outcome, [true, 'no bind group', 'lost']);
  await page.close();
});
