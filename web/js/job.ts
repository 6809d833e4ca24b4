// A job as it travels to the engine.

import { WuerstchenError } from './errors.js';
import type { GenerateOptions, PictureOptions, PictureSource } from './types.js';
import { isObject } from './values.js';

/** `GenerateOptions` without what stays with the client. */
export interface Job {
  readonly picture: PictureOptions;
  readonly image?: PictureSource;
  readonly mask?: PictureSource;
  readonly imageTo?: PictureSource;
  readonly picturePrompts?: readonly PictureSource[];
  readonly controlImage?: PictureSource;
  readonly controlMask?: PictureSource;
  /** Steps between previews; 0 for none. */
  readonly previewEvery: number;
  readonly intermediates: boolean;
  readonly format: NonNullable<GenerateOptions['format']>;
}

/**
 * The job that checked options describe, with copies of all that they hold, because the caller may change them, close
 * bitmaps or transfer buffers while the job waits in the queue.
 *
 * Throws `invalid-argument` for values that cannot be copied; they could not reach a worker either.
 */
export function toJob(options: GenerateOptions): Job {
  const { onProgress, signal, preview, ...others } = options;
  const copies = Object.entries(others).map(([name, value]) => [name, copy(name, value)]);
  const {
    image,
    mask,
    imageTo,
    picturePrompts,
    controlImage,
    controlMask,
    intermediates,
    format,
    ...picture
  } = Object.fromEntries(copies) as typeof others;
  return {
    picture,
    image,
    mask,
    imageTo,
    picturePrompts,
    controlImage,
    controlMask,
    // Previews are only made if somebody sees them.
    previewEvery: preview === false || !onProgress ? 0 : (preview?.every ?? 1),
    intermediates: intermediates ?? false,
    format: format ?? 'bitmap',
  };
}

function copy(name: string, value: unknown): unknown {
  if (typeof value === 'string') return wellFormed(value);
  if (Array.isArray(value)) return value.map((item) => copy(name, item));
  try {
    return isObject(value) && 'data' in value
      ? copyOfPixels(value as ImageData)
      : structuredClone(value);
  } catch (cause) {
    const message = `${name} cannot be copied for the engine`;
    const hint =
      'It must not be closed or transferred, no proxy, and not drawn from a picture of another ' +
      'site; an object holds data alone, no functions.';
    throw new WuerstchenError('invalid-argument', message, { hint, field: name, cause });
  }
}

/** The pixels alone: a clone would take, or share, all of the memory in which they may be a small part. */
function copyOfPixels({ width, height, data, colorSpace = 'srgb' }: ImageData): PictureSource {
  const copied = new Uint8ClampedArray(data);
  // The browser converts wide colours, such as those of "display-p3", but only of its own class.
  return colorSpace === 'srgb'
    ? { width, height, data: copied }
    : new ImageData(copied, width, height, { colorSpace });
}

/** Half an emoji, as cutting text leaves it, becomes U+FFFD: JSON and UTF-8 have no such thing. */
function wellFormed(text: string): string {
  return new TextDecoder('utf-8', { ignoreBOM: true }).decode(new TextEncoder().encode(text));
}
