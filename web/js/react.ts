// A React hook for the package: `wuerstchen-web/react`.

import {
  useCallback,
  useEffect,
  useInsertionEffect,
  useRef,
  useState,
  type RefObject,
} from 'react';
import { WuerstchenError, load } from './index.js';
import { isSignal, onAbort, throwIfAborted, unlessAborted } from './signals.js';
import type {
  Format,
  GenerateEvent,
  GenerateOptions,
  GenerateResult,
  LoadEvent,
  LoadOptions,
  LoraRef,
  ModelRef,
  Wuerstchen,
} from './types.js';
import { isObject } from './values.js';

/** The state that a component shows. */
export interface PictureState {
  /** Whether nothing is done, the model is being loaded, or pictures are being made. */
  readonly state: 'idle' | 'loading' | 'making';
  /** Share of the loading or the making that is done, 0 to 1. */
  readonly progress: number;
  /** The picture as it is so far; closed when the next one comes. */
  readonly preview?: ImageBitmap;
  /** The last result. */
  readonly result?: GenerateResult;
  /** Why the last pictures were not made; undefined if they were stopped. */
  readonly error?: Error;
}

export interface UseWuerstchen extends PictureState {
  /**
   * Makes pictures. The first call loads the model. A call takes the place of the one before, whose pictures are not
   * made; a load goes on for the later call. It never rejects: if it fails or is stopped, it resolves with undefined.
   */
  generate<F extends Format = 'bitmap'>(
    options: GenerateOptions<F>,
  ): Promise<GenerateResult<F> | undefined>;
  /** Stops the loading of the model or the making of pictures; the `signal` of a call leaves the loading alone. */
  stop(): void;
}

const IDLE: PictureState = { state: 'idle', progress: 0 };

/**
 * Makes pictures with a model. The first picture loads the model, and unmounting the component frees it. A change of
 * `model`, `device` or `lora` frees it too; the next picture then loads the new model.
 */
export function useWuerstchen(options: LoadOptions): UseWuerstchen {
  const [view, setView] = useState(IDLE);
  const latest = useRef(options);
  const engine: EngineRef = useRef(undefined);
  const job = useRef<AbortController>(undefined);
  const current = partsOf(options);
  const parts = useRef(current);
  if (!areSame(parts.current, current)) parts.current = current;

  useEffect(() => {
    latest.current = options;
  });

  useEffect(
    () => () => {
      job.current?.abort();
      free(engine);
    },
    [parts.current],
  );

  // Unlike other effects, it is not begun anew in strict mode, where children's effects may call `generate` before.
  const isUnmounted = useRef(false);
  useInsertionEffect(() => {
    isUnmounted.current = false;
    return () => {
      isUnmounted.current = true;
    };
  }, []);

  const stop = useCallback(() => {
    job.current?.abort();
    engine.current?.loading.abort();
  }, []);

  const generate = useCallback(async <F extends Format>(wanted: GenerateOptions<F>) => {
    // Nobody would free the engine.
    if (isUnmounted.current) return undefined;
    job.current?.abort();
    const own = (job.current = new AbortController());
    const { signal } = own;
    const given = wanted?.signal;
    let forget: (() => void) | undefined;
    const show = (change: Partial<PictureState>) => {
      if (job.current === own) setView((view) => merged(view, change));
    };
    const onLoad = (event: LoadEvent) => {
      latest.current.onProgress?.(event);
      if (event.type !== 'download') return;
      const progress = event.overall.loaded / event.overall.total;
      // The call that waits for the load may be a later one than the call that began it.
      setView((view) => (view.state === 'loading' ? { ...view, progress } : view));
    };
    setView((view) => {
      const progress = view.state === 'loading' ? view.progress : 0;
      return { ...view, state: 'loading', progress, error: undefined };
    });
    let ready: Wuerstchen | undefined;
    try {
      if (given !== undefined && !isSignal(given)) {
        const message = 'signal must be an AbortSignal';
        throw new WuerstchenError('invalid-argument', message, { field: 'signal' });
      }
      throwIfAborted(given);
      forget = onAbort(given, (reason) => own.abort(reason));
      engine.current ??= begin(engine, { ...latest.current, onProgress: onLoad });
      ready = await unlessAborted(engine.current.ready, signal);
      show({ state: 'making', progress: 0 });
      const onProgress = (event: GenerateEvent) => {
        wanted.onProgress?.(event);
        if (event.type === 'step') show({ progress: event.overall });
        if (event.type === 'preview' && !wanted.onProgress) show({ preview: event.bitmap });
      };
      const result = await ready.generate({ ...wanted, onProgress, signal });
      show({ ...IDLE, progress: 1, preview: undefined, result });
      return result;
    } catch (error) {
      // An engine in a worker recovers. One in this thread stays lost, so the next call tries another load, which helps
      // where the CPU can take the place of a GPU that went away.
      if (latest.current.worker === false && ready?.state === 'lost' && !signal.aborted)
        free(engine);
      const isAborted = signal.aborted || (isSignal(given) && given.aborted);
      const told = isAborted || !(error instanceof Error) ? undefined : error;
      show({ ...IDLE, preview: undefined, error: told });
      return undefined;
    } finally {
      forget?.();
    }
  }, []);

  return { ...view, generate, stop };
}

/** An engine that is loaded, or that is being loaded. */
interface Begun {
  readonly ready: Promise<Wuerstchen>;
  /** Stops the loading, which is not that of a single call. */
  readonly loading: AbortController;
}

type EngineRef = RefObject<Begun | undefined>;

/** Loads an engine. If that fails or is aborted, it is forgotten at once, so that the next call begins another load. */
function begin(engine: EngineRef, options: LoadOptions): Begun {
  const loading = new AbortController();
  const { signal } = loading;
  const begun = { ready: load({ ...options, signal }), loading };
  const forget = () => {
    if (engine.current === begun) free(engine);
  };
  signal.addEventListener('abort', forget);
  begun.ready.then(() => signal.removeEventListener('abort', forget), forget);
  return begun;
}

function free(engine: EngineRef): void {
  const begun = engine.current;
  engine.current = undefined;
  begun?.loading.abort();
  begun?.ready.then((engine) => engine.dispose()).catch(() => {});
}

function merged(view: PictureState, change: Partial<PictureState>): PictureState {
  if ('preview' in change && view.preview !== change.preview) view.preview?.close();
  return { ...view, ...change };
}

/** What an engine is made of, as values to compare: a literal in the component is a new object at every rendering. */
function partsOf({ model, device, lora = [] }: LoadOptions): readonly unknown[] {
  // What is no LoRA is refused by the load.
  const loras = (Array.isArray(lora) ? (lora as LoraRef[]) : [lora]).flatMap((lora) => {
    if (!isObject(lora)) return [lora];
    const { url, blob, weight, adapterConfig } = lora as LoraRef;
    const config = adapterConfig instanceof URL ? adapterConfig.href : adapterConfig;
    return [url && String(url), blob, weight, config];
  });
  return [device, ...partsOfModel(model), ...loras];
}

function partsOfModel(model: ModelRef): readonly unknown[] {
  // What is no model is refused by the load.
  if (!isObject(model)) return [model];
  if ('stored' in model) return ['stored', model.stored];
  return 'length' in model ? Array.from(model) : [model.href];
}

function areSame(a: readonly unknown[], b: readonly unknown[]): boolean {
  return a.length === b.length && a.every((part, i) => part === b[i]);
}
