// Times how a browser bundle comes into Chromium from this machine, first over HTTP and then from the
// browser's storage, and prints JSON: `npm run bench:loading -- FOLDER`, a folder that
// `wuerstchen export web` wrote. Megabytes are 10^6 bytes.

import { mkdtempSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { launchWithProfile, link, openPage, Site } from './site.ts';

const [folder] = process.argv.slice(2);
if (!folder) throw new Error('expected the folder of a browser bundle');

const bundle = link(folder, 'loading');

const site = await Site.open('.');
const profile = mkdtempSync(join(tmpdir(), 'wuerstchen-'));
const context = await launchWithProfile(profile);

/** A load in a page of its own, until the last shard is on the device. */
async function load(): Promise<{ bytes: number; seconds: number; megabytesPerSecond: number }> {
  const page = await openPage(context, site);
  const { bytes, seconds } = await page.evaluate(async (model) => {
    const { load } = (window as any).wuerstchen;
    let begun = 0;
    let bytes = 0;
    let ended = 0;
    const onProgress = (event: any) => {
      begun ||= performance.now();
      if (event.type !== 'upload') return;
      ended = performance.now();
      bytes = event.total;
    };
    const engine = await load({ model, device: 'cpu', onProgress });
    await engine.dispose();
    return { bytes, seconds: (ended - begun) / 1000 };
  }, `/${bundle}/manifest.json`);
  await page.close();
  return { bytes, seconds, megabytesPerSecond: bytes / 1e6 / seconds };
}

const overHttp = await load();
const fromStorage = [await load(), await load(), await load()];
console.log(JSON.stringify({ overHttp, fromStorage }, null, 2));
await context.close();
site.close();
rmSync(bundle);
rmSync(profile, { recursive: true });
