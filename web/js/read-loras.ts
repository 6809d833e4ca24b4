// Reads the LoRAs that a load brings to the model.

import { WuerstchenError, withField } from './errors.js';
import { besides, brokenOff, request } from './http.js';
import type { LoraSource } from './lora.js';
import { contentOf } from './picked.js';
import { throwIfAborted } from './signals.js';

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
  const read = async (file: string | Blob, name: string): Promise<Uint8Array> =>
    new Uint8Array(
      typeof file === 'string'
        ? await fetchBytes(file, fetcher, signal)
        : await contentOf(file, name, 'lora'),
    );
  const text = async (file: string | Blob, name: string) =>
    new TextDecoder().decode(await read(file, name));
  return Promise.all(
    sources.map(async ({ name, file, adapterConfig, weight }) => {
      const bytes = await read(file, name);
      let config = adapterConfig && (await text(adapterConfig, `the adapterConfig of ${name}`));
      if (!adapterConfig && typeof file === 'string' && name === OF_PEFT) {
        // Older files of peft have a config beside them, newer ones need none.
        config = await text(besides(file, 'adapter_config.json'), name).catch(ignoreMissing);
      }
      return { name, bytes, adapterConfig: config, weight };
    }),
  );
}

/** A config that is there but did not come must not be left out: it has the LoRA's strength. */
function ignoreMissing(error: unknown): undefined {
  if (!(error instanceof WuerstchenError) || error.retryable) throw error;
}

async function fetchBytes(
  url: string,
  fetcher: typeof fetch,
  signal: AbortSignal,
): Promise<ArrayBuffer> {
  try {
    const response = await request(fetcher, url, { signal });
    return await response.arrayBuffer().catch((cause) => {
      throw brokenOff(url, cause);
    });
  } catch (error) {
    throwIfAborted(signal);
    throw withField(error, 'lora');
  }
}
