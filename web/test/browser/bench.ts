// Times the demo's benchmark page on both devices in Chromium and prints JSON: `npm run bench`.

import { launch, Site } from './site.ts';

const site = await Site.open('demo/dist');
const browser = await launch();
const results: Record<string, unknown> = {};
for (const device of ['cpu', 'webgpu']) {
  const page = await browser.newPage();
  await page.goto(`${site.url}?benchmark&device=${device}`);
  await page.waitForFunction('window.benchmarkResult', undefined, { timeout: 0 });
  results[device] = await page.evaluate('window.benchmarkResult');
  await page.close();
}
console.log(JSON.stringify(results, null, 2));
await browser.close();
site.close();
