// The words that a model knows.

import { WuerstchenError } from './errors.js';
import { look } from './manifest.js';
import { fetchContents } from './shards.js';
import type { LookOptions, ModelRef } from './types.js';

/** How the path of Stage C's tokenizer ends in the files of a model; it begins with the model's family. */
const TOKENIZER = '-prior/tokenizer/tokenizer.json';

/**
 * The words that a model knows, in alphabetical order; undefined if its tokenizer splits words into parts and so reads
 * any text. Fetches the manifest and the file with the tokenizer, which a later `load` finds in the cache, but no
 * weights. Rejects with `network` or `integrity`.
 */
export async function vocabulary(
  model: ModelRef,
  options: LookOptions = {},
): Promise<readonly string[] | undefined> {
  return look(model, options, async ({ manifest, ...site }) => {
    const bytes = await fetchContents(manifest, { ...site, emit: () => {} });
    try {
      const { files } = JSON.parse(new TextDecoder().decode(bytes));
      const path = Object.keys(files).find((path) => path.endsWith(TOKENIZER));
      return path === undefined ? undefined : wordsOf(JSON.parse(files[path]));
    } catch (cause) {
      throw new WuerstchenError('integrity', `${manifest.contents.file} cannot be read: ${cause}`, {
        cause,
      });
    }
  });
}

/** The vocabulary of a tokenizer of whole words, without tokens such as `<|unknown|>`. */
function wordsOf(tokenizer: {
  model: { type?: string; vocab: Record<string, number> };
  added_tokens?: readonly { content: string }[];
}): readonly string[] | undefined {
  if (tokenizer.model.type !== 'WordLevel') return undefined;
  const added = new Set(tokenizer.added_tokens?.map(({ content }) => content));
  return Object.keys(tokenizer.model.vocab)
    .filter((word) => !added.has(word))
    .sort();
}
