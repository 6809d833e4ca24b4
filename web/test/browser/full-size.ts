// Makes one small picture by a large model in Chromium, once on the CPU and once on WebGPU, and prints JSON: seconds,
// the difference from the native program's picture, and the peak memory of each kind of process. It takes a folder that
// `wuerstchen export web` wrote, and the devices (default: both):
//
//     npm run bench:full-size -- FOLDER [cpu|webgpu ...]
//
// `tests/full_size/full_size.py` makes models of the published sizes.

import { mkdtempSync, readdirSync, readFileSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join, resolve } from 'node:path';
import { difference, launchWithProfile, link, native, openPage, Site } from './site.ts';

const [folder, ...devices] = process.argv.slice(2);
if (!folder) throw new Error('expected the folder of a browser bundle');

const PROMPT = 'a fox in the snow';
const SIZE = 128;

const bundle = link(folder, 'full-size');

/** The peak resident memory of a browser's processes, in bytes: the largest of each kind. */
function peaks(profile: string): Record<string, number> {
  const processes = readdirSync('/proc').filter((name) => /^\d+$/.test(name));
  const read = (pid: string, file: string) => {
    try {
      return readFileSync(`/proc/${pid}/${file}`, 'utf8');
    } catch {
      return ''; // The process has ended.
    }
  };
  const parent = new Map(
    processes.map((pid) => [pid, /PPid:\s*(\d+)/.exec(read(pid, 'status'))?.[1]]),
  );
  const isBrowser = (pid: string) => {
    const command = read(pid, 'cmdline');
    return command.includes(profile) && !command.includes('--type=');
  };
  const found: Record<string, number> = {};
  for (const pid of processes) {
    let ancestor: string | undefined = pid;
    while (ancestor && !isBrowser(ancestor)) ancestor = parent.get(ancestor);
    if (!ancestor) continue;
    const kind = /--type=([\w-]+)/.exec(read(pid, 'cmdline'))?.[1] ?? 'browser';
    const peak = Number(/VmHWM:\s*(\d+)/.exec(read(pid, 'status'))?.[1] ?? 0) * 1024;
    found[kind] = Math.max(found[kind] ?? 0, peak);
  }
  return found;
}

const expected = native(
  PROMPT,
  ['--seed', '1', '-W', `${SIZE}`, '-H', `${SIZE}`, '--prior-steps', '1', '--decoder-steps', '1'],
  resolve(folder),
);
const site = await Site.open('.');
try {
  for (const device of devices.length > 0 ? devices : ['cpu', 'webgpu']) {
    const profile = mkdtempSync(join(tmpdir(), 'wuerstchen-'));
    const context = await launchWithProfile(profile);
    try {
      const page = await openPage(context, site);
      page.on('console', (message) => {
        if (message.type() === 'info') console.error(device, message.text());
      });
      const { picture, ...made } = await page.evaluate(
        async ({ device, model, prompt, size }) => {
          const { load } = (window as any).wuerstchen;
          const begun = performance.now();
          const since = () => Math.round((performance.now() - begun) / 100) / 10;
          let last = '';
          const tell = (what: string) => {
            if (what !== last) console.info(`${since()} s: ${what}`);
            last = what;
          };
          const ofShards = ['download', 'verify', 'upload'];
          const engine = await load({
            model,
            device,
            onProgress: ({ type }: any) => tell(ofShards.includes(type) ? 'shards' : type),
          });
          const secondsUntilReady = since();
          const result = await engine.generate({
            prompt,
            seed: 1,
            width: size,
            height: size,
            priorSteps: 1,
            decoderSteps: 1,
            format: 'imageData',
            onProgress: (event: any) => tell(event.stage),
          });
          const { width, height, data } = result.images[0];
          return {
            device: engine.device,
            threads: engine.support.threads,
            selfTestError: engine.selfTest?.maxError,
            secondsUntilReady,
            secondsUntilPicture: since(),
            timings: result.timings,
            picture: { width, height, rgba: [...data] },
          };
        },
        { device, model: `/${bundle}/manifest.json`, prompt: PROMPT, size: SIZE },
      );
      const rgba = new Uint8Array(picture.rgba);
      const peakBytes = peaks(profile);
      const { mean, close } = difference({ ...picture, rgba }, expected);
      console.log(JSON.stringify({ ...made, meanDifference: mean, close, peakBytes }, null, 2));
    } finally {
      await context.close();
      rmSync(profile, { recursive: true });
    }
  }
} finally {
  site.close();
  rmSync(bundle);
}
