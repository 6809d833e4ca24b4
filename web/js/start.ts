// Starts a WebAssembly build. Its code lies in two files: what a picture from a prompt needs, and the
// rest, which few visitors call (see link/). Something of the rest calls `rest.load` first.

import { checkAnswer, request, unreachable } from './http.js';
import type { Wasm } from './wasm.js';

/** Where both files lie; absolute. */
export interface WasmUrls {
  readonly first: string;
  readonly rest: string;
}

export interface StartOptions {
  readonly fetch: typeof fetch;
  readonly signal: AbortSignal;
  /** Whether the thread may stand still while the rest is fetched, which is then done at its first call. */
  readonly mayBlock: boolean;
}

/** What wasm-bindgen's glue is called by what imports it. */
const GLUE = './wuerstchen_web_bg.js';

/** The code of a build, ready to be called through `module`. */
export async function start(
  module: Wasm,
  urls: WasmUrls,
  { fetch, signal, mayBlock }: StartOptions,
): Promise<void> {
  const fetched = (url: string, imports: WebAssembly.Imports) =>
    request(fetch, url, { signal }).then((file) => instantiate(file, imports));
  const glue = module as unknown as WebAssembly.ModuleImports;
  // Where nothing may block, the rest is there before anything is called.
  const load = () => {
    if (mayBlock) new WebAssembly.Instance(new WebAssembly.Module(fetchNow(urls.rest)), restImports);
  };
  const { exports } = await fetched(urls.first, { [GLUE]: glue, rest: { load } });
  const restImports = { [GLUE]: glue, first: exports as WebAssembly.ModuleImports };
  if (!mayBlock) await fetched(urls.rest, restImports);
  module.__wbg_set_wasm(exports);
  (exports.__wbindgen_start as () => void)();
}

/** While it arrives, if the server calls it what it is. */
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

/** A file, in a worker, without giving anything else a turn: WebAssembly waits for it. */
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
