// A ControlNet of the small Stable Cascade with random weights, as users have it in a model's folder.

import { cpSync, mkdirSync, readFileSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { writeSafetensors, type Tensor } from './safetensors.ts';
import { CASCADE } from './site.ts';

/** Random weights of ControlNets, with what PyTorch makes of them. */
const GOLDENS = '../tests/golden/controlnets.safetensors';

/** The residual blocks of the small Stage C; the network has a projection more than these for two blocks. */
const BLOCKS = [0, 1, 2, 3, 4, 5];

interface Entry {
  readonly dtype: string;
  readonly shape: readonly number[];
  readonly data_offsets: readonly [number, number];
}

/** Writes the small Stable Cascade into a folder, with the ControlNet that takes edges. */
export function writeControlled(folder: string): void {
  for (const part of ['stable-cascade', 'stable-cascade-prior']) {
    cpSync(join(CASCADE, part), join(folder, part), { recursive: true });
  }
  const file = readFileSync(GOLDENS);
  const length = Number(file.readBigUInt64LE());
  const header: Record<string, Entry> = JSON.parse(file.toString('utf8', 8, 8 + length));
  const prefix = 'edges.weights.';
  const tensors: Record<string, Tensor> = {};
  for (const [name, { dtype, shape, data_offsets }] of Object.entries(header)) {
    const [, block] = /projections\.(\d+)/.exec(name) ?? [];
    if (!name.startsWith(prefix) || (block && !BLOCKS.includes(Number(block)))) continue;
    const bytes = file.subarray(...data_offsets.map((offset) => 8 + length + offset));
    tensors[name.slice(prefix.length)] = { dtype, shape, bytes };
  }
  const controlnet = join(folder, 'controlnet');
  mkdirSync(controlnet);
  writeSafetensors(join(controlnet, 'model.safetensors'), tensors);
  writeFileSync(join(controlnet, 'config.json'), JSON.stringify({ blocks: BLOCKS }));
}
