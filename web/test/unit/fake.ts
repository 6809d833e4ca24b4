// A small model, server, worker and WebAssembly, to run the package's own code in Node.

import { createHash } from 'node:crypto';

import { load } from '../../js/client.js';
import { workerConnector } from '../../js/connector.js';
import type { WasmBuild } from '../../js/glue.js';
import { serve, type Endpoint } from '../../js/serve.js';
import type {
  CacheAdapter,
  DeviceKind,
  LoadOptions,
  Precision,
  Residency,
  Stage,
  Tiling,
  Wuerstchen,
} from '../../js/types.js';
import type { Engine, Generated, Loader, Request, Wasm } from '../../js/wasm.js';

export const MODEL_URL = 'https://example.test/model/manifest.json';
export const SHARD_URLS = [0, 1].map((k) => `https://example.test/model/shard-${k}.bin`);
export const SHARDS = [new Uint8Array(3000).fill(7), new Uint8Array(2000).fill(9)];
export const CONTENTS_URL = 'https://example.test/model/contents.json';
export const CONTENTS = new TextEncoder().encode('{"files":{}}');

export const WASM_URL = 'https://example.test/engine.wasm';

/** What a `FakeModel` stands in for: `(module (func (export "__wbindgen_start")))`. */
export const WASM = new Uint8Array([
  ...[0x00, 0x61, 0x73, 0x6d, 0x01, 0x00, 0x00, 0x00],
  ...[0x01, 0x04, 0x01, 0x60, 0x00, 0x00],
  ...[0x03, 0x02, 0x01, 0x00],
  ...[0x07, 0x14, 0x01, 0x10, ...new TextEncoder().encode('__wbindgen_start'), 0x00, 0x00],
  ...[0x0a, 0x04, 0x01, 0x02, 0x00, 0x0b],
]);

const PRIOR_STEPS = 3;
const DECODER_STEPS = 2;

export function makeManifest() {
  const stage = { params: 1, bytes: 1, dtype: 'f32' };
  return {
    format: 2,
    id: 'fake-1234',
    name: 'fake',
    licence: 'MIT',
    provenance: 'made up',
    defaults: {
      width: 64,
      height: 64,
      priorSteps: PRIOR_STEPS,
      priorGuidanceScale: 4,
      decoderSteps: DECODER_STEPS,
      decoderGuidanceScale: 1,
      sampler: 'ddpm',
    },
    stages: { text: stage, prior: stage, decoder: stage, vqgan: stage },
    selfTest: true,
    contents: describe('contents.json', CONTENTS),
    shards: SHARDS.map((bytes, k) => describe(`shard-${k}.bin`, bytes)),
  };
}

/** A file as a manifest has it. */
export function describe(file: string, bytes: Uint8Array) {
  return { file, bytes: bytes.length, sha256: createHash('sha256').update(bytes).digest('hex') };
}

type Answer = () => Response | Promise<Response>;

/** Files by URL, and a record of what was asked for. */
export class FakeServer {
  readonly asked: string[] = [];
  readonly answers = new Map<string, Answer>([
    [MODEL_URL, () => Response.json(makeManifest())],
    [WASM_URL, () => new Response(WASM)],
    [CONTENTS_URL, () => new Response(CONTENTS)],
    ...SHARDS.map((bytes, k): [string, Answer] => [
      `https://example.test/model/shard-${k}.bin`,
      () => new Response(bytes),
    ]),
  ]);

  readonly fetch: typeof fetch = async (input, init) => {
    const url = String(input);
    this.asked.push(url);
    init?.signal?.throwIfAborted();
    const answer = this.answers.get(url);
    if (!answer) return new Response('missing', { status: 404 });
    return answer();
  };

  /** How often the shards were asked for. */
  get shardRequests(): number {
    return this.asked.filter((url) => url.endsWith('.bin')).length;
  }
}

export class MemoryCache implements CacheAdapter {
  readonly entries = new Map<string, Uint8Array>();

  async get(name: string) {
    return this.entries.get(name);
  }

  async put(name: string, bytes: Uint8Array) {
    this.entries.set(name, bytes);
  }

  async delete(name: string) {
    this.entries.delete(name);
  }

  async list() {
    return [...this.entries].map(([name, bytes]) => ({ name, bytes: bytes.length }));
  }
}

interface Pixels {
  readonly width: number;
  readonly rgba: Uint8Array;
}

class FakeRequest implements Request {
  image: Pixels | undefined;
  mask: Pixels | undefined;
  imageTo: Pixels | undefined;
  readonly picturePrompts: Pixels[] = [];
  controlImage: Pixels | undefined;
  controlMask: Pixels | undefined;

  constructor(readonly json: string) {}

  setImage(width: number, rgba: Uint8Array) {
    this.image = { width, rgba };
  }

  setMask(width: number, rgba: Uint8Array) {
    this.mask = { width, rgba };
  }

  setImageTo(width: number, rgba: Uint8Array) {
    this.imageTo = { width, rgba };
  }

  addPicturePrompt(width: number, rgba: Uint8Array) {
    this.picturePrompts.push({ width, rgba });
  }

  setControlImage(width: number, rgba: Uint8Array) {
    this.controlImage = { width, rgba };
  }

  setControlMask(width: number, rgba: Uint8Array) {
    this.controlMask = { width, rgba };
  }

  get prompt(): string {
    return JSON.parse(this.json).prompts[0];
  }

  get options(): Record<string, unknown> {
    return JSON.parse(this.json).options;
  }

  free() {}
}

export function stepsOf(stage: Stage, count: number): [Stage, step: number, steps: number][] {
  return Array.from({ length: count }, (_, i) => [stage, i + 1, count]);
}

/** What the fake WebAssembly does and has been told. */
export class FakeModel {
  /** Prompts of the jobs that were begun. */
  readonly prompts: string[] = [];
  /** What the last job asked for. */
  request = new FakeRequest('{}');
  readonly shards: Uint8Array[] = [];
  readonly loras: {
    name: string;
    bytes: Uint8Array;
    adapterConfig: string | undefined;
    weight: number;
  }[] = [];
  appliedLoras = 0;
  /** How many engines were freed. */
  freed = 0;
  /** What the loader was told besides the manifest. */
  contents = '';
  selfTestOk = true;
  /** How each engine was told to multiply. */
  readonly products: [Tiling, Precision][] = [];
  /** The steps of a job. */
  steps: readonly (readonly [Stage, step: number, steps: number])[] = [
    ['text', 1, 2],
    ...stepsOf('prior', PRIOR_STEPS),
    ['text', 2, 2],
    ...stepsOf('decoder', DECODER_STEPS),
    ['vqgan', 1, 1],
  ];
  /** Runs before each step. */
  beforeStep: (stage: Stage, step: number) => Promise<void> = async () => {};
  openDevice: () => Promise<void> = async () => {};

  build(): WasmBuild {
    const model = this;
    class FakeLoader implements Loader {
      readonly isPerStage: boolean;

      constructor(_manifest: string, contents: string, residency: Residency) {
        model.contents = contents;
        this.isPerStage = residency === 'per-stage';
      }

      addLora(name: string, bytes: Uint8Array, adapterConfig: string | undefined, weight: number) {
        if (name.includes('unfit'))
          throw Object.assign(new Error(`${name}: no`), { code: 'integrity' });
        model.loras.push({ name, bytes, adapterConfig, weight });
        return [`changes nothing, weight ${weight}`, 'a word is left out'];
      }

      addShard(_index: number, bytes: Uint8Array) {
        // WebAssembly copies them, too.
        model.shards.push(bytes.slice());
      }

      keepShard(length: number, read: (start: number, end: number) => Uint8Array) {
        model.shards.push(read(0, length));
      }

      finish(): Engine {
        return {
          selfTest: async (tiling, precision) => {
            model.products.push([tiling, precision]);
            return model.#selfTest();
          },
          products: undefined,
          measure: async () => '{"multiplyAddsPerSec":1e9,"bytesPerSec":2e9,"work":[]}',
          applyLoras: () => {
            model.appliedLoras += 1;
          },
          generate: (...job) => model.#generate(...job),
          preview: async () => undefined,
          free: () => {
            model.freed += 1;
          },
        };
      }

      free() {}
    }
    const module: Wasm = {
      __wbg_set_wasm() {},
      openDevice: () => model.openDevice(),
      Loader: FakeLoader,
      Request: FakeRequest,
    };
    return { module, first: () => new URL(WASM_URL), rest: () => new URL(WASM_URL) };
  }

  #selfTest(): string {
    const check = { name: 'prior', relative: 0.5, bound: 0.1, ok: this.selfTestOk };
    return JSON.stringify({ ok: this.selfTestOk, maxError: 0.5, checks: [check] });
  }

  async #generate(...job: Parameters<Engine['generate']>) {
    const [request, onStep] = job;
    this.request = request as FakeRequest;
    this.prompts.push(this.request.prompt);
    for (const [stage, step, steps] of this.steps) {
      await this.beforeStep(stage, step);
      const goesOn = await onStep(stage, step, steps, new Uint32Array([1]), new Float32Array([1]));
      if (!goesOn) throw Object.assign(new Error('cancelled'), { code: 'cancelled' });
    }
    return makeGenerated(JSON.stringify(this.request.options));
  }
}

function makeGenerated(settings: string): Generated {
  return {
    count: 1,
    picture: () => ({
      width: 64,
      height: 32,
      rgba: () => new Uint8Array(64 * 32 * 4),
      png: () => new Uint8Array([137, 80, 78, 71]),
      free() {},
    }),
    settings,
    unread: '{"unknownWords":["zebra"]}',
    imageEmbeddingShape: new Uint32Array([1, 2, 1, 1]),
    imageEmbedding: new Float32Array([0.25, 0.5]),
    latentsShape: new Uint32Array([1, 1, 1, 1]),
    latents: new Float32Array([0.75]),
    free() {},
  };
}

/** A worker in this thread: another end of a message channel. */
export class FakeWorker {
  onmessage: ((event: MessageEvent) => void) | null = null;
  onerror: ((event: ErrorEvent) => void) | null = null;
  isTerminated = false;
  readonly #ports: MessagePort[];

  constructor(builds: Record<DeviceKind, WasmBuild>, fetch: typeof globalThis.fetch) {
    const { port1, port2 } = new MessageChannel();
    this.#ports = [port1, port2];
    serve(port2 as unknown as Endpoint, { builds, fetch, mayBlock: true });
    // A worker has the ports that were sent to it.
    port2.addEventListener('message', ({ data }) => {
      if (data.cachePort) this.#ports.push(data.cachePort);
    });
    port1.onmessage = (event) => this.onmessage?.(event);
  }

  postMessage(message: unknown, transfer: Transferable[]) {
    this.#ports[0]?.postMessage(message, transfer);
  }

  terminate() {
    this.isTerminated = true;
    for (const port of this.#ports) port.close();
  }
}

/** Everything that a test may turn. */
export class World {
  readonly server = new FakeServer();
  readonly cache = new MemoryCache();
  readonly cpu = new FakeModel();
  readonly webgpu = new FakeModel();
  readonly workers: FakeWorker[] = [];

  load(options: Partial<LoadOptions> = {}): Promise<Wuerstchen> {
    return load(this.#options(options), workerConnector(this.makeWorker));
  }

  readonly makeWorker = (): Worker => {
    const worker = new FakeWorker(this.#builds(), this.server.fetch);
    this.workers.push(worker);
    return worker as unknown as Worker;
  };

  /** The same with the engine in the calling thread, as core.js has it; `ended` is called when it has let go. */
  loadHere(options: Partial<LoadOptions>, ended: () => void): Promise<Wuerstchen> {
    return load(this.#options(options), {
      isWorker: false,
      connect: (hear) => {
        const { port1, port2 } = new MessageChannel();
        serve(port2 as unknown as Endpoint, {
          builds: this.#builds(),
          fetch: this.server.fetch,
          mayBlock: false,
        });
        port1.onmessage = ({ data }) => hear(data);
        port1.addEventListener('close', ended);
        return {
          say: (message, transfer = []) => port1.postMessage(message, transfer),
          close: () => port1.postMessage({ type: 'close' }),
        };
      },
    });
  }

  #builds(): Record<DeviceKind, WasmBuild> {
    return { cpu: this.cpu.build(), webgpu: this.webgpu.build() };
  }

  #options(options: Partial<LoadOptions>): LoadOptions {
    return { model: MODEL_URL, cache: this.cache, ...options };
  }
}

/** A promise with its settling functions. */
export function deferred<T = void>() {
  let resolve!: (value: T) => void;
  const promise = new Promise<T>((done) => (resolve = done));
  return { promise, resolve };
}
