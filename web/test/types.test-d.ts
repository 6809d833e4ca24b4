// What the public types allow and refuse; compiled, never run.

import { cache, checkSupport, inspect, load, WuerstchenError } from '../js/index.js';
import type { WuerstchenImage } from '../js/element.js';
import type {
  CachedModel,
  GenerateEvent,
  GenerateResult,
  ModelInfo,
  Support,
} from '../js/index.js';

export async function allowed(): Promise<void> {
  const support: Support = await checkSupport();
  const info: ModelInfo = await inspect(new URL('https://example.test/manifest.json'));
  const models: CachedModel[] = await cache.list();
  await using engine = await load({
    model: 'manifest.json',
    device: support.device,
    worker: false,
  });
  const files: FileList | File[] = [];
  await (await load({ model: files, lora: [{ url: 'a.safetensors', weight: 0.5 }] })).dispose();
  await (await load({ model: { stored: engine.info.id }, lora: [{ blob: new Blob() }] })).dispose();
  const result: GenerateResult = await engine.generate({
    prompt: info.id,
    seed: 1n,
    preview: false,
  });
  const [bitmap] = (await engine.generate({ prompt: 'a' })).images;
  bitmap?.close();
  const [png] = (await engine.stream({ prompt: 'a', format: 'blob' }).result).images;
  await png?.arrayBuffer();
  const again = result.settings['seed'];
  const stream = engine.stream({ prompt: String(again), preview: { every: models.length } });
  for await (const event of stream) tell(event);
  if (await stream.result.catch((error) => error instanceof WuerstchenError)) await cache.delete();
}

export function listen(image: WuerstchenImage): void {
  image.addEventListener('picture', ({ detail }) => detail.images[0]?.close());
  image.addEventListener('progress', ({ detail }) => detail.type === 'step' && tell(detail));
  image.addEventListener('click', ({ clientX }) => clientX);
}

function tell(event: GenerateEvent): string {
  switch (event.type) {
    case 'queued':
      return `${event.position}`;
    case 'stage':
      return event.stage;
    case 'step':
      return `${event.step} of ${event.steps}`;
    case 'preview':
      return `${event.bitmap.width}`;
  }
}

export async function refused(): Promise<void> {
  // @ts-expect-error: a model is needed.
  const engine = await load({});
  // @ts-expect-error: a prompt is needed.
  await engine.generate({ seed: 1 });
  // @ts-expect-error: no such option.
  await engine.generate({ prompt: 'a', guidance: 4 });
  // @ts-expect-error: no such sampler.
  await engine.generate({ prompt: 'a', sampler: 'euler' });
  // @ts-expect-error: no such device.
  await load({ model: 'manifest.json', device: 'gpu' });
  // @ts-expect-error: no such field.
  await load({ model: 'manifest.json', lora: [{ url: 'a.safetensors', scale: 1 }] });
  // @ts-expect-error: a PNG has no pixels.
  (await engine.generate({ prompt: 'a', format: 'blob' })).images[0]?.data;
  // @ts-expect-error: results are read-only.
  (await engine.generate({ prompt: 'a' })).seed = 1n;
  // @ts-expect-error: no such code.
  new WuerstchenError('oops', 'message');
}
