import assert from 'node:assert/strict';
import { test, type TestContext } from 'node:test';

import { orCrash } from '../../js/crashes.js';
import { Crash, WuerstchenError } from '../../js/errors.js';
import { deferred } from './fake.js';

/** The events of a browser's global object, which Node lacks; counts their listeners. */
function provideEvents(t: TestContext) {
  const events = new EventTarget();
  let listeners = 0;
  Object.assign(globalThis, {
    addEventListener: (type: string, listener: () => void) => {
      listeners += 1;
      events.addEventListener(type, listener);
    },
    removeEventListener: (type: string, listener: () => void) => {
      listeners -= 1;
      events.removeEventListener(type, listener);
    },
  });
  t.after(() => {
    Reflect.deleteProperty(globalThis, 'addEventListener');
    Reflect.deleteProperty(globalThis, 'removeEventListener');
  });
  /** Whether somebody takes care of the rejection. */
  const isTaken = (reason: unknown) => {
    const event = Object.assign(new Event('unhandledrejection', { cancelable: true }), { reason });
    return !events.dispatchEvent(event);
  };
  return { isTaken, listeners: () => listeners };
}

/** An error that was thrown below WebAssembly. */
function fromWasm(error: Error): Error {
  error.stack += '\n    at load (wasm://wasm/0123abcd:wasm-function[12]:0x3f)';
  return error;
}

test("the page's own rejections do not stop an engine, also those with errors of this package", async (t) => {
  const { isTaken, listeners } = provideEvents(t);
  const { promise, resolve } = deferred<string>();
  const work = orCrash(promise);
  assert.equal(isTaken(new WuerstchenError('invalid-argument', 'prompt must be a string')), false);
  assert.equal(isTaken('a text'), false);
  resolve('done');
  assert.equal(await work, 'done');
  assert.equal(listeners(), 0);
});

test('an error that came through WebAssembly ends the work, and nobody listens any more', async (t) => {
  const { isTaken, listeners } = provideEvents(t);
  const work = orCrash(new Promise(() => {}));
  const cause = fromWasm(new WuerstchenError('network', 'the rest could not be fetched'));
  assert.equal(isTaken(cause), true);
  await assert.rejects(work, (error) => error instanceof Crash && error.cause === cause);
  assert.equal(listeners(), 0);
});
