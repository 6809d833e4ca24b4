// Another engine than Chromium's: Firefox, as Debian ships it, driven by WebDriver BiDi.

import assert from 'node:assert/strict';
import { after, before, test } from 'node:test';
import { launch, type Browser } from 'puppeteer-core';
import { difference, native, Site, web } from './site.ts';

const PROMPT = 'a yellow square on a navy background';

let site: Site;
let browser: Browser;

before(async () => {
  site = await Site.open(web);
  browser = await launch({
    browser: 'firefox',
    executablePath: process.env.FIREFOX ?? '/usr/bin/firefox-esr',
    headless: true,
  });
});

after(async () => {
  await browser?.close();
  site?.close();
});

test('a picture of Firefox is the native one', async () => {
  const page = await browser.newPage();
  await page.goto(`${site.url}test/browser/page.html`);
  await page.waitForFunction('window.wuerstchen');
  const made = await page.evaluate(async (prompt) => {
    const { load } = (window as any).wuerstchen;
    const engine = await load({ model: '/demo/dist/model/manifest.json' });
    const result = await engine.generate({ prompt, seed: 3, format: 'imageData' });
    const { width, height, data }: ImageData = result.images[0];
    const message = engine.support.message;
    await engine.dispose();
    return { width, height, rgba: Array.from(data), message };
  }, PROMPT);
  const picture = { ...made, rgba: new Uint8Array(made.rgba) };
  const { mean, close } = difference(picture, native(PROMPT, ['--seed', '3']));
  assert.ok(mean <= 1 && close >= 0.99, `mean ${mean}, within 2: ${close}`);
  assert.notEqual(made.message, '');
});
