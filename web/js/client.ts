// The client of an engine in another thread or this one: the queue, aborts and recovery.

import { persist } from './cache.js';
import type { Connection, Connector } from './connector.js';
import { fromErrorData, WuerstchenError } from './errors.js';
import { absoluteUrl } from './http.js';
import { toJob, type Job } from './job.js';
import { toLoraSources } from './lora.js';
import { checkedGenerateOptions, checkedLoadOptions } from './options.js';
import { toModelSource } from './picked.js';
import type { EngineMessage, Loaded } from './serve.js';
import { serveCache } from './serve-cache.js';
import { onAbort, throwIfAborted } from './signals.js';
import type {
  Format,
  GenerateEvent,
  GenerateOptions,
  GenerateResult,
  LoadOptions,
  Wuerstchen,
} from './types.js';
import { messageOf } from './values.js';

/** A job in the queue. */
interface QueuedJob {
  readonly message: Job;
  readonly emit: (event: GenerateEvent) => void;
  readonly resolve: (result: GenerateResult) => void;
  readonly reject: (reason: unknown) => void;
  /** How often the GPU went away while the job ran. */
  losses: number;
  /** Whether its caller has an answer; the engine may still be working on the job. */
  isSettled: boolean;
}

type LostListener = (event: CustomEvent<{ reason: string }>) => void;

/** Loads a model through a connector. */
export async function load(given: LoadOptions, connector: Connector): Promise<Wuerstchen> {
  const options = checkedLoadOptions(given);
  if (options.fetch && connector.isWorker) {
    const message = 'fetch needs worker: false';
    throw new WuerstchenError('invalid-argument', message, { field: 'fetch' });
  }
  throwIfAborted(options.signal);
  // The user may answer late, so the loading does not wait for it.
  if (options.persist) void persist();
  const client = new Client(options, connector);
  await client.open(options.signal);
  return client;
}

class Client implements Wuerstchen {
  readonly #options: LoadOptions;
  readonly #connector: Connector;
  readonly #events = new EventTarget();
  readonly #queue: QueuedJob[] = [];
  #running: QueuedJob | undefined;
  #connection: Connection | undefined;
  /** Settles the promise of an engine that is being opened. */
  #opening: { resolve: (loaded: Loaded) => void; reject: (reason: unknown) => void } | undefined;
  #loaded: Loaded | undefined;
  #isDisposed = false;
  /** Why nothing runs any more, or undefined. */
  #failure: WuerstchenError | undefined;

  constructor(options: LoadOptions, connector: Connector) {
    this.#options = options;
    this.#connector = connector;
  }

  get info() {
    return this.#ready.info;
  }

  get support() {
    return this.#ready.support;
  }

  get device() {
    return this.#ready.device;
  }

  get selfTest() {
    return this.#ready.selfTest;
  }

  get state() {
    if (this.#isDisposed) return 'disposed';
    if (this.#failure || this.#opening) return 'lost';
    return this.#running ? 'busy' : 'ready';
  }

  get #ready(): Loaded {
    if (!this.#loaded) throw new WuerstchenError('internal', 'the model is not loaded');
    return this.#loaded;
  }

  /** Starts an engine and loads the model; on failure nothing is left running. */
  async open(signal?: AbortSignal): Promise<void> {
    const opening = new Promise<Loaded>((resolve, reject) => {
      this.#opening = { resolve, reject };
    });
    const ignore = onAbort(signal, (reason) => this.#opening?.reject(reason));
    try {
      this.#connect();
      this.#loaded = await opening;
    } catch (error) {
      this.#disconnect();
      throw error;
    } finally {
      this.#opening = undefined;
      ignore();
    }
  }

  async generate<F extends Format = 'bitmap'>(
    given: GenerateOptions<F>,
  ): Promise<GenerateResult<F>> {
    const options = checkedGenerateOptions(given);
    throwIfAborted(options.signal);
    if (this.#isDisposed) throw disposedError();
    if (this.#failure) {
      if (!this.#connector.isWorker) throw this.#failure;
      // What kept the engine from being reopened, such as a server, may be back.
      void this.#reopen(this.#failure.message);
    }
    // The engine makes the format that the options ask for.
    return this.#enqueue(options) as Promise<GenerateResult<F>>;
  }

  stream<F extends Format = 'bitmap'>(
    given: GenerateOptions<F>,
  ): AsyncIterable<GenerateEvent> & { readonly result: Promise<GenerateResult<F>> } {
    const controller = new AbortController();
    const events: GenerateEvent[] = [];
    let isOver = false;
    let wake = () => {};
    const run = async () => {
      const options = checkedGenerateOptions(given);
      const onProgress = (event: GenerateEvent) => {
        events.push(event);
        wake();
        tell(options.onProgress, event);
      };
      throwIfAborted(options.signal);
      const ignore = onAbort(options.signal, (reason) => controller.abort(reason));
      const { signal } = controller;
      return this.generate({ ...options, onProgress, signal }).finally(ignore);
    };
    const result = run();
    const end = () => {
      isOver = true;
      wake();
    };
    // A caller who only iterates gets the failure there, so a rejection of the result must not count as unhandled.
    result.then(end, end);

    async function* iterate() {
      try {
        for (;;) {
          const event = events.shift();
          if (event) yield event;
          else if (isOver) break;
          else await new Promise<void>((resolve) => (wake = resolve));
        }
        await result;
      } finally {
        controller.abort();
        events.forEach(closePreview);
      }
    }
    return { [Symbol.asyncIterator]: iterate, result };
  }

  addEventListener(
    type: 'lost' | 'recovered',
    listener: LostListener,
    options?: AddEventListenerOptions,
  ): void {
    this.#events.addEventListener(type, listener as EventListener, options);
  }

  removeEventListener(type: 'lost' | 'recovered', listener: LostListener): void {
    this.#events.removeEventListener(type, listener as EventListener);
  }

  async dispose(): Promise<void> {
    if (this.#isDisposed) return;
    this.#isDisposed = true;
    this.#disconnect();
    this.#opening?.reject(disposedError());
    this.#rejectAll(disposedError());
  }

  [Symbol.asyncDispose](): Promise<void> {
    return this.dispose();
  }

  #connect(): void {
    const { model, lora, device = 'auto', wasmUrl = {} } = this.#options;
    const { residency = 'auto', threads, measure = false } = this.#options;
    const { cache, powerPreference, tiling = 'auto', precision = 'f32' } = this.#options;
    // Messages of an engine that was given up are ignored.
    const ifCurrent =
      <T>(handle: (value: T) => void) =>
      (value: T) => {
        if (connection === this.#connection) handle(value);
      };
    const connection: Connection = this.#connector.connect(
      ifCurrent((message: EngineMessage) => this.#hear(message)),
      ifCurrent((error: WuerstchenError) => this.#crash(error)),
    );
    this.#connection = connection;

    const isCustom = typeof cache === 'object';
    const channel = isCustom ? new MessageChannel() : undefined;
    if (isCustom && channel) serveCache(cache, channel.port1);
    connection.say(
      {
        type: 'load',
        options: {
          model: toModelSource(model),
          lora: toLoraSources(lora),
          device,
          residency,
          threads,
          measure,
          cache: isCustom ? undefined : cache,
          powerPreference,
          tiling,
          precision,
          wasmUrl: Object.fromEntries(
            Object.entries(wasmUrl).map(([file, url]) => [
              file,
              url && absoluteUrl(url, 'wasmUrl'),
            ]),
          ),
        },
        cachePort: channel?.port2,
      },
      channel ? [channel.port2] : [],
    );
  }

  #disconnect(): void {
    const connection = this.#connection;
    this.#connection = undefined;
    connection?.close();
  }

  #hear(message: EngineMessage): void {
    switch (message.type) {
      case 'load-event':
        return tell(this.#options.onProgress, message.event);
      case 'loaded':
        return this.#opening?.resolve(message);
      case 'event':
        return this.#running?.isSettled === false
          ? this.#running.emit(message.event)
          : closePreview(message.event);
      case 'result':
        return this.#endJob((job) => job.resolve(message.result));
      case 'failed': {
        const error = fromErrorData(message.error);
        if (this.#opening) return this.#opening.reject(error);
        if (message.isBroken) this.#crash(error);
        else this.#endJob((job) => job.reject(error));
        return;
      }
      case 'lost': {
        const error = new WuerstchenError('device-lost', `the GPU went away: ${message.reason}`);
        if (this.#opening) return this.#opening.reject(error);
        const job = this.#running;
        if (job && !job.isSettled && job.losses === 0 && this.#connector.isWorker) {
          job.losses += 1;
          this.#running = undefined;
          this.#queue.unshift(job);
        }
        this.#crash(error, message.reason);
      }
    }
  }

  #enqueue(options: GenerateOptions): Promise<GenerateResult> {
    const { signal, onProgress } = options;
    return new Promise<GenerateResult>((resolve, reject) => {
      const settle = () => {
        job.isSettled = true;
        ignore();
      };
      const job: QueuedJob = {
        message: toJob(options),
        emit: (event) => tell(onProgress, event),
        resolve: (result) => {
          if (job.isSettled) return result.images.forEach(closeImage);
          settle();
          resolve(result);
        },
        reject: (reason) => {
          settle();
          reject(reason);
        },
        losses: 0,
        isSettled: false,
      };
      const ignore = onAbort(signal, (reason) => {
        job.reject(reason);
        this.#abort(job);
      });
      this.#queue.push(job);
      this.#runNext();
      const position = this.#queue.indexOf(job) + 1;
      if (position > 0) job.emit({ type: 'queued', position });
    });
  }

  /** Aborts the running job, whose step the engine finishes first, or takes a waiting job out of the queue. */
  #abort(job: QueuedJob): void {
    if (job === this.#running) {
      this.#connection?.say({ type: 'abort' });
      return;
    }
    const index = this.#queue.indexOf(job);
    if (index < 0) return;
    this.#queue.splice(index, 1);
    this.#tellPositions(index);
  }

  #runNext(): void {
    if (this.state !== 'ready') return;
    const job = this.#queue.shift();
    if (!job) return;
    this.#running = job;
    try {
      this.#connection?.say({ type: 'generate', job: job.message });
    } catch (cause) {
      // The job was copied when it was queued, so what fails now is memory. The engine has not got the job.
      const message = `the job could not be handed to the engine: ${messageOf(cause)}`;
      const hint = 'Start from a smaller picture.';
      const error = new WuerstchenError('out-of-memory', message, { hint, cause });
      return this.#endJob(() => job.reject(error));
    }
    this.#tellPositions(0);
  }

  /** Jobs from `first` on have moved up; position 1 is the next to run. */
  #tellPositions(first: number): void {
    const moved = this.#queue.map((job, index) => ({ job, position: index + 1 })).slice(first);
    for (const { job, position } of moved) job.emit({ type: 'queued', position });
  }

  #endJob(settle: (job: QueuedJob) => void): void {
    const job = this.#running;
    this.#running = undefined;
    if (job) settle(job);
    this.#runNext();
  }

  /** Called when the engine cannot go on: a fresh one takes its place, if possible. */
  #crash(error: WuerstchenError, reason: string = error.message): void {
    if (this.#opening) return this.#opening.reject(error);
    this.#disconnect();
    const job = this.#running;
    this.#running = undefined;
    if (!this.#connector.isWorker) {
      this.#failure = error;
      job?.reject(error);
      this.#rejectAll(error);
      this.#dispatch('lost', reason);
      return;
    }
    void this.#reopen(reason);
    job?.reject(error);
    this.#dispatch('lost', reason);
  }

  /** Opens a fresh engine for the jobs that wait. */
  async #reopen(reason: string): Promise<void> {
    this.#failure = undefined;
    try {
      await this.open();
    } catch (failure) {
      if (this.#isDisposed) return;
      this.#failure = failure as WuerstchenError;
      this.#rejectAll(failure);
      return;
    }
    this.#dispatch('recovered', reason);
    this.#runNext();
  }

  #rejectAll(reason: unknown): void {
    const jobs = this.#queue.splice(0);
    if (this.#running) jobs.unshift(this.#running);
    this.#running = undefined;
    for (const job of jobs) job.reject(reason);
  }

  #dispatch(type: 'lost' | 'recovered', reason: string): void {
    this.#events.dispatchEvent(new CustomEvent(type, { detail: { reason } }));
  }
}

/**
 * Calls a callback. An error that the page's own code throws is reported to the page, as for event listeners; the job
 * goes on.
 */
function tell<T>(callback: ((event: T) => void) | undefined, event: T): void {
  try {
    callback?.(event);
  } catch (error) {
    queueMicrotask(() => {
      throw error;
    });
  }
}

function closePreview(event: GenerateEvent): void {
  if (event.type === 'preview') event.bitmap.close();
}

/** Frees a picture of a caller who has given up. */
function closeImage(image: GenerateResult['images'][number]): void {
  if ('close' in image) image.close();
}

function disposedError(): WuerstchenError {
  return new WuerstchenError('disposed', 'the engine was disposed of');
}
