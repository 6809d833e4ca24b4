// Checks what callers pass, as far as types and names go; values are checked by the WebAssembly.

import { WuerstchenError } from './errors.js';
import { isBitmap } from './pixels.js';
import type { GenerateOptions, LoadOptions } from './types.js';

interface Kind {
  readonly is: (value: unknown) => boolean;
  readonly text: string;
}

function oneOf(...values: unknown[]): Kind {
  return { is: (value) => values.includes(value), text: `one of ${values.join(', ')}` };
}

const isObject = (value: unknown) => typeof value === 'object' && value !== null;

const BOOLEAN: Kind = { is: (value) => typeof value === 'boolean', text: 'a boolean' };
const CALLBACK: Kind = { is: (value) => typeof value === 'function', text: 'a function' };
const NUMBER: Kind = { is: Number.isFinite, text: 'a finite number' };
const STRING: Kind = { is: (value) => typeof value === 'string', text: 'a string' };
const WHOLE: Kind = {
  is: (value) => Number.isSafeInteger(value) && Number(value) >= 0,
  text: 'a whole number',
};
const SEED: Kind = {
  is: (value) =>
    typeof value === 'bigint' ? BigInt.asUintN(64, value) === value : WHOLE.is(value),
  text: 'a whole number from 0 to 2^53 - 1, or a bigint from 0 to 2^64 - 1',
};
const SIGNAL: Kind = { is: (value) => value instanceof AbortSignal, text: 'an AbortSignal' };
const TIMES: Kind = {
  is: (value) => Array.isArray(value) && value.every(Number.isFinite),
  text: 'an array of finite numbers',
};
const PREVIEW: Kind = {
  is: (value) => {
    if (value === false) return true;
    const every = isObject(value) ? (value as { every?: unknown }).every : null;
    return every === undefined || (WHOLE.is(every) && every !== 0);
  },
  text: 'false or { every: 1 or more }',
};
const PICTURE: Kind = {
  is: (value) => {
    if (value instanceof Blob || isBitmap(value)) return true;
    const { width = 0, height = 0, data } = (value ?? {}) as { [K in keyof ImageData]?: unknown };
    const isBytes = data instanceof Uint8Array || data instanceof Uint8ClampedArray;
    return isBytes && data.length > 0 && data.length === 4 * Number(width) * Number(height);
  },
  text: 'a Blob, an ImageBitmap or an ImageData',
};
const URL_TEXT: Kind = {
  is: (value) => STRING.is(value) || value instanceof URL,
  text: 'a URL',
};
const WORKER: Kind = {
  is: (value) => value === false || CALLBACK.is(value),
  text: 'false or a function that makes a worker',
};
const CACHE: Kind = {
  is: (value) => isObject(value) || ['auto', 'opfs', 'cache', 'none'].includes(value as string),
  text: 'one of auto, opfs, cache, none, or an adapter',
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
  sampler: oneOf('ddpm', 'ddim'),
  promptSyntax: oneOf('weighted', 'plain'),
  promptTo: STRING,
  frames: WHOLE,
  strength: NUMBER,
  image: PICTURE,
  mask: PICTURE,
  imageTo: PICTURE,
  preview: PREVIEW,
  intermediates: BOOLEAN,
  format: oneOf('bitmap', 'blob', 'imageData'),
  onProgress: CALLBACK,
  signal: SIGNAL,
};

const LOAD_KINDS: Record<keyof LoadOptions, Kind> = {
  model: URL_TEXT,
  device: oneOf('auto', 'webgpu', 'cpu'),
  cache: CACHE,
  persist: BOOLEAN,
  powerPreference: oneOf('low-power', 'high-performance'),
  worker: WORKER,
  wasmUrl: { is: isObject, text: 'an object of URLs' },
  fetch: CALLBACK,
  onProgress: CALLBACK,
  signal: SIGNAL,
};

export function checkGenerateOptions(options: GenerateOptions): void {
  check(options, GENERATE_KINDS, 'prompt');
  const { image, mask, imageTo } = options;
  const refuse = (message: string) => {
    throw new WuerstchenError('invalid-argument', message);
  };
  if (mask && !image) refuse('mask needs an image to start from');
  if (imageTo && !image) refuse('imageTo needs an image to start from');
  if (imageTo && mask) refuse('imageTo cannot be used with a mask');
}

export function checkLoadOptions(options: LoadOptions): void {
  check(options, LOAD_KINDS, 'model');
}

function check(options: object, kinds: Record<string, Kind>, required: string): void {
  if (!isObject(options)) {
    throw new WuerstchenError('invalid-argument', `options must be an object, got ${options}`);
  }
  const values: Record<string, unknown> = { [required]: undefined, ...options };
  for (const [name, value] of Object.entries(values)) {
    const kind = Object.hasOwn(kinds, name) ? kinds[name] : undefined;
    if (!kind) throw new WuerstchenError('invalid-argument', `there is no option "${name}"`);
    if (value === undefined && name !== required) continue;
    if (!kind.is(value)) {
      const found = typeof value === 'string' ? `"${value}"` : String(value);
      throw new WuerstchenError('invalid-argument', `${name} must be ${kind.text}, got ${found}`);
    }
  }
}
