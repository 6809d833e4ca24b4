// Several threads on the CPU: the same pictures, and what happens where there can be only one.

import assert from 'node:assert/strict';
import { after, before, test } from 'node:test';
import type { Browser, Page } from 'playwright-core';
import { Cdn, launch, openPage, Site, web } from './site.ts';

let site: Site;
let cdn: Cdn;
let browser: Browser;

before(async () => {
  site = await Site.open(web);
  cdn = await Cdn.open();
  browser = await launch();
});

after(async () => {
  await browser.close();
  site.close();
  cdn.close();
});

interface Made {
  readonly threads: number;
  readonly message: string;
  /** Colours of all pictures, four bytes a pixel. */
  readonly colours: readonly number[];
}

/** Loads a model on the CPU and makes a picture; `generate` has more options, with `start` from a grey picture. */
function make(
  page: Page,
  load: object,
  generate: { readonly start?: boolean; readonly [option: string]: unknown } = {},
): Promise<Made | string> {
  return page.evaluate(
    async ({ load, generate }) => {
      const { start, ...options } = generate;
      try {
        const engine = await (window as any).wuerstchen.load({
          model: '/pkg/model/manifest.json',
          device: 'cpu',
          cache: 'none',
          ...load,
        });
        const { width, height } = engine.info.defaults;
        const image = new ImageData(new Uint8ClampedArray(4 * width * height).fill(200), width);
        const { images } = await engine.generate({
          prompt: 'a red apple and a cat face',
          seed: 3,
          priorSteps: 4,
          decoderSteps: 2,
          format: 'imageData',
          ...(start ? { image, strength: 0.9 } : {}),
          ...options,
        });
        const { threads, message } = engine.support;
        await engine.dispose();
        const colours = images.flatMap(({ data }: ImageData) => Array.from(data));
        return { threads, message, colours };
      } catch (error: any) {
        return `${error.code}: ${error.message}`;
      }
    },
    { load, generate },
  );
}

for (const [name, generate] of [
  ['a picture', {}],
  ['three pictures of another size', { count: 3, width: 80, height: 48 }],
  ['a picture from a picture, whose code is fetched late', { start: true }],
] as const) {
  test(`${name} is the same on any number of threads`, async () => {
    const page = await openPage(browser, site);
    const one = await make(page, { threads: 1 }, generate);
    assert.ok(typeof one === 'object', String(one));
    assert.equal(one.threads, 1);
    assert.ok(new Set(one.colours).size > 20, 'the picture is empty');
    for (const threads of [2, 3]) {
      const several = await make(page, { threads }, generate);
      assert.ok(typeof several === 'object', String(several));
      assert.equal(several.threads, threads, several.message);
      assert.deepEqual(several.colours, one.colours);
    }
    await page.close();
  });
}

test('without the option there are as many threads as processors', async () => {
  const page = await openPage(browser, site);
  const processors = await page.evaluate(() => navigator.hardwareConcurrency);
  const made = await make(page, {});
  assert.ok(typeof made === 'object', String(made));
  assert.equal(made.threads, Math.min(processors, 8));
  assert.doesNotMatch(made.message, /thread/);
  await page.close();
});

test('threads start with a cache of the caller, too', async () => {
  const page = await openPage(browser, site);
  const result = await page.evaluate(async () => {
    const files = new Map<string, Uint8Array>();
    const engine = await (window as any).wuerstchen.load({
      model: '/pkg/model/manifest.json',
      device: 'cpu',
      threads: 2,
      cache: {
        get: async (name: string) => files.get(name),
        put: async (name: string, bytes: Uint8Array) => void files.set(name, bytes),
        delete: async (name: string) => void files.delete(name),
        list: async () => Array.from(files, ([name, { length }]) => ({ name, bytes: length })),
      },
    });
    const { threads, message } = engine.support;
    await engine.dispose();
    return { threads, message, stored: files.size > 0 };
  });
  assert.deepEqual([result.threads, result.stored], [2, true], result.message);
  await page.close();
});

test('a number of threads out of range is refused', async () => {
  const page = await openPage(browser, site);
  for (const threads of [0, 65]) {
    assert.equal(
      await make(page, { threads }),
      `invalid-argument: threads must be from 1 to 64, got ${threads}`,
    );
  }
  await page.close();
});

test('a page that is not isolated has one thread, and says so where more were asked for', async () => {
  // This server does not isolate its pages.
  const page = await browser.newPage();
  await page.goto(`${cdn.url}/test/browser/page.html`);
  await page.waitForFunction(() => 'wuerstchen' in window);
  assert.equal(await page.evaluate(() => crossOriginIsolated), false);
  const one = await make(page, {});
  const wanted = await make(page, { threads: 2 });
  assert.ok(typeof one === 'object' && typeof wanted === 'object', `${one} ${wanted}`);
  assert.deepEqual([one.threads, wanted.threads], [1, 1]);
  assert.doesNotMatch(one.message, /thread/);
  assert.match(wanted.message, /One thread computes: .*cross-origin isolated/);
  await page.close();
});

test('where no thread can be started, one computes and the message says why', async () => {
  const page = await openPage(browser, site);
  const result = await page.evaluate(async (script) => {
    const urlOf = (code: string) =>
      URL.createObjectURL(new Blob([code], { type: 'text/javascript' }));
    const first = urlOf(
      "self.Worker = class { constructor() { throw new Error('no workers'); } };",
    );
    const url = urlOf(`import '${first}'; import '${script}';`);
    const engine = await (window as any).wuerstchen.load({
      model: '/pkg/model/manifest.json',
      device: 'cpu',
      cache: 'none',
      threads: 2,
      worker: () => new Worker(url, { type: 'module' }),
    });
    await engine.generate({ prompt: 'a cat face', priorSteps: 1, decoderSteps: 1 });
    const { threads, message } = engine.support;
    await engine.dispose();
    return { threads, message };
  }, `${site.url}dist/worker.js`);
  assert.equal(result.threads, 1);
  assert.match(result.message, /One thread computes: no workers/);
  await page.close();
});
