// Times the demo's benchmark page in Chromium and prints JSON: `npm run bench`, or `npm run bench --
// cpu` for one device; a software GPU takes minutes.

import { launch, Site } from './site.ts';

const site = await Site.open('demo/dist');
const browser = await launch();
const results: Record<string, unknown> = {};
const devices = process.argv.slice(2);
for (const device of devices.length > 0 ? devices : ['cpu', 'webgpu']) {
  const page = await browser.newPage();
  await page.goto(`${site.url}?benchmark&device=${device}`);
  // As functions: the page's policy forbids texts of code.
  await page.waitForFunction(() => 'benchmarkResult' in window, undefined, { timeout: 0 });
  results[device] = await page.evaluate(() => Reflect.get(window, 'benchmarkResult'));
  await page.close();
}
console.log(JSON.stringify(results, null, 2));
await browser.close();
site.close();
