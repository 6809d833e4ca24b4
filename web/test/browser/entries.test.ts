// The thin entries of the package: the custom element and the React hook, in a page.

import assert from 'node:assert/strict';
import { join } from 'node:path';
import { before, test } from 'node:test';
import { build } from 'esbuild';
import { context, difference, native, page, useFreshPages, web, type Picture } from './site.ts';

const MODEL = '/pkg/shapes/manifest.json';

/** What a page needs for an element. */
const ELEMENT = { model: MODEL, element: '/dist/element.js' };

/** A page's component that leaves what its hook gives on `window.hook`. */
const COMPONENT = `
  import { createElement, StrictMode, useState } from 'react';
  import { createRoot } from 'react-dom/client';
  import { useWuerstchen } from 'wuerstchen-web/react';
  function Component() {
    const [model, setModel] = useState('${MODEL}');
    window.setModel = setModel;
    // A literal is a new object at every rendering.
    const source = typeof model === 'string' ? model : { ...model };
    window.hook = useWuerstchen({ model: source, device: 'cpu', lora: [] });
    (window.states ??= []).push(window.hook.state);
  }
  const root = createRoot(document.body.appendChild(document.createElement('div')));
  root.render(createElement(StrictMode, null, createElement(Component)));
  window.unmount = () => root.unmount();
`;

let component: string;
let expected: Picture;

useFreshPages();

before(async () => {
  const result = await build({
    stdin: { contents: COMPONENT, resolveDir: web },
    bundle: true,
    format: 'esm',
    write: false,
    define: { 'process.env.NODE_ENV': '"development"' },
    plugins: [
      {
        name: 'package',
        setup(build) {
          // Its worker lies beside this file of the package.
          build.onResolve({ filter: /^\.\/index\.js$/ }, () => ({
            path: '/dist/index.js',
            external: true,
          }));
          build.onResolve({ filter: /^wuerstchen-web\/react$/ }, () => ({
            path: join(web, 'dist/react.js'),
          }));
        },
      },
    ],
  });
  component = result.outputFiles[0]?.text ?? '';
  expected = native('a red circle', ['--seed', '5']);
});

/** Fails unless two pictures are equal but for rounding. */
function assertLike(rgba: readonly number[], width: number): void {
  const found = { width, height: rgba.length / 4 / width, rgba: Uint8Array.from(rgba) };
  const { close } = difference(found, expected);
  assert.ok(close > 0.99, `only ${close} of the colours are close`);
}

test('elements make pictures, share an engine and free it', async () => {
  const found = await page.evaluate(async ({ model, element }) => {
    let [made, ended] = [0, 0];
    const { Worker } = window;
    window.Worker = class extends Worker {
      constructor(...args: ConstructorParameters<typeof Worker>) {
        super(...args);
        made++;
      }
      override terminate() {
        ended++;
        super.terminate();
      }
    };
    await import(element);
    const picture = (element: Element) =>
      new Promise<any>((resolve, reject) => {
        element.addEventListener('picture', (event: any) => resolve(event.detail), { once: true });
        element.addEventListener('error', (event: any) => reject(event.detail), { once: true });
      });
    document.body.innerHTML =
      `<wuerstchen-image model="${model}" device="cpu" prompt="a red circle" seed="5"></wuerstchen-image>` +
      `<wuerstchen-image model="${model}" device="cpu" prompt="a blue star" prior-steps="2"></wuerstchen-image>`;
    const [first, second] = document.querySelectorAll('wuerstchen-image') as any;
    const events: string[] = [];
    let preview = 0;
    first.addEventListener('progress', ({ detail }: any) => {
      events.push(detail.type);
      if (detail.type === 'preview') preview = detail.bitmap.width;
    });
    const busy = new Promise((resolve) =>
      setTimeout(() =>
        resolve([first.ariaBusy, first.shadowRoot.querySelector('canvas').ariaLabel]),
      ),
    );
    const [one, two] = await Promise.all([picture(first), picture(second)]);
    const canvas = first.shadowRoot.querySelector('canvas') as HTMLCanvasElement;
    const { width, height } = canvas;
    const rgba = [...(canvas.getContext('2d')?.getImageData(0, 0, width, height).data ?? [])];
    second.setAttribute('prompt', 'a green star');
    second.setAttribute('seed', '18446744073709551615');
    const third = await picture(second);
    first.remove();
    await new Promise((resolve) => setTimeout(resolve));
    const before = ended;
    second.remove();
    while (ended === before) await new Promise((resolve) => setTimeout(resolve, 20));
    return {
      rgba,
      width,
      busy: await busy,
      after: first.ariaBusy,
      events: [...new Set(events)],
      // Bitmaps that are closed have no width.
      isOpen: [preview > 0, one.images[0].width === width],
      seeds: [one.seed, third.seed].map(String),
      steps: two.settings.priorTimesteps.length - 1,
      prompts: [two, third].map((result) => result.settings.prompt),
      workers: [made, before, ended],
    };
  }, ELEMENT);
  assertLike(found.rgba, found.width);
  assert.deepEqual(found.busy, ['true', 'a red circle']);
  assert.equal(found.after, 'false');
  for (const type of ['download', 'selftest', 'ready', 'stage', 'step', 'preview']) {
    assert.ok(found.events.includes(type), `${type} is not among ${found.events}`);
  }
  assert.deepEqual(found.isOpen, [true, true]);
  assert.deepEqual(found.seeds, ['5', '18446744073709551615']);
  assert.deepEqual([found.steps, found.prompts], [2, ['a blue star', 'a green star']]);
  assert.deepEqual(found.workers, [1, 0, 1]);
});

test('an element that is removed while its model is loaded stops the load', async () => {
  // Never answered.
  await context.route('**/shapes/shard-000.bin', () => {});
  const isEnded = await page.evaluate(async ({ model, element: script }) => {
    let isEnded = false;
    const { terminate } = Worker.prototype;
    Worker.prototype.terminate = function () {
      isEnded = true;
      terminate.call(this);
    };
    await import(script);
    const element = document.createElement('wuerstchen-image');
    for (const [name, value] of Object.entries({ model, device: 'cpu', prompt: 'a' })) {
      element.setAttribute(name, value);
    }
    const progress = new Promise((resolve) => element.addEventListener('progress', resolve));
    document.body.append(element);
    await progress;
    element.remove();
    await new Promise((resolve) => setTimeout(resolve, 500));
    return isEnded;
  }, ELEMENT);
  assert.equal(isEnded, true);
});

test('an element takes what was set before it was known, and a second copy of the script', async () => {
  const found = await page.evaluate(async ({ element: script }) => {
    const element = document.createElement('wuerstchen-image') as any;
    element.lora = [{ url: '/nothing.safetensors', weight: 'heavy' }];
    element.setAttribute('prompt', 'a');
    element.setAttribute('model', '/pkg/shapes/manifest.json');
    const error = new Promise<any>((resolve) =>
      element.addEventListener('error', ({ detail }: any) => resolve(detail)),
    );
    document.body.append(element);
    await import(script);
    await import(`${script}?copy`);
    const { field } = await error;
    return {
      field,
      own: Object.hasOwn(element, 'lora'),
      display: getComputedStyle(element).display,
    };
  }, ELEMENT);
  assert.deepEqual(found, { field: 'lora', own: false, display: 'inline-block' });
});

test('an element tells what is wrong, and makes the picture once that is right', async () => {
  const found = await page.evaluate(async ({ model, element: script }) => {
    await import(script);
    const element = document.createElement('wuerstchen-image') as any;
    element.setAttribute('device', 'cpu');
    element.setAttribute('model', '/nothing/manifest.json');
    element.setAttribute('prompt', 'a red circle');
    // As no seed.
    element.setAttribute('seed', '');
    const next = (type: string) =>
      new Promise<any>((resolve) =>
        element.addEventListener(type, (event: any) => resolve(event.detail), { once: true }),
      );
    const message = () => element.shadowRoot.querySelector('p').textContent;
    const missing = next('error');
    document.body.append(element);
    const errors = [(await missing).code, message()];
    const noUrl = next('error');
    element.setAttribute('model', 'https://');
    errors.push((await noUrl).code, message());
    const wrong = next('error');
    element.setAttribute('width', 'wide');
    element.setAttribute('model', model);
    errors.push((await wrong).code, message());
    const made = next('picture');
    element.removeAttribute('width');
    const { width, seed } = await made;
    const isDrawn = seed > 0n;
    return { errors, width, isDrawn, message: message(), busy: element.ariaBusy };
  }, ELEMENT);
  const [network, told, noUrl, url, invalid, width] = found.errors;
  assert.deepEqual([network, noUrl, invalid], ['network', 'invalid-argument', 'invalid-argument']);
  assert.match(told, /manifest\.json/);
  assert.match(url, /is not a URL/);
  assert.match(width, /width/);
  assert.deepEqual([found.width, found.message, found.busy], [64, '', 'false']);
  assert.equal(found.isDrawn, true);
});

test('the hook takes a double click before its model is loaded, and a model that is a literal', async () => {
  await page.addScriptTag({ content: component, type: 'module' });
  await page.waitForFunction(() => 'hook' in window);
  const found = await page.evaluate(async (model) => {
    const hook = () => (window as any).hook;
    const settled = () => new Promise((resolve) => setTimeout(resolve, 50));
    const few = { priorSteps: 1, decoderSteps: 1 };
    const generate = (prompt: string) => hook().generate({ prompt, ...few });
    const made = await Promise.all(['a', 'b'].map(generate));
    await settled();
    const error = hook().error?.message;
    const { id } = await (window as any).wuerstchen.inspect(model);
    (window as any).setModel({ stored: id });
    await settled();
    made.push(await generate('c'));
    return { error, prompts: made.map((result: any) => result?.settings.prompt) };
  }, MODEL);
  assert.equal(found.error, undefined);
  assert.deepEqual(found.prompts, [undefined, 'b', 'c']);
});

test('the hook makes pictures, stops, tells errors and frees the engine', async () => {
  await page.addScriptTag({ content: component, type: 'module' });
  await page.waitForFunction(() => 'hook' in window);
  const found = await page.evaluate(async () => {
    const hook = () => (window as any).hook;
    const settled = () => new Promise((resolve) => setTimeout(resolve, 50));
    const made = await hook().generate({ prompt: 'a red circle', seed: 5, format: 'imageData' });
    await settled();
    const shown = hook().result === made && [hook().state, hook().error];
    const stopping = hook().generate({ prompt: 'a blue star', priorSteps: 500 });
    await settled();
    hook().stop();
    const stopped = [await stopping];
    await settled();
    stopped.push(hook().state, hook().error);
    const failing = await hook().generate({ prompt: 'a', width: 0 });
    await settled();
    const failed = [failing, hook().state, hook().error?.code];
    // A second call takes the place of the first.
    const both = [{ prompt: 'a', priorSteps: 500 }, { prompt: 'b' }].map(hook().generate);
    const replaced = (await Promise.all(both)).map((result: any) => result?.settings.prompt);
    (window as any).setModel('/nothing/manifest.json');
    await settled();
    const missing = [await hook().generate({ prompt: 'a' })];
    await settled();
    missing.push(hook().error?.code);
    const odd = [await hook().generate(), await hook().generate({ prompt: 'a', signal: 5 })];
    await settled();
    odd.push(hook().error?.field);
    const { generate } = hook();
    (window as any).unmount();
    const { Worker } = window;
    window.Worker = class extends Worker {
      constructor() {
        super('data:,');
        odd.push('a worker');
      }
    };
    odd.push(await generate({ prompt: 'a' }));
    const { width, data } = made.images[0];
    const states = new Set((window as any).states);
    return {
      rgba: [...data] as number[],
      width,
      shown,
      stopped,
      failed,
      replaced,
      missing,
      odd,
      states: [...states],
    };
  });
  assertLike(found.rgba, found.width);
  assert.deepEqual(found.shown, ['idle', undefined]);
  assert.deepEqual(found.stopped, [undefined, 'idle', undefined]);
  assert.deepEqual(found.failed, [undefined, 'idle', 'invalid-argument']);
  assert.deepEqual(found.replaced, [undefined, 'b']);
  assert.deepEqual(found.missing, [undefined, 'network']);
  assert.deepEqual(found.odd, [undefined, undefined, 'signal', undefined]);
  assert.deepEqual(found.states, ['idle', 'loading', 'making']);
});
