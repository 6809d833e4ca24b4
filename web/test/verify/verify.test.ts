// Our tensors against the authors', as `wuerstchen verify` compares them, computed by a browser.

import assert from 'node:assert/strict';
import { execFileSync } from 'node:child_process';
import { readdirSync, readFileSync } from 'node:fs';
import { after, before, test } from 'node:test';
import type { Browser, Page } from 'playwright-core';
import { launch, program, Site } from '../browser/site.ts';

interface Check {
  readonly file: string;
  readonly name: string;
  readonly relative: number;
  readonly bound: number;
  readonly ok: boolean;
}

let site: Site;
let browser: Browser;
/** What the native program compares, as `file/name`. */
let native: string[];

const names = (checks: readonly Check[]) =>
  checks.map(({ file, name }) => `${file}/${name}`).sort();

before(async () => {
  site = await Site.open('..');
  browser = await launch();
  const args = ['verify', '../tests/golden/small', '--device', 'cpu', '--json'];
  const { checks } = JSON.parse(execFileSync(program, args, { encoding: 'utf8' }));
  // The authors' own files are PyTorch's, which no browser reads, and the optimiser is the trainer's, which
  // no page links.
  native = names(checks).filter(
    (name) => !name.startsWith('original/') && !name.includes('/after/'),
  );
});

after(async () => {
  await browser.close();
  site.close();
});

/** What the page finds. */
async function open(query: string, prepare?: (page: Page) => Promise<unknown>): Promise<any> {
  const page = await browser.newPage();
  page.on('console', (message) => {
    if (message.type() === 'error') console.error('page:', message.text());
  });
  await prepare?.(page);
  await page.goto(`${site.url}tests/browser/index.html?${query}`);
  await page.waitForFunction('window.verification', undefined, { timeout: 0 });
  const found: any = await page.evaluate('window.verification');
  await page.close();
  assert.equal(found.error, undefined);
  return found;
}

/** Compares in a page. */
async function verify(
  device: string,
  prepare?: (page: Page) => Promise<unknown>,
): Promise<Check[]> {
  const { checks, times } = await open(`device=${device}`, prepare);
  const seconds = Object.values<number>(times).reduce((sum, ms) => sum + ms / 1000, 0);
  const agree = checks.filter(({ ok }: Check) => ok).length;
  console.log(
    `verify on ${device}: ${agree} of ${checks.length} tensors agree, ${seconds.toFixed(0)} s`,
  );
  return checks;
}

/** What is off fails the test by name. */
function assertAgree(checks: readonly Check[], expected: readonly string[]): void {
  assert.deepEqual(
    checks.filter(({ ok }) => !ok),
    [],
  );
  assert.deepEqual(names(checks), expected);
}

test('the CPU path computes what the authors do, in training too', async () => {
  assertAgree(await verify('cpu'), native);
});

test('a changed weight is noticed', async () => {
  const checks = await verify('cpu', (page) =>
    page.route('**/prior/diffusion_pytorch_model.safetensors', async (route) => {
      const response = await route.fetch();
      const body = await response.body();
      body.writeFloatLE(3, body.length - 4);
      await route.fulfill({ response, body });
    }),
  );
  assert.ok(checks.some(({ file, ok }) => file === 'prior' && !ok));
});

test('WebGPU computes what the authors do', async () => {
  assertAgree(
    await verify('webgpu'),
    native.filter((name) => !name.startsWith('train_')),
  );
});

/** All shaders by name: files, and products, which are three files each. */
function shaders(): Map<string, string> {
  const folder = '../shaders';
  const text = (name: string) => readFileSync(`${folder}/${name}.wgsl`, 'utf8');
  const weights = ['dense_weight', 'packed_weight'];
  const bodies = ['direct_product', 'tiled_product'];
  const parts = ['product', ...weights, ...bodies];
  const names = readdirSync(folder).filter((name) => name.endsWith('.wgsl'));
  const whole = names
    .map((name) => name.slice(0, -'.wgsl'.length))
    .filter((name) => !parts.includes(name));
  assert.equal(whole.length + parts.length, names.length);
  const products = weights.flatMap((weight) =>
    bodies.map((body) => ['product', weight, body] as const),
  );
  return new Map([
    ...whole.map((name) => [name, text(name)] as const),
    ...products.map((three) => [three.join(' + '), three.map(text).join('')] as const),
  ]);
}

/** The shaders' own tests run on naga, which forgives what browsers do not. */
test('every shader compiles in the browser', async () => {
  const sources = shaders();
  assert.ok(sources.size >= 11);
  const page = await browser.newPage();
  await page.goto(`${site.url}tests/browser/index.html?device=cpu`);
  for (const [name, source] of sources) {
    const errors = await page.evaluate(async (code) => {
      const adapter = await (navigator as any).gpu.requestAdapter();
      const device = await adapter.requestDevice();
      const { messages } = await device.createShaderModule({ code }).getCompilationInfo();
      return messages
        .filter(({ type }: any) => type === 'error')
        .map(({ message }: any) => message);
    }, source);
    assert.deepEqual(errors, [], name);
  }
  await page.close();
});

/** As for the goldens: ten times the CPU's bound. */
const BLOCK_BOUND = 1e-3;

test('WebGPU computes blocks of the published size, their weights in 4 bits', async () => {
  const { blocks } = await open('blocks');
  const names = blocks.map(({ name }: { name: string }) => name);
  assert.deepEqual(names, ['stage_c', 'stage_b/0', 'stage_b/1', 'stage_b/2', 'stage_b/3']);
  for (const { name, packed, relative } of blocks) {
    console.log(`${name}: ${packed} packed tensors, relative error ${relative.toExponential(1)}`);
  }
  for (const { name, packed, relative } of blocks) {
    assert.ok(packed >= 2 && relative < BLOCK_BOUND, name);
  }
});
