// A LoRA of the model `shapes`, as a trainer would write it.

import { writeSafetensors, type Tensor } from './safetensors.ts';

/** Width of Stage C of the model `shapes`, and the rank of the LoRAs. */
const [WIDTH, RANK] = [128, 4];

/** Writes a safetensors file with a pair of matrices for two layers, under names that end so. */
export function writeLora(file: string, ends: readonly [string, string]): void {
  const values = Float32Array.from({ length: RANK * WIDTH }, (_, i) => 0.5 * Math.sin(0.7 * i));
  const bytes = new Uint8Array(values.buffer);
  const tensors: Record<string, Tensor> = {};
  for (const layer of ['blocks.2.attention.to_q', 'blocks.5.attention.to_v']) {
    tensors[`prior.${layer}.${ends[0]}`] = { dtype: 'F32', shape: [RANK, WIDTH], bytes };
    tensors[`prior.${layer}.${ends[1]}`] = { dtype: 'F32', shape: [WIDTH, RANK], bytes };
  }
  const adapter = JSON.stringify({ 'prior.r': RANK, 'prior.lora_alpha': 8 });
  writeSafetensors(file, tensors, { lora_adapter_metadata: adapter });
}
