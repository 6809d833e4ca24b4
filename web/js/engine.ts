// The engine in the thread that it is opened in: a model on a device, and one job at a time.

import { openCache, type ModelCache } from './cache.js';
import { asWuerstchenError, isCancellation, WuerstchenError } from './errors.js';
import type { WasmBuild } from './glue.js';
import { watchDevice, type GpuWatch } from './gpu.js';
import { fetchManifest, modelInfo, type Manifest } from './manifest.js';
import { toPixels } from './pixels.js';
import { JobProgress, type Pace } from './progress.js';
import { fetchShards } from './shards.js';
import { start } from './start.js';
import { checkSupport } from './support.js';
import type {
  CacheAdapter,
  DeviceKind,
  GenerateEvent,
  GenerateOptions,
  GenerateResult,
  Latents,
  LoadEvent,
  LoadOptions,
  ModelInfo,
  PictureOptions,
  PictureSource,
  SelfTest,
  Stage,
  Support,
  WasmFile,
} from './types.js';
import type { Engine, Generated, Loader, Picture, Source, Wasm } from './wasm.js';

/** `LoadOptions` as they travel to a worker. */
export interface EngineOptions {
  /** Absolute. */
  readonly model: string;
  readonly device: NonNullable<LoadOptions['device']>;
  readonly cache: Exclude<LoadOptions['cache'], CacheAdapter>;
  readonly powerPreference?: LoadOptions['powerPreference'];
  /** Absolute. */
  readonly wasmUrl: Partial<Record<WasmFile, string>>;
}

/** `GenerateOptions` as they travel to a worker. */
export interface Job {
  readonly prompt: string;
  readonly promptTo?: string;
  readonly frames?: number;
  readonly picture: Omit<PictureOptions, 'prompt' | 'promptTo' | 'frames'>;
  readonly image?: PictureSource;
  readonly mask?: PictureSource;
  readonly imageTo?: PictureSource;
  /** Steps between previews; 0 for none. */
  readonly previewEvery: number;
  readonly intermediates: boolean;
  readonly format: NonNullable<GenerateOptions['format']>;
}

/** What the engine has from its surroundings. */
export interface Host {
  readonly builds: Readonly<Record<DeviceKind, WasmBuild>>;
  readonly fetch: typeof fetch;
  /** Whether the thread may stand still while a file is fetched. */
  readonly mayBlock: boolean;
  /** A cache of the caller's instead of the browser's. */
  readonly cache?: CacheAdapter;
  readonly emit: (event: LoadEvent) => void;
  /** The GPU of the engine, or of the one that is being opened, went away. */
  readonly onLost: (reason: string) => void;
  readonly signal: AbortSignal;
}

/** A model that is being loaded. */
interface Model {
  readonly url: string;
  readonly manifest: Manifest;
  readonly text: string;
  readonly cache: ModelCache;
}

/** What a self-test has shown to work, and what it runs on. */
interface Tested {
  readonly engine: Engine;
  readonly wasm: Wasm;
  readonly gpu: GpuWatch | undefined;
  readonly selfTest: SelfTest;
}

/** After these on the GPU, `device: 'auto'` goes on with the CPU. */
const FALLS_BACK = new Set(['limits', 'out-of-memory', 'shader', 'unsupported']);

/** A build is started and its device opened once, however many models a thread loads. */
const opened = new WeakMap<Wasm, Promise<GpuWatch | undefined>>();

/** Loads a model onto the device that the options and this browser want. */
export async function openEngine(options: EngineOptions, host: Host): Promise<ModelEngine> {
  const begun = performance.now();
  const { powerPreference } = options;
  const { signal, emit } = host;
  let support = await checkSupport({ signal, powerPreference });
  let device = chooseDevice(options.device, support);
  const cache = await openCache(host.cache ?? options.cache);
  const manifest = await fetchManifest(options.model, cache, host.fetch, signal);
  const model: Model = { url: options.model, cache, ...manifest };

  let tested: Tested;
  try {
    tested = await openOn(device, model, options, host);
  } catch (thrown) {
    const error = asWuerstchenError(thrown);
    const mayFallBack = options.device === 'auto' && device === 'webgpu';
    if (signal.aborted || !mayFallBack || !FALLS_BACK.has(error.code)) throw thrown;
    device = 'cpu';
    const message = `The GPU cannot be used (${error.message}), so the CPU computes.`;
    support = { ...support, device, message };
    tested = await openOn(device, model, options, host);
  }
  await cache.putManifest(model.manifest.id, model.url, model.text);
  const info = await modelInfo(model.manifest, cache);
  emit({ type: 'ready', ms: performance.now() - begun });
  return new ModelEngine(tested, device, info, withStorage(support, cache));
}

function chooseDevice(wish: EngineOptions['device'], support: Support): DeviceKind {
  const { reason, message } = support;
  if (wish === 'webgpu' && !support.adapter) {
    throw new WuerstchenError('unsupported', `there is no WebGPU device here (${reason})`, {
      hint: "Leave device out, or set it to 'cpu'.",
    });
  }
  // A software GPU may be forced even where the CPU has no SIMD.
  if (wish !== 'webgpu' && !support.ok) throw new WuerstchenError('unsupported', message);
  return wish === 'auto' ? support.device : wish;
}

/** Says so where the browser stopped storing. */
function withStorage(support: Support, cache: ModelCache): Support {
  if (!cache.problem) return support;
  const message = `${support.message} The model is not kept: ${cache.problem.message}.`;
  return { ...support, storage: { ...support.storage, backend: 'memory' }, message };
}

async function openOn(
  device: DeviceKind,
  model: Model,
  options: EngineOptions,
  host: Host,
): Promise<Tested> {
  const { emit, signal } = host;
  const { module } = host.builds[device];
  const gpu = await openDevice(device, options, host);
  let isUsed = true;
  void gpu?.lost.then((reason) => isUsed && host.onLost(reason));
  let loader: Loader | undefined;
  let engine: Engine | undefined;
  try {
    loader = new module.Loader(model.text);
    await addShards(loader, model, host);
    emit({ type: 'compile', device });
    const complete = loader;
    // It is used up by `finish`, even where that fails.
    loader = undefined;
    engine = complete.finish();
    const selfTest: SelfTest = JSON.parse(await engine.selfTest());
    emit({ type: 'selftest', ...selfTest });
    signal.throwIfAborted();
    const gpuError = gpu?.takeError();
    if (gpuError) throw gpuError;
    if (!selfTest.ok) throw selfTestError(selfTest, device);
    return { engine, wasm: module, gpu, selfTest };
  } catch (error) {
    isUsed = false;
    loader?.free();
    engine?.free();
    // What the GPU says is nearer to the cause than what came of it.
    throw gpu?.takeError() ?? error;
  }
}

function openDevice(
  device: DeviceKind,
  { wasmUrl, powerPreference }: EngineOptions,
  host: Host,
): Promise<GpuWatch | undefined> {
  const { module, first, rest } = host.builds[device];
  const open = async () => {
    const urls = {
      first: wasmUrl[device] ?? first().href,
      rest: wasmUrl[`${device}Rest`] ?? rest().href,
    };
    await start(module, urls, host);
    if (device === 'webgpu') return watchDevice(module.openDevice, powerPreference);
    await module.openDevice();
    return undefined;
  };
  let opening = opened.get(module);
  if (!opening) {
    opening = open();
    opened.set(module, opening);
    // A failure is not kept.
    opening.catch(() => opened.delete(module));
  }
  return opening;
}

async function addShards(loader: Loader, model: Model, host: Host): Promise<void> {
  const { manifest } = model;
  const total = manifest.shards.reduce((sum, { bytes }) => sum + bytes, 0);
  let index = 0;
  let loaded = 0;
  for await (const bytes of fetchShards(manifest, { ...host, ...model })) {
    loader.addShard(index, bytes);
    loaded += bytes.length;
    const file = manifest.shards[index]?.file ?? '';
    host.emit({ type: 'upload', file, loaded, total });
    index += 1;
  }
}

function selfTestError({ checks }: SelfTest, device: DeviceKind): WuerstchenError {
  const failed = checks
    .filter(({ ok }) => !ok)
    .map(({ name, relative, bound }) => `${name} is off by ${relative}, allowed is ${bound}`);
  const message = `the self-test failed: ${failed.join('; ')}`;
  return device === 'webgpu'
    ? new WuerstchenError('shader', message, { hint: "Load with device: 'cpu'." })
    : new WuerstchenError('internal', message);
}

/** A model that is ready to make pictures. */
export class ModelEngine {
  readonly device: DeviceKind;
  readonly info: ModelInfo;
  readonly support: Support;
  readonly selfTest: SelfTest;
  readonly #engine: Engine;
  readonly #wasm: Wasm;
  readonly #gpu: GpuWatch | undefined;
  #pace: { size: string; stages: Pace } = { size: '', stages: new Map() };

  constructor(
    { engine, wasm, gpu, selfTest }: Tested,
    device: DeviceKind,
    info: ModelInfo,
    support: Support,
  ) {
    this.#engine = engine;
    this.#wasm = wasm;
    this.#gpu = gpu;
    this.selfTest = selfTest;
    this.device = device;
    this.info = info;
    this.support = support;
  }

  /** Makes pictures. The caller waits for the end of one job before the next. */
  async generate(
    job: Job,
    emit: (event: GenerateEvent) => void,
    signal: AbortSignal,
  ): Promise<GenerateResult> {
    const seed = BigInt(job.picture.seed ?? randomSeed());
    const progress = new JobProgress(this.#plan(job), this.#paceOf(job), emit);
    let failure: unknown;
    const onStep: Parameters<Engine['generate']>[5] = async (
      stage,
      step,
      steps,
      shape,
      latents,
    ) => {
      try {
        progress.step(stage, step, steps);
        const isDue = job.previewEvery > 0 && step % job.previewEvery === 0;
        if (isDue && (stage === 'prior' || stage === 'decoder')) {
          const bitmap = await this.#preview(stage, shape, latents);
          if (bitmap) emit({ type: 'preview', stage, step, bitmap });
        }
        await nextTask();
        progress.resume();
      } catch (error) {
        failure = error;
      }
      return !signal.aborted && failure === undefined && !this.#gpu?.hasError;
    };

    let generated: Generated | undefined;
    try {
      const { prompt, promptTo, frames } = job;
      const source = await this.#source(job);
      progress.resume();
      const options = optionsJson(job, seed);
      generated = await this.#engine.generate(prompt, promptTo, frames, options, source, onStep);
      signal.throwIfAborted();
      const gpuError = this.#gpu?.takeError();
      if (gpuError) throw gpuError;
      return await toResult(generated, job, seed, progress);
    } catch (error) {
      signal.throwIfAborted();
      const gpuError = this.#gpu?.takeError();
      if (gpuError) throw gpuError;
      throw isCancellation(error) ? failure : error;
    } finally {
      generated?.free();
    }
  }

  close(): void {
    this.#engine.free();
  }

  async #source({ image, mask, imageTo }: Job): Promise<Source | undefined> {
    if (!image) return undefined;
    const pixels = await toPixels(image, 'image');
    const painted = mask && (await toPixels(mask, 'mask'));
    const end = imageTo && (await toPixels(imageTo, 'imageTo'));
    const source = new this.#wasm.Source(pixels.width, pixels.rgba);
    if (painted) source.setMask(painted.width, painted.rgba);
    if (end) source.setEnd(end.width, end.rgba);
    return source;
  }

  async #preview(
    stage: Stage,
    shape: Uint32Array,
    latents: Float32Array,
  ): Promise<ImageBitmap | undefined> {
    const picture = await this.#engine.preview(stage, shape, latents);
    try {
      return picture && (await createImageBitmap(imageData(picture)));
    } finally {
      picture?.free();
    }
  }

  /** The first step of every stage tells better where frames are made. */
  #plan({ picture }: Job): Record<Stage, number> {
    const { defaults } = this.info;
    const { timesteps } = picture;
    return {
      text: 2,
      prior: timesteps ? timesteps.length - 1 : (picture.priorSteps ?? defaults.priorSteps),
      decoder: picture.decoderSteps ?? defaults.decoderSteps,
      vqgan: 1,
    };
  }

  /** What earlier jobs of the same size tell about this one. */
  #paceOf({ picture }: Job): Pace {
    const size = [picture.width, picture.height, picture.count].join();
    if (this.#pace.size !== size) this.#pace = { size, stages: new Map() };
    return this.#pace.stages;
  }
}

/** 53 bits, so that it is exact as a number too. */
function randomSeed(): number {
  const [high = 0, low = 0] = crypto.getRandomValues(new Uint32Array(2));
  return (high >>> 11) * 2 ** 32 + low;
}

/** JSON that keeps all 64 bits of the seed. */
function optionsJson(job: Job, seed: bigint): string {
  const { seed: _, ...others } = job.picture;
  const members = Object.entries(others)
    .filter(([, value]) => value !== undefined)
    .map(([name, value]) => `${JSON.stringify(name)}:${JSON.stringify(value)}`);
  return `{${[`"seed":${seed}`, ...members].join()}}`;
}

async function toResult(
  generated: Generated,
  job: Job,
  seed: bigint,
  progress: JobProgress,
): Promise<GenerateResult> {
  const images: GenerateResult['images'] = [];
  let width = 0;
  let height = 0;
  for (let index = 0; index < generated.count; index++) {
    const picture = generated.picture(index);
    ({ width, height } = picture);
    try {
      images.push(await toImage(picture, job.format));
    } finally {
      picture.free();
    }
  }
  const { settings, imageEmbedding, imageEmbeddingShape, latents, latentsShape } = generated;
  return {
    images,
    seed,
    width,
    height,
    timings: progress.timings(),
    settings: {
      prompt: job.prompt,
      ...JSON.parse(settings),
      // JSON has rounded it where it is larger than numbers can be.
      seed: seed <= Number.MAX_SAFE_INTEGER ? Number(seed) : seed,
    },
    intermediates: job.intermediates
      ? {
          imageEmbedding: toLatents(imageEmbeddingShape, imageEmbedding),
          latents: toLatents(latentsShape, latents),
        }
      : undefined,
  };
}

async function toImage(
  picture: Picture,
  format: Job['format'],
): Promise<ImageBitmap | Blob | ImageData> {
  if (format === 'blob') {
    return new Blob([picture.png() as Uint8Array<ArrayBuffer>], { type: 'image/png' });
  }
  const data = imageData(picture);
  return format === 'imageData' ? data : createImageBitmap(data);
}

function imageData(picture: Picture): ImageData {
  const rgba = new Uint8ClampedArray(picture.rgba());
  return new ImageData(rgba, picture.width, picture.height);
}

function toLatents(shape: Uint32Array, values: Float32Array): Latents {
  return { shape: Array.from(shape), values };
}

/** Lets messages in, such as an abort. Timers would be slowed down in background tabs. */
function nextTask(): Promise<void> {
  return new Promise((resolve) => {
    const { port1, port2 } = new MessageChannel();
    port1.onmessage = () => {
      port1.close();
      resolve();
    };
    port2.postMessage(undefined);
  });
}
