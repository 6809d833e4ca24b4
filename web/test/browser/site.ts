// The pages under test: served by the binary, opened in a real browser.

import { spawn, execFileSync, type ChildProcess } from 'node:child_process';
import {
  createReadStream,
  mkdirSync,
  mkdtempSync,
  readFileSync,
  rmSync,
  symlinkSync,
} from 'node:fs';
import { createServer, type Server } from 'node:http';
import type { AddressInfo } from 'node:net';
import { tmpdir } from 'node:os';
import { join, resolve } from 'node:path';
import { after, afterEach, before, beforeEach } from 'node:test';
import { chromium, type Browser, type BrowserContext, type Page } from 'playwright-core';
import { PNG } from 'pngjs';
import { chromiumOptions } from '../chromium.ts';

/** The folder `web/`; tests are started in it. */
export const web = resolve('.');

/** Where cargo builds. */
export const target = resolve(process.env.CARGO_TARGET_DIR ?? '../target');

/** The native program, which serves the pages and makes the pictures to compare with. */
export const program = join(target, 'release/wuerstchen');

/** A server of a folder, on any free port. */
export class Site {
  private constructor(
    private readonly process: ChildProcess,
    readonly url: string,
  ) {}

  static async open(folder: string): Promise<Site> {
    const server = spawn(program, ['serve', folder, '--port', '0'], {
      stdio: ['ignore', 'pipe', 'inherit'],
    });
    const url = await new Promise<string>((found, failed) => {
      let text = '';
      server.stdout.on('data', (chunk: Buffer) => {
        text += chunk.toString();
        const match = /http:\/\/\S+/.exec(text);
        if (match) found(match[0]);
      });
      server.on('exit', (code) => failed(new Error(`the server ended with ${code}: ${text}`)));
    });
    return new Site(server, url);
  }

  close(): void {
    this.process.kill();
  }
}

/**
 * Another origin, as a CDN is one: it has the package and the model, and allows requests from
 * everywhere. Requests of sandboxed frames and of files cannot be routed, so it is a server.
 */
export class Cdn {
  private constructor(
    private readonly server: Server,
    readonly url: string,
  ) {}

  static async open(): Promise<Cdn> {
    const types: Record<string, string> = {
      html: 'text/html',
      js: 'text/javascript',
      wasm: 'application/wasm',
    };
    const server = createServer((request, response) => {
      const path = join(web, new URL(request.url ?? '', 'http://cdn.test').pathname);
      const headers = {
        'access-control-allow-origin': '*',
        'content-type': types[path.split('.').at(-1) ?? ''] ?? 'application/octet-stream',
      };
      const file = createReadStream(path);
      file.on('error', () => response.writeHead(404, headers).end());
      file.on('open', () => file.pipe(response.writeHead(200, headers)));
    });
    await new Promise<void>((listens) => server.listen(0, '127.0.0.1', listens));
    return new Cdn(server, `http://127.0.0.1:${(server.address() as AddressInfo).port}`);
  }

  close(): void {
    this.server.closeAllConnections();
    this.server.close();
  }
}

/** Lets pages use WebGPU on a software GPU. */
const WEBGPU = '--enable-unsafe-webgpu';

/** Starts Chromium with further arguments; its GPU is SwiftShader, a software one. */
export function launch(...args: string[]): Promise<Browser> {
  return chromium.launch(chromiumOptions(WEBGPU, ...args));
}

/** Makes a folder of any place reachable for pages, under the path that this gives. */
export function link(folder: string, name: string): string {
  const path = `node_modules/.cache/${name}`;
  mkdirSync('node_modules/.cache', { recursive: true });
  rmSync(path, { force: true });
  symlinkSync(resolve(folder), path);
  return path;
}

/** Starts Chromium with a profile on the disk, as people have one. Without a profile, storage is kept in memory. */
export function launchWithProfile(profile: string): Promise<BrowserContext> {
  return chromium.launchPersistentContext(profile, chromiumOptions(WEBGPU));
}

export interface Picture {
  readonly width: number;
  readonly height: number;
  /** Four bytes a pixel. */
  readonly rgba: Uint8Array;
}

/** The small model that tests run, which `pkg/shapes` has as a page loads it. */
export const SHAPES = resolve('../models/shapes.safetensors');

/** A small Stable Cascade with random weights, which takes pictures as prompts. */
export const CASCADE = resolve('../tests/golden/cascade');

/** Exports `shapes` for browsers with weights of this type; gives the folder, which has this name in the cache. */
export const exportShapes = (name: string, dtype: string) => exportModel(name, SHAPES, dtype);

/** The same of any model, with more arguments. */
export function exportModel(
  name: string,
  model: string,
  dtype: string,
  more: readonly string[] = [],
): string {
  const folder = `node_modules/.cache/${name}`;
  rmSync(folder, { recursive: true, force: true });
  const args = ['export', 'web', '-m', model, '-o', folder, '--dtype', dtype, ...more];
  // Pictures for previews and of what storing costs take time, and nobody looks at them.
  execFileSync(program, [...args, '--preview-pictures', '0', '--check', '0'], { stdio: 'ignore' });
  return folder;
}

/** The built-in model, which `pkg/model` has. */
export const BUILT_IN = resolve('../models/emoji');

/** What the native program makes on the CPU, with `shapes` if no other model is named. */
export function native(prompt: string, options: readonly string[], model = SHAPES): Picture {
  const file = join(mkdtempSync(join(tmpdir(), 'wuerstchen-')), 'out.png');
  const args = ['generate', prompt, '-o', file, '--device', 'cpu', '-m', model, ...options];
  execFileSync(program, args, { stdio: ['ignore', 'ignore', 'ignore'] });
  return decode(readFileSync(file));
}

export function decode(png: Buffer): Picture {
  const { width, height, data } = PNG.sync.read(png);
  return { width, height, rgba: new Uint8Array(data) };
}

export interface Difference {
  /** Mean absolute difference of the colours, of 255. */
  readonly mean: number;
  /** Share of the colours that differ by at most 2. */
  readonly close: number;
}

export function difference(a: Picture, b: Picture): Difference {
  if (a.width !== b.width || a.height !== b.height) {
    throw new Error(`${a.width} x ${a.height} is not ${b.width} x ${b.height}`);
  }
  let [sum, close, count] = [0, 0, 0];
  for (let i = 0; i < a.rgba.length; i++) {
    if (i % 4 === 3) continue;
    const d = Math.abs((a.rgba[i] ?? 0) - (b.rgba[i] ?? 0));
    sum += d;
    close += d <= 2 ? 1 : 0;
    count++;
  }
  return { mean: sum / count, close: close / count };
}

/** A page with the package on `window.wuerstchen`; errors of the page end up in the test's output. */
export async function openPage(browser: Browser | BrowserContext, site: Site): Promise<Page> {
  const page = await browser.newPage();
  page.on('console', (message) => {
    if (message.type() === 'error' || message.type() === 'warning')
      console.error('page:', message.text());
  });
  page.on('pageerror', (error) => console.error('page:', error));
  await page.goto(`${site.url}test/browser/page.html`);
  // A function: policies may forbid to evaluate text.
  await page.waitForFunction(() => 'wuerstchen' in window);
  return page;
}

/** Where {@link useFreshPages} serves the package. */
export let site: Site;
/** The context of the test that runs, which has storage of its own. */
export let context: BrowserContext;
/** The page of the test that runs. */
export let page: Page;

/** Gives every test of a file a page in a context of its own; the arguments are Chromium's. */
export function useFreshPages(...args: string[]): void {
  let browser: Browser;

  before(async () => {
    site = await Site.open(web);
    browser = await launch(...args);
  });

  after(async () => {
    await browser.close();
    site.close();
  });

  beforeEach(async () => {
    context = await browser.newContext();
    page = await openPage(context, site);
  });

  afterEach(() => context.close());
}
