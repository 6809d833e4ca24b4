// What `wuerstchen-link` makes, started as the engine starts it.

import assert from 'node:assert/strict';
import { execFileSync } from 'node:child_process';
import { mkdtempSync, readFileSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join, resolve } from 'node:path';
import { afterEach, test } from 'node:test';

import { start } from '../../js/start.js';
import type { Wasm } from '../../js/wasm.js';

const tool = resolve(process.env.CARGO_TARGET_DIR ?? '../target', 'release/wuerstchen-link');

/** `common` is called by what is profiled, `rare` and `rarer` are not; all share one counter and data. */
const TEXT = `(module
  (import "./wuerstchen_web_bg.js" "note" (func $note (param i32)))
  (memory 1)
  (data (i32.const 8) "\\2a")
  (global $counter (mut i32) (i32.const 0))
  (table $functions 2 funcref)
  (elem (i32.const 0) $count $rarer)
  (type $counting (func (result i32)))
  (func (export "__wbindgen_start"))
  (func $count (result i32)
    (global.set $counter (i32.add (global.get $counter) (i32.const 1)))
    (global.get $counter))
  (func (export "common") (result i32) (call $count))
  (func (export "rare") (param $a i32) (param $b i64) (result i64)
    (call $note (i32.load8_u (i32.const 8)))
    (i64.add (local.get $b) (i64.extend_i32_u (i32.add (local.get $a) (call $count)))))
  (func $rarer (result i32) (i32.add (i32.const 100) (call $count)))
  (func (export "indirect") (param $function i32) (result i32)
    (call_indirect $functions (type $counting) (local.get $function)))
)`;

interface Exports {
  common(): number;
  rare(a: number, b: bigint): bigint;
  indirect(of: number): number;
}

const folder = mkdtempSync(join(tmpdir(), 'wuerstchen-link-'));
const path = (name: string) => join(folder, name);

/** The functions of the module by their indices. */
const FUNCTIONS = ['note', '__wbindgen_start', 'count', 'common', 'rare', 'rarer', 'indirect'];

/** Makes `NAME-first.wasm` and `NAME-rest.wasm` of the module, as if these had been called. */
function split(name: string, called: readonly string[]): void {
  writeFileSync(path('whole.wat'), TEXT);
  const assembler = 'node_modules/binaryen/bin/wasm-as';
  const features = ['--enable-reference-types', '--enable-mutable-globals'];
  execFileSync(process.execPath, [
    assembler,
    ...features,
    path('whole.wat'),
    '-o',
    path('whole.wasm'),
  ]);
  const calls = FUNCTIONS.map((name) => (called.includes(name) ? 1 : 0));
  writeFileSync(path('calls.bin'), Uint8Array.from(calls));
  const parts = ['first', 'rest'].map((part) => path(`${name}-${part}.wasm`));
  execFileSync(tool, ['split', path('whole.wasm'), path('calls.bin'), ...parts]);
}

/** The parts as the engine starts them, and what they fetch and note. */
async function open(first: string, rest: string, mayBlock: boolean) {
  const [fetched, noted]: [string[], number[]] = [[], []];
  let exports: Exports | undefined;
  const glue = {
    note: (value: number) => noted.push(value),
    __wbg_set_wasm: (found: WebAssembly.Exports) => (exports = found as unknown as Exports),
  };
  const bytesOf = (name: string) => {
    fetched.push(name);
    return readFileSync(path(`${name}.wasm`));
  };
  globalThis.XMLHttpRequest = class {
    status = 200;
    response: ArrayBuffer | undefined;
    #url = '';
    open(_method: string, url: string) {
      this.#url = url;
    }
    send() {
      if (rest === 'missing') throw new DOMException('offline', 'NetworkError');
      this.response = Uint8Array.from(bytesOf(this.#url)).buffer;
    }
    getResponseHeader() {
      return 'application/wasm';
    }
  } as unknown as typeof XMLHttpRequest;
  const fetch = async (url: string | URL | Request) => {
    const headers = { 'content-type': 'application/wasm' };
    return new Response(bytesOf(String(url)), { headers });
  };
  await start(glue as unknown as Wasm, { first, rest }, { fetch, mayBlock, threads: 1 });
  assert.ok(exports);
  return { exports, fetched, noted };
}

afterEach(() => {
  Reflect.deleteProperty(globalThis, 'XMLHttpRequest');
});

const COMMON = ['__wbindgen_start', 'count', 'common'];

test('what was not profiled is fetched when it is called, and shares all state', async () => {
  split('a', COMMON);
  const { exports, fetched, noted } = await open('a-first', 'a-rest', true);
  assert.equal(exports.common(), 1);
  assert.deepEqual(fetched, ['a-first']);
  assert.equal(exports.rare(10, 1n << 40n), (1n << 40n) + 12n);
  assert.deepEqual(fetched, ['a-first', 'a-rest']);
  assert.deepEqual(noted, [0x2a]);
  assert.deepEqual([exports.indirect(0), exports.indirect(1), exports.common()], [3, 104, 5]);
  assert.deepEqual(fetched, ['a-first', 'a-rest']);
  // The only variable of this program is the counter.
  assert.equal((exports as unknown as { stack: WebAssembly.Global }).stack.value, 5);
});

test('where nothing may block, both files are fetched at the start', async () => {
  split('a', COMMON);
  const { exports, fetched } = await open('a-first', 'a-rest', false);
  assert.deepEqual(fetched, ['a-first', 'a-rest']);
  assert.deepEqual([exports.rare(0, 0n), exports.indirect(1)], [1n, 102]);
});

test('a rest of another build, or none, is refused', async () => {
  split('a', COMMON);
  split('b', ['count', 'rare']);
  const { exports } = await open('a-first', 'b-rest', true);
  assert.throws(() => exports.rare(0, 0n), { code: 'integrity', message: /^b-rest does not fit/ });
  const offline = await open('a-first', 'missing', true);
  assert.throws(() => offline.exports.rare(0, 0n), { code: 'network', retryable: true });
  assert.equal(offline.exports.common(), 1);
});

test('the first file lacks what was not called', async () => {
  split('a', COMMON);
  split(
    'b',
    FUNCTIONS.filter((name) => name !== 'rarer'),
  );
  const size = (name: string) => readFileSync(path(`${name}.wasm`)).length;
  assert.ok(size('a-rest') > size('b-rest'));
});
