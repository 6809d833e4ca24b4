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

const names = (checks: readonly Check[]) =>
  checks.map(({ file, name }) => `${file}/${name}`).sort();

before(async () => {
  site = await Site.open('..');
  browser = await launch();
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
  // A page that has stopped would be waited for without an end.
  const stopped = new Promise<never>((_, reject) => {
    page.on('pageerror', reject);
    page.on('crash', () => reject(new Error('the page has crashed')));
  });
  await prepare?.(page);
  await page.goto(`${site.url}tests/browser/index.html?${query}`);
  const done = page.waitForFunction('window.verification', undefined, { timeout: 0 });
  await Promise.race([done, stopped]);
  const found: any = await page.evaluate('window.verification');
  await page.close();
  assert.equal(found.error, undefined);
  return found;
}

/** Compares in a page. */
async function verify(
  model: string,
  device: string,
  without: readonly string[] = [],
  prepare?: (page: Page) => Promise<unknown>,
): Promise<Check[]> {
  const query = `model=${model}&device=${device}&without=${without.join()}`;
  const { checks, times } = await open(query, prepare);
  const seconds = Object.values<number>(times).reduce((sum, ms) => sum + ms / 1000, 0);
  const agree = checks.filter(({ ok }: Check) => ok).length;
  console.log(
    `verify ${model} on ${device}: ${agree} of ${checks.length} tensors agree, ${seconds.toFixed(0)} s`,
  );
  return checks;
}

/** What the native program compares in a model, as `file/name`. */
function compared(model: string): string[] {
  const args = ['verify', `../tests/golden/${model}`, '--device', 'cpu', '--json'];
  const { checks } = JSON.parse(execFileSync(program, args, { encoding: 'utf8' }));
  return names(checks);
}

/**
 * Whether pages compare a tensor. Of v2 the authors' files are PyTorch's, which no browser reads, and the optimiser is
 * the trainer's, which no page links.
 */
const isOfPages = (model: string) => (tensor: string) =>
  (model === 'cascade' || !tensor.startsWith('original/')) && !tensor.includes('after/');

/** What is off fails the test by name. */
function assertAgree(checks: readonly Check[], expected: readonly string[]): void {
  assert.deepEqual(
    checks.filter(({ ok }) => !ok),
    [],
  );
  assert.deepEqual(names(checks), expected);
}

/**
 * Of every version: the folder of its goldens, how many files of them are compared on both devices, and what is not
 * compared on WebGPU here, whose software takes many minutes for whole samplings. The page compares them where
 * nobody says `without`.
 */
const VERSIONS: readonly {
  name: string;
  model: string;
  files: { cpu: number; webgpu: number };
  withoutOnGpu: readonly string[];
}[] = [
  {
    name: 'Würstchen v2',
    model: 'small',
    files: { cpu: 14, webgpu: 11 },
    withoutOnGpu: [],
  },
  {
    name: 'Stable Cascade',
    model: 'cascade',
    files: { cpu: 16, webgpu: 12 },
    withoutOnGpu: ['pipeline', 'combined', 'controlnet', 'gdf'],
  },
  {
    name: 'Würstchen v1',
    model: 'v1',
    files: { cpu: 10, webgpu: 5 },
    withoutOnGpu: ['pipeline', 'stage_b_sampling', 'stage_c_sampling'],
  },
];

for (const { name, model, files, withoutOnGpu } of VERSIONS) {
  const filesOf = (checks: readonly Check[]) => new Set(checks.map(({ file }) => file)).size;
  test(`the CPU path computes what the authors of ${name} do`, async () => {
    const checks = await verify(model, 'cpu');
    assertAgree(checks, compared(model).filter(isOfPages(model)));
    assert.equal(filesOf(checks), files.cpu);
  });

  test(`WebGPU computes what the authors of ${name} do`, async () => {
    const checks = await verify(model, 'webgpu', withoutOnGpu);
    const isOfGpus = (tensor: string) =>
      isOfPages(model)(tensor) &&
      !tensor.startsWith('train_') &&
      !withoutOnGpu.some((golden) => tensor.startsWith(`${golden}/`));
    assertAgree(checks, compared(model).filter(isOfGpus));
    assert.equal(filesOf(checks), files.webgpu);
  });
}

test('products multiply and add in one instruction where the browser can, and agree where it cannot', async () => {
  const { length } = compared('small').filter(isOfPages('small'));
  for (const can of [true, false]) {
    const modules: string[][] = [];
    const checks = await verify('small', 'cpu', [], async (page) => {
      await page.exposeFunction('onModule', (names: string[]) => modules.push(names));
      await page.addInitScript((can) => {
        WebAssembly.Module = new Proxy(WebAssembly.Module, {
          construct(Module, [bytes]) {
            if (!can) throw new WebAssembly.CompileError('refused by the test');
            const module = new Module(bytes);
            (window as any).onModule(Module.exports(module).map(({ name }) => name));
            return module;
          },
        });
      }, can);
    });
    assert.deepEqual(modules, can ? [['tiles']] : []);
    assert.deepEqual([checks.length, checks.filter(({ ok }) => !ok)], [length, []]);
  }
});

test('a changed weight is noticed', async () => {
  const checks = await verify('small', 'cpu', [], (page) =>
    page.route('**/prior/diffusion_pytorch_model.safetensors', async (route) => {
      const response = await route.fetch();
      const body = await response.body();
      body.writeFloatLE(3, body.length - 4);
      await route.fulfill({ response, body });
    }),
  );
  assert.ok(checks.some(({ file, ok }) => file === 'prior' && !ok));
});

/** All shaders by name: files, files that end with another one, and products, which are three files each. */
function shaders(): Map<string, string> {
  const folder = '../shaders';
  const text = (name: string) => readFileSync(`${folder}/${name}.wgsl`, 'utf8');
  const weights = ['dense_weight', 'packed_weight'];
  const bodies = ['direct_product', 'tiled_product'];
  const ends = {
    attention: ['separate_tokens', 'joined_tokens'],
    row_statistics: ['layer_norm', 'layer_norm_gradient'],
    window_sizes: [
      'depthwise_conv',
      'depthwise_input_gradient',
      'depthwise_weight_gradient',
      'patches',
      'patches_gradient',
    ],
  };
  const two = Object.entries(ends).flatMap(([end, starts]) => starts.map((start) => [start, end]));
  const parts = new Set(['product', ...weights, ...bodies, ...two.flat()]);
  const names = readdirSync(folder).filter((name) => name.endsWith('.wgsl'));
  const whole = names
    .map((name) => name.slice(0, -'.wgsl'.length))
    .filter((name) => !parts.has(name));
  assert.equal(whole.length + parts.size, names.length);
  const products = weights.flatMap((weight) => bodies.map((body) => ['product', weight, body]));
  return new Map([
    ...whole.map((name) => [name, text(name)] as const),
    ...[...products, ...two].map((files) => [files.join(' + '), files.map(text).join('')] as const),
  ]);
}

/** The shaders' own tests run on naga, which forgives what browsers do not. */
test('every shader compiles in the browser', async () => {
  const sources = shaders();
  assert.ok(sources.size >= 22);
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
