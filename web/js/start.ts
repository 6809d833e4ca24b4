// Starts a WebAssembly build. Its code lies in two files: the code that a picture from a prompt needs, and the rest,
// which few visitors call (see link/). A function of the rest calls `rest.load` first.

import { WuerstchenError } from './errors.js';
import { brokenOff, checkAnswer, request, unreachable } from './http.js';
import { messageOf } from './values.js';
import type { Wasm } from './wasm.js';
import { hasSimd, hasWasm, isForbidden } from './wasm-support.js';

/** The absolute URLs of both files. */
export interface WasmUrls {
  readonly first: string;
  readonly rest: string;
}

export interface StartOptions {
  readonly fetch: typeof fetch;
  readonly signal: AbortSignal;
  /** Whether the thread may block. If so, the rest is fetched at the first call that needs it. */
  readonly mayBlock: boolean;
}

/** The module name under which WebAssembly imports wasm-bindgen's glue. */
const GLUE = './wuerstchen_web_bg.js';

/** The code of a build, ready to be called through `module`. */
export async function start(
  module: Wasm,
  urls: WasmUrls,
  { fetch, signal, mayBlock }: StartOptions,
): Promise<void> {
  checkWasm();
  const fetched = async (url: string, imports: WebAssembly.Imports) => {
    const file = await request(fetch, url, { signal });
    return instantiate(file, imports).catch((cause) => {
      throw startError(url, cause);
    });
  };
  const glue = module as unknown as WebAssembly.ModuleImports;
  // If the thread may not block, the rest is fetched before anything is called.
  const load = () => {
    if (mayBlock)
      new WebAssembly.Instance(new WebAssembly.Module(fetchNow(urls.rest)), restImports);
  };
  const { exports } = await fetched(urls.first, { [GLUE]: glue, rest: { load } });
  const restImports = { [GLUE]: glue, first: exports as WebAssembly.ModuleImports };
  if (!mayBlock) await fetched(urls.rest, restImports);
  module.__wbg_set_wasm(exports);
  (exports.__wbindgen_start as () => void)();
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
  const isWasm = file.headers.get('content-type')?.startsWith('application/wasm');
  const { instance } = isWasm
    ? await WebAssembly.instantiateStreaming(file, imports)
    : await WebAssembly.instantiate(await file.arrayBuffer(), imports);
  return instance;
}

/** Fetches a file synchronously, which only workers may do, because WebAssembly waits for it. */
function fetchNow(url: string): ArrayBuffer {
  const request = new XMLHttpRequest();
  request.open('GET', url, false);
  request.responseType = 'arraybuffer';
  try {
    request.send();
  } catch (cause) {
    throw unreachable(url, cause);
  }
  checkAnswer(url, request.status, request.getResponseHeader('content-type'));
  return request.response;
}
