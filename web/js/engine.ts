// A model on a device, which makes pictures: one job at a time.

import { isFatal, orCrash } from './crashes.js';
import { Crash } from './errors.js';
import type { GpuWatch } from './gpu.js';
import type { Job } from './job.js';
import { toPixels } from './pixels.js';
import { JobProgress, type Pace } from './progress.js';
import type {
  DeviceKind,
  GenerateEvent,
  GenerateResult,
  Latents,
  ModelInfo,
  PictureOptions,
  PictureSource,
  SelfTest,
  Stage,
  Support,
} from './types.js';
import { isObject } from './values.js';
import type { Engine, Generated, Picture, Request, Wasm } from './wasm.js';

/** The engine's value for `strength` where there is a picture to start from and no mask. */
const STRENGTH = 0.8;

/** A model that has passed its self-test, and the device on which it runs. */
export interface Tested {
  readonly engine: Engine;
  readonly wasm: Wasm;
  readonly gpu: GpuWatch | undefined;
  readonly selfTest: SelfTest;
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

  /** Makes pictures. The caller must wait for the end of one job before it begins the next. */
  async generate(
    job: Job,
    emit: (event: GenerateEvent) => void,
    signal: AbortSignal,
  ): Promise<GenerateResult> {
    const seed = BigInt(job.picture.seed ?? randomSeed());
    const progress = new JobProgress(this.#plan(job), this.#paceOf(job), emit);
    let failure: unknown;
    const onStep: Parameters<Engine['generate']>[1] = async (
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
      const request = await this.#request(job, seed);
      progress.resume();
      generated = await orCrash(this.#engine.generate(request, onStep));
      signal.throwIfAborted();
      const gpuError = this.#gpu?.takeError();
      if (gpuError) throw gpuError;
      return await toResult(generated, job, seed, progress);
    } catch (error) {
      // The GPU's own error is nearer to the cause than the error that followed from it.
      const gpuError = this.#gpu?.takeError();
      if (isFatal(error)) throw gpuError ? new Crash(gpuError) : error;
      signal.throwIfAborted();
      throw gpuError ?? (isCancellation(error) ? failure : error);
    } finally {
      generated?.free();
    }
  }

  close(): void {
    this.#engine.free();
  }

  async #request(job: Job, seed: bigint): Promise<Request> {
    const request = new this.#wasm.Request(requestJson(job.picture, seed));
    const { image, mask, imageTo, picturePrompts = [], controlImage, controlMask } = job;
    const add = async (
      name: string,
      picture: PictureSource | undefined,
      take: Exclude<keyof Request, 'free'>,
    ) => {
      if (!picture) return;
      const { width, rgba } = await toPixels(picture, name);
      request[take](width, rgba);
    };
    try {
      await add('image', image, 'setImage');
      await add('mask', mask, 'setMask');
      await add('imageTo', imageTo, 'setImageTo');
      await add('controlImage', controlImage, 'setControlImage');
      await add('controlMask', controlMask, 'setControlMask');
      for (const [i, picture] of picturePrompts.entries()) {
        await add(`picturePrompts[${i}]`, picture, 'addPicturePrompt');
      }
    } catch (error) {
      request.free();
      throw error;
    }
    return request;
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

  /** The expected steps of every stage. Where frames are made, the first step of a stage reports the real number. */
  #plan({ picture, image, mask }: Job): Record<Stage, number> {
    const { defaults } = this.info;
    const { timesteps, priorSteps = defaults.priorSteps } = picture;
    const { strength = image && !mask ? STRENGTH : 1 } = picture;
    // A decoder of tokens has no steps where the picture is only reproduced; one of latents always has all of them.
    const isCopy = strength === 0 && defaults.temperature !== undefined;
    return {
      text: 2,
      // The prior starts at the time `strength`, and visits the times below it.
      prior: timesteps
        ? timesteps.slice(1).filter((time) => time < strength).length
        : Math.ceil(strength * priorSteps),
      decoder: isCopy ? 0 : (picture.decoderSteps ?? defaults.decoderSteps),
      vqgan: 1,
    };
  }

  /** The pace that earlier jobs of the same size have measured. */
  #paceOf({ picture }: Job): Pace {
    const size = [picture.width, picture.height, picture.count].join();
    if (this.#pace.size !== size) this.#pace = { size, stages: new Map() };
    return this.#pace.stages;
  }
}

/** Whether WebAssembly stopped because `onStep` told it to. */
function isCancellation(error: unknown): boolean {
  return isObject(error) && 'code' in error && error.code === 'cancelled';
}

/** A random seed of 53 bits, so that it is exact as a JavaScript number too. */
function randomSeed(): number {
  const [high = 0, low = 0] = crypto.getRandomValues(new Uint32Array(2));
  return (high >>> 11) * 2 ** 32 + low;
}

/** JSON that keeps all 64 bits of the seed. */
function requestJson(picture: PictureOptions, seed: bigint): string {
  const { prompt, promptTo, frames, seed: _, ...options } = picture;
  const others = JSON.stringify(options).slice(1, -1);
  const seeded = `{${[`"seed":${seed}`, others].filter(Boolean).join()}}`;
  const inputs = JSON.stringify({ prompts: [prompt], promptTo, frames });
  return `${inputs.slice(0, -1)},"options":${seeded}}`;
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
      prompt: job.picture.prompt,
      ...JSON.parse(settings),
      // JSON has rounded a seed that is larger than a number can hold.
      seed: seed <= Number.MAX_SAFE_INTEGER ? Number(seed) : seed,
    },
    unread: JSON.parse(generated.unread),
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

/** Waits for the next task, so that messages such as an abort are handled. Background tabs would slow timers down. */
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
