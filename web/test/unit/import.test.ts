import assert from 'node:assert/strict';
import { test } from 'node:test';

import { cache, checkSupport, load, WuerstchenError } from '../../js/index.js';
import { fromErrorData, toErrorData } from '../../js/errors.js';

test('the package can be imported and asked where there is no browser', async () => {
  assert.equal(typeof Worker, 'undefined');
  const support = await checkSupport();
  assert.deepEqual([support.device, support.reason], ['cpu', 'no-webgpu']);
  assert.equal(support.storage.backend, 'memory');
  assert.deepEqual(await cache.list(), []);
  await assert.rejects(load({ model: 'https://example.test/manifest.json' }), /Worker/);
});

test('an error survives structured cloning as the same error', () => {
  const error = new WuerstchenError('quota', 'no room', {
    retryable: true,
    hint: 'delete',
    field: 'cache',
  });
  const copy = fromErrorData(structuredClone(toErrorData(error)));
  assert.ok(copy instanceof WuerstchenError);
  const fields = ({ code, message, retryable, hint, field, stack }: WuerstchenError) => [
    code,
    message,
    retryable,
    hint,
    field,
    stack,
  ];
  assert.deepEqual(fields(copy), fields(error));
});

test('whatever else is thrown gets a code', () => {
  assert.equal(toErrorData(new TypeError('oops')).code, 'internal');
  assert.equal(toErrorData(Object.assign(new Error('x'), { code: 'ENOENT' })).code, 'internal');
  assert.equal(toErrorData(Object.assign(new Error('x'), { code: 'quota' })).code, 'quota');
  assert.equal(toErrorData(new DOMException('x', 'DataCloneError')).code, 'internal');
});
