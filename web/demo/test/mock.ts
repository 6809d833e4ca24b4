// Stands for the package in the tests of the page: its types, with made-up numbers and delays.
// A prompt with "break" fails, as does a width that is no multiple of 16; one with "endless" stays at
// its second step until it is stopped.

import type { ErrorCode } from '../../js/errors.js';
import type {
  CachedModel,
  GenerateEvent,
  GenerateOptions,
  GenerateResult,
  Latents,
  LoadOptions,
  ModelInfo,
  ModelRef,
  PictureSource,
  Stage,
  Support,
  Wuerstchen,
} from '../../js/types.js';

export type * from '../../js/types.js';

export class WuerstchenError extends Error {
  readonly hint?: string;

  constructor(
    readonly code: ErrorCode,
    message: string,
    readonly retryable = false,
    readonly field?: string,
  ) {
    super(message);
  }
}

const BYTES = 8_612_864;
const STORED = 'mock-stored';

const support: Support = {
  ok: true,
  device: 'cpu',
  reason: 'no-adapter',
  features: { shaderF16: false, subgroups: false },
  storage: { backend: 'opfs', quota: 1e10, free: 9.6e9, persisted: false },
  message: 'This browser offers no graphics adapter, so the CPU computes.',
};

export async function checkSupport(): Promise<Support> {
  return support;
}

export async function inspect(model: ModelRef): Promise<ModelInfo> {
  if (Array.isArray(model) && !model.some(({ name }: File) => name === 'manifest.json')) {
    throw new WuerstchenError('invalid-argument', 'there is no manifest.json among the 1 files');
  }
  if ('isOffline' in window) throw new WuerstchenError('network', 'it went away', true);
  const isOwn = !(model instanceof URL) && typeof model !== 'string';
  if (location.search.includes('slow')) while (!('isKnown' in window)) await sleep(20);
  return {
    id: 'mock-0',
    name: isOwn ? 'own' : 'mock',
    licence: 'none',
    provenance: 'Made up for tests.',
    bytes: BYTES,
    cachedBytes: await cache.size(),
    stages: {
      text: { params: 812_032, bytes: 1_624_064, dtype: 'f16' },
      prior: { params: 1_204_096, bytes: 2_408_192, dtype: 'f16' },
      decoder: { params: 1_608_192, bytes: 3_216_384, dtype: 'f16' },
      vqgan: { params: 682_112, bytes: 1_364_224, dtype: 'f16' },
    },
    defaults: {
      width: 64,
      height: 64,
      priorSteps: isOwn ? 10 : 20,
      priorGuidanceScale: 4,
      decoderSteps: 12,
      decoderGuidanceScale: 1,
      sampler: 'ddpm',
      // As of Würstchen v1.
      ...(location.search.includes('tokens')
        ? { temperature: 1, temperatureEnd: 0.6, tokenSampling: 'multinomial' }
        : {}),
    },
    // As of Stable Cascade with its image encoder.
    picturePrompts: location.search.includes('pictures'),
  };
}

/** Fails for a picked model, as a server may that goes away. */
export async function vocabulary(model: ModelRef): Promise<readonly string[]> {
  if (Array.isArray(model)) throw new WuerstchenError('network', 'it went away', true);
  return [
    'a',
    'background',
    'blue',
    'circle',
    'on',
    'red',
    'ring',
    'small',
    'stars',
    'two',
    'white',
  ];
}

export const cache = {
  async list(): Promise<CachedModel[]> {
    const bytes = await cache.size();
    return bytes ? [{ id: 'mock-0', bytes }] : [];
  },
  async size(): Promise<number> {
    return Number(localStorage.getItem(STORED) ?? 0);
  },
  async delete(): Promise<void> {
    localStorage.removeItem(STORED);
  },
};

function sleep(ms: number, signal?: AbortSignal): Promise<void> {
  return new Promise((resolve, reject) => {
    const abort = () => reject(signal?.reason);
    if (signal?.aborted) return abort();
    signal?.addEventListener('abort', abort);
    setTimeout(resolve, ms);
  });
}

export async function load(options: LoadOptions): Promise<Wuerstchen> {
  const { signal, onProgress, lora = [] } = options;
  const info = await inspect(options.model);
  const fromCache = info.cachedBytes === info.bytes;
  for (let part = 1; part <= 10; part++) {
    await sleep(fromCache ? 5 : 60, signal);
    const loaded = Math.round((BYTES * part) / 10);
    const overall = { loaded, total: BYTES, bytesPerSecond: 4e6, etaMs: 60 * (10 - part) };
    const file = 'shard-000.bin';
    onProgress?.({ type: 'download', file, loaded, total: BYTES, overall, fromCache });
  }
  for (const { blob, weight } of lora) {
    const file = (blob as File).name;
    if (file.includes('broken')) {
      const message = `${file}: the LoRA does not fit the model`;
      throw new WuerstchenError('integrity', message, true, 'lora');
    }
    onProgress?.({
      type: 'lora',
      file,
      message: `changes 24 layers, weight ${weight}`,
      leftOut: [],
    });
  }
  onProgress?.({ type: 'verify', file: 'shard-000.bin' });
  onProgress?.({ type: 'upload', file: 'shard-000.bin', loaded: BYTES, total: BYTES });
  onProgress?.({ type: 'compile', device: 'cpu' });
  await sleep(100, signal);
  const selfTest = {
    ok: true,
    maxError: 3.1e-6,
    checks: [{ name: 'prior', relative: 3.1e-6, bound: 1e-4, ok: true }],
  };
  onProgress?.({ type: 'selftest', ...selfTest });
  if (options.measure) {
    const work = [{ stage: 'prior', multiplyAdds: 3e6, weightBytes: 1e6 } as const];
    onProgress?.({
      type: 'measured',
      multiplyAddsPerSec: 1e9,
      bytesPerSec: 1e9,
      products: null,
      work,
    });
  }
  if (options.cache !== 'none') localStorage.setItem(STORED, String(BYTES));
  const events = new EventTarget();
  const engine = {
    info,
    support,
    device: 'cpu',
    selfTest,
    state: 'ready',
    generate: generate as Wuerstchen['generate'],
    stream: () => {
      throw new Error('the page does not stream');
    },
    addEventListener: events.addEventListener.bind(events) as Wuerstchen['addEventListener'],
    removeEventListener: events.removeEventListener.bind(events) as Wuerstchen['addEventListener'],
    dispose: async () => {},
    [Symbol.asyncDispose]: async () => {},
  } satisfies Wuerstchen;
  return engine;
}

/** What of a mask is white, by its rows. */
function describe(mask: PictureSource | undefined): string[] {
  if (!(mask instanceof ImageData)) return [];
  const row = (top: number) =>
    Array.from({ length: mask.width }, (_, left) => {
      const [red, green, blue, alpha] = mask.data.subarray(4 * (top * mask.width + left));
      const isGrey = red === green && green === blue && alpha === 255;
      return isGrey ? (Number(red) > 127 ? '#' : '.') : '?';
    }).join('');
  return Array.from({ length: mask.height }, (_, top) => row(top));
}

/** Of a picture of one colour; what is no picture is refused as the engine does. */
async function firstColour(picture: PictureSource, index: number): Promise<number[]> {
  const name = `picturePrompts[${index}]`;
  try {
    const bitmap = await createImageBitmap(picture as Blob);
    const context = new OffscreenCanvas(1, 1).getContext('2d')!;
    context.drawImage(bitmap, 0, 0);
    return [...context.getImageData(0, 0, 1, 1).data.slice(0, 3)];
  } catch {
    const message = `${name} is not a picture that this browser can read`;
    throw new WuerstchenError('invalid-argument', message, false, name);
  }
}

async function generate(job: GenerateOptions): Promise<GenerateResult> {
  const { width = 64, height = 64, count = 1, seed = 0, signal } = job;
  const { priorSteps = 20, decoderSteps = 12, image, mask, strength } = job;
  const { temperature, temperatureEnd, tokenSampling } = job;
  const isPng = image instanceof Blob && image.type === 'image/png';
  const lastSource = image ? { isPng, strength, mask: describe(mask) } : undefined;
  const lastTokens = { temperature, temperatureEnd, tokenSampling };
  const lastPicturePrompts = await Promise.all(job.picturePrompts?.map(firstColour) ?? []);
  Object.assign(window, { lastSource, lastTokens, lastPicturePrompts });
  if (job.prompt.includes('break')) {
    throw new WuerstchenError('out-of-memory', 'the device has no room for 4 pictures', true);
  }
  if (width % 16) {
    throw new WuerstchenError(
      'invalid-argument',
      `width must be a size that the model can make, the nearest being 64 and 80, got ${width}`,
      false,
      'width',
    );
  }
  const emit = (event: GenerateEvent) => job.onProgress?.(event);
  const start = performance.now();
  const plan: [Stage, number, number][] = [
    ['text', 1, 1],
    ['prior', priorSteps, 4],
    ['decoder', decoderSteps, 16],
    ['vqgan', 1, 64],
  ];
  const of = priorSteps + decoderSteps + 2;
  const timings = { text: 0, prior: 0, decoder: 0, vqgan: 0, total: 0 };
  let overall = 0;
  for (const [index, [stage, steps, cells]] of plan.entries()) {
    emit({ type: 'stage', stage, index, of: plan.length });
    const begin = performance.now();
    for (let step = 1; step <= steps; step++) {
      await sleep(job.preview === false ? 5 : 60, signal);
      overall++;
      emit({ type: 'step', stage, step, steps, overall: overall / of, etaMs: 60 * (of - overall) });
      if (job.preview !== false && (stage === 'prior' || stage === 'decoder')) {
        const noise = 1 - step / steps;
        const preview = paint((cells * width) / 64, (cells * height) / 64, 0, noise);
        emit({ type: 'preview', stage, step, bitmap: preview.transferToImageBitmap() });
      }
      if (job.prompt.includes('endless') && overall === 3) await sleep(600_000, signal);
    }
    timings[stage] = performance.now() - begin;
  }
  timings.total = performance.now() - start;
  const images = await Promise.all(
    Array.from({ length: count }, (_, index) => paint(width, height, index, 0).convertToBlob()),
  );
  return {
    images,
    seed: BigInt(seed),
    width,
    height,
    timings,
    settings: { prompt: job.prompt },
    unread: { unknownWords: job.prompt.includes('zebra') ? ['zebra'] : [] },
    intermediates: {
      imageEmbedding: latents([count, 16, height / 16, width / 16]),
      latents: latents([count, 4, height / 4, width / 4]),
    },
  };
}

/** A disc, a little elsewhere in every picture of a run, under some noise. */
function paint(width: number, height: number, index: number, noise: number): OffscreenCanvas {
  const canvas = new OffscreenCanvas(width, height);
  const context = canvas.getContext('2d')!;
  const disc = new Path2D();
  const shift = 0.08 * index;
  disc.arc((0.45 + shift) * width, (0.55 - shift) * height, 0.28 * Math.min(width, height), 0, 7);
  context.fillStyle = '#fff';
  context.fillRect(0, 0, width, height);
  context.fillStyle = '#e11419';
  context.fill(disc);
  const image = context.getImageData(0, 0, width, height);
  image.data.forEach((value, i) => {
    if (i % 4 < 3) image.data[i] = (1 - noise) * value + noise * 255 * Math.random();
  });
  context.putImageData(image, 0, 0);
  return canvas;
}

function latents(shape: number[]): Latents {
  const [, channels = 0, rows = 0, columns = 0] = shape;
  const area = rows * columns;
  const values = Float32Array.from({ length: shape.reduce((a, b) => a * b) }, (_, i) => {
    const channel = Math.floor(i / area) % channels;
    const [x, y] = [(i % columns) / columns, Math.floor((i % area) / columns) / rows];
    const disc = Math.hypot(x - 0.4, y - 0.5) < 0.3 ? 1 : -0.4;
    return 1.6 * Math.sin(2.4 * channel + 1) * disc + 0.5 * Math.sin(9 * x + channel * y);
  });
  return { shape, values };
}
