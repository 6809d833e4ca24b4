// The browser makes the pictures that the native program makes.

import assert from 'node:assert/strict';
import { execFileSync } from 'node:child_process';
import { mkdtempSync, readFileSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { after, before, test } from 'node:test';
import type { Browser, Page } from 'playwright-core';
import { PNG } from 'pngjs';
import { writeControlled } from './controlnet-file.ts';
import { writeLora } from './lora-file.ts';
import {
  CASCADE,
  decode,
  difference,
  exportModel,
  exportShapes,
  launch,
  native,
  openPage,
  program,
  BUILT_IN,
  SHAPES,
  Site,
  web,
  type Picture,
} from './site.ts';

const PROMPT = 'a red circle on a white background';

/** SwiftShader takes seconds for a step. */
const FEW_STEPS = { priorSteps: 2, decoderSteps: 2 };
const FEW_STEPS_NATIVE = ['--prior-steps', '2', '--decoder-steps', '2'];

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

interface Made {
  /** The first one. */
  picture: Picture;
  pictures: Picture[];
  device: string;
  selfTestError: number;
  stages: string[];
  previews: string[];
}

/** Loads a model, `shapes` if no other is named, in the page and makes one picture. */
async function generate(
  page: Page,
  device: string,
  options: {
    imageBase64?: string;
    maskBase64?: string;
    controlBase64?: string;
    /** Picture prompts. */
    promptsBase64?: string[];
    [option: string]: unknown;
  },
  model = '/pkg/shapes/manifest.json',
  others: Record<string, unknown> = { cache: 'none' },
): Promise<Made> {
  const made = await page.evaluate(
    async ({ device, options, model, others }) => {
      const { load } = (window as any).wuerstchen;
      const engine = await load({ model, device, ...others });
      const [stages, previews]: [string[], string[]] = [[], []];
      const { imageBase64, maskBase64, controlBase64, promptsBase64, ...picture } = options;
      const blob = async (base64?: string) =>
        base64 && (await fetch(`data:image/png;base64,${base64}`)).blob();
      const result = await engine.generate({
        ...picture,
        image: (await blob(imageBase64)) || undefined,
        mask: (await blob(maskBase64)) || undefined,
        controlImage: (await blob(controlBase64)) || undefined,
        picturePrompts: promptsBase64 && (await Promise.all(promptsBase64.map(blob))),
        format: 'imageData',
        onProgress: (event: any) => {
          if (event.type === 'step') stages.push(`${event.stage} ${event.step}/${event.steps}`);
          if (event.type === 'preview') previews.push(event.stage);
        },
      });
      const images: ImageData[] = result.images;
      const made = {
        pictures: images.map(({ width, height, data }) => ({ width, height, rgba: [...data] })),
        device: engine.device,
        selfTestError: engine.selfTest.maxError,
        stages,
        previews,
      };
      await engine.dispose();
      return made;
    },
    { device, options, model, others },
  );
  const pictures = made.pictures.map((picture) => ({
    ...picture,
    rgba: new Uint8Array(picture.rgba),
  }));
  const [picture] = pictures;
  assert.ok(picture);
  return { ...made, picture, pictures };
}

/** The WebAssembly files that a page and its workers ask for from now on. */
function wasmFiles(page: Page): string[] {
  const files: string[] = [];
  page.on('request', (request) => {
    const [, file] = /\/([^/]+)\.wasm$/.exec(request.url()) ?? [];
    if (file) files.push(file);
  });
  return files;
}

/** A colour differs by one where two devices round a value to different sides. */
function assertEqual(found: Picture, expected: Picture): void {
  const { mean, close } = difference(found, expected);
  assert.ok(mean <= 1 && close >= 0.99, `mean ${mean}, within 2: ${close}`);
}

test('a picture of the CPU path is the native one', async () => {
  const page = await openPage(browser, site);
  const fetched = wasmFiles(page);
  const made = await generate(page, 'cpu', { prompt: PROMPT, seed: 7 }, '/pkg/model/manifest.json');
  assert.equal(made.device, 'cpu');
  assert.deepEqual(fetched, ['wuerstchen_cpu_bg']);
  assert.ok(made.selfTestError < 1e-3, `${made.selfTestError}`);
  assertEqual(made.picture, native(PROMPT, ['--seed', '7'], BUILT_IN));
  const count = (stage: string) => made.stages.filter((step) => step.startsWith(stage)).length;
  assert.deepEqual(['text', 'prior', 'decoder', 'vqgan'].map(count), [2, 20, 8, 1]);
  assert.ok(made.previews.includes('prior') && made.previews.includes('decoder'));
  await page.close();
});

test('a picture can be started from and painted into, as natively', async () => {
  const folder = mkdtempSync(join(tmpdir(), 'wuerstchen-'));
  const [image, mask] = [join(folder, 'image.png'), join(folder, 'mask.png')];
  execFileSync(program, ['generate', 'a blue square on a white background', '-o', image], {
    stdio: 'ignore',
  });
  // The left half is painted anew.
  const half = new PNG({ width: 64, height: 64, colorType: 2 });
  half.data.forEach((_, i) => (half.data[i] = i % 4 === 3 || (i >> 2) % 64 < 32 ? 255 : 0));
  writeFileSync(mask, PNG.sync.write(half));

  const page = await openPage(browser, site);
  const [imageBase64, maskBase64] = [image, mask].map((file) => readFileSync(file, 'base64'));
  const variation = { prompt: PROMPT, seed: 7, strength: 0.6, imageBase64 };
  const fetched = wasmFiles(page);
  const varied = await generate(page, 'cpu', variation);
  assert.equal(varied.stages.filter((step) => step.startsWith('prior')).at(-1), 'prior 12/12');
  const options = ['--seed', '7', '--image', image];
  assertEqual(varied.picture, native(PROMPT, [...options, '--strength', '0.6']));
  // Few start from a picture, so that the code for it comes when it is called, by any thread.
  assert.deepEqual([...new Set(fetched)], ['wuerstchen_cpu_bg', 'wuerstchen_cpu_rest']);
  const painted = await generate(page, 'cpu', { ...variation, strength: 1, maskBase64 });
  assertEqual(painted.picture, native(PROMPT, [...options, '--strength', '1', '--mask', mask]));
  await page.close();
});

test('pictures are prompts of Stable Cascade, as natively, and other models refuse them', async () => {
  const folder = mkdtempSync(join(tmpdir(), 'wuerstchen-'));
  const files = ['a red circle', 'a blue square'].map((prompt, i) => {
    const file = join(folder, `${i}.png`);
    execFileSync(program, ['generate', prompt, '-o', file], { stdio: 'ignore' });
    return file;
  });
  const promptsBase64 = files.map((file) => readFileSync(file, 'base64'));
  const cascade = exportModel('cascade', CASCADE, 'f32', ['--picture-size', '128']);
  const model = `/${cascade}/manifest.json`;
  const page = await openPage(browser, site);
  const takesPictures = (model: string) =>
    page.evaluate(async (model) => {
      return (await (window as any).wuerstchen.inspect(model)).picturePrompts;
    }, model);
  assert.equal(await takesPictures(model), true);
  assert.equal(await takesPictures('/pkg/shapes/manifest.json'), false);

  const size = { width: 128, height: 128, seed: 7, ...FEW_STEPS };
  const made = await generate(page, 'cpu', { prompt: '', promptsBase64, ...size }, model);
  const args = ['--width', '128', '--height', '128', '--seed', '7', ...FEW_STEPS_NATIVE];
  const prompts = files.flatMap((file) => ['--picture-prompt', file]);
  assertEqual(made.picture, native('', [...args, ...prompts], CASCADE));
  await assert.rejects(generate(page, 'cpu', { prompt: PROMPT, promptsBase64 }), /picture/);
  await page.close();
});

test('Stage C follows the edges of a picture by a ControlNet, as natively', async () => {
  const folder = mkdtempSync(join(tmpdir(), 'wuerstchen-'));
  const model = join(folder, 'model');
  writeControlled(model);
  const image = join(folder, 'image.png');
  execFileSync(program, ['generate', 'a blue square', '-o', image], { stdio: 'ignore' });
  const exported = exportModel('controlled', model, 'f32', ['--picture-size', '128']);

  const page = await openPage(browser, site);
  const size = { prompt: PROMPT, width: 128, height: 128, seed: 7, ...FEW_STEPS };
  const make = (options: Record<string, unknown>, model = `/${exported}/manifest.json`) =>
    generate(page, 'cpu', { ...size, ...options }, model);
  const controlBase64 = readFileSync(image, 'base64');
  const controlled = await make({ controlBase64 });
  const free = await make({});
  const args = ['--width', '128', '--height', '128', '--seed', '7', ...FEW_STEPS_NATIVE];
  assertEqual(controlled.picture, native(PROMPT, [...args, '--control-image', image], model));
  assert.ok(difference(controlled.picture, free.picture).mean > 1);
  await assert.rejects(make({ controlBase64 }, '/pkg/shapes/manifest.json'), /ControlNet/);
  await assert.rejects(make({ controlScale: 2 }), /controlScale/);
  await page.close();
});

test('frames between two prompts are the native ones', async () => {
  const folder = mkdtempSync(join(tmpdir(), 'wuerstchen-'));
  const [promptTo, frames] = ['a large blue ring on a white background', 3];
  const args = [PROMPT, '--prompt-to', promptTo, '--frames', String(frames), '--seed', '7'];
  execFileSync(
    program,
    ['generate', ...args, '-m', SHAPES, '--device', 'cpu', '-o', join(folder, 'out.png')],
    {
      stdio: 'ignore',
    },
  );
  const page = await openPage(browser, site);
  const made = await generate(page, 'cpu', { prompt: PROMPT, promptTo, frames, seed: 7 });
  assert.equal(made.pictures.length, frames);
  for (const [index, picture] of made.pictures.entries()) {
    assertEqual(picture, decode(readFileSync(join(folder, `out-${index}.png`))));
  }
  assert.equal(made.stages.filter((step) => step.startsWith('prior')).at(-1), 'prior 60/60');
  await page.close();
});

for (const dtype of ['i8', 'i4']) {
  test(`weights of ${dtype} make the picture that they make natively, on both devices`, async () => {
    const folder = exportShapes(`model-${dtype}`, dtype);
    const model = `/${folder}/manifest.json`;
    const page = await openPage(browser, site);
    const made = await generate(page, 'cpu', { prompt: PROMPT, seed: 7 }, model);
    assertEqual(made.picture, native(PROMPT, ['--seed', '7'], folder));
    const short = await generate(page, 'webgpu', { prompt: PROMPT, seed: 7, ...FEW_STEPS }, model);
    assertEqual(short.picture, native(PROMPT, ['--seed', '7', ...FEW_STEPS_NATIVE], folder));
    await page.close();
  });
}

test('parts that take turns make the same picture, from every store and with a LoRA', async () => {
  const page = await openPage(browser, site);
  const made = async (device: string, options: object, others: object) => {
    const load = { residency: 'per-stage', ...others };
    return (await generate(page, device, { prompt: PROMPT, seed: 7, ...options }, undefined, load))
      .picture;
  };
  const whole = native(PROMPT, ['--seed', '7']);
  for (const cache of ['none', 'cache', 'opfs']) {
    assertEqual(await made('cpu', {}, { cache }), whole);
  }
  // Loaded from what is stored.
  assertEqual(await made('cpu', {}, { cache: 'opfs' }), whole);
  const file = 'node_modules/.cache/turns.safetensors';
  writeLora(file, ['lora_A.weight', 'lora_B.weight']);
  const changed = native(PROMPT, ['--seed', '7', '--lora', file]);
  assert.ok(difference(changed, whole).close < 0.99);
  assertEqual(await made('cpu', {}, { lora: [{ url: `/${file}` }] }), changed);
  const short = native(PROMPT, ['--seed', '7', ...FEW_STEPS_NATIVE]);
  assertEqual(await made('webgpu', FEW_STEPS, {}), short);
  await assert.rejects(
    made('cpu', {}, { worker: false }),
    /residency: per-stage needs a worker, which alone reads from storage while it computes/,
  );
  await page.close();
});

test('parts that take turns are read for every picture, which fails where they were deleted', async () => {
  const page = await openPage(browser, site);
  for (const device of ['cpu', 'webgpu']) {
    const load = (residency: string) =>
      page.evaluate(
        async ([device, residency]) => {
          const worker = () => new Worker('/test/browser/spy-worker.js', { type: 'module' });
          // One worker, which is asked what it has read.
          const options = {
            model: '/pkg/shapes/manifest.json',
            cache: 'opfs',
            worker,
            threads: 1,
          };
          const engine = await (window as any).wuerstchen.load({ ...options, device, residency });
          Object.assign(window, { engine });
        },
        [device, residency] as const,
      );
    const bytesRead = () => page.workers()[0]?.evaluate(() => (self as any).bytesRead as number);
    const generate = () =>
      page.evaluate((options) => (window as any).engine.generate(options), {
        prompt: PROMPT,
        priorSteps: 1,
        decoderSteps: 1,
      });
    const dispose = () => page.evaluate(() => (window as any).engine.dispose());

    await load('per-stage');
    const before = await bytesRead();
    await generate();
    const once = (await bytesRead())! - before!;
    assert.ok(once > 1e6, `${device} read ${once} bytes`);
    await generate();
    assert.equal((await bytesRead())! - before!, 2 * once);
    await page.evaluate(() => (window as any).wuerstchen.cache.delete());
    await assert.rejects(generate(), /wuerstchen-prior\/text_encoder: cannot read tensor/);
    await dispose();

    await load('auto');
    await generate();
    assert.equal(await bytesRead(), 0);
    await dispose();
  }
  await page.close();
});

test('a picture of WebGPU is the native one', async () => {
  const page = await openPage(browser, site);
  const fetched = wasmFiles(page);
  const options = { prompt: PROMPT, seed: 7, ...FEW_STEPS };
  const made = await generate(page, 'webgpu', options, '/pkg/model/manifest.json');
  assert.equal(made.device, 'webgpu');
  assert.deepEqual(fetched, ['wuerstchen_webgpu_bg']);
  assertEqual(made.picture, native(PROMPT, ['--seed', '7', ...FEW_STEPS_NATIVE], BUILT_IN));
  await page.close();
});

test('a software GPU is not taken by itself', async () => {
  const page = await openPage(browser, site);
  const support = await page.evaluate(() => (window as any).wuerstchen.checkSupport());
  assert.deepEqual([support.ok, support.device, support.reason], [true, 'cpu', 'software-adapter']);
  await page.close();
});
