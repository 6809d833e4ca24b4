// The page in Chromium, built as for release but with the mock in place of the package.

import assert from 'node:assert/strict';
import { mkdtemp, rm, writeFile } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join, resolve } from 'node:path';
import { after, afterEach, before, beforeEach, test } from 'node:test';
import { chromium, type Browser, type BrowserContext, type Page } from 'playwright-core';
import { build, preview, type PreviewServer } from 'vite';
import { chromiumOptions } from '../../test/chromium';

let folder: string;
let server: PreviewServer;
let browser: Browser;
let context: BrowserContext;
let page: Page;
let url: string;
/** Violations of the content security policy and exceptions of the page. */
let complaints: string[];

before(async () => {
  folder = await mkdtemp(join(tmpdir(), 'wuerstchen-demo-'));
  const options = { configFile: resolve('vite.config.ts'), logLevel: 'warn' } as const;
  await build({
    ...options,
    resolve: { alias: { 'wuerstchen-web': resolve('test/mock.ts') } },
    build: { outDir: folder, emptyOutDir: true },
  });
  server = await preview({ ...options, build: { outDir: folder }, preview: { port: 0 } });
  url = server.resolvedUrls?.local[0] ?? '';
  browser = await chromium.launch(chromiumOptions());
});

after(async () => {
  await browser?.close();
  await server?.close();
  await rm(folder, { recursive: true, force: true });
});

beforeEach(async () => {
  context = await browser.newContext();
  page = await context.newPage();
  complaints = [];
  page.on('pageerror', (error) => complaints.push(error.message));
  page.on('console', (message) => {
    if (message.type() === 'error') complaints.push(message.text());
  });
});

afterEach(async () => {
  await context.close();
  assert.deepEqual(complaints, []);
});

const at = (id: string) => page.getByTestId(id);
const state = (name: string) => page.waitForSelector(`html[data-state="${name}"]`);

async function open(suffix = ''): Promise<void> {
  await page.goto(url + suffix);
  // "Runs" where the model is stored: it loads at once, and "Will run" may be gone before it is seen.
  await at('device-notice')
    .getByText(/^(Will run|Runs) on/)
    .waitFor();
}

/** From the prompt, another one than before, to a finished picture with the keyboard alone. */
async function makePicture(prompt: string): Promise<void> {
  await at('prompt').fill(prompt);
  await at('prompt').press('Enter');
  await page.locator(`[data-testid="picture"][aria-label="${prompt}"]`).waitFor();
  await at('status').getByText('Done in').waitFor();
}

test('nothing is downloaded before it is asked for, and the exact size is named', async () => {
  await open();
  assert.equal(await at('load').textContent(), 'Load the model (8.6 MB)');
  await state('idle');
  await at('load').click();
  await state('ready');
  assert.equal(await at('load').isVisible(), false);
});

test('words that the model knows are offered, and others are named, while one types', async () => {
  await open();
  const words = at('words').getByRole('button');
  await at('prompt').fill('');
  await at('prompt').pressSequentially('two bl');
  await words.getByText('blue').waitFor();
  assert.equal(await words.count(), 1);
  assert.equal(await at('unknown-words').isVisible(), false);
  await words.click();
  assert.equal(await at('prompt').inputValue(), 'two blue ');
  await at('prompt').pressSequentially('zebras and st');
  await at('unknown-words').getByText('The model does not know: zebras, and.').waitFor();
  await state('idle');
});

test('a model that is stored loads without being asked for', async () => {
  await open();
  await at('load').click();
  await state('ready');
  await page.reload();
  await state('ready');
});

test('Enter loads the model, makes the picture and explains it', async () => {
  await open();
  await makePicture('a blue star');
  await state('ready');
  assert.equal(await at('picture').getAttribute('aria-label'), 'a blue star');
  assert.match((await at('stage-prior').textContent()) ?? '', /20 \/ 20/);
  const explained = await at('how-it-works').textContent();
  assert.match(explained ?? '', /16 × 4 × 4/);
  assert.match(explained ?? '', /48×/, '3 · 64 · 64 pixels for 16 · 4 · 4 numbers');
});

test('a click before the page knows the model is not lost', async () => {
  await page.goto(`${url}?slow`);
  assert.equal(await at('load').isVisible(), false);
  await at('generate').click();
  await page.evaluate('window.isKnown = true');
  await at('status').getByText('Done in').waitFor();
});

test('the film goes back to the first step of the picture and to its end', async () => {
  await open();
  await makePicture('a blue star');
  const width = () => at('picture').evaluate((canvas: HTMLCanvasElement) => canvas.width);
  assert.equal(await width(), 64);
  await at('film').focus();
  await page.keyboard.press('Home');
  assert.equal(await at('film').getAttribute('aria-valuetext'), 'Stage C, prior, step 1');
  assert.equal(await width(), 4);
  await page.keyboard.press('End');
  assert.equal(await width(), 64);
  // 20 steps of Stage C, 12 of Stage B, the picture.
  assert.equal(await at('film').inputValue(), '32');
});

test('a picture can be started from, and left again', async () => {
  await open();
  await makePicture('a red circle');
  await page.getByRole('button', { name: 'Start from this' }).click();
  await at('strength').fill('0.4');
  await makePicture('a blue circle');
  const source = { isPng: true, strength: 0.4, mask: [] };
  assert.deepEqual(await page.evaluate('window.lastSource'), source);
  await page.getByRole('button', { name: 'Remove' }).click();
  await makePicture('a green circle');
  assert.doesNotMatch((await at('status').textContent()) ?? '', /does not know/);
  assert.deepEqual(await page.evaluate('window.lastSource'), undefined);
});

test('what is painted over is made anew, painted with the mouse or with keys', async () => {
  await open();
  await makePicture('a red circle');
  await page.getByRole('button', { name: 'Start from this' }).click();
  await at('mask').scrollIntoViewIfNeeded();
  const box = await at('mask').boundingBox();
  assert.ok(box);
  const move = (x: number, y: number) =>
    page.mouse.move(box.x + x * box.width, box.y + y * box.height);
  await move(0.5, 0.25);
  await page.mouse.down();
  await move(0.5, 0.75);
  await page.mouse.up();
  const paint = async (prompt: string) => {
    await makePicture(prompt);
    return (await page.evaluate('window.lastSource')) as { strength: number; mask: string[] };
  };
  const { strength, mask } = await paint('a blue circle');
  assert.equal(strength, 1, 'what is painted over starts from nothing');
  assert.equal(mask.length, 64);
  // A brush of a quarter: 16 pixels across, from row 8 to row 56.
  const empty = '.'.repeat(64);
  const stroke = '.'.repeat(24) + '#'.repeat(16) + '.'.repeat(24);
  assert.deepEqual([mask[4], mask[32], mask[60]], [empty, stroke, empty]);

  await page.getByRole('button', { name: 'Clear the paint' }).click();
  const cleared = await paint('a green circle');
  assert.deepEqual([cleared.mask, cleared.strength], [[], 0.7], 'the strength of before');
  await at('mask').focus();
  const corner = [...Array(16).fill('ArrowLeft'), ...Array(16).fill('ArrowUp')];
  for (const key of [...corner, ' ']) await page.keyboard.press(key);
  assert.equal(
    (await paint('a pink circle')).mask[0],
    '#'.repeat(8) + '.'.repeat(56),
    'a quarter of the brush',
  );
});

/** A PNG of one colour, which a page draws, to be picked. */
async function plain(colour: string): Promise<{ name: string; mimeType: string; buffer: Buffer }> {
  const url = await page.evaluate((colour) => {
    const canvas = document.createElement('canvas');
    const context = canvas.getContext('2d')!;
    context.fillStyle = colour;
    context.fillRect(0, 0, canvas.width, canvas.height);
    return canvas.toDataURL();
  }, colour);
  const buffer = Buffer.from(url.slice(url.indexOf(',') + 1), 'base64');
  return { name: `${colour}.png`, mimeType: 'image/png', buffer };
}

const [RED, LIME, BLUE] = [
  [255, 0, 0],
  [0, 255, 0],
  [0, 0, 255],
];

/** What the last pictures were made of besides words. */
const lastPictures = async () => [
  (await page.evaluate('window.lastSource')) !== undefined,
  await page.evaluate('window.lastPicturePrompts'),
];

/** A picture that comes from another program: dropped at a place, or pasted there. */
async function bring(event: 'drop' | 'paste', place: string, colour: string): Promise<void> {
  const { buffer } = await plain(colour);
  await page.locator(place).evaluate(
    (target, { event, base64 }) => {
      const bytes = Uint8Array.from(atob(base64), (byte) => byte.charCodeAt(0));
      const data = new DataTransfer();
      data.items.add(new File([bytes], 'other.png', { type: 'image/png' }));
      const options = { bubbles: true, cancelable: true };
      target.dispatchEvent(
        event === 'drop'
          ? new DragEvent(event, { ...options, dataTransfer: data })
          : new ClipboardEvent(event, { ...options, clipboardData: data }),
      );
    },
    { event, base64: buffer.toString('base64') },
  );
}

test('pictures are prompts where the model takes them, alone or beside words', async () => {
  await open('?pictures');
  const chosen = page.locator('#picture-prompts-chosen li');
  await at('picture-prompts-file').setInputFiles([await plain('red'), await plain('blue')]);
  assert.equal(await chosen.count(), 2);
  await makePicture('a hat');
  assert.deepEqual(await lastPictures(), [false, [RED, BLUE]]);
  await chosen.first().getByRole('button', { name: 'Remove' }).click();
  await at('prompt').fill('');
  await at('generate').click();
  await page.locator('[data-testid="picture"][aria-label="Like other pictures"]').waitFor();
  await at('status').getByText('Done in').waitFor();
  assert.deepEqual(await lastPictures(), [false, [BLUE]]);
  await at('history').getByRole('button', { name: 'Like other pictures' }).waitFor();
  await page.getByRole('button', { name: 'Copy link' }).click();
  await at('status').getByText('(pictures as prompts)').waitFor();

  await page.getByRole('button', { name: 'More like this' }).click();
  assert.equal(await chosen.count(), 2);
  for (let left = 2; left > 0; left--) {
    await chosen.first().getByRole('button', { name: 'Remove' }).click();
  }
  await at('generate').click();
  await page.locator('#prompt-error').getByText('Say what the picture should show').waitFor();
  await makePicture('a red hat');
  assert.deepEqual(await lastPictures(), [false, []]);
});

test('other models are given no picture prompts', async () => {
  await open();
  assert.equal(await at('of-picture-prompts').isVisible(), false);
  await makePicture('a hat');
  assert.equal(await page.getByRole('button', { name: 'More like this' }).isVisible(), false);
  assert.deepEqual(await lastPictures(), [false, []]);
});

test('a picture prompt that is no picture is refused at its field', async () => {
  await open('?pictures');
  const file = { name: 'broken.png', mimeType: 'image/png', buffer: Buffer.from('x') };
  await at('picture-prompts-file').setInputFiles(file);
  await at('generate').click();
  await page.locator('#picture-prompts-error').getByText('is not a picture').waitFor();
  const isInvalid = await at('picture-prompts-file').getAttribute('aria-invalid');
  assert.equal(isInvalid, 'true');
});

test('a picture that is dropped or pasted is started from, or a prompt where those are', async () => {
  await open('?pictures');
  await bring('drop', '#picture-prompts-file', 'red');
  await bring('paste', '#picture-prompts-file', 'lime');
  const chosen = page.locator('#picture-prompts-chosen li');
  await chosen.nth(1).waitFor();
  await makePicture('a hat');
  assert.deepEqual(await lastPictures(), [false, [RED, LIME]]);
  for (const [event, prompt] of [
    ['drop', 'a red hat'],
    ['paste', 'a blue hat'],
  ] as const) {
    await bring(event, '#prompt', 'blue');
    const remove = page.locator('#source-remove');
    await remove.waitFor();
    await makePicture(prompt);
    assert.deepEqual(await lastPictures(), [true, [RED, LIME]]);
    await remove.click();
  }
});

test('LoRAs are picked, weighted and taken away, and told of', async () => {
  await open();
  await at('load').click();
  await state('ready');
  await page.getByText('Advanced', { exact: true }).click();
  const notice = page.locator('#notice');
  await at('lora-file').setInputFiles({
    name: 'style.safetensors',
    mimeType: '',
    buffer: Buffer.from('x'),
  });
  await notice.getByText('style.safetensors: changes 24 layers, weight 1.').waitFor();
  await page.getByLabel('Weight of style.safetensors').fill('0.5');
  await page.getByLabel('Weight of style.safetensors').press('Enter');
  await notice.getByText('weight 0.5.').waitFor();
  await state('ready');
  await page.locator('#loras').getByRole('button', { name: 'Remove' }).click();
  await state('ready');
  assert.equal(await page.locator('#loras li').count(), 0);
});

test('a model of picked files is used, remembered and left again', async () => {
  await open();
  await page.getByText('Advanced', { exact: true }).click();
  const folder = await mkdtemp(join(tmpdir(), 'wuerstchen-model-'));
  await writeFile(join(folder, 'notes.txt'), 'x');
  await at('model-folder').setInputFiles(folder);
  await at('error').getByText('There is no manifest.json').waitFor();
  await at('error').getByRole('button', { name: 'Dismiss' }).click();
  await writeFile(join(folder, 'manifest.json'), '{}');
  await page.locator('#decoder-steps').fill('7');
  await at('model-folder').setInputFiles(folder);
  await state('ready');
  const line = page.locator('#model-line');
  await line.getByText('Model own.').waitFor();
  const steps = ['prior', 'decoder'].map((stage) => page.locator(`#${stage}-steps`).inputValue());
  assert.deepEqual(await Promise.all(steps), ['10', '7'], 'its own where none was chosen');
  await page.reload();
  await line.getByText('Model own.').waitFor();
  await page.getByText('Advanced', { exact: true }).click();
  await at('model-built-in').click();
  await line.getByText('Model mock.').waitFor();
  await rm(folder, { recursive: true });
});

test('where nothing may be remembered, pictures are made all the same', async () => {
  await page.addInitScript(() => {
    for (const method of ['getItem', 'setItem', 'removeItem'] as const) {
      const original: (...args: string[]) => unknown = Storage.prototype[method];
      Storage.prototype[method] = function (this: Storage, ...args: string[]) {
        // The mock keeps its own values there.
        if (args[0] === 'own-model') throw new DOMException('blocked', 'SecurityError');
        return original.apply(this, args) as never;
      };
    }
  });
  await open();
  const line = page.locator('#model-line');
  await line.getByText('Model mock.').waitFor();
  await page.getByText('Advanced', { exact: true }).click();
  const folder = await mkdtemp(join(tmpdir(), 'wuerstchen-model-'));
  await writeFile(join(folder, 'manifest.json'), '{}');
  // The page tries to remember a picked model, and to forget it when it is left.
  await at('model-folder').setInputFiles(folder);
  await state('ready');
  await line.getByText('Model own.').waitFor();
  await makePicture('a red circle');
  await at('model-built-in').click();
  await line.getByText('Model mock.').waitFor();
  await rm(folder, { recursive: true });
});

test('a picture for which there is no room is told of, until there is room again', async () => {
  await page.addInitScript(() => {
    const { put } = IDBObjectStore.prototype;
    IDBObjectStore.prototype.put = function (...args) {
      IDBObjectStore.prototype.put = put;
      const request = put.apply(this, args);
      this.transaction.abort();
      return request;
    };
  });
  await open();
  const note = page.locator('#history-note');
  await makePicture('a red circle');
  await note.getByText('no room to keep the last picture').waitFor();
  await makePicture('a blue star');
  await note.getByText('The pictures you make are kept here').waitFor();
});

test('a model that cannot be looked at once it is deleted is an error of the page', async () => {
  await page.addInitScript(() => localStorage.setItem('mock-stored', '1000'));
  await open();
  await at('load').waitFor();
  await page.evaluate(() => Object.assign(window, { isOffline: true }));
  await page.getByRole('button', { name: 'Delete the stored model' }).click();
  await at('error').getByText('It went away').waitFor();
});

test('Enter while a picture is made leaves its seed alone', async () => {
  await open();
  await at('prompt').fill('an endless column');
  await at('prompt').press('Enter');
  await at('stage-prior').getByText('2 / 20').waitFor();
  const seed = await at('seed').inputValue();
  await at('prompt').press('Enter');
  assert.equal(await at('seed').inputValue(), seed);
  await page.keyboard.press('Escape');
  await at('status').getByText('Stopped: Stage C, prior, step').waitFor();
});

test('Esc stops; what was drawn stays, and the next picture works', async () => {
  await open();
  await at('prompt').fill('an endless column');
  await at('prompt').press('Enter');
  await at('status').getByText('Stage C').waitFor();
  await at('stage-prior').getByText('2 / 20').waitFor();
  await page.keyboard.press('Escape');
  await at('status').getByText('Stopped: Stage C, prior, step').waitFor();
  const width = await at('picture').evaluate((canvas: HTMLCanvasElement) => canvas.width);
  assert.equal(width, 4, 'the last preview of Stage C');
  await makePicture('a red circle');
});

test('how tokens are drawn is asked of models that have them, and of no others', async () => {
  const tokens = async () =>
    JSON.parse(await page.evaluate(() => JSON.stringify((window as any).lastTokens)));
  await open();
  await page.getByText('Advanced', { exact: true }).click();
  assert.equal(await at('of-tokens').isVisible(), false);
  await makePicture('a red circle');
  assert.deepEqual(await tokens(), {});
  await open('?tokens#tokenSampling=quant');
  await page.getByText('Advanced', { exact: true }).click();
  await page.getByLabel('Temperature, last step').fill('0.5');
  await makePicture('a blue circle');
  const expected = { temperature: 1, temperatureEnd: 0.5, tokenSampling: 'quant' };
  assert.deepEqual(await tokens(), expected);
});

test('a link restores valid settings and runs nothing', async () => {
  await open('#prompt=two+rings&seed=18446744073709551615&priorSteps=7&width=1e9&count=3');
  assert.equal(await at('prompt').inputValue(), 'two rings');
  assert.equal(await at('seed').inputValue(), '18446744073709551615');
  assert.equal(await at('seed-lock').getAttribute('aria-pressed'), 'true');
  assert.equal(await page.locator('#prior-steps').inputValue(), '7');
  assert.equal(await page.locator('#width').inputValue(), '64', 'not a size: the default');
  assert.equal(await page.locator('[name="count"]:checked').inputValue(), '3');
  await state('idle');
});

test('a link with a text that is too long is cut, but no emoji in two', async () => {
  await open(`#prompt=a&negativePrompt=${'x'.repeat(1999)}${encodeURIComponent('\u{1f600}')}`);
  assert.equal(await page.locator('#negative-prompt').inputValue(), 'x'.repeat(1999));
});

test('pictures outlive a reload and give their settings back', async () => {
  await open();
  await makePicture('a green cross and a zebra');
  await at('status').getByText('It does not know: zebra.').waitFor();
  const seed = await at('seed').inputValue();
  await page.reload();
  await state('ready');
  await at('prompt').fill('something else');
  await at('history').getByRole('button', { name: 'a green cross' }).click();
  await page.getByRole('button', { name: 'Use these settings' }).click();
  assert.equal(await at('prompt').inputValue(), 'a green cross and a zebra');
  assert.equal(await at('seed').inputValue(), seed);
});

test('an unlocked seed changes with every picture, a locked one stays', async () => {
  await open();
  await makePicture('a red circle');
  const first = await at('seed').inputValue();
  await makePicture('a red circle');
  const second = await at('seed').inputValue();
  assert.notEqual(second, first);
  await at('seed-lock').click();
  await makePicture('a red circle');
  assert.equal(await at('seed').inputValue(), second);
});

test('an error says what to do, and another picture can follow', async () => {
  await open();
  await at('prompt').fill('break');
  await at('generate').click();
  await state('error');
  const banner = (await at('error').textContent()) ?? '';
  assert.match(banner, /no room for 4 pictures/);
  assert.match(banner, /Close other tabs/);
  await makePicture('a red circle');
  assert.equal(await at('error').isVisible(), false);
});

test('a size that cannot be made is refused at its field', async () => {
  await open();
  await page.getByText('Advanced').click();
  await page.locator('#width').fill('70');
  await at('prompt').press('Enter');
  await page.locator('#size-error').getByText('the nearest being 64 and 80').waitFor();
  assert.equal(await page.locator('#width').getAttribute('aria-invalid'), 'true');
  assert.equal(await at('error').isVisible(), false);
});

test('the page opens without a network once it was there', async () => {
  await open();
  await page.evaluate(() => navigator.serviceWorker.ready.then(() => {}));
  await context.setOffline(true);
  await page.reload();
  await at('device-notice').getByText('Will run').waitFor();
  assert.equal(await page.getByText('Offline', { exact: true }).isVisible(), true);
});

test('the benchmark states every stage', async () => {
  await page.goto(`${url}?benchmark`);
  await page.waitForFunction(() => window.benchmarkResult !== undefined);
  const result = (await page.evaluate(() => window.benchmarkResult)) as {
    warm: unknown[];
    reach: { multiplyAddsPerSec: number };
    warmMedian: { stages: { prior: Record<string, number> } };
  };
  assert.equal(result.warm.length, 5);
  assert.equal(result.reach.multiplyAddsPerSec, 1e9);
  const { ms = NaN, steps = NaN, msPerStep, multiplyAddsPerSec } = result.warmMedian.stages.prior;
  assert.equal(msPerStep, ms / steps);
  // Guided: two predictions a step.
  assert.equal(multiplyAddsPerSec, (2 * 3e6 * steps * 1000) / ms);
});

test('a phone shows everything without scrolling sideways', async () => {
  await page.setViewportSize({ width: 360, height: 740 });
  await open();
  await makePicture('a red circle');
  const check = async () => {
    const overflow = await page.evaluate(() => document.documentElement.scrollWidth - innerWidth);
    assert.ok(overflow <= 0, `${overflow} pixels too wide`);
  };
  await check();
  await makePicture('W'.repeat(300));
  await check();
  await at('history').getByRole('button').first().click();
  await check();
});

test('what the engine refuses leaves the finished picture as it was', async () => {
  await open();
  await makePicture('a red circle');
  await page.getByText('Advanced', { exact: true }).click();
  await page.locator('#width').fill('64001');
  await at('generate').click();
  await page.locator('#size-error').getByText('Width must be a size').waitFor();
  const ratio = await page.locator('#frame').evaluate((frame) => frame.style.aspectRatio);
  assert.equal(ratio, '64 / 64');
  assert.equal(await at('picture').getAttribute('aria-label'), 'a red circle');
  for (const part of [at('film'), page.getByRole('button', { name: 'Copy link' })]) {
    assert.equal(await part.isVisible(), true);
  }
});

test('text in the place of a number is refused', async () => {
  await open();
  await page.getByText('Advanced', { exact: true }).click();
  await page.locator('#prior-steps').fill('');
  await page.locator('#prior-steps').pressSequentially('1e');
  await page.getByText('Advanced', { exact: true }).click();
  await at('generate').click();
  await page.locator('#prior-steps-error').getByText('Write a number here.').waitFor();
  await page.locator('#prior-steps').fill('7');
  await makePicture('a red circle');
});

/** Files that are dropped on the prompt. */
async function drop(name: string, type = ''): Promise<void> {
  await at('prompt').evaluate(
    (target, [name, type]) => {
      const dataTransfer = new DataTransfer();
      dataTransfer.items.add(new File(['x'], name ?? '', { type: type ?? '' }));
      target.dispatchEvent(
        new DragEvent('drop', { bubbles: true, cancelable: true, dataTransfer }),
      );
    },
    [name, type],
  );
}

test('dropped files of other kinds leave the model alone', async () => {
  await open();
  await at('load').click();
  await state('ready');
  await drop('notes.txt', 'text/plain');
  await at('status').getByText('This page takes pictures, LoRAs').waitFor();
  await drop('party.gif', 'image/gif');
  await page.locator('#source-chosen').waitFor();
  await state('ready');
  assert.equal(await at('error').isVisible(), false);
});

test('a LoRA that does not fit is told of at its field, also if that was closed', async () => {
  await open();
  await drop('broken.safetensors');
  assert.equal(await page.locator('#loras li').isVisible(), true);
  await at('generate').click();
  await page.locator('#lora-error').getByText('broken.safetensors: the LoRA does not').waitFor();
  await page.locator('#loras').getByRole('button', { name: 'Remove' }).click();
  await state('ready');
  assert.equal(await page.locator('#lora-error').isVisible(), false);
  await makePicture('a red circle');
});

test('after a first look that failed, what was typed stays and a picture can be made', async () => {
  for (const again of ['Try again', 'Look again', 'Generate']) {
    await page.addInitScript(() => Object.assign(window, { isOffline: true }));
    await page.goto(`${url}?again=${again}#prompt=a+star&seed=5`);
    await at('error').getByText('It went away').waitFor();
    await page.getByText('The model was not found').waitFor();
    await at('prompt').fill(`a red circle ${again}`);
    await page.evaluate(() => Reflect.deleteProperty(window, 'isOffline'));
    await page.getByRole('button', { name: again, exact: true }).click();
    await page.locator('#aspects label').first().waitFor();
    assert.equal(await at('prompt').inputValue(), `a red circle ${again}`);
  }
  await at('status').getByText('Done in').waitFor();
});

test('another link in the address line fills the form, and a place on the page does not', async () => {
  await open();
  const go = (hash: string) => page.evaluate((hash) => void (location.hash = hash), hash);
  await go('prompt=two+rings&seed=7');
  await page.waitForFunction(() => document.querySelector('textarea')?.value === 'two rings');
  assert.equal(await at('seed').inputValue(), '7');
  await at('prompt').fill('a red circle');
  await go('how');
  await page.waitForTimeout(100);
  assert.equal(await at('prompt').inputValue(), 'a red circle');
});

test('what no link carries is named with the link and with the picture', async () => {
  await open();
  await makePicture('a red circle');
  await page.getByRole('button', { name: 'Start from this' }).click();
  await makePicture('a blue circle');
  await page.getByRole('button', { name: 'Copy link' }).click();
  await at('status').getByText('what else made this picture (a picture to start from)').waitFor();
  await at('history').getByRole('button', { name: 'a blue circle' }).click();
  await page.locator('#entry-facts').getByText('a picture to start from').waitFor();
  await page.getByRole('button', { name: 'Use these settings' }).click();
  await at('status').getByText('also made with a picture to start from').waitFor();
});

test('the focus stays on the page when a picture is deleted', async () => {
  await open();
  await makePicture('a red circle');
  await makePicture('a blue circle');
  const focused = () => page.evaluate(() => document.activeElement?.textContent);
  for (const [name, next] of [
    ['a blue circle', 'a red circle'],
    ['a red circle', 'Pictures'],
  ] as const) {
    await at('history').getByRole('button', { name }).click();
    await page.getByRole('button', { name: 'Delete', exact: true }).click();
    assert.equal(await focused(), next);
  }
});

test('a tab shows what another one has made and deleted', async () => {
  await open();
  const other = await context.newPage();
  await other.goto(url);
  const picture = other.getByTestId('history').getByRole('button', { name: 'a red circle' });
  await makePicture('a red circle');
  // Headless tabs never go out of sight.
  const comeBack = (tab: Page) =>
    tab.evaluate(() => document.dispatchEvent(new Event('visibilitychange')));
  await comeBack(other);
  await picture.click();
  await comeBack(other);
  assert.equal(await picture.count(), 1);
  await other.getByRole('button', { name: 'Delete', exact: true }).click();
  assert.equal(await at('history').getByRole('button').count(), 1);
  await comeBack(page);
  await at('history').getByRole('button').waitFor({ state: 'detached' });
  assert.equal(await page.locator('#history-clear').isVisible(), false);
});
