// What wasm-bindgen's glue of both WebAssembly builds exports, as the engine uses it.
// Everything but `openDevice` throws an Error with a `code` (see errors.ts) and a message for people.

import type { ThreadNames } from './threads.js';
import type { Precision, Residency, Stage, Tiling } from './types.js';

export interface Picture {
  readonly width: number;
  readonly height: number;
  rgba(): Uint8Array;
  /** A PNG whose text chunks carry the prompt and the settings. */
  png(): Uint8Array;
  free(): void;
}

export interface Generated {
  readonly count: number;
  picture(index: number): Picture;
  /** JSON of {@link GenerateResult.settings}; `seed` is a number of up to 64 bits. */
  readonly settings: string;
  /** JSON of {@link GenerateResult.unread}. */
  readonly unread: string;
  readonly imageEmbeddingShape: Uint32Array;
  readonly imageEmbedding: Float32Array;
  readonly latentsShape: Uint32Array;
  readonly latents: Float32Array;
  free(): void;
}

/** The request of a caller. */
export interface Request {
  setImage(width: number, rgba: Uint8Array): void;
  setMask(width: number, rgba: Uint8Array): void;
  setImageTo(width: number, rgba: Uint8Array): void;
  addPicturePrompt(width: number, rgba: Uint8Array): void;
  setControlImage(width: number, rgba: Uint8Array): void;
  setControlMask(width: number, rgba: Uint8Array): void;
  free(): void;
}

export interface Engine {
  /**
   * Chooses how a GPU computes products, then compares the device's results with the golden vectors of
   * `contents.json`; JSON of `SelfTest`.
   */
  selfTest(tiling: Tiling, precision: Precision): Promise<string>;
  /** JSON of `Measured['products']`; `undefined` on a CPU. */
  readonly products: string | undefined;
  /** JSON of the rest of `Measured`. */
  measure(): Promise<string>;
  /** Applies all LoRAs; called once, after the self-test. */
  applyLoras(): void;
  generate(
    /** The request, which this call uses up. */
    request: Request,
    /** Called after every step; resolves to whether to go on. `latents` is a copy that may be kept. */
    onStep: (
      stage: Stage,
      step: number,
      steps: number,
      shape: Uint32Array,
      latents: Float32Array,
    ) => Promise<boolean>,
  ): Promise<Generated>;
  /** The first picture of a batch of Stage C's or B's latents; undefined where there is nothing to show. */
  preview(stage: Stage, shape: Uint32Array, latents: Float32Array): Promise<Picture | undefined>;
  free(): void;
}

export interface Loader {
  /** Reads a LoRA, before the first shard; returns what it changes, then the things in it that are left out. */
  addLora(
    name: string,
    bytes: Uint8Array,
    adapterConfig: string | undefined,
    weight: number,
  ): string[];
  /** Whether parts will be on the device one at a time. If so, shards go to `keepShard`, else to `addShard`. */
  readonly isPerStage: boolean;
  /** Loads the verified bytes of one shard onto the device. */
  addShard(index: number, bytes: Uint8Array): void;
  /** Takes the next shard, verified, whose bytes `read` gives whenever they are needed. */
  keepShard(length: number, read: (start: number, end: number) => Uint8Array): void;
  /** Checks that every tensor is there; uses the loader up. */
  finish(): Engine;
  free(): void;
}

export interface Wasm {
  /** Gives the glue the exports that it calls. */
  __wbg_set_wasm(exports: WebAssembly.Exports): void;
  /** This and the next only of a program that can use threads. */
  readonly threads?: ThreadNames;
  /** Divides the work among so many threads; returns the bytes of a module that each of them instantiates. */
  useThreads?(count: number): Uint8Array<ArrayBuffer>;
  /** Sets up the device, once per instance, before any loader. */
  openDevice(): Promise<void>;
  Loader: new (manifestJson: string, contentsJson: string, residency: Residency) => Loader;
  /** JSON of the prompts and options; pictures are added. */
  Request: new (json: string) => Request;
}
