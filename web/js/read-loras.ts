// Reads the LoRAs that a load brings to the model.

import { WuerstchenError } from './errors.js';
import { besides, brokenOff, request } from './http.js';
import type { LoraSource } from './lora.js';
import { messageOf } from './values.js';

/** A LoRA whose file has been read. */
export interface LoraBytes {
  readonly name: string;
  readonly bytes: Uint8Array;
  /** The text of the config that peft writes beside its weights. */
  readonly adapterConfig?: string;
  readonly weight: number;
}

/** The name that peft gives to a file with a config beside it. */
const OF_PEFT = 'adapter_model.safetensors';

/** Fetches or reads all LoRAs. Rejects with `network`, or with `integrity` if a file is gone. */
export async function readLoras(
  sources: readonly LoraSource[],
  fetcher: typeof fetch,
  signal: AbortSignal,
): Promise<LoraBytes[]> {
  const read = async (file: string | Blob): Promise<Uint8Array> => {
    if (typeof file === 'string') return fetchBytes(file, fetcher, signal);
    const buffer = await file.arrayBuffer().catch((cause) => {
      throw new WuerstchenError('integrity', `a LoRA could not be read: ${messageOf(cause)}`, {
        hint: 'Pick the file again: it was moved or changed.',
        cause,
      });
    });
    return new Uint8Array(buffer);
  };
  const text = async (file: string | Blob) => new TextDecoder().decode(await read(file));
  return Promise.all(
    sources.map(async ({ name, file, adapterConfig, weight }) => {
      const bytes = await read(file);
      let config = adapterConfig && (await text(adapterConfig));
      if (!adapterConfig && typeof file === 'string' && name === OF_PEFT) {
        // Older files of peft have a config beside them, newer ones need none.
        config = await text(besides(file, 'adapter_config.json')).catch(() => undefined);
      }
      return { name, bytes, adapterConfig: config, weight };
    }),
  );
}

async function fetchBytes(
  url: string,
  fetcher: typeof fetch,
  signal: AbortSignal,
): Promise<Uint8Array> {
  const response = await request(fetcher, url, { signal });
  const buffer = await response.arrayBuffer().catch((cause) => {
    throw brokenOff(url, cause);
  });
  return new Uint8Array(buffer);
}
