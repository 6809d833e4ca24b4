// A LoRA of the model `shapes`, as a trainer would write it.

import { writeFileSync } from 'node:fs';

/** Width of Stage C of the model `shapes`, and the rank of the LoRAs. */
const [WIDTH, RANK] = [128, 4];

/** Writes a safetensors file with a pair of matrices for two layers, under names that end so. */
export function writeLora(file: string, ends: readonly [string, string]): void {
  const tensors: Record<string, { dtype: 'F32'; shape: number[]; data_offsets: number[] }> = {};
  const values: number[] = [];
  for (const layer of ['blocks.2.attention.to_q', 'blocks.5.attention.to_v']) {
    for (const [end, shape] of [
      [ends[0], [RANK, WIDTH]],
      [ends[1], [WIDTH, RANK]],
    ] as const) {
      const start = 4 * values.length;
      for (let i = 0; i < RANK * WIDTH; i++) values.push(0.5 * Math.sin(0.7 * i));
      tensors[`prior.${layer}.${end}`] = {
        dtype: 'F32',
        shape: [...shape],
        data_offsets: [start, 4 * values.length],
      };
    }
  }
  const metadata = JSON.stringify({ 'prior.r': RANK, 'prior.lora_alpha': 8 });
  const header = Buffer.from(
    JSON.stringify({ __metadata__: { lora_adapter_metadata: metadata }, ...tensors }),
  );
  const length = Buffer.alloc(8);
  length.writeBigUInt64LE(BigInt(header.length));
  const bytes = Buffer.from(Float32Array.from(values).buffer);
  writeFileSync(file, Buffer.concat([length, header, bytes]));
}
