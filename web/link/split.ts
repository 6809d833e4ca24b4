// Splits the WebAssembly of each device by what a picture from a prompt calls in Chromium, and puts both
// files into dist/: `npm run build:wasm`, after `npm run build` has made the scripts.

import { execFileSync } from 'node:child_process';
import { copyFileSync, existsSync, readFileSync, statSync, writeFileSync } from 'node:fs';
import { join, resolve } from 'node:path';
import { gzipSync } from 'node:zlib';

import { launch, openPage, Site, target, web } from '../test/browser/site.ts';

/** Compressed bytes of what a visitor fetches before the first picture, of a model in 8 bits. */
const BUDGETS = { cpu: 1.0e6, webgpu: 2.07e6 };

type Device = keyof typeof BUDGETS;

const devices = Object.keys(BUDGETS) as Device[];

/**
 * The workloads. `pace` is the speed of their clock: shaders suit a slow GPU where it hurries, and a fast one where it
 * dawdles.
 */
const WORKLOADS = {
  cpu: [
    { pace: 1, threads: 1 },
    { pace: 1, threads: 2 },
  ],
  webgpu: [
    { pace: 8, threads: 1 },
    { pace: 1 / 8, threads: 1 },
  ],
};

type Workload = (typeof WORKLOADS)[Device][number];
const tool = join(target, 'release/wuerstchen-link');
const file = (device: Device, name: string) => join(web, 'pkg', device, name);

/** A byte for each function of the whole, 1 where a workload called it. */
async function callsOf(device: Device): Promise<Buffer> {
  const runs = [];
  for (const workload of WORKLOADS[device]) runs.push(await callsOfOne(device, workload));
  return Buffer.from(
    Array.from(runs[0] ?? [], (_, i) => Math.max(...runs.map((run) => run[i] ?? 0))),
  );
}

async function callsOfOne(device: Device, workload: Workload): Promise<number[]> {
  const site = await Site.open(web);
  const browser = await launch();
  try {
    const page = await openPage(browser, site);
    return await page.evaluate(
      (job) => {
        // As in use: a few things differ between workers and pages.
        const worker = new Worker('/link/workload.js', { type: 'module' });
        worker.postMessage(job);
        return new Promise<number[]>((done, failed) => {
          worker.onmessage = ({ data }: MessageEvent<Uint8Array>) => done(Array.from(data));
          worker.onerror = ({ message }) => failed(new Error(message));
        });
      },
      { device, ...workload },
    );
  } finally {
    await browser.close();
    site.close();
  }
}

/** Whether the parts were made from the present whole, by the present workload and tool. */
function isSplit(device: Device): boolean {
  const first = file(device, 'first.wasm');
  if (!existsSync(first)) return false;
  const sources = [file(device, 'whole.wasm'), resolve('link/workload.js'), tool];
  return sources.every((source) => statSync(source).mtimeMs < statSync(first).mtimeMs);
}

for (const device of devices) {
  const [whole, first, rest] = [
    file(device, 'whole.wasm'),
    file(device, 'first.wasm'),
    file(device, 'rest.wasm'),
  ];
  if (!isSplit(device)) {
    execFileSync(tool, ['profile', whole, file(device, 'profiled.wasm')], { stdio: 'inherit' });
    const calls = file(device, 'calls.bin');
    writeFileSync(calls, await callsOf(device));
    execFileSync(tool, ['split', whole, calls, first, rest], { stdio: 'inherit' });
  }
  copyFileSync(first, join(web, `dist/wuerstchen_${device}_bg.wasm`));
  copyFileSync(rest, join(web, `dist/wuerstchen_${device}_rest.wasm`));

  const [size, later] = [first, rest].map((part) => gzipSync(readFileSync(part)).length);
  const budget = BUDGETS[device];
  console.log(
    `WebAssembly for ${device}: ${size} bytes gzip of ${budget}, ${later} more when needed`,
  );
  if (size === undefined || size > budget)
    throw new Error(`the WebAssembly for ${device} is over its budget`);
}
