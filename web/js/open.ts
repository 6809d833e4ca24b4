// Opens an engine in this thread: the device, the model on it, and their test.

import { openCache, type ModelCache } from './cache.js';
import { isFatal, orCrash } from './crashes.js';
import { ModelEngine, type Tested } from './engine.js';
import { asWuerstchenError, withField, WuerstchenError, type ErrorCode } from './errors.js';
import { fetchFiles } from './fetch-files.js';
import type { WasmBuild } from './glue.js';
import { CPU_HINT, watchDevice, type GpuWatch } from './gpu.js';
import type { LoraSource } from './lora.js';
import { fetchManifest, modelInfo, shardName, type Manifest } from './manifest.js';
import { openSite, storedUrl, type ModelSite, type ModelSource } from './picked.js';
import { readLoras, type LoraBytes } from './read-loras.js';
import type { Brought } from './shards.js';
import { onAbort, unlessAborted } from './signals.js';
import { defaultUrl, start, type Started } from './start.js';
import { checkSupport } from './support.js';
import { canShare, defaultThreads, MOST_THREADS } from './threads.js';
import type {
  CacheAdapter,
  DeviceKind,
  LoadEvent,
  LoadOptions,
  Measured,
  Precision,
  Residency,
  SelfTest,
  Support,
  Tiling,
  WasmFile,
} from './types.js';
import { messageOf } from './values.js';
import type { Engine, Loader, Wasm } from './wasm.js';

/** TypeScript declares it only for workers. */
declare class FileReaderSync {
  readAsArrayBuffer(blob: Blob): ArrayBuffer;
}

/** `LoadOptions` as they travel to a worker. */
export interface EngineOptions {
  readonly model: ModelSource;
  readonly lora: readonly LoraSource[];
  readonly device: NonNullable<LoadOptions['device']>;
  readonly residency: Residency;
  readonly threads?: number;
  readonly measure: boolean;
  readonly cache: Exclude<LoadOptions['cache'], CacheAdapter>;
  readonly powerPreference?: LoadOptions['powerPreference'];
  readonly tiling: Tiling;
  readonly precision: Precision;
  /** Absolute URLs. */
  readonly wasmUrl: Partial<Record<WasmFile, string>>;
}

/** What the thread of an engine provides for it. */
export interface Host {
  readonly builds: Readonly<Record<DeviceKind, WasmBuild>>;
  readonly fetch: typeof fetch;
  /** Whether the thread may stand still while a file is fetched. */
  readonly mayBlock: boolean;
  /** A cache of the caller's instead of the browser's. */
  readonly cache?: CacheAdapter;
  readonly emit: (event: LoadEvent) => void;
  /** Called when the GPU has gone away after the model has passed its test; before that, the opening fails. */
  readonly onLost: (reason: string) => void;
  readonly signal: AbortSignal;
}

/** A model that is being loaded. */
interface Model extends ModelSite {
  readonly loras: readonly LoraBytes[];
  readonly manifest: Manifest;
  readonly text: string;
  readonly cache: ModelCache;
}

/** Errors of the model or the options, which the CPU would have too. */
const NOT_OF_THE_GPU: ReadonlySet<ErrorCode> = new Set([
  'network',
  'integrity',
  'quota',
  'invalid-argument',
]);

/** A build that is ready to compute. */
interface OpenDevice extends Started {
  /** What watches a GPU. */
  readonly gpu: GpuWatch | undefined;
}

/**
 * The opened devices: a build is started and its device opened only once, however many models a thread loads.
 *
 * An instance stays here when a job breaks it, or when its GPU goes away after the load. wasm-bindgen's glue knows one
 * instance: what the garbage collector frees later of the old engine would be freed in a fresh one. So another load in
 * the same thread gets the old instance and may fail; with `device: 'auto'` the CPU takes the place of a lost GPU.
 * Workers are replaced together with their instances.
 */
const opened = new WeakMap<Wasm, Promise<OpenDevice>>();

/** Loads a model onto the device that suits the options and this browser. */
export async function openEngine(options: EngineOptions, host: Host): Promise<ModelEngine> {
  const begun = performance.now();
  const { powerPreference, threads } = options;
  const { signal, emit } = host;
  if (threads !== undefined && (threads < 1 || threads > MOST_THREADS)) {
    const message = `threads must be from 1 to ${MOST_THREADS}, got ${threads}`;
    throw new WuerstchenError('invalid-argument', message, { field: 'threads' });
  }
  if (options.tiling === 'direct' && options.precision === 'f16') {
    const message = 'precision: f16 is for tiles, and tiling: direct has none';
    throw new WuerstchenError('invalid-argument', message, { field: 'precision' });
  }
  let support = await checkSupport({ signal, powerPreference });
  let device = chooseDevice(options.device, support);
  if (device !== support.device) {
    const name = device === 'cpu' ? 'CPU' : 'GPU';
    const message = `Pictures are computed by the ${name}, as it was asked for.`;
    support = { ...support, device, reason: undefined, message };
  }
  const cache = await openCache(host.cache ?? options.cache);
  const site = await openSite(options.model, cache, host.fetch);
  const manifest = await fetchManifest(site.url, cache, site.fetch, signal);
  const loras = await readLoras(options.lora, host.fetch, signal);
  const model: Model = { ...site, ...manifest, cache, loras };

  let tested: Tested & { readonly started: Started };
  try {
    tested = await openOn(device, model, options, host);
  } catch (thrown) {
    const error = asWuerstchenError(thrown);
    const isOfTheGpu = device === 'webgpu' && !NOT_OF_THE_GPU.has(error.code);
    if (signal.aborted || options.device !== 'auto' || !isOfTheGpu) throw thrown;
    device = 'cpu';
    const message = `The GPU cannot be used (${asNote(error)}), so the CPU computes.`;
    support = { ...support, device, message };
    tested = await openOn(device, model, options, host);
  }
  if (options.measure) {
    const measured: Omit<Measured, 'products'> = JSON.parse(await orCrash(tested.engine.measure()));
    const products: Measured['products'] = JSON.parse(tested.engine.products ?? 'null');
    emit({ type: 'measured', ...measured, products });
  }
  await storeManifest(options.model, model);
  const info = await modelInfo(model.manifest, cache);
  emit({ type: 'ready', ms: performance.now() - begun });
  if (device === 'cpu') support = withThreads(support, tested.started, threads);
  if (options.precision === 'f16') support = withPrecision(support, tested);
  return new ModelEngine(tested, device, info, withStorage(support, cache));
}

function chooseDevice(wish: EngineOptions['device'], support: Support): DeviceKind {
  const { reason, message } = support;
  if (wish === 'webgpu' && !support.adapter) {
    throw new WuerstchenError('unsupported', `there is no WebGPU device here (${reason})`, {
      hint: CPU_HINT,
    });
  }
  // A caller may force a software GPU even where the CPU has no SIMD.
  if (wish !== 'webgpu' && !support.ok) {
    throw new WuerstchenError('unsupported', message, { hint: 'Try another browser.' });
  }
  return wish === 'auto' ? support.device : wish;
}

/** Stores the manifest of a model, unless it comes from the cache, which may have it under its URL. */
async function storeManifest(source: ModelSource, { manifest, url, text, cache }: Model) {
  const isUrl = typeof source === 'string';
  if (!isUrl && 'stored' in source) return;
  await cache.putManifest(manifest.id, isUrl ? url : storedUrl(manifest.id), text);
}

/** Adds the number of threads, and why there are fewer than were asked for. */
function withThreads(support: Support, { threads, problem }: Started, wanted = 1): Support {
  const reason = problem ?? 'several need a worker, and a page that is cross-origin isolated';
  const note =
    problem || wanted > threads ? ` One thread computes: ${asNote({ message: reason })}.` : '';
  return { ...support, threads, message: support.message + note };
}

/** Adds why products are in f32 after all, unless it is because f16 is not faster. */
function withPrecision(support: Support, { gpu, selfTest }: Tested): Support {
  if (gpu?.hasHalves && !selfTest.failedInHalves) return support;
  const reason = gpu?.hasHalves ? 'the self-test failed in f16' : 'this device has no f16';
  return { ...support, message: `${support.message} Products are in f32: ${reason}.` };
}

/** Says where the model is stored; adds to the message that the browser stopped storing, if so. */
function withStorage(support: Support, { backend, problem }: ModelCache): Support {
  const storage = { ...support.storage, backend };
  if (!problem) return { ...support, storage };
  const message = `${support.message} The model is not kept: ${asNote(problem)}.`;
  return { ...support, storage: { ...storage, backend: 'memory' }, message };
}

/** An error's message without the full stop that some browsers put. */
function asNote({ message }: { readonly message: string }): string {
  return message.replace(/\.$/, '');
}

async function openOn(
  device: DeviceKind,
  model: Model,
  options: EngineOptions,
  host: Host,
): Promise<Tested & { readonly started: Started }> {
  const { module } = host.builds[device];
  const opening = openDevice(device, options, host);
  const { gpu, ...started } = await unlessAborted(opening, host.signal);
  const controller = new AbortController();
  const { signal } = controller;
  const ignore = onAbort(host.signal, (reason) => controller.abort(reason));
  const work = test(module, device, gpu, model, options, { ...host, signal }).finally(ignore);
  const testing = orCrash(work).catch((error) => {
    // The next model gets a fresh instance.
    if (isFatal(error)) opened.delete(module);
    // The GPU's own error is nearer to the cause than the error that followed from it.
    throw gpu?.takeError() ?? error;
  });
  if (!gpu) return { ...(await testing), started };
  // Work that waits for a lost GPU may wait for ever; other work must not go on beside a load on the CPU.
  const lost = gpu.lost.then((reason) => {
    const error = new WuerstchenError('device-lost', `the GPU went away: ${reason}`, {
      hint: CPU_HINT,
    });
    controller.abort(error);
    throw error;
  });
  const tested = await Promise.race([testing, lost]);
  void gpu.lost.then(host.onLost);
  return { ...tested, started };
}

/** Loads a model onto an open device, and tests both. */
async function test(
  module: Wasm,
  device: DeviceKind,
  gpu: GpuWatch | undefined,
  model: Model,
  { residency, tiling, precision }: EngineOptions,
  host: Host,
): Promise<Tested> {
  let loader: Loader | undefined;
  let engine: Engine | undefined;
  try {
    const upload = uploader(model, host);
    // The contents come first, and tell what to do with the shards.
    for await (const brought of fetchFiles(model.manifest, { ...host, ...model })) {
      if (loader) {
        await upload(loader, brought);
      } else {
        const contents = new TextDecoder().decode(brought.bytes);
        loader = new module.Loader(model.text, contents, possible(residency));
        addLoras(loader, model, host);
      }
    }
    if (!loader) throw new WuerstchenError('internal', 'no file of the model has come');
    host.emit({ type: 'compile', device });
    const complete = loader;
    // `finish` uses the loader up, even if it fails.
    loader = undefined;
    engine = complete.finish();
    const selfTest: SelfTest = JSON.parse(await engine.selfTest(tiling, precision));
    host.emit({ type: 'selftest', ...selfTest });
    host.signal.throwIfAborted();
    const gpuError = gpu?.takeError();
    if (gpuError) throw gpuError;
    if (!selfTest.ok) throw selfTestError(selfTest, device);
    // The golden vectors are those of the unchanged model.
    engine.applyLoras();
    return { engine, wasm: module, gpu, selfTest };
  } catch (error) {
    if (!isFatal(error)) {
      loader?.free();
      engine?.free();
    }
    throw error;
  }
}

/** The device, which other loads may wait for too: an abort of one of them does not stop it. */
function openDevice(
  device: DeviceKind,
  { wasmUrl, powerPreference, threads }: EngineOptions,
  host: Host,
): Promise<OpenDevice> {
  const { module, first, rest } = host.builds[device];
  const open = async () => {
    const urls = {
      first: wasmUrl[device] ?? defaultUrl(first),
      rest: wasmUrl[`${device}Rest`] ?? defaultUrl(rest),
    };
    const started = await start(module, urls, {
      ...host,
      threads: canShare() ? (threads ?? defaultThreads()) : 1,
    });
    if (device === 'webgpu') {
      return { ...started, gpu: await watchDevice(module.openDevice, powerPreference) };
    }
    await module.openDevice();
    return { ...started, gpu: undefined };
  };
  let opening = opened.get(module);
  if (!opening) {
    opening = open();
    opened.set(module, opening);
    // What could not be opened is opened anew by the next load.
    opening.catch(() => opened.delete(module));
  }
  return opening;
}

function addLoras(loader: Loader, { loras }: Model, { emit }: Host): void {
  for (const { name, bytes, adapterConfig, weight } of loras) {
    const [message = '', ...leftOut] = ofLora(() =>
      loader.addLora(name, bytes, adapterConfig, weight),
    );
    emit({ type: 'lora', file: name, message, leftOut });
  }
}

/** What `add` returns; what it throws says that the option `lora` is at fault. */
function ofLora<T>(add: () => T): T {
  try {
    return add();
  } catch (cause) {
    throw asWuerstchenError(cause).code === 'integrity' ? withField(cause, 'lora') : cause;
  }
}

/** The residency that this thread can provide: only workers can read from storage while they compute. */
function possible(residency: Residency): Residency {
  if ('FileReaderSync' in globalThis) return residency;
  if (residency !== 'per-stage') return 'all';
  const message =
    'residency: per-stage needs a worker, which alone reads from storage while it computes';
  throw new WuerstchenError('invalid-argument', message, { field: 'residency' });
}

/** Loads one shard after the other onto the device, or keeps it where it can be read again. */
function uploader({ manifest, cache }: Model, { emit }: Host) {
  const { shards } = manifest;
  const total = shards.reduce((sum, { bytes }) => sum + bytes, 0);
  let index = 0;
  let loaded = 0;
  return async (loader: Loader, { bytes, stored }: Brought) => {
    const shard = shards[index];
    if (!shard) throw new WuerstchenError('internal', 'more shards have come than the model has');
    if (loader.isPerStage) {
      await stored;
      // A blob lies in the browser's own memory, and the browser may move it to the disk.
      const file = await cache.file(shardName(manifest, shard));
      loader.keepShard(bytes.length, reader(file ?? new Blob([bytes as Uint8Array<ArrayBuffer>])));
    } else {
      loader.addShard(index, bytes);
    }
    loaded += bytes.length;
    emit({ type: 'upload', file: shard.file, loaded, total });
    index += 1;
  };
}

/** Reads ranges of a file synchronously. */
function reader(file: Blob): (start: number, end: number) => Uint8Array {
  const reader = new FileReaderSync();
  return (start, end) => {
    try {
      return new Uint8Array(reader.readAsArrayBuffer(file.slice(start, end)));
    } catch (cause) {
      const problem = `the browser's storage has lost them (${messageOf(cause)})`;
      throw new Error(`${problem}: load the model again`, { cause });
    }
  };
}

function selfTestError({ checks }: SelfTest, device: DeviceKind): WuerstchenError {
  const failed = checks
    .filter(({ ok }) => !ok)
    .map(({ name, relative, bound }) => `${name} is off by ${relative}, allowed is ${bound}`);
  const message = `the self-test failed: ${failed.join('; ')}`;
  return device === 'webgpu'
    ? new WuerstchenError('shader', message, { hint: CPU_HINT })
    : new WuerstchenError('internal', message);
}
