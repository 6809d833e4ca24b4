// The built sites of the examples in a real browser: a picture, one with a LoRA, one of a picked model.
// `npm run test:examples -- FOLDER`, where FOLDER has the sites that `examples/build.sh FOLDER` keeps.

import assert from 'node:assert/strict';
import { cpSync, mkdtempSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join, resolve } from 'node:path';
import { after, before, test } from 'node:test';
import type { Browser, Page } from 'playwright-core';
import { writeLora } from '../browser/lora-file.ts';
import { launch, Site, web } from '../browser/site.ts';

const [folder] = process.argv.slice(2);
assert.ok(folder, 'expected the folder of the sites as the argument');
const sites = resolve(folder);
const model = join(web, 'pkg/shapes');
const lora = join(mkdtempSync(join(tmpdir(), 'wuerstchen-')), 'style.safetensors');

let browser: Browser;

before(async () => {
  writeLora(lora, ['lora_A.weight', 'lora_B.weight']);
  browser = await launch();
});

after(() => browser.close());

/** Makes a picture by the page's form and returns its pixels, once the page says that it is done. */
async function make(page: Page, prompt: string): Promise<string> {
  await page.fill('#prompt', prompt);
  await page.click('#make');
  await page.waitForFunction(
    () => document.querySelector<HTMLButtonElement>('#make')?.disabled === false,
  );
  const status = (await page.textContent('#status')) ?? '';
  assert.match(status, /^Done with seed \d+/);
  return page.evaluate(() => {
    const element = document.querySelector('#picture');
    const canvas = element?.shadowRoot?.querySelector('canvas') ?? element;
    return (canvas as HTMLCanvasElement).toDataURL();
  });
}

/** Has the LoRAs of a page's last picture on its `window.loras`, as its worker tells them. */
function watchLoras(): void {
  const { Worker } = window;
  window.Worker = class extends Worker {
    constructor(...args: ConstructorParameters<typeof Worker>) {
      super(...args);
      this.addEventListener('message', ({ data }) => {
        if (data.type === 'result') (window as any).loras = data.result.settings.loras;
      });
    }
  };
}

for (const name of ['plain', 'vite', 'next', 'next-webpack']) {
  test(`${name} makes pictures, with a LoRA and of a picked model`, async () => {
    cpSync(model, join(sites, name, 'model'), { recursive: true });
    const site = await Site.open(join(sites, name));
    const page = await browser.newPage();
    const problems: string[] = [];
    page.on('pageerror', (error) => problems.push(String(error)));
    const requests: string[] = [];
    page.on('request', (request) => requests.push(request.url()));
    await page.addInitScript(watchLoras);
    const loras = () => page.evaluate(() => (window as any).loras);
    const loads = () => requests.filter((url) => url.endsWith('/model/manifest.json')).length;
    try {
      await page.goto(site.url);
      const plain = await make(page, 'a red circle');
      assert.equal(loads(), 1);
      const other = await make(page, 'a blue star');
      assert.equal(loads(), 1, 'the model is loaded once');
      assert.notEqual(other, plain);
      assert.equal(await loras(), undefined);
      await page.setInputFiles('#lora', lora);
      await make(page, 'a red star');
      assert.equal(loads(), 2, 'a LoRA makes another model');
      assert.deepEqual(await loras(), ['style.safetensors:1']);
      await page.setInputFiles('#model', model);
      await make(page, 'a green circle');
      assert.equal(loads(), 2, 'a picked model is not fetched');
      await page.setInputFiles('#lora', join(model, 'manifest.json'));
      await page.fill('#prompt', 'a green star');
      await page.click('#make');
      await page.waitForFunction(() =>
        /manifest\.json/.test(document.querySelector('#status')?.textContent ?? ''),
      );
      assert.deepEqual(problems, []);
    } finally {
      await page.close();
      site.close();
    }
  });
}
