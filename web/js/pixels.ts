// Pictures that callers bring, as pixels.

import { WuerstchenError } from './errors.js';
import type { PictureSource } from './types.js';
import { messageOf } from './values.js';

/** Most pixels of a picture: those of a larger one do not fit into the memory of WebAssembly with their copies. */
const MAX_PIXELS = 2 ** 27;

export interface Pixels {
  readonly width: number;
  /** Not premultiplied; WebAssembly puts transparent pixels on white. */
  readonly rgba: Uint8Array;
}

/** The pixels of a picture, upright as its EXIF data say; `name` is that of the option. */
export async function toPixels(picture: PictureSource, name: string): Promise<Pixels> {
  // The browser converts wide colours, such as those of "display-p3".
  const { colorSpace = 'srgb' } = picture as Partial<ImageData>;
  if ('data' in picture && colorSpace === 'srgb') {
    const { width, height, data } = picture;
    checkSize(width, height, name);
    return { width, rgba: new Uint8Array(data.buffer, data.byteOffset, data.length) };
  }
  const bitmap = await decode(picture, name);
  try {
    checkSize(bitmap.width, bitmap.height, name);
    return draw(bitmap);
  } catch (cause) {
    if (cause instanceof WuerstchenError) throw cause;
    const message = `${name} could not be drawn to get its pixels: ${messageOf(cause)}`;
    const hint = 'Give it as ImageData, or make it smaller.';
    throw new WuerstchenError('invalid-argument', message, { hint, field: name, cause });
  } finally {
    bitmap.close();
  }
}

function checkSize(width: number, height: number, name: string): void {
  if (width * height <= MAX_PIXELS) return;
  const message = `${name} must have at most ${MAX_PIXELS} pixels, got ${width} x ${height}`;
  throw new WuerstchenError('invalid-argument', message, {
    hint: 'Make the picture smaller; the result has far fewer pixels.',
    field: name,
  });
}

async function decode(picture: PictureSource, name: string): Promise<ImageBitmap> {
  try {
    return await createImageBitmap(picture as ImageBitmapSource, { premultiplyAlpha: 'none' });
  } catch (cause) {
    const message = `${name} is not a picture that this browser can read: ${messageOf(cause)}`;
    const hint = 'PNG, JPEG and WebP are read everywhere; an ImageData needs no reading.';
    throw new WuerstchenError('invalid-argument', message, { hint, field: name, cause });
  }
}

/** Most pixels that are drawn at a time: on a canvas of more than 2^24 pixels Safari draws nothing, without a word. */
const STRIP_PIXELS = 2 ** 22;

/** Draws a bitmap in strips of rows, and collects their pixels. */
function draw(bitmap: ImageBitmap): Pixels {
  const { width, height } = bitmap;
  const most = Math.min(height, Math.ceil(STRIP_PIXELS / width));
  const context = new OffscreenCanvas(width, most).getContext('2d', { willReadFrequently: true });
  if (!context) throw new Error('this browser gives no canvas');
  const rgba = new Uint8Array(4 * width * height);
  for (let top = 0; top < height; top += most) {
    const rows = Math.min(most, height - top);
    context.clearRect(0, 0, width, rows);
    context.drawImage(bitmap, 0, top, width, rows, 0, 0, width, rows);
    rgba.set(context.getImageData(0, 0, width, rows).data, 4 * width * top);
  }
  return { width, rgba };
}
