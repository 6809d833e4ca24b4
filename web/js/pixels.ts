// Pictures that callers bring, as pixels.

import { WuerstchenError } from './errors.js';
import type { PictureSource } from './types.js';

export interface Pixels {
  readonly width: number;
  readonly rgba: Uint8Array;
}

/** Node, where other formats work, has no bitmaps. */
export function isBitmap(image: unknown): image is ImageBitmap {
  return typeof ImageBitmap !== 'undefined' && image instanceof ImageBitmap;
}

/** The pixels of a picture, upright as its EXIF data say; `name` is that of the option. */
export async function toPixels(picture: PictureSource, name: string): Promise<Pixels> {
  if ('data' in picture) {
    const { width, data } = picture;
    return { width, rgba: new Uint8Array(data.buffer, data.byteOffset, data.length) };
  }
  const bitmap = await createImageBitmap(picture, { premultiplyAlpha: 'none' }).catch((cause) => {
    const message = `${name} is not a picture that this browser can read`;
    throw new WuerstchenError('invalid-argument', message, { cause });
  });
  const { width, height } = bitmap;
  try {
    const context = new OffscreenCanvas(width, height).getContext('2d');
    if (!context) throw new WuerstchenError('internal', 'this browser gave no canvas');
    context.drawImage(bitmap, 0, 0);
    const { data } = context.getImageData(0, 0, width, height);
    return { width, rgba: new Uint8Array(data.buffer) };
  } finally {
    bitmap.close();
  }
}
