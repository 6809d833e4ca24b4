// Threads of the program for the CPU.
//
// The program is compiled for one thread. But on a page that is isolated from other origins, several workers can each
// have an instance of it, and all instances one memory. Only the first instance runs the program. The others run
// tasks, which calculate with memory and do nothing else (crates/wuerstchen-kernels/src/cpu/threads.rs).

import { fetchNow } from './fetch-now.js';
import { patiently } from './patience.js';
import { MAX_PAGES, withSharedMemory } from './shared-memory.js';
import { newBoard, serveTasks, Tasks, type Call } from './tasks.js';

/** The names that wasm-bindgen has made up, as link/src/threads.rs finds them. */
export interface ThreadNames {
  /** The import that gets tasks. */
  readonly run: string;
  /** The export that calls the function of a task. */
  readonly call: string;
  /** The import with the inner loops of products. */
  readonly tiles: string;
}

/** The name of the workers that are such threads. */
export const THREAD = 'wuerstchen-thread';

/** More threads than this wait for memory, and for each other. */
const DEFAULT_MOST = 8;

/** As many as a caller may ask for. */
export const MOST_THREADS = 64;

/** A worker answers within a second, and one thread can compute without it. */
const PATIENCE_MS = 10_000;

const STACK_BYTES = 1 << 20;
const PAGE_BYTES = 1 << 16;

type Tiles = (...sizesAndAddresses: number[]) => void;

/** The first message to a thread, which answers once its instance is there. */
interface Opening {
  readonly code: WebAssembly.Module;
  readonly memory: WebAssembly.Memory;
  readonly board: Int32Array;
  readonly names: ThreadNames;
  /** The URL of the rarely used code. */
  readonly rest: string;
}

/** The second message, after which it runs tasks. */
interface Beginning {
  /** The address at which its stack begins; it grows downwards. */
  readonly stack: number;
  readonly tiles?: WebAssembly.Module;
}

/** Whether threads can share memory here. */
export function canShare(): boolean {
  return globalThis.crossOriginIsolated ?? false;
}

/**
 * The default number of threads. Only browsers built on Chromium have several. In Firefox 153, one of 182 loads with
 * two threads has hung: the engine's worker and the one that it had started both waited inside the browser. Nobody has
 * tried other browsers.
 */
export function defaultThreads(): number {
  const isChromium = 'userAgentData' in navigator;
  return isChromium ? Math.min(navigator.hardwareConcurrency, DEFAULT_MOST) : 1;
}

/** Threads that wait for tasks, seen from the first one. */
export class Threads {
  #tasks: Tasks | undefined;
  #tiles: Tiles | undefined;

  private constructor(
    private readonly workers: readonly Worker[],
    private readonly opening: Opening,
    /** Where the stacks of the workers' instances begin; they grow downwards. */
    private readonly stacks: readonly number[],
  ) {}

  /**
   * Starts `count` threads, of which the caller is one. Each instance writes the program's data to the memory, so that
   * the program must not run before all are there.
   */
  static async open(
    program: ArrayBuffer,
    names: ThreadNames,
    rest: string,
    count: number,
  ): Promise<Threads> {
    const { bytes, pages } = withSharedMemory(new Uint8Array(program));
    const memory = new WebAssembly.Memory({ initial: pages, maximum: MAX_PAGES, shared: true });
    const code = await WebAssembly.compile(bytes);
    const opening = { code, memory, board: newBoard(), names, rest };
    // The program's allocator takes only what it has asked for itself.
    const stacks = Array.from(
      { length: count - 1 },
      () => memory.grow(STACK_BYTES / PAGE_BYTES) * PAGE_BYTES + STACK_BYTES,
    );
    // A worker cannot tell in every browser which type it has itself.
    const workers = await openWorkers('module', opening, stacks.length).catch(() =>
      openWorkers('classic', opening, stacks.length),
    );
    return new Threads(workers, opening, stacks);
  }

  /** The number of threads. */
  get count(): number {
    return this.workers.length + 1;
  }

  /** The instance of the first thread; `imports` are those of a program without threads. */
  instantiate(imports: WebAssembly.Imports): WebAssembly.Exports {
    const { code } = this.opening;
    return new WebAssembly.Instance(code, importsOf(code, this.#imports(), imports)).exports;
  }

  /** The same for the rarely used code. */
  addRest(rest: ArrayBuffer, imports: WebAssembly.Imports): void {
    const code = new WebAssembly.Module(withSharedMemory(new Uint8Array(rest)).bytes);
    new WebAssembly.Instance(code, importsOf(code, this.#imports(), imports));
  }

  #imports(): WebAssembly.ModuleImports {
    const { memory, names } = this.opening;
    return {
      memory,
      [names.run]: (...task: Parameters<Tasks['run']>) => this.#tasks?.run(...task),
      [names.tiles]: tilesImport(() => this.#tiles),
    };
  }

  /** Lets the threads run tasks. `inner` is the module with the inner loops. */
  begin(exports: WebAssembly.Exports, inner: Uint8Array<ArrayBuffer>): void {
    const { board, memory, names } = this.opening;
    const tiles = compiled(inner);
    this.#tiles = tiles && instantiateTiles(tiles, memory);
    this.#tasks = new Tasks(board, exports[names.call] as Call);
    for (const [i, worker] of this.workers.entries()) {
      worker.postMessage({ stack: this.stacks[i] ?? 0, tiles } satisfies Beginning);
    }
  }

  close(): void {
    for (const worker of this.workers) worker.terminate();
  }
}

/** The imports with which a panic says where it is. */
function panicImports(code: WebAssembly.Module, memory: WebAssembly.Memory) {
  const say = (address: number, length: number) => {
    const text = new Uint8Array(memory.buffer).slice(address, address + length);
    console.error(new TextDecoder().decode(text));
  };
  const names = WebAssembly.Module.imports(code).map(({ name }) => name);
  const errors = names.filter((name) => name.startsWith('__wbg_error_'));
  return Object.fromEntries(errors.map((name) => [name, say]));
}

/** What a worker with the name {@link THREAD} does. */
export function beThread(scope: {
  onmessage: ((event: MessageEvent) => void) | null;
  postMessage(message: string): void;
}): void {
  let tiles: Tiles | undefined;
  const open = ({ code, memory, names, rest, board }: Opening) => {
    const own: WebAssembly.ModuleImports = {
      ...panicImports(code, memory),
      memory,
      [names.tiles]: tilesImport(() => tiles),
      load: () => {
        const { bytes } = withSharedMemory(new Uint8Array(fetchNow(rest)));
        const module = new WebAssembly.Module(bytes);
        new WebAssembly.Instance(module, importsOf(module, { ...exports, ...own }));
      },
    };
    const { exports } = new WebAssembly.Instance(code, importsOf(code, own));
    scope.onmessage = ({ data }: MessageEvent<Beginning>) => {
      (exports['stack'] as WebAssembly.Global<'i32'>).value = data.stack;
      tiles = data.tiles && instantiateTiles(data.tiles, memory);
      serveTasks(board, exports[names.call] as Call);
    };
  };
  scope.onmessage = ({ data }: MessageEvent<Opening>) => {
    open(data);
    scope.postMessage('open');
  };
}

/** Workers with the script of this one, each with its instance; none if one of them fails. */
async function openWorkers(type: WorkerType, opening: Opening, count: number): Promise<Worker[]> {
  const workers: Worker[] = [];
  try {
    while (workers.length < count) {
      workers.push(new Worker(globalThis.location.href, { name: THREAD, type }));
    }
    const answers = workers.map((worker) => answer(worker, opening));
    await patiently(Promise.all(answers), 'one of the threads', PATIENCE_MS);
    return workers;
  } catch (error) {
    for (const worker of workers) worker.terminate();
    throw error;
  }
}

function answer(worker: Worker, opening: Opening): Promise<void> {
  return new Promise((resolve, reject) => {
    worker.onmessage = () => resolve();
    worker.onerror = (event) => {
      // Else it would count as a failure of this worker.
      event.preventDefault();
      reject(new Error(event.message || 'a thread could not start'));
    };
    worker.postMessage(opening);
  });
}

/** The imports of a module: this thread's own ones, else the program's. Any other throws when a task calls it. */
function importsOf(
  module: WebAssembly.Module,
  own: WebAssembly.ModuleImports,
  others: WebAssembly.Imports = {},
): WebAssembly.Imports {
  const imports: Record<string, WebAssembly.ModuleImports> = {};
  for (const { module: space, name } of WebAssembly.Module.imports(module)) {
    const missing = () => {
      throw new Error(`a task has called ${name}`);
    };
    (imports[space] ??= {})[name] = own[name] ?? others[space]?.[name] ?? missing;
  }
  return imports;
}

/** The import that runs the inner loops. It returns false where this thread has none. */
function tilesImport(tiles: () => Tiles | undefined) {
  return (...sizesAndAddresses: number[]) => {
    tiles()?.(...sizesAndAddresses);
    return tiles() !== undefined;
  };
}

/** The module, or undefined where an instruction of it is not known. */
function compiled(bytes: Uint8Array<ArrayBuffer>): WebAssembly.Module | undefined {
  return WebAssembly.validate(bytes) ? new WebAssembly.Module(bytes) : undefined;
}

function instantiateTiles(module: WebAssembly.Module, memory: WebAssembly.Memory): Tiles {
  return new WebAssembly.Instance(module, { program: { memory } }).exports['tiles'] as Tiles;
}
