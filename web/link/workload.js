// A worker that does what the demo does with its settings as they are, with other shapes, and with a
// mistake, in a profiled module; answers with the functions that were called.

import { load } from '../dist/core.js';

/** A module with nothing in it. */
const EMPTY = 'data:application/wasm;base64,AGFzbQEAAAA=';

let calls;
let threads = 1;
const instantiate = WebAssembly.instantiateStreaming;
WebAssembly.instantiateStreaming = async (...file) => {
  const source = await instantiate(...file);
  const { exports } = source.instance;
  calls ??= exports.calls;
  if (threads > 1) exports.useThreads?.(threads);
  return source;
};

// The profile of a program that shares its memory would be lost, so this thread plays the others.
globalThis.runOnThreads = (tasks, run) => {
  for (let task = 0; task < tasks; task++) run(task);
};
globalThis.tilesOfThread = () => false;

// Else nobody hears of a failure, and the build waits for ever.
addEventListener('unhandledrejection', ({ reason }) => {
  throw reason;
});

onmessage = async ({ data }) => {
  const { device, pace } = data;
  threads = data.threads;
  // Shaders are chosen by time: GPUs of every speed are played, or the functions called would depend on the load.
  const now = performance.now.bind(performance);
  performance.now = () => now() * pace;
  const engine = await load({
    model: '/pkg/model/manifest.json',
    device,
    cache: 'none',
    wasmUrl: { [device]: `/pkg/${device}/profiled.wasm`, [`${device}Rest`]: EMPTY },
  });
  const { width, height } = engine.info.defaults;
  // Previews are made for those who listen.
  const onProgress = () => {};
  const steps = { priorSteps: 3, decoderSteps: 2 };
  const picture = { prompt: 'a red circle on a white background', seed: 7, ...steps, onProgress };
  await engine.generate({ ...picture, intermediates: true });
  // Models differ in what they sample with.
  const [ddpm, ddim] = ['ddpm', 'ddim'].map((sampler) => ({ ...picture, sampler }));
  await engine.generate({ ...ddpm, format: 'blob', negativePrompt: 'blue', count: 2 });
  await engine.generate({ ...ddim, width: width * 2, height, format: 'imageData' });
  await engine.generate({ ...picture, priorGuidanceScale: 1, decoderGuidanceScale: 2 });
  await engine.generate({ ...picture, width: 1 }).catch(() => undefined);
  await engine.dispose();
  postMessage(new Uint8Array(calls.buffer));
};
