// Connections to engines: their interface, and connections to workers.

import { WuerstchenError } from './errors.js';
import type { ClientMessage, EngineMessage } from './serve.js';
import { PATIENCE_MS } from './patience.js';
import { isObject, messageOf, show } from './values.js';

const WORKER_HINT =
  "Serve worker.js from the page's own origin, with the page's Cross-Origin-Embedder-Policy if it has " +
  'one, and let the content security policy allow it (worker-src); or pass a function that makes the ' +
  'worker as `worker`, or load with worker: false.';

const SCRIPT_HINT =
  "It must run this package's worker.js as a module, new Worker(URL, { type: 'module' }), and not lose " +
  'messages that come while it starts.';

/** A connection to an engine. */
export interface Connection {
  say(message: ClientMessage, transfer?: Transferable[]): void;
  /** Ends the engine; the caller must ignore messages that still arrive. */
  close(): void;
}

/** How connections to engines are made. */
export interface Connector {
  connect(
    hear: (message: EngineMessage) => void,
    crash: (error: WuerstchenError) => void,
  ): Connection;
  /** Whether engines run in workers: a fresh worker can replace a failed one, but functions cannot be sent to it. */
  readonly isWorker: boolean;
}

/** Engines in workers. */
export function workerConnector(makeWorker: () => Worker): Connector {
  return {
    isWorker: true,
    connect(hear, crash) {
      const worker = start(makeWorker);
      // A worker with another script says nothing, or something else.
      const silence = setTimeout(() => crash(foreignWorker('does not answer')), PATIENCE_MS);
      let hasBegun = false;
      worker.onmessage = ({ data }: MessageEvent<EngineMessage>) => {
        clearTimeout(silence);
        hasBegun ||= isObject(data) && data.type === 'begun';
        if (hasBegun) hear(data);
        else crash(foreignWorker('sends other messages'));
      };
      worker.onmessageerror = () =>
        crash(new WuerstchenError('internal', 'a message of the worker could not be read'));
      worker.onerror = (event) => {
        event.preventDefault();
        crash(workerError(event, hasBegun));
      };
      return {
        say: (message, transfer = []) => worker.postMessage(message, transfer),
        close: () => {
          clearTimeout(silence);
          worker.terminate();
        },
      };
    },
  };
}

/** A worker is ended with its engine. */
const started = new WeakSet<Worker>();

function start(makeWorker: () => Worker): Worker {
  let worker: Worker;
  try {
    worker = makeWorker();
  } catch (cause) {
    const message = `no worker could be started: ${messageOf(cause)}`;
    throw new WuerstchenError('unsupported', message, { hint: WORKER_HINT, cause });
  }
  if (!isObject(worker) || typeof worker.postMessage !== 'function') {
    const message = `worker must make a Worker, got ${show(worker)}`;
    throw new WuerstchenError('invalid-argument', message, { field: 'worker' });
  }
  if (started.has(worker)) {
    const message = 'worker must make a new Worker at every call';
    throw new WuerstchenError('invalid-argument', message, { field: 'worker' });
  }
  started.add(worker);
  return worker;
}

function foreignWorker(what: string): WuerstchenError {
  const message = `the Worker that worker has made ${what}`;
  return new WuerstchenError('invalid-argument', message, { hint: SCRIPT_HINT, field: 'worker' });
}

/** Browsers say nothing of a script that they could not or would not load. */
function workerError({ message }: ErrorEvent, hasBegun: boolean): WuerstchenError {
  return message
    ? new WuerstchenError('internal', `the worker failed: ${message}`, {
        hint: hasBegun ? undefined : SCRIPT_HINT,
      })
    : new WuerstchenError('network', 'the script of the worker could not be loaded', {
        hint: WORKER_HINT,
      });
}
