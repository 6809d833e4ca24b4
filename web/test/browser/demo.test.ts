// The demo page as its visitors have it: the built page, the built-in model, the real engine.

import assert from 'node:assert/strict';
import { after, before, test } from 'node:test';
import type { Browser, BrowserContext, Page } from 'playwright-core';
import { BUILT_IN, decode, difference, launch, native, Site } from './site.ts';

const PROMPT = 'a red apple on a blue background';

let site: Site;
let browser: Browser;

before(async () => {
  site = await Site.open('demo/dist');
  browser = await launch();
});

after(async () => {
  await browser.close();
  site.close();
});

/** Opens the page; what it complains about fails the test. */
async function visit(
  context: BrowserContext,
  path = '',
): Promise<{ page: Page; complaints: string[] }> {
  const page = await context.newPage();
  const complaints: string[] = [];
  page.on('pageerror', (error) => complaints.push(error.message));
  page.on('console', (message) => {
    if (message.type() === 'error') complaints.push(message.text());
  });
  await page.goto(site.url + path);
  return { page, complaints };
}

async function generate(page: Page): Promise<void> {
  await page.getByTestId('generate').click();
  await page
    .getByTestId('status')
    .filter({ hasText: /^Done in/ })
    .waitFor();
}

test('a visitor gets the picture that the native program makes, with its settings inside', async () => {
  const context = await browser.newContext();
  const { page, complaints } = await visit(
    context,
    `#prompt=${encodeURIComponent(PROMPT)}&seed=11`,
  );
  await generate(page);
  const download = page.waitForEvent('download');
  await page.getByRole('button', { name: 'Download PNG' }).click();
  const stream = await (await download).createReadStream();
  const chunks: Buffer[] = [];
  for await (const chunk of stream) chunks.push(chunk as Buffer);
  const png = Buffer.concat(chunks);
  const { mean, close } = difference(decode(png), native(PROMPT, ['--seed', '11'], BUILT_IN));
  assert.ok(mean <= 1 && close >= 0.99, `mean ${mean}, within 2: ${close}`);
  assert.ok(png.includes(PROMPT) && png.includes('"seed":11'));
  assert.deepEqual(complaints, []);
  await context.close();
});

test('after the first visit everything works offline', async () => {
  const context = await browser.newContext();
  const first = await visit(context);
  await generate(first.page);
  await first.page.evaluate(async () => void (await navigator.serviceWorker.ready));
  await first.page.close();
  await context.setOffline(true);
  const second = await visit(context);
  await generate(second.page);
  // The manifest is asked for first, in case that there is a newer one.
  const others = second.complaints.filter((text) => !text.includes('ERR_INTERNET_DISCONNECTED'));
  assert.deepEqual(others, []);
  await context.close();
});

test('on a phone the picture is in view when it is done', async () => {
  const viewport = { width: 390, height: 844 };
  const context = await browser.newContext({ viewport, hasTouch: true, isMobile: true });
  const { page } = await visit(context);
  await generate(page);
  // The page scrolls smoothly.
  await page.waitForFunction((bottom) => {
    const box = document.getElementById('picture')?.getBoundingClientRect();
    return box && box.top > -1 && box.bottom < bottom + 1;
  }, viewport.height);
  const wide = await page.evaluate(() => document.documentElement.scrollWidth);
  assert.ok(wide <= 390, `${wide} pixels wide`);
  await context.close();
});
