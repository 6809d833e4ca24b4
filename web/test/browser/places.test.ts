// Where pages and the package may lie: on another origin, in a file, in a sandboxed frame, under a
// strict content security policy, where nothing may be stored.

import assert from 'node:assert/strict';
import { mkdtempSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { after, afterEach, before, beforeEach, test } from 'node:test';
import type { Browser, BrowserContext, Frame, Page, Route } from 'playwright-core';
import { Cdn, launch, openPage, Site, web } from './site.ts';

let site: Site;
let browser: Browser;
let context: BrowserContext;
let cdn: Cdn;

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

beforeEach(async () => {
  context = await browser.newContext();
});

afterEach(() => context.close());

/** Loads the model on the CPU, in a page that has the package, and makes a picture. */
function make(page: Page | Frame, options: object = {}, base = ''): Promise<string> {
  return page.evaluate(
    async ({ options, base }) => {
      const { load, WuerstchenError } = (window as any).wuerstchen;
      try {
        const model = `${base}/pkg/shapes/manifest.json`;
        const engine = await load({ model, device: 'cpu', ...options });
        await engine.generate({ prompt: 'a red circle', priorSteps: 1, decoderSteps: 1 });
        await engine.dispose();
        return `made; ${engine.support.storage.backend}`;
      } catch (error: any) {
        return error instanceof WuerstchenError
          ? `${error.code}: ${error.message} (${error.hint})`
          : `not a WuerstchenError: ${error}`;
      }
    },
    { options, base },
  );
}

/** Adds a content security policy to what a route answers. */
function withPolicy(policy: string) {
  return async (route: Route) => {
    const response = await route.fetch();
    const headers = { ...response.headers(), 'content-security-policy': policy };
    await route.fulfill({ response, headers });
  };
}

test('a worker whose script lies on another origin runs', async () => {
  const page = await openPage(context, site);
  await page.evaluate(async (url) => {
    (window as any).wuerstchen = await import(url);
  }, `${cdn.url}/dist/index.js`);
  assert.equal(await make(page), 'made; opfs');
  assert.equal(await page.evaluate('Worker.name'), 'Worker');
});

test('a worker of another origin that does not allow it is an error that says what to do', async () => {
  await context.route(`${cdn.url}/dist/worker.js`, (route) => route.abort());
  const page = await openPage(context, site);
  await page.evaluate(async (url) => {
    (window as any).wuerstchen = await import(url);
  }, `${cdn.url}/dist/index.js`);
  assert.match(await make(page), /^network: the script of the worker could not .*worker: false/);
});

test('a worker that cannot be made is an error that says what to do', async () => {
  const page = await openPage(context, site);
  const outcome = await page.evaluate(async () => {
    const { load, WuerstchenError } = (window as any).wuerstchen;
    const worker = () => new Worker('https://elsewhere.test/worker.js');
    const error = await load({ model: '/x.json', worker }).catch((reason: unknown) => reason);
    return error instanceof WuerstchenError && [error.code, /worker: false/.test(error.hint)];
  });
  assert.deepEqual(outcome, ['unsupported', true]);
});

test('a page in a file makes pictures', async () => {
  const file = join(mkdtempSync(join(tmpdir(), 'wuerstchen-')), 'page.html');
  const script = `window.wuerstchen = await import('${cdn.url}/dist/index.js');`;
  writeFileSync(file, `<!doctype html><script type="module">${script}</script>`);
  const page = await context.newPage();
  await page.goto(`file://${file}`);
  await page.waitForFunction(() => 'wuerstchen' in window);
  assert.match(await make(page, {}, cdn.url), /^made; /);
});

test('a sandboxed frame, where nothing can be stored, makes pictures', async () => {
  const page = await openPage(context, site);
  await page.evaluate((url) => {
    const frame = document.createElement('iframe');
    frame.sandbox.add('allow-scripts');
    frame.srcdoc = `<script type="module">window.wuerstchen = await import('${url}');</script>`;
    document.body.append(frame);
  }, `${cdn.url}/dist/index.js`);
  const [, sandboxed] = page.frames();
  assert.ok(sandboxed);
  await sandboxed.waitForFunction(() => 'wuerstchen' in window);
  assert.equal(await make(sandboxed, {}, cdn.url), 'made; memory');
});

test('a policy against WebAssembly is an error that says what to allow', async () => {
  await context.route('**/dist/worker.js', withPolicy("script-src 'self'"));
  const page = await openPage(context, site);
  assert.match(await make(page), /^unsupported: .*forbids WebAssembly.*'wasm-unsafe-eval'/);

  await context.route('**/page.html', withPolicy("script-src 'self' 'unsafe-inline'"));
  const strict = await openPage(context, site);
  assert.match(await make(strict, { worker: false }), /^unsupported: .*'wasm-unsafe-eval'/);
});

test('a policy that allows WebAssembly alone is enough', async () => {
  const policy = "script-src 'self' 'unsafe-inline' 'wasm-unsafe-eval'; worker-src 'self'";
  await context.route('**/page.html', withPolicy(policy));
  await context.route('**/dist/worker.js', withPolicy(policy));
  assert.equal(await make(await openPage(context, site)), 'made; opfs');
});

test('a policy against workers is an error that says what to allow', async () => {
  await context.route('**/page.html', withPolicy("worker-src 'none'"));
  const page = await openPage(context, site);
  assert.match(await make(page), /worker.*\(.*worker-src.*worker: false/);
});

test('a policy that wants trusted types is an error that says what to do', async () => {
  await context.route('**/page.html', withPolicy("require-trusted-types-for 'script'"));
  const page = await openPage(context, site);
  assert.match(await make(page), /^unsupported: no worker could be started: .*as `worker`/);
  const outcome = await page.evaluate(async () => {
    const { load } = (window as any).wuerstchen;
    const createScriptURL = (url: string) => url;
    const policy = (window as any).trustedTypes.createPolicy('page', { createScriptURL });
    const url = policy.createScriptURL('/dist/worker.js');
    const worker = () => new Worker(url, { type: 'module' });
    return (await load({ model: '/pkg/shapes/manifest.json', device: 'cpu', worker })).state;
  });
  assert.equal(outcome, 'ready');
});

test('a worker without the policy of its isolated page is an error that says what it needs', async () => {
  await context.route('**/dist/worker.js', async (route) => {
    const response = await route.fetch();
    const { 'cross-origin-embedder-policy': policy, ...headers } = response.headers();
    assert.equal(policy, 'require-corp');
    await route.fulfill({ response, headers });
  });
  const page = await openPage(context, site);
  assert.match(await make(page), /^network: .*Cross-Origin-Embedder-Policy/);
});

test('a policy against requests is an error that says what to allow', async () => {
  await context.route('**/dist/worker.js', withPolicy("connect-src 'none'"));
  const page = await openPage(context, site);
  assert.match(await make(page), /^network: .*connect-src/);
});

test('stores that refuse everything do not fail a load', async () => {
  for (const refusal of [
    "StorageManager.prototype.getDirectory = () => { throw new DOMException('no', 'SecurityError'); }",
    "FileSystemDirectoryHandle.prototype.getFileHandle = () => Promise.reject(new DOMException('no', 'QuotaExceededError'))",
    "LockManager.prototype.request = () => Promise.reject(new DOMException('no', 'SecurityError'))",
  ]) {
    const page = await openPage(context, site);
    await page.evaluate(`${refusal};
      Object.defineProperty(window, 'caches', { get() { throw new DOMException('no', 'SecurityError'); } })`);
    assert.equal(await make(page, { worker: false }), 'made; memory', refusal);
    await page.close();
  }
});
