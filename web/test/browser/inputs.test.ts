// What people hand over: pictures and signals of frames, closed bitmaps, cut text, transparent pictures.

import assert from 'node:assert/strict';
import { beforeEach, test } from 'node:test';
import { page, useFreshPages } from './site.ts';

useFreshPages();

/** An engine in the page, and `attempt`, which tells how a job with some options ends. */
beforeEach(async () => {
  await page.evaluate(async () => {
    const { load, WuerstchenError } = (window as any).wuerstchen;
    const engine = await load({ model: '/pkg/shapes/manifest.json', device: 'cpu' });
    const few = { prompt: 'a', priorSteps: 1, decoderSteps: 1, width: 64, height: 64, seed: 0 };
    const attempt = (options: object) =>
      engine.generate({ ...few, ...options }).then(
        () => 'made',
        (error: any) => {
          if (error.name === 'AbortError') return 'aborted';
          return error instanceof WuerstchenError ? error.code : `no WuerstchenError: ${error}`;
        },
      );
    /** The pixels that a picture, made of `image` alone, has. */
    const shown = async (image: unknown, options: object = {}) => {
      const job = { ...few, image, strength: 0, ...options, format: 'imageData' };
      return [...(await engine.generate(job)).images[0].data] as number[];
    };
    Object.assign(window, { engine, attempt, shown });
  });
});

test('bitmaps that were closed or transferred end their own job alone', async () => {
  const ends = await page.evaluate(async () => {
    const { attempt, engine } = window as any;
    const bitmap = () => createImageBitmap(new ImageData(64, 64));
    const closed = await bitmap();
    closed.close();
    const transferred = await bitmap();
    new MessageChannel().port1.postMessage(transferred, [transferred]);
    const drawn = await bitmap();
    document.createElement('canvas').getContext('bitmaprenderer')?.transferFromImageBitmap(drawn);
    const jobs = [{}, ...[closed, transferred, drawn].map((image) => ({ image })), {}];
    return [...(await Promise.all(jobs.map(attempt))), engine.state];
  });
  const refused = 'invalid-argument';
  assert.deepEqual(ends, ['made', refused, refused, refused, 'made', 'ready']);
});

test('a picture may be closed and changed once its job is in the queue', async () => {
  const ends = await page.evaluate(async () => {
    const { attempt } = window as any;
    const image = await createImageBitmap(new ImageData(64, 64));
    const mask = new ImageData(64, 64);
    const jobs = [attempt({}), attempt({ image, mask })];
    image.close();
    structuredClone(mask.data.buffer, { transfer: [mask.data.buffer] });
    return Promise.all(jobs);
  });
  assert.deepEqual(ends, ['made', 'made']);
});

test('pictures, signals and URLs of a frame are as good as those of the page', async () => {
  const ends = await page.evaluate(async () => {
    const { attempt, wuerstchen } = window as any;
    const frame = document.body.appendChild(document.createElement('iframe'));
    const other = frame.contentWindow as Window & typeof globalThis;
    const canvas = other.document.createElement('canvas');
    const blob = await new Promise((done) => canvas.toBlob(done));
    const pictures: unknown[] = [
      new other.ImageData(64, 64),
      await other.createImageBitmap(canvas),
      blob,
      new other.File([blob as Blob], 'a.png'),
      { width: 64, height: 64, data: new other.Uint8Array(64 * 64 * 4) },
    ];
    const controller = new other.AbortController();
    const made = [];
    for (const image of pictures) made.push(await attempt({ image, signal: controller.signal }));
    const aborted = attempt({ signal: controller.signal });
    controller.abort();
    const model = new other.URL('/pkg/shapes/manifest.json', location.href);
    const info = await wuerstchen.inspect(model, { signal: new other.AbortController().signal });
    frame.remove();
    return [made, await aborted, await attempt({ image: pictures[0] }), info.name.length > 0];
  });
  assert.deepEqual(ends, [Array(5).fill('made'), 'aborted', 'made', true]);
});

test("what a callback throws is the page's to see, and the job goes on", async () => {
  const thrown: string[] = [];
  page.on('pageerror', ({ message }) => thrown.push(message));
  const end = await page.evaluate(() => {
    const onProgress = ({ type }: { type: string }) => {
      if (type === 'stage') throw new Error('a mistake of the page');
    };
    return (window as any).attempt({ onProgress });
  });
  assert.equal(end, 'made');
  assert.deepEqual(thrown, Array(4).fill('a mistake of the page'));
});

test('half an emoji in any text becomes U+FFFD', async () => {
  const settings = await page.evaluate(async () => {
    const { engine } = window as any;
    const cut = 'a star \u{1f600}'.slice(0, 8);
    const few = { priorSteps: 1, decoderSteps: 1, frames: 2, format: 'blob' };
    const job = { ...few, prompt: cut, negativePrompt: cut, promptTo: cut };
    return (await engine.generate(job)).settings;
  });
  const { prompt, negativePrompt, promptTo } = settings;
  assert.deepEqual([prompt, negativePrompt, promptTo], Array(3).fill('a star \ufffd'));
});

test('a transparent picture lies on white, however it is handed over', async () => {
  const differences = await page.evaluate(async () => {
    const { shown } = window as any;
    const side = 64;
    /** A blue square, half transparent on its left, on what is `below`. */
    const picture = (below: number[]) => {
      const image = new ImageData(side, side);
      for (let i = 0; i < side * side; i++) {
        const [x, y] = [i % side, Math.floor(i / side)];
        const inside = x >= 16 && x < 48 && y >= 16 && y < 48;
        image.data.set(inside ? [0, 0, 255, x < 32 ? 128 : 255] : below, 4 * i);
      }
      return image;
    };
    const onWhite = picture([255, 255, 255, 255]);
    for (let i = 0; i < side * side; i++) {
      if (onWhite.data[4 * i + 3] === 128) onWhite.data.set([127, 127, 255, 255], 4 * i);
    }
    const png = async (image: ImageData) => {
      const canvas = new OffscreenCanvas(side, side);
      canvas.getContext('2d')?.putImageData(image, 0, 0);
      return canvas.convertToBlob();
    };
    const hidden = [picture([0, 0, 0, 0]), picture([255, 255, 255, 0]), picture([0, 255, 0, 0])];
    const sources = [...hidden, await png(hidden[0]!), await createImageBitmap(hidden[2]!)];
    const expected: number[] = await shown(onWhite);
    const found: number[] = [];
    for (const source of sources) {
      const pixels: number[] = await shown(source);
      found.push(Math.max(...pixels.map((value, i) => Math.abs(value - expected[i]!))));
    }
    return found;
  });
  // Browsers round half transparent colours, by less than one of 255.
  assert.ok(
    differences.every((difference) => difference <= 2),
    `${differences}`,
  );
  assert.deepEqual(differences.slice(0, 3), [0, 0, 0]);
});

test('wide colours become those of sRGB', async () => {
  const [wide, bitmap, plain] = await page.evaluate(async () => {
    const { shown } = window as any;
    const image = (colorSpace: PredefinedColorSpace) => {
      const image = new ImageData(64, 64, { colorSpace });
      for (let i = 0; i < image.data.length; i += 4) image.data.set([200, 100, 60, 255], i);
      return image;
    };
    const p3 = image('display-p3');
    return [await shown(p3), await shown(await createImageBitmap(p3)), await shown(image('srgb'))];
  });
  assert.deepEqual(wide, bitmap);
  assert.notDeepEqual(wide, plain);
});

test('a large photo is scaled to the size of the result, and is the same as a bitmap and as pixels', async () => {
  const ends = await page.evaluate(async () => {
    const { engine, shown } = window as any;
    const [width, height] = [4032, 3024];
    const canvas = new OffscreenCanvas(width, height);
    const context = canvas.getContext('2d')!;
    const fade = context.createLinearGradient(0, 0, width, height);
    for (const [at, colour] of [
      [0, 'red'],
      [0.5, 'transparent'],
      [1, 'blue'],
    ] as const)
      fade.addColorStop(at, colour);
    context.fillStyle = fade;
    context.fillRect(0, 0, width, height);
    const pixels = await shown(context.getImageData(0, 0, width, height));
    const bitmap = await shown(canvas.transferToImageBitmap());
    const differences = bitmap.map((value: number, i: number) => Math.abs(value - pixels[i]));
    const image = new ImageData(width, height);
    const job = { prompt: 'a', priorSteps: 1, decoderSteps: 1, image, seed: 0 };
    const result = await engine.generate(job);
    return [Math.max(...differences), new Set(pixels).size > 9, result.width, result.height];
  });
  assert.deepEqual(ends, [0, true, 64, 64]);
});

test('of a mask that is white on transparent, the white alone is painted anew', async () => {
  const same = await page.evaluate(async () => {
    const { shown } = window as any;
    const side = 64;
    const mask = (outside: number[]) => {
      const image = new ImageData(side, side);
      for (let i = 0; i < side * side; i++) {
        image.data.set(i % side < side / 2 ? [255, 255, 255, 255] : outside, 4 * i);
      }
      return image;
    };
    const image = new ImageData(new Uint8ClampedArray(side * side * 4).fill(128), side, side);
    const painted = (outside: number[]) => shown(image, { mask: mask(outside), strength: 1 });
    const expected = String(await painted([0, 0, 0, 255]));
    const transparent = [
      [255, 255, 255, 0],
      [0, 0, 0, 0],
    ];
    const found = [];
    for (const outside of transparent) found.push(String(await painted(outside)) === expected);
    return found;
  });
  assert.deepEqual(same, [true, true]);
});

test('pictures that do not go together are refused by the names of their options', async () => {
  const refusals = await page.evaluate(async () => {
    const { engine } = window as any;
    const picture = new ImageData(64, 64);
    const jobs = [
      { mask: picture },
      { imageTo: picture },
      { image: picture, imageTo: picture, mask: picture },
    ];
    const refusal = (job: object) =>
      engine.generate({ prompt: 'a', ...job }).then(
        () => 'made',
        (error: any) => `${error.code}: ${error.field}`,
      );
    return Promise.all(jobs.map(refusal));
  });
  const refused = ['mask', 'imageTo', 'imageTo'].map((field) => `invalid-argument: ${field}`);
  assert.deepEqual(refusals, refused);
});
