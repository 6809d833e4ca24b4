// Checks the types and names of callers' options; the WebAssembly checks their values.

import { WuerstchenError } from './errors.js';
import { isSignal } from './signals.js';
import type {
  Format,
  GenerateOptions,
  LoadOptions,
  LookOptions,
  ModelRef,
  SupportOptions,
} from './types.js';
import { classOf, isObject, isUrl, show } from './values.js';

interface Kind {
  /** May throw, as what is asked of a revoked proxy does. Of arrays it takes `Array.from`, as `every` leaves out holes. */
  readonly is: (value: unknown) => boolean;
  readonly text: string;
  /** A hint for callers who pass something else. */
  readonly hint?: string;
}

function oneOf(...values: unknown[]): Kind {
  return { is: (value) => values.includes(value), text: `one of ${values.join(', ')}` };
}

const BOOLEAN: Kind = { is: (value) => typeof value === 'boolean', text: 'a boolean' };
const CALLBACK: Kind = { is: (value) => typeof value === 'function', text: 'a function' };
const NUMBER: Kind = { is: Number.isFinite, text: 'a finite number' };
const STRING: Kind = { is: (value) => typeof value === 'string', text: 'a string' };
const WHOLE: Kind = {
  is: (value) => Number.isInteger(value) && Number(value) >= 0 && Number(value) < 2 ** 32,
  text: 'a whole number below 2^32',
};
const SEED: Kind = {
  is: (value) =>
    typeof value === 'bigint'
      ? BigInt.asUintN(64, value) === value
      : Number.isSafeInteger(value) && Number(value) >= 0,
  text: 'a whole number from 0 to 2^53 - 1, or a bigint from 0 to 2^64 - 1',
};
const SIGNAL: Kind = { is: isSignal, text: 'an AbortSignal' };
const TIMES: Kind = {
  is: (value) => Array.isArray(value) && Array.from(value).every(Number.isFinite),
  text: 'an array of finite numbers',
};
const PREVIEW: Kind = {
  is: (value) => {
    if (value === false) return true;
    if (!isObject(value)) return false;
    const { every = 1, ...others } = value as { every?: unknown };
    return WHOLE.is(every) && every !== 0 && Object.keys(others).length === 0;
  },
  text: 'false or { every: 1 or more }',
};
const PICTURE: Kind = {
  is: (value) => {
    if (['Blob', 'File', 'ImageBitmap'].includes(classOf(value))) return true;
    const { width = 0, height = 0, data } = (value ?? {}) as { [K in keyof ImageData]?: unknown };
    if (!['Uint8Array', 'Uint8ClampedArray'].includes(classOf(data))) return false;
    const { length } = data as Uint8Array;
    const are = [width, height].every((side) => WHOLE.is(side) && side !== 0);
    return are && length === 4 * Number(width) * Number(height);
  },
  text: 'a Blob, an ImageBitmap or an ImageData',
  hint:
    'createImageBitmap(…) makes an ImageBitmap of an <img>, a <canvas> or a video. The data of an ' +
    'ImageData are four bytes a pixel, and must not be transferred.',
};
const PICTURES: Kind = {
  is: (value) => Array.isArray(value) && value.length > 0 && Array.from(value).every(PICTURE.is),
  text: 'an array of Blobs, ImageBitmaps or ImageData',
};
const isFile = (value: unknown) => ['Blob', 'File'].includes(classOf(value));
const MODEL: Kind = {
  is: (value) => {
    if (isUrl(value)) return true;
    if (!isObject(value)) return false;
    if ('stored' in value) return STRING.is(value.stored);
    const files = Array.from(value as ArrayLike<unknown>);
    return files.length > 0 && files.every((file) => classOf(file) === 'File');
  },
  text: 'a URL, files or { stored: id }',
};
const LORA: Kind = {
  is: (value) =>
    Array.isArray(value) &&
    Array.from(value).every((lora: unknown) => {
      if (!isObject(lora)) return false;
      const { url, blob, weight, adapterConfig, ...others } = lora as Record<string, unknown>;
      const isOne = (url === undefined) !== (blob === undefined);
      const config = adapterConfig === undefined || isUrl(adapterConfig) || isFile(adapterConfig);
      return (
        isOne &&
        (url === undefined ? isFile(blob) : isUrl(url)) &&
        (weight === undefined || NUMBER.is(weight)) &&
        config &&
        Object.keys(others).length === 0
      );
    }),
  text: 'an array of { url or blob, weight, adapterConfig }',
  hint: 'A url is a URL, a blob a Blob or File, a weight a finite number, 1 by default.',
};
const WORKER: Kind = {
  is: (value) => value === false || CALLBACK.is(value),
  text: 'false or a function that makes a worker',
};
const CACHE: Kind = {
  is: (value) =>
    isObject(value)
      ? ['get', 'put', 'delete', 'list'].every((name) => CALLBACK.is(value[name as never]))
      : ['auto', 'opfs', 'cache', 'none'].includes(value as string),
  text: 'one of auto, opfs, cache, none, or an adapter with get, put, delete and list',
};

const WASM_URL: Kind = {
  is: (value) =>
    isObject(value) &&
    Object.entries(value).every(
      ([file, url]) => /^(cpu|webgpu)(Rest)?$/.test(file) && (url === undefined || isUrl(url)),
    ),
  text: 'an object of URLs: cpu, cpuRest, webgpu, webgpuRest',
};

const GENERATE_KINDS: Record<keyof GenerateOptions, Kind> = {
  prompt: STRING,
  negativePrompt: STRING,
  seed: SEED,
  count: WHOLE,
  width: WHOLE,
  height: WHOLE,
  priorSteps: WHOLE,
  priorGuidanceScale: NUMBER,
  timesteps: TIMES,
  decoderSteps: WHOLE,
  decoderGuidanceScale: NUMBER,
  decoderGuidanceScaleEnd: NUMBER,
  temperature: NUMBER,
  temperatureEnd: NUMBER,
  renoiseSteps: WHOLE,
  tokenSampling: oneOf('multinomial', 'argmax', 'quant'),
  sampler: oneOf('ddpm', 'ddim', 'lcm'),
  recipe: oneOf('diffusers', 'authors'),
  priorShift: NUMBER,
  decoderShift: NUMBER,
  guidanceRescale: NUMBER,
  promptSyntax: oneOf('weighted', 'plain'),
  vqganRows: WHOLE,
  promptTo: STRING,
  frames: WHOLE,
  strength: NUMBER,
  controlScale: NUMBER,
  image: PICTURE,
  mask: PICTURE,
  imageTo: PICTURE,
  picturePrompts: PICTURES,
  controlImage: PICTURE,
  controlMask: PICTURE,
  preview: PREVIEW,
  intermediates: BOOLEAN,
  format: oneOf('bitmap', 'blob', 'imageData'),
  onProgress: CALLBACK,
  signal: SIGNAL,
};

const LOAD_KINDS: Record<keyof LoadOptions, Kind> = {
  model: MODEL,
  lora: LORA,
  device: oneOf('auto', 'webgpu', 'cpu'),
  residency: oneOf('auto', 'all', 'per-stage'),
  threads: WHOLE,
  measure: BOOLEAN,
  cache: CACHE,
  persist: BOOLEAN,
  powerPreference: oneOf('low-power', 'high-performance'),
  tiling: oneOf('auto', 'direct', 'small', 'large'),
  precision: oneOf('f32', 'f16'),
  worker: WORKER,
  wasmUrl: WASM_URL,
  fetch: CALLBACK,
  onProgress: CALLBACK,
  signal: SIGNAL,
};

// These give a copy of the options, because what a getter gave once it may not give again.

export function checkedGenerateOptions<F extends Format>(
  options: GenerateOptions<F>,
): GenerateOptions<F> {
  return checked(options, GENERATE_KINDS, 'prompt');
}

export function checkedLoadOptions(options: LoadOptions): LoadOptions {
  return checked(options, LOAD_KINDS, 'model');
}

export function checkedLookOptions(model: ModelRef, options: LookOptions): LookOptions {
  checkValue('model', model, LOAD_KINDS.model);
  const { cache, signal } = LOAD_KINDS;
  return checked(options, { cache, signal });
}

export function checkedSupportOptions(options: SupportOptions): SupportOptions {
  const { powerPreference, signal } = LOAD_KINDS;
  return checked(options, { powerPreference, signal });
}

function checked<T extends object>(options: T, kinds: Record<string, Kind>, required?: string): T {
  if (!isObject(options)) {
    const message = `options must be an object, got ${show(options)}`;
    throw new WuerstchenError('invalid-argument', message);
  }
  const values: T = { ...(required !== undefined && { [required]: undefined }), ...options };
  for (const [name, value] of Object.entries(values)) {
    const kind = Object.hasOwn(kinds, name) ? kinds[name] : undefined;
    if (!kind) {
      const message = `there is no option "${name}"`;
      throw new WuerstchenError('invalid-argument', message, { field: name });
    }
    if (value !== undefined || name === required) checkValue(name, value, kind);
  }
  return values;
}

function checkValue(name: string, value: unknown, { is, text, hint }: Kind): void {
  try {
    if (is(value)) return;
  } catch {
    // What cannot be looked at is not of the kind.
  }
  const message = `${name} must be ${text}, got ${show(value)}`;
  throw new WuerstchenError('invalid-argument', message, { hint, field: name });
}
