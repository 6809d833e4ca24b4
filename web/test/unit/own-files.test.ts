// LoRAs, and models that need no server.

import assert from 'node:assert/strict';
import { test } from 'node:test';

import { contentOf } from '../../js/picked.js';
import type { LoadEvent } from '../../js/types.js';
import { CONTENTS, makeManifest, MODEL_URL, SHARDS, WASM, WASM_URL, World } from './fake.js';

const LORA_URL = 'https://example.test/my%20style.safetensors';

test('LoRAs of a URL and of a file reach the loader, and are applied after the self-test', async () => {
  const world = new World();
  world.server.answers.set(LORA_URL, () => new Response(new Uint8Array([1, 2])));
  const blob = new File([new Uint8Array([3])], 'own.safetensors');
  const adapterConfig = new Blob(['{"r": 4}']);
  const told: LoadEvent[] = [];
  await using _engine = await world.load({
    lora: [
      { url: LORA_URL, weight: 0.5 },
      { blob, adapterConfig },
    ],
    onProgress: (event) => event.type === 'lora' && told.push(event),
  });
  assert.deepEqual(world.cpu.loras, [
    {
      name: 'my style.safetensors',
      bytes: new Uint8Array([1, 2]),
      adapterConfig: undefined,
      weight: 0.5,
    },
    { name: 'own.safetensors', bytes: new Uint8Array([3]), adapterConfig: '{"r": 4}', weight: 1 },
  ]);
  assert.equal(world.cpu.appliedLoras, 1);
  const leftOut = ['a word is left out'];
  assert.deepEqual(told[0], {
    type: 'lora',
    file: 'my style.safetensors',
    message: 'changes nothing, weight 0.5',
    leftOut,
  });
});

test('a LoRA that does not fit is the fault of its option', async () => {
  const blob = new File([new Uint8Array([3])], 'unfit.safetensors');
  await assert.rejects(new World().load({ lora: [{ blob }] }), {
    code: 'integrity',
    field: 'lora',
    retryable: false,
    message: 'unfit.safetensors: no',
  });
});

test('the config that peft writes is found beside its file, and may be missing', async () => {
  const world = new World();
  const url = 'https://example.test/style/adapter_model.safetensors?sig=1';
  const config = 'https://example.test/style/adapter_config.json?sig=1';
  world.server.answers.set(url, () => new Response(new Uint8Array([1])));
  await (await world.load({ lora: [{ url }] })).dispose();
  world.server.answers.set(config, () => new Response('{}'));
  await (await world.load({ lora: [{ url }] })).dispose();
  assert.deepEqual(
    world.cpu.loras.map(({ adapterConfig }) => adapterConfig),
    [undefined, '{}'],
  );
  // Without its config the LoRA would have another strength.
  world.server.answers.set(config, () => new Response('', { status: 503 }));
  const message = `${config} answered with status 503`;
  await assert.rejects(world.load({ lora: [{ url }] }), {
    code: 'network',
    field: 'lora',
    message,
  });
});

test('a picked file that has changed since must be picked again', async () => {
  const gone = new File([''], 'contents.json');
  gone.arrayBuffer = () => Promise.reject(new DOMException('', 'NotReadableError'));
  await assert.rejects(contentOf(gone, 'contents.json', 'model'), {
    code: 'integrity',
    field: 'model',
    retryable: false,
    message: 'contents.json cannot be read: NotReadableError',
    hint: /^Pick the file again/,
  });
});

test('LoRAs that are not there or no LoRAs are named', async () => {
  const world = new World();
  const message = `${LORA_URL} answered with status 404`;
  await assert.rejects(world.load({ lora: [{ url: LORA_URL }] }), { code: 'network', message });
  assert.equal(world.server.shardRequests, 0);
  for (const lora of [
    'x',
    [{}],
    [{ url: LORA_URL, blob: new Blob([]) }],
    [{ url: LORA_URL, weight: NaN }],
    [{ url: LORA_URL, scale: 1 }],
  ]) {
    const code = 'invalid-argument';
    await assert.rejects(world.load({ lora: lora as never }), {
      code,
      message: /^lora must be an array of/,
    });
  }
});

function files(folder = ''): File[] {
  const file = (name: string, part: BlobPart) => {
    const file = new File([part], name);
    Object.defineProperty(file, 'webkitRelativePath', { value: folder && `${folder}/${name}` });
    return file;
  };
  return [
    file('shard-1.bin', SHARDS[1] as Uint8Array<ArrayBuffer>),
    file('notes.txt', 'mine'),
    file('manifest.json', JSON.stringify(makeManifest())),
    file('contents.json', CONTENTS as Uint8Array<ArrayBuffer>),
    file('shard-0.bin', SHARDS[0] as Uint8Array<ArrayBuffer>),
  ];
}

test('a model of picked files is loaded without a server, and then from storage alone', async () => {
  for (const folder of ['', 'my model']) {
    const world = new World();
    await (await world.load({ model: files(folder) })).dispose();
    assert.deepEqual(world.cpu.shards, SHARDS);
    assert.deepEqual(new Set(world.server.asked), new Set([WASM_URL]));
    await using engine = await world.load({ model: { stored: 'fake-1234' } });
    assert.equal(engine.info.id, 'fake-1234');
    assert.deepEqual(world.cpu.shards, [...SHARDS, ...SHARDS]);
    assert.deepEqual(new Set(world.server.asked), new Set([WASM_URL]));
  }
});

test('a model that was loaded from a URL can be loaded from storage alone', async () => {
  const world = new World();
  await (await world.load()).dispose();
  world.server.answers.clear();
  world.server.answers.set(WASM_URL, () => new Response(WASM));
  world.server.answers.set(MODEL_URL, () => Promise.reject(new TypeError('offline')));
  await using engine = await world.load({ model: { stored: 'fake-1234' } });
  assert.equal(engine.state, 'ready');
  assert.equal(world.server.asked.filter((url) => url === MODEL_URL).length, 1);
  // Its manifest stays the one of the URL.
  await (await world.load()).dispose();
});

test('what is missing of picked and of stored models is named', async () => {
  const world = new World();
  const none = {
    code: 'invalid-argument',
    message: /^there is no manifest\.json among the 1 files$/,
  };
  await assert.rejects(world.load({ model: files().slice(0, 1) }), none);
  const some = { code: 'integrity', message: 'shard-0.bin is not among the files' };
  await assert.rejects(world.load({ model: files().slice(0, 4) }), some);
  const two = {
    code: 'invalid-argument',
    message: /^there are two models among the files, a\/manifest/,
  };
  await assert.rejects(world.load({ model: [...files('a'), ...files('b')] }), two);
  const unknown = {
    code: 'invalid-argument',
    field: 'model',
    message: 'the model "x" is not stored here',
  };
  await assert.rejects(world.load({ model: { stored: 'x' } }), unknown);
  await (await world.load({ model: files() })).dispose();
  world.cache.entries.delete(`fake-1234/${makeManifest().shards[0]?.sha256}`);
  const part = {
    code: 'invalid-argument',
    message: 'all of the model "fake-1234" is not stored here',
  };
  await assert.rejects(world.load({ model: { stored: 'fake-1234' } }), part);
});
