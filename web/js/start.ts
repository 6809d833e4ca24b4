// Starts a WebAssembly build. Its code lies in two files: the code that a picture from a prompt needs, and the rest,
// which few visitors call (see link/). A function of the rest calls `rest.load` first.

import { asWuerstchenError, WuerstchenError } from './errors.js';
import { fetchNow } from './fetch-now.js';
import { brokenOff, request } from './http.js';
import { Threads } from './threads.js';
import { messageOf } from './values.js';
import type { Wasm } from './wasm.js';
import { hasSimd, hasWasm } from './wasm-support.js';

/** The absolute URLs of both files. */
export interface WasmUrls {
  readonly first: string;
  readonly rest: string;
}

export interface StartOptions {
  readonly fetch: typeof fetch;
  /** Whether the thread may block. If so, the rest is fetched at the first call that needs it. */
  readonly mayBlock: boolean;
  /** Number of threads, including this one. Where the program or this thread allows only one, there is one. */
  readonly threads: number;
}

/** How a build was started. */
export interface Started {
  /** Number of threads that compute. */
  readonly threads: number;
  /** Why there is only one although several were wanted. */
  readonly problem?: string;
}

const URL_HINT = 'Serve all .wasm files of this package, and pass their URLs as wasmUrl.';

/** A module with nothing in it. */
const EMPTY_MODULE = new Uint8Array([0, 97, 115, 109, 1, 0, 0, 0]);

/** The module name under which WebAssembly imports wasm-bindgen's glue. */
const GLUE = './wuerstchen_web_bg.js';

/** Makes the code of a build ready to be called through `module`. */
export async function start(module: Wasm, urls: WasmUrls, options: StartOptions): Promise<Started> {
  checkWasm();
  const { mayBlock } = options;
  const glue = module as unknown as WebAssembly.ModuleImports;
  const load = () => {
    // If the thread may not block, the rest is fetched before anything is called.
    if (!mayBlock) return;
    const rest = fetchNow(urls.rest);
    try {
      if (threads) threads.addRest(rest, restImports);
      else new WebAssembly.Instance(new WebAssembly.Module(rest), restImports);
    } catch (cause) {
      throw startError(urls.rest, cause);
    }
  };
  const { exports, threads, problem } = await first(module, urls, options, {
    [GLUE]: glue,
    rest: { load },
  });
  const restImports = { [GLUE]: glue, first: exports as WebAssembly.ModuleImports };
  if (!mayBlock) await fetched(urls.rest, restImports, options);
  module.__wbg_set_wasm(exports);
  (exports.__wbindgen_start as () => void)();
  if (threads && module.useThreads) threads.begin(exports, module.useThreads(threads.count));
  return { threads: threads?.count ?? 1, problem };
}

interface First {
  readonly exports: WebAssembly.Exports;
  readonly threads?: Threads;
  readonly problem?: string;
}

/** Instantiates the code that every picture needs, on several threads if possible. */
async function first(
  { threads: names }: Wasm,
  urls: WasmUrls,
  options: StartOptions,
  imports: WebAssembly.Imports,
): Promise<First> {
  const { mayBlock, threads: count } = options;
  if (!names || !mayBlock || count < 2) return fetched(urls.first, imports, options);
  const file = await requestWasm(options.fetch, urls.first);
  const program = await file.arrayBuffer().catch((cause) => {
    throw brokenOff(urls.first, cause);
  });
  let threads: Threads | undefined;
  try {
    threads = await Threads.open(program, names, urls.rest, count);
    return { exports: threads.instantiate(imports), threads };
  } catch (cause) {
    threads?.close();
    const { instance } = await WebAssembly.instantiate(program, imports).catch((cause) => {
      throw startError(urls.first, cause);
    });
    return { exports: instance.exports, problem: messageOf(cause) };
  }
}

async function fetched(
  url: string,
  imports: WebAssembly.Imports,
  { fetch }: StartOptions,
): Promise<WebAssembly.Instance> {
  const file = await requestWasm(fetch, url);
  return instantiate(file, imports).catch((cause) => {
    throw startError(url, cause);
  });
}

async function requestWasm(fetcher: typeof fetch, url: string): Promise<Response> {
  try {
    return await request(fetcher, url, {});
  } catch (cause) {
    const { code, message, retryable, field } = asWuerstchenError(cause);
    if (retryable || field) throw cause;
    throw new WuerstchenError(code, message, { retryable, hint: URL_HINT, cause });
  }
}

/** The URL at which a file lies by default. A bundle may not know it, as in a worker that another site's script is. */
export function defaultUrl(locate: () => URL): string {
  try {
    return locate().href;
  } catch (cause) {
    throw new WuerstchenError(
      'invalid-argument',
      'this bundle does not know where its .wasm files lie',
      {
        hint: URL_HINT,
        field: 'wasmUrl',
        cause,
      },
    );
  }
}

/** Throws before any download if WebAssembly cannot run. */
function checkWasm(): void {
  if (!hasWasm() || !hasSimd()) {
    throw new WuerstchenError('unsupported', 'this browser does not run WebAssembly with SIMD', {
      hint: 'Update the browser, or leave its lockdown mode.',
    });
  }
  if (isForbidden()) {
    throw new WuerstchenError('unsupported', 'a content security policy forbids WebAssembly here', {
      hint:
        "Add 'wasm-unsafe-eval' to script-src in the Content-Security-Policy of the page, and of " +
        'worker.js if it is served with one.',
    });
  }
}

/** Whether a content security policy forbids this thread to compile. */
function isForbidden(): boolean {
  try {
    new WebAssembly.Module(EMPTY_MODULE);
    return false;
  } catch {
    return true;
  }
}

function startError(url: string, cause: unknown): WuerstchenError {
  if (cause instanceof WebAssembly.CompileError || cause instanceof WebAssembly.LinkError) {
    return new WuerstchenError('integrity', `${url} does not fit: ${messageOf(cause)}`, {
      hint: 'Serve all files of this package unchanged and of one version.',
      cause,
    });
  }
  if (cause instanceof RangeError) {
    const message = `no memory for ${url}: ${messageOf(cause)}`;
    return new WuerstchenError('out-of-memory', message, { hint: 'Close other tabs.', cause });
  }
  return brokenOff(url, cause);
}

/** Compiles a file while it arrives, if the server gives it WebAssembly's type. */
async function instantiate(
  file: Response,
  imports: WebAssembly.Imports,
): Promise<WebAssembly.Instance> {
  // With parameters, such as a charset, browsers refuse the type.
  const isWasm = file.headers.get('content-type')?.trim().toLowerCase() === 'application/wasm';
  const { instance } = isWasm
    ? await WebAssembly.instantiateStreaming(file, imports)
    : await WebAssembly.instantiate(await file.arrayBuffer(), imports);
  return instance;
}
