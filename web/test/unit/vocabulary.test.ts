import assert from 'node:assert/strict';
import { test, type TestContext } from 'node:test';

import { vocabulary } from '../../js/index.js';
import { CONTENTS_URL, describe, FakeServer, makeManifest, MODEL_URL } from './fake.js';

/** A server whose model has these contents, in place of the network. */
function serve(t: TestContext, contents: unknown): FakeServer {
  const server = new FakeServer();
  const bytes = new TextEncoder().encode(JSON.stringify(contents));
  const manifest = { ...makeManifest(), contents: describe('contents.json', bytes) };
  server.answers.set(MODEL_URL, () => Response.json(manifest));
  server.answers.set(CONTENTS_URL, () => new Response(bytes));
  t.mock.method(globalThis, 'fetch', server.fetch);
  return server;
}

const TOKENIZER = 'wuerstchen-prior/tokenizer/tokenizer.json';

function filesWith(model: object, path = TOKENIZER) {
  const tokenizer = { added_tokens: [{ content: '<|unknown|>' }], model };
  return { files: { 'config.json': '{}', [path]: JSON.stringify(tokenizer) } };
}

test('the words of a model are told without its weights', async (t) => {
  const vocab = { '<|unknown|>': 0, star: 1, red: 2 };
  for (const path of [TOKENIZER, 'wuerstchen-v1-prior/tokenizer/tokenizer.json']) {
    const server = serve(t, filesWith({ type: 'WordLevel', vocab }, path));
    assert.deepEqual(await vocabulary(MODEL_URL), ['red', 'star']);
    assert.equal(server.shardRequests, 0);
  }
});

test('a page without a secure connection, which cannot verify files, gets an error with a code', async (t) => {
  serve(t, filesWith({ type: 'BPE', vocab: { a: 0 } }));
  t.mock.getter(crypto, 'subtle', () => undefined);
  await assert.rejects(vocabulary(MODEL_URL), { name: 'WuerstchenError', code: 'unsupported' });
});

test('a model whose tokens are parts of words reads anything', async (t) => {
  serve(t, filesWith({ type: 'BPE', vocab: { a: 0 } }));
  assert.equal(await vocabulary(MODEL_URL), undefined);
});

test('contents that are no JSON of files are named', async (t) => {
  serve(t, { files: { [TOKENIZER]: '{' } });
  await assert.rejects(vocabulary(MODEL_URL), {
    code: 'integrity',
    message: /contents\.json cannot be read/,
  });
});
