// The engine's side of the conversation with a client, in a worker or in the same thread.

import { isFatal } from './crashes.js';
import type { ModelEngine } from './engine.js';
import { toErrorData, WuerstchenError, type ErrorData } from './errors.js';
import type { Job } from './job.js';
import { openEngine, type EngineOptions, type Host } from './open.js';
import { remoteCache } from './remote-cache.js';
import type {
  DeviceKind,
  GenerateEvent,
  GenerateResult,
  LoadEvent,
  ModelInfo,
  SelfTest,
  Support,
} from './types.js';

/** The messages of a client. It loads once, and waits for the end of a job before it sends the next. */
export type ClientMessage =
  | { readonly type: 'load'; readonly options: EngineOptions; readonly cachePort?: MessagePort }
  | { readonly type: 'generate'; readonly job: Job }
  /** Stops the load or job that is running, if there is one. */
  | { readonly type: 'abort' }
  /** Ends the conversation. */
  | { readonly type: 'close' };

/** The messages of an engine. */
export type EngineMessage =
  /** The first one: a load has begun. */
  | { readonly type: 'begun' }
  | { readonly type: 'load-event'; readonly event: LoadEvent }
  | ({ readonly type: 'loaded' } & Loaded)
  | { readonly type: 'event'; readonly event: GenerateEvent }
  | { readonly type: 'result'; readonly result: GenerateResult }
  /** `isBroken`: the engine cannot go on. */
  | { readonly type: 'failed'; readonly error: ErrorData; readonly isBroken: boolean }
  | { readonly type: 'lost'; readonly reason: string };

/** The facts about an engine that is ready. */
export interface Loaded {
  readonly info: ModelInfo;
  readonly support: Support;
  readonly device: DeviceKind;
  readonly selfTest: SelfTest;
}

/** The part of a `MessagePort` or a worker's global scope that is used here. */
export interface Endpoint {
  postMessage(message: EngineMessage, transfer: Transferable[]): void;
  onmessage: ((event: MessageEvent<ClientMessage>) => void) | null;
  onmessageerror: ((event: MessageEvent) => void) | null;
  close(): void;
}

/** Answers a client until it closes. */
export function serve(
  endpoint: Endpoint,
  surroundings: Pick<Host, 'builds' | 'fetch' | 'mayBlock'>,
): void {
  let engine: ModelEngine | undefined;
  let running: { controller: AbortController; done: Promise<void> } | undefined;
  const say = (message: EngineMessage, transfer: Transferable[] = []) =>
    endpoint.postMessage(message, transfer);

  const load = async (
    options: EngineOptions,
    port: MessagePort | undefined,
    signal: AbortSignal,
  ) => {
    const opening = openEngine(options, {
      ...surroundings,
      cache: port && remoteCache(port),
      emit: (event) => say({ type: 'load-event', event }),
      onLost: (reason) => say({ type: 'lost', reason }),
      signal,
    });
    // The port stays open until then: a load that is aborted still waits for an answer of the cache.
    engine = await opening.finally(() => port?.close());
    const { info, support, device, selfTest } = engine;
    say({ type: 'loaded', info, support, device, selfTest });
  };

  const generate = async (job: Job, signal: AbortSignal) => {
    if (!engine) throw new WuerstchenError('internal', 'no model is loaded');
    const emit = (event: GenerateEvent) =>
      say({ type: 'event', event }, event.type === 'preview' ? [event.bitmap] : []);
    const result = await engine.generate(job, emit, signal);
    say({ type: 'result', result }, transferables(result));
  };

  const run = (task: (signal: AbortSignal) => Promise<void>) => {
    const controller = new AbortController();
    const done = task(controller.signal).catch((error) => {
      const data = toErrorData(error);
      // A job that reads from a lost GPU fails before the browser says that it is lost.
      if (engine && data.code === 'device-lost') return say({ type: 'lost', reason: data.message });
      const isBroken = isFatal(error);
      // WebAssembly that has stopped cannot free it.
      if (isBroken) engine = undefined;
      say({ type: 'failed', error: data, isBroken });
    });
    running = { controller, done };
  };

  // Without an answer the client would wait for ever.
  endpoint.onmessageerror = () => {
    const error = new WuerstchenError('out-of-memory', 'a message could not be read by the engine');
    say({ type: 'failed', error: toErrorData(error), isBroken: false });
  };
  endpoint.onmessage = async ({ data }) => {
    switch (data.type) {
      case 'load':
        say({ type: 'begun' });
        return run((signal) => load(data.options, data.cachePort, signal));
      case 'generate':
        return run((signal) => generate(data.job, signal));
      case 'abort':
        return running?.controller.abort();
      case 'close':
        running?.controller.abort();
        await running?.done;
        engine?.close();
        endpoint.close();
    }
  };
}

function transferables({ images, intermediates }: GenerateResult): Transferable[] {
  const bitmaps = images.filter((image) => 'close' in image);
  if (!intermediates) return bitmaps;
  const { imageEmbedding, latents } = intermediates;
  return [...bitmaps, imageEmbedding.values.buffer, latents.values.buffer] as Transferable[];
}
