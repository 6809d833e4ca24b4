// LoRAs and models of a person's own files, as the native program reads them.

import assert from 'node:assert/strict';
import { execFileSync } from 'node:child_process';
import { mkdtempSync, readFileSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join, resolve } from 'node:path';
import { before, test } from 'node:test';
import { writeLora } from './lora-file.ts';
import {
  SHAPES,
  difference,
  exportShapes,
  native,
  page,
  program,
  useFreshPages,
  type Picture,
} from './site.ts';

const MODEL = '/pkg/shapes/manifest.json';
const PROMPT = 'a red circle';
let folder: string;

useFreshPages();

before(() => {
  folder = mkdtempSync(join(tmpdir(), 'wuerstchen-'));
});

/** A LoRA in a file of its own. */
function loraFile(name: string, ends: readonly [string, string]): string {
  const file = join(folder, name);
  writeLora(file, ends);
  return file;
}

/** Loads with a LoRA of a file and makes a picture; or the error. */
function make(
  file: string,
  weight: number,
  model = MODEL,
): Promise<{
  error?: string;
  lines: string[];
  loras?: string[];
  picture?: Omit<Picture, 'rgba'> & { rgba: number[] };
}> {
  const bytes = readFileSync(file).toString('base64');
  return page.evaluate(
    async ({ model, prompt, bytes, name, weight }) => {
      const { load } = (window as any).wuerstchen;
      const blob = new File([Uint8Array.from(atob(bytes), (c) => c.charCodeAt(0))], name);
      const lines: string[] = [];
      const onProgress = (event: any) => {
        if (event.type === 'lora') lines.push(event.message, ...event.leftOut);
      };
      try {
        const lora = [{ blob, weight }];
        const engine = await load({ model, lora, device: 'cpu', onProgress });
        const made = await engine.generate({ prompt, seed: 5, format: 'imageData' });
        const { width, height, data } = made.images[0];
        return {
          lines,
          loras: made.settings.loras,
          picture: { width, height, rgba: [...data] as number[] },
        };
      } catch (error: any) {
        return { lines, error: `${error.code}: ${error.message}` };
      }
    },
    { model, prompt: PROMPT, bytes, name: file.split('/').at(-1) ?? '', weight },
  );
}

for (const dtype of ['f16', 'i4']) {
  test(`a LoRA of a model in ${dtype} makes the picture that the native program makes with it`, async () => {
    const file = loraFile('style.safetensors', ['lora_A.weight', 'lora_B.weight']);
    const bundle = exportShapes(`model-lora-${dtype}`, dtype);
    const { error, lines, loras, picture } = await make(file, 1.5, `/${bundle}/manifest.json`);
    assert.ok(picture, error);
    assert.deepEqual(lines, ['changes 2 layers of Stage C, rank 4, alpha 8, weight 1.5']);
    assert.deepEqual(loras, ['style.safetensors:1.5']);
    const found = { ...picture, rgba: Uint8Array.from(picture.rgba) };
    const options = ['--seed', '5'];
    const changed = native(PROMPT, [...options, '--lora', `${file}:1.5`], bundle);
    const { mean } = difference(found, changed);
    assert.ok(mean <= 1, `mean ${mean}`);
    const unchanged = difference(found, native(PROMPT, options, bundle));
    assert.ok(unchanged.mean > 5, `the LoRA changes nothing: ${unchanged.mean}`);
  });
}

test('what is no LoRA of the model is refused in the words of the native program', async () => {
  const wrong = loraFile('wrong.safetensors', ['hada_w1_a', 'hada_w1_b']);
  const foreign = join(folder, 'page.safetensors');
  writeFileSync(foreign, '<!doctype html><html>'.padEnd(100));
  for (const file of [wrong, foreign]) {
    const { error } = await make(file, 1);
    let told = '';
    try {
      const args = ['generate', PROMPT, '-m', SHAPES, '--device', 'cpu', '--lora', file];
      execFileSync(program, args, { stdio: 'pipe' });
    } catch (thrown) {
      told = String((thrown as { stderr: Buffer }).stderr);
    }
    const [, reason = ''] = /error: .*?\.safetensors: (.*)/.exec(told) ?? [];
    assert.ok(reason, told);
    assert.equal(error, `integrity: ${file.split('/').at(-1)}: ${reason}`);
  }
});

test('a model of a picked folder is loaded, kept and loaded again without the folder', async () => {
  await page.evaluate(() => {
    const input = Object.assign(document.createElement('input'), {
      type: 'file',
      webkitdirectory: true,
    });
    document.body.append(input);
  });
  await page.locator('input').setInputFiles(resolve('pkg/shapes'));
  const outcome = await page.evaluate(async () => {
    const { load, inspect } = (window as any).wuerstchen;
    const files = document.querySelector('input')?.files;
    const { id } = await inspect(files);
    const make = async (model: unknown) => {
      const engine = await load({ model, device: 'cpu' });
      const job = {
        prompt: 'a star',
        seed: 1,
        priorSteps: 1,
        decoderSteps: 1,
        format: 'imageData',
      };
      const { images } = await engine.generate(job);
      await engine.dispose();
      return [...images[0].data].join();
    };
    const picked = await make(files);
    const { cachedBytes, bytes } = await inspect({ stored: id });
    return { isSame: (await make({ stored: id })) === picked, isWhole: cachedBytes === bytes };
  });
  assert.deepEqual(outcome, { isSame: true, isWhole: true });
});
