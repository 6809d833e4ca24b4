// Another engine than Chromium's: Firefox, as Debian ships it, driven by WebDriver BiDi.

import assert from 'node:assert/strict';
import { after, before, test } from 'node:test';
import { launch, type Browser } from 'puppeteer-core';
import { Cdn, difference, native, Site, web } from './site.ts';

const PROMPT = 'a yellow square on a navy background';

let site: Site;
let browser: Browser;

before(async () => {
  site = await Site.open(web);
  browser = await launch({
    browser: 'firefox',
    executablePath: process.env.FIREFOX ?? '/usr/bin/firefox-esr',
    headless: true,
    // A software GPU takes its time.
    protocolTimeout: 0,
    // Firefox has WebGPU on Linux, but not yet by itself, and less so on a software driver.
    extraPrefsFirefox: { 'dom.webgpu.enabled': true, 'gfx.webgpu.ignore-blocklist': true },
  });
});

after(async () => {
  await browser?.close();
  site?.close();
});

/** Makes a picture and compares it with the native program's. */
async function compare(device: string, options: object, args: readonly string[]): Promise<string> {
  const page = await browser.newPage();
  await page.goto(`${site.url}test/browser/page.html`);
  await page.waitForFunction('window.wuerstchen');
  const made = await page.evaluate(
    async (prompt, device, options) => {
      const { load } = (window as any).wuerstchen;
      const engine = await load({ model: '/pkg/shapes/manifest.json', device });
      const result = await engine.generate({ prompt, seed: 3, format: 'imageData', ...options });
      const { width, height, data }: ImageData = result.images[0];
      const ran = engine.device;
      await engine.dispose();
      return { width, height, rgba: Array.from(data), ran };
    },
    PROMPT,
    device,
    options,
  );
  await page.close();
  const picture = { ...made, rgba: new Uint8Array(made.rgba) };
  const { mean, close } = difference(picture, native(PROMPT, ['--seed', '3', ...args]));
  assert.ok(mean <= 1 && close >= 0.99, `mean ${mean}, within 2: ${close}`);
  return made.ran;
}

test('a picture of Firefox is the native one, on the CPU as its GPU is emulated', async () => {
  assert.equal(await compare('auto', {}, []), 'cpu');
});

test('a worker whose script lies on another origin runs in Firefox, in a sandboxed frame, too', async () => {
  const cdn = await Cdn.open();
  const page = await browser.newPage();
  await page.goto(`${site.url}test/browser/page.html`);
  const script = `
    const { load } = await import('${cdn.url}/dist/index.js');
    const engine = await load({ model: '${cdn.url}/pkg/shapes/manifest.json', device: 'cpu' });
    parent.postMessage(engine.state);`;
  const states = await page.evaluate(async (script) => {
    const run = (target: HTMLElement) => {
      document.body.append(target);
      return new Promise((done) =>
        addEventListener('message', ({ data }) => done(data), { once: true }),
      );
    };
    const module = document.createElement('script');
    Object.assign(module, { type: 'module', textContent: script });
    const frame = document.createElement('iframe');
    frame.sandbox.add('allow-scripts');
    frame.srcdoc = `<script type="module">${script.replace('(engine.state)', "(engine.state, '*')")}</script>`;
    return [await run(module), await run(frame)];
  }, script);
  assert.deepEqual(states, ['ready', 'ready']);
  await page.close();
  cdn.close();
});

test(
  "a picture of Firefox's WebGPU is the native one",
  {
    skip: process.env.WUERSTCHEN_GPU_TESTS === 'no' && 'there is no GPU, not even a software one',
  },
  async () => {
    const steps = ['--prior-steps', '2', '--decoder-steps', '2'];
    assert.equal(await compare('webgpu', { priorSteps: 2, decoderSteps: 2 }, steps), 'webgpu');
  },
);
