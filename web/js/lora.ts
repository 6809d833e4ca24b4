// References to LoRAs, as they travel to an engine.

import { absoluteUrl } from './http.js';
import type { LoraRef } from './types.js';
import { isUrl } from './values.js';

/** A {@link LoraRef} as it travels to a worker. */
export interface LoraSource {
  /** A file's name. */
  readonly name: string;
  /** An absolute URL, or the file itself. */
  readonly file: string | Blob;
  readonly adapterConfig?: string | Blob;
  readonly weight: number;
}

/** Checked references to LoRAs, with URLs and files that mean the same in a worker. */
export function toLoraSources(loras: readonly LoraRef[] = []): LoraSource[] {
  return loras.map(({ url, blob, adapterConfig, weight = 1 }, index) => {
    const file = blob ?? absoluteUrl(url ?? '', 'lora');
    return { name: nameOf(file, index), file, adapterConfig: place(adapterConfig), weight };
  });
}

function place(file: string | URL | Blob | undefined): string | Blob | undefined {
  return isUrl(file) ? absoluteUrl(file, 'lora') : file;
}

function nameOf(file: string | Blob, index: number): string {
  if (typeof file !== 'string') return 'name' in file ? String(file.name) : `LoRA ${index + 1}`;
  const last = new URL(file).pathname.split('/').at(-1) ?? '';
  try {
    return decodeURIComponent(last);
  } catch {
    return last;
  }
}
