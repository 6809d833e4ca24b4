// The public types of the package, shared by the page, the worker and the engine.

/** The steps of a generation: text encoders, Stage C, Stage B, Stage A. */
export type Stage = 'text' | 'prior' | 'decoder' | 'vqgan';

/** How a browser bundle stores its weights. */
export type Dtype = 'f32' | 'f16' | 'i8' | 'i4';

/** What computes: the GPU through WebGPU, or the CPU through WebAssembly SIMD. */
export type DeviceKind = 'webgpu' | 'cpu';

/** Why the requested device cannot be used, or why the CPU was chosen. */
export type SupportReason =
  'insecure-context' | 'no-webgpu' | 'no-adapter' | 'software-adapter' | 'no-wasm-simd' | 'no-wasm';

/** What this browser can do, found out without any download. */
export interface Support {
  /** Whether a model can run at all. */
  readonly ok: boolean;
  /** The device that `device: 'auto'` takes; of a loaded model, the one that computes. */
  readonly device: DeviceKind;
  /** Why `device` is not WebGPU, or why no model can run; left out if WebGPU works, or if the caller chose the CPU. */
  readonly reason?: SupportReason;
  readonly adapter?: {
    readonly vendor: string;
    readonly architecture: string;
    readonly description: string;
    readonly software: boolean;
  };
  readonly features: { readonly shaderF16: boolean; readonly subgroups: boolean };
  readonly limits?: {
    readonly maxBufferSize: number;
    readonly maxStorageBufferBindingSize: number;
  };
  readonly storage: {
    /** Where this package stores models; `memory`: nowhere, or in a cache of the caller's. */
    readonly backend: 'opfs' | 'cache' | 'memory';
    readonly quota?: number;
    readonly free?: number;
    readonly persisted: boolean;
  };
  /** Number of threads that compute on the CPU; only of a model that was loaded there. */
  readonly threads?: number;
  /** One or two sentences for people. */
  readonly message: string;
}

/** What {@link checkSupport} takes. */
export interface SupportOptions {
  readonly signal?: AbortSignal;
  /** Which GPU is wanted, if there are two. */
  readonly powerPreference?: 'low-power' | 'high-performance';
}

/**
 * A model. A string or URL is the location of its `manifest.json`, or of the folder with it if the path ends in `/`,
 * absolute or relative to the page; the other files lie beside it and are requested with the same query. A list of
 * files is a model that a person picked or dropped. `stored` is the id of a model in this browser's cache.
 */
export type ModelRef = string | URL | FileList | readonly File[] | { readonly stored: string };

/**
 * A LoRA of Stage C and its text encoder in a safetensors file, as diffusers, peft, kohya-ss and OneTrainer
 * write it. `url` is absolute or relative to the page; `blob` is the file itself.
 */
export interface LoraRef {
  readonly url?: string | URL;
  readonly blob?: Blob;
  /** Factor on the LoRA's change of the model; default 1, the strength that it was trained with. */
  readonly weight?: number;
  /**
   * The `adapter_config.json` that peft writes. For a `url` that ends in `adapter_model.safetensors` it is looked for
   * in the same folder.
   */
  readonly adapterConfig?: string | URL | Blob;
}

/** What a manifest says about a model, and how much of it is stored here. */
export interface ModelInfo {
  readonly id: string;
  readonly name: string;
  readonly licence: string;
  readonly provenance: string;
  /** Download size of all files but the manifest. */
  readonly bytes: number;
  /** Bytes of files that lie complete in this browser's cache. */
  readonly cachedBytes: number;
  readonly stages: Readonly<
    Record<Stage, { readonly params: number; readonly bytes: number; readonly dtype: Dtype }>
  >;
  /** The model's values for options that a caller leaves out. */
  readonly defaults: Defaults;
  /** Whether the model takes the option `picturePrompts`. */
  readonly picturePrompts: boolean;
}

export interface Defaults {
  readonly width: number;
  readonly height: number;
  readonly priorSteps: number;
  readonly priorGuidanceScale: number;
  readonly decoderSteps: number;
  readonly decoderGuidanceScale: number;
  readonly sampler: 'ddpm' | 'ddim' | 'lcm';
  /** This and the next two only for models whose Stage B denoises tokens. */
  readonly temperature?: number;
  readonly temperatureEnd?: number;
  readonly tokenSampling?: 'multinomial' | 'argmax' | 'quant';
}

export interface SelfTest {
  readonly ok: boolean;
  /** Whether the test failed with `precision: 'f16'`; it then ran once more in f32, which pictures use too. */
  readonly failedInHalves?: boolean;
  /** Largest relative error `||out - ref|| / ||ref||` of all checks. */
  readonly maxError: number;
  readonly checks: readonly {
    readonly name: string;
    readonly relative: number;
    readonly bound: number;
    readonly ok: boolean;
  }[];
}

/** The speed of a device, and the work of a model's stages for a picture of its default size. */
export interface Measured {
  /** Multiply-adds a second in f32, measured with a loop that does nothing else. */
  readonly multiplyAddsPerSec: number;
  /** Bytes a second, those read and those written together, of a copy of 32 MiB. */
  readonly bytesPerSec: number;
  /** How a GPU computes products; `tiling` is `auto` where the size of each product decides. `null` on a CPU. */
  readonly products: { readonly tiling: Tiling; readonly precision: Precision } | null;
  /** The work for one prediction of one picture; empty for Stable Cascade, whose work is not counted. */
  readonly work: readonly {
    readonly stage: Stage;
    readonly multiplyAdds: number;
    readonly weightBytes: number;
  }[];
}

export type LoadEvent =
  | {
      readonly type: 'download';
      readonly file: string;
      readonly loaded: number;
      readonly total: number;
      readonly overall: {
        readonly loaded: number;
        readonly total: number;
        readonly bytesPerSecond: number;
        readonly etaMs?: number;
      };
      readonly fromCache: boolean;
    }
  | { readonly type: 'verify'; readonly file: string }
  | {
      readonly type: 'upload';
      readonly file: string;
      readonly loaded: number;
      readonly total: number;
    }
  /** What a LoRA changes, and a sentence for each thing in it that is left out. */
  | {
      readonly type: 'lora';
      readonly file: string;
      readonly message: string;
      readonly leftOut: readonly string[];
    }
  | { readonly type: 'compile'; readonly device: DeviceKind }
  | ({ readonly type: 'selftest' } & SelfTest)
  /** Only with `measure`. */
  | ({ readonly type: 'measured' } & Measured)
  | { readonly type: 'ready'; readonly ms: number };

/** Where weights are kept between visits; a custom one may be given. */
export interface CacheAdapter {
  /** The bytes stored under a name; undefined or null if there are none. */
  get(name: string): Promise<Uint8Array | ArrayBuffer | null | undefined>;
  /** Stores bytes whole or not at all; rejects with a `quota` error if they do not fit. */
  put(name: string, bytes: Uint8Array): Promise<void>;
  delete(name: string): Promise<void>;
  /** Names and sizes of everything stored. */
  list(): Promise<{ name: string; bytes: number }[]>;
}

/** The WebAssembly for a device, and its second file, which is fetched when a rarely used function is called. */
export type WasmFile = DeviceKind | `${DeviceKind}Rest`;

/**
 * Which parts of a model stay on the device. `all`: every part, so that the next picture starts at once. `per-stage`:
 * one part at a time, read from the browser's storage whenever it is needed, so that the model takes no more memory
 * than its largest part; only in a worker. `auto`: `per-stage` in a worker if all parts together take more than 2 GiB
 * on the device, else `all`.
 */
export type Residency = 'auto' | 'all' | 'per-stage';

/** How a GPU divides matrix products into workgroups. */
export type Tiling = 'auto' | 'direct' | 'small' | 'large';

/** The numbers that matrix products multiply. */
export type Precision = 'f32' | 'f16';

export interface LoadOptions {
  readonly model: ModelRef;
  /** LoRAs that change the model; all of them apply together. */
  readonly lora?: readonly LoraRef[];
  /** `auto`, the default, takes a hardware GPU that works, else the CPU. */
  readonly device?: 'auto' | DeviceKind;
  readonly residency?: Residency;
  /**
   * Number of threads that compute on the CPU. Several need a worker on a page that is cross-origin isolated; on any
   * other page one computes. From 1 to 64. By default as many as the processor has, at most 8, in browsers built on
   * Chromium, and 1 in others.
   */
  readonly threads?: number;
  /** Whether to measure the device's speed too, which takes about a second; a `measured` event has the result. */
  readonly measure?: boolean;
  /** Where weights are kept. `auto`, the default: OPFS, else the Cache API, else nothing is stored. */
  readonly cache?: 'auto' | 'opfs' | 'cache' | 'none' | CacheAdapter;
  /** Whether to ask the browser to keep the cache even when space is short. */
  readonly persist?: boolean;
  readonly powerPreference?: 'low-power' | 'high-performance';
  /**
   * How a GPU divides matrix products into workgroups: without tiles, or with tiles of 32 by 32 or 64 by 64 outputs.
   * `auto`, the default, measures both tiles on a product of the model; a software GPU gets none.
   */
  readonly tiling?: Tiling;
  /**
   * `f16` lets a GPU that has the feature `shader-f16` round the factors of matrix products to half precision, where
   * they must be below 65504: if a measurement says that it is faster, or if `tiling` names tiles. Sums stay in f32,
   * the default.
   */
  readonly precision?: Precision;
  /** `false` computes in the calling thread; a function makes the worker. By default the package starts its own. */
  readonly worker?: false | (() => Worker);
  /**
   * Where the WebAssembly files lie, if not beside the worker. With `worker: false` the first load of a page decides.
   */
  readonly wasmUrl?: Partial<Record<WasmFile, string | URL>>;
  /** Used in place of the global `fetch`; only with `worker: false`. */
  readonly fetch?: typeof fetch;
  readonly onProgress?: (event: LoadEvent) => void;
  readonly signal?: AbortSignal;
}

/** Options of looking at a model without loading it. */
export type LookOptions = Pick<LoadOptions, 'cache' | 'signal'>;

/** Pixels to start from; `ImageData`, or anything that looks like it, needs no decoding. */
export type PictureSource =
  | Blob
  | ImageBitmap
  | {
      readonly width: number;
      readonly height: number;
      readonly data: Uint8Array | Uint8ClampedArray;
    };

/** The picture options have the names and meanings of the command line's. */
export interface PictureOptions {
  readonly prompt: string;
  readonly negativePrompt?: string;
  /** 0 to 2^64 - 1; drawn at random if left out. The result has the seed that was used. */
  readonly seed?: number | bigint;
  readonly count?: number;
  /**
   * Pixels. Without `width` and `height`, a result that starts from `image` has its size, if the model can make that and
   * the sides are at most twice the model's default ones; any other result has the model's default size.
   */
  readonly width?: number;
  readonly height?: number;
  readonly priorSteps?: number;
  readonly priorGuidanceScale?: number;
  /** Times that the prior visits, falling from at most 1 to 0, instead of evenly spaced steps. */
  readonly timesteps?: readonly number[];
  readonly decoderSteps?: number;
  readonly decoderGuidanceScale?: number;
  /**
   * Guidance scale of the decoder's last step, where the decoder denoises tokens; default the model's, or
   * `decoderGuidanceScale` if that is given or the model has none.
   */
  readonly decoderGuidanceScaleEnd?: number;
  /** Temperature (divisor of the logits) of the decoder's first step, where the decoder denoises tokens. */
  readonly temperature?: number;
  /** The same at the decoder's last step; default the model's, but at most `temperature`. */
  readonly temperatureEnd?: number;
  /** Number of steps after which tokens are noised again, if the decoder denoises tokens; at most all but the last. */
  readonly renoiseSteps?: number;
  /**
   * How tokens are chosen: drawn, the likeliest, or the one whose code is nearest to the mean of all codes, weighted by
   * their probabilities.
   */
  readonly tokenSampling?: 'multinomial' | 'argmax' | 'quant';
  readonly sampler?: 'ddpm' | 'ddim' | 'lcm';
  /** How to sample: as diffusers does, or as Stable Cascade's authors do, with their values of other options. */
  readonly recipe?: 'diffusers' | 'authors';
  /** Above 1, the prior takes more of its steps where there is much noise; default the model's, or that of `recipe`. */
  readonly priorShift?: number;
  /** The same for the decoder. */
  readonly decoderShift?: number;
  /**
   * How far to undo the wider spread that guidance gives to predictions: 0 not at all, 1 completely; default as for
   * `priorShift`.
   */
  readonly guidanceRescale?: number;
  /** What brackets in prompts mean: weights, as in `(red:1.3)`, or nothing; default `weighted`. */
  readonly promptSyntax?: 'weighted' | 'plain';
  /** Rows of latents that Stage A decodes at a time, 0 for all: fewer take less memory; the picture stays the same. */
  readonly vqganRows?: number;
  /** Makes frames on the way from `prompt` to this one; their pictures come in this order. */
  readonly promptTo?: string;
  /** Frames on the way to `promptTo` or `imageTo`, both ends included; default 8. */
  readonly frames?: number;
  /**
   * How much to change `image`: 0 reproduces it, 1 ignores it; default 0.8, and 1 with a mask, but at most the first of
   * `timesteps`.
   */
  readonly strength?: number;
  /** Factor of what the ControlNet adds to the features of Stage C: 0 turns it off; default 1. */
  readonly controlScale?: number;
}

/** What pictures can be given as. */
export interface Formats {
  readonly bitmap: ImageBitmap;
  /** A PNG that carries the prompt and the settings. */
  readonly blob: Blob;
  readonly imageData: ImageData;
}

export type Format = keyof Formats;

export interface GenerateOptions<F extends Format = Format> extends PictureOptions {
  /**
   * A picture to start from instead of noise. Where it is transparent, it is put on white. It is scaled and cut to
   * the size of the result.
   */
  readonly image?: PictureSource;
  /**
   * A picture of the same size as `image` that says where to paint anew: white paints, grey mixes, black or
   * transparent keeps.
   */
  readonly mask?: PictureSource;
  /** Makes frames on the way from `image` to this one; not with a mask. */
  readonly imageTo?: PictureSource;
  /**
   * Pictures that the result is to resemble, with a `prompt` or with an empty one. Only models of Stable Cascade with
   * the image encoder take them.
   */
  readonly picturePrompts?: readonly PictureSource[];
  /**
   * A picture that the result is to follow. The model's ControlNet decides in what: edges, what a mask leaves, or the
   * content in half the resolution. Only models of Stable Cascade with a ControlNet take it.
   */
  readonly controlImage?: PictureSource;
  /** The part of `controlImage` to paint anew, as `mask` says it, for a ControlNet for inpainting. */
  readonly controlMask?: PictureSource;
  /** Whether `onProgress` gets pictures of the latents, and after how many steps each; by default after every step. */
  readonly preview?: false | { readonly every?: number };
  /** Whether the result has the outputs of stages C and B too. */
  readonly intermediates?: boolean;
  /** What `images` has; `bitmap` by default. */
  readonly format?: F;
  readonly onProgress?: (event: GenerateEvent) => void;
  readonly signal?: AbortSignal;
}

export type GenerateEvent =
  | { readonly type: 'queued'; readonly position: number }
  | { readonly type: 'stage'; readonly stage: Stage; readonly index: number; readonly of: number }
  | {
      readonly type: 'step';
      readonly stage: Stage;
      readonly step: number;
      readonly steps: number;
      readonly overall: number;
      readonly etaMs?: number;
    }
  | {
      readonly type: 'preview';
      readonly stage: Stage;
      readonly step: number;
      readonly bitmap: ImageBitmap;
    };

/** A stage's result as numbers: `[B, C, H, W]`. */
export interface Latents {
  readonly shape: readonly number[];
  readonly values: Float32Array;
}

/** The parts of a prompt that have no influence on the picture. */
export interface Unread {
  /** Words that the model has never seen; empty for models that split such words into parts. */
  readonly unknownWords: readonly string[];
  /** The end of the prompt, where it is longer than the model reads. */
  readonly cutOff?: string;
}

export interface GenerateResult<F extends Format = Format> {
  /** The pictures, in the `format` that was asked for. */
  readonly images: Formats[F][];
  /** The seed that was used. */
  readonly seed: bigint;
  /** Width of each picture in pixels; `height` likewise. */
  readonly width: number;
  readonly height: number;
  /** Milliseconds that each stage and the whole job took. */
  readonly timings: Readonly<Record<Stage | 'total', number>>;
  /**
   * The values that made the pictures, as their PNGs carry them: the options, with the model's values for those that
   * were left out. `priorTimesteps` and `decoderTimesteps` take the place of the steps, and some options are left out
   * where they change nothing.
   */
  readonly settings: Readonly<Record<string, unknown>>;
  /** The parts of the prompts that have no influence on the pictures. */
  readonly unread: Unread;
  /** Only with the option `intermediates`: the image embedding (Stage C) and the latents (Stage B). */
  readonly intermediates?: { readonly imageEmbedding: Latents; readonly latents: Latents };
}

export interface Wuerstchen extends AsyncDisposable {
  readonly info: ModelInfo;
  readonly support: Support;
  /** The kind of device that computes. */
  readonly device: DeviceKind;
  readonly selfTest: SelfTest;
  readonly state: 'ready' | 'busy' | 'lost' | 'disposed';
  /** Makes pictures; jobs run one at a time, in their order. */
  generate<F extends Format = 'bitmap'>(options: GenerateOptions<F>): Promise<GenerateResult<F>>;
  /**
   * As `generate`, but returns the events to iterate over; `result` has the same result. `onProgress` gets the same
   * events, if it is given, and the same bitmaps.
   */
  stream<F extends Format = 'bitmap'>(
    options: GenerateOptions<F>,
  ): AsyncIterable<GenerateEvent> & { readonly result: Promise<GenerateResult<F>> };
  /**
   * `lost`: the GPU went away, or the engine failed. `recovered`: a fresh engine took its place. A job that lost the
   * GPU starts again, once.
   */
  addEventListener(
    type: 'lost' | 'recovered',
    listener: (event: CustomEvent<{ reason: string }>) => void,
    options?: AddEventListenerOptions,
  ): void;
  removeEventListener(
    type: 'lost' | 'recovered',
    listener: (event: CustomEvent<{ reason: string }>) => void,
  ): void;
  dispose(): Promise<void>;
}

/** A model in the cache. */
export interface CachedModel {
  readonly id: string;
  readonly bytes: number;
}
