// A React hook for the package: `wuerstchen-web/react`.

import { useCallback, useEffect, useRef, useState, type RefObject } from 'react';
import { load } from './index.js';
import type {
  GenerateEvent,
  GenerateOptions,
  GenerateResult,
  LoadEvent,
  LoadOptions,
  ModelRef,
  Wuerstchen,
} from './types.js';

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
   * Makes pictures. The first call loads the model; a call while pictures are being made stops those. It never rejects:
   * if it fails or is stopped, it resolves with undefined.
   */
  generate(options: GenerateOptions): Promise<GenerateResult | undefined>;
  /** Stops the loading of the model or the making of pictures. */
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

  const stop = useCallback(() => job.current?.abort(), []);

  const generate = useCallback(async (wanted: GenerateOptions) => {
    job.current?.abort();
    const own = (job.current = new AbortController());
    const signal = wanted.signal ? AbortSignal.any([own.signal, wanted.signal]) : own.signal;
    const show = (change: Partial<PictureState>) => {
      if (job.current === own) setView((view) => merged(view, change));
    };
    show({ state: 'loading', progress: 0, error: undefined });
    let ready: Wuerstchen | undefined;
    try {
      const onLoad = (event: LoadEvent) => {
        latest.current.onProgress?.(event);
        if (event.type === 'download')
          show({ progress: event.overall.loaded / event.overall.total });
      };
      const loading = { ...latest.current, onProgress: onLoad, signal };
      ready = await (engine.current ??= begin(engine, loading));
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
      // An engine in this thread stays lost, so the next call loads another one.
      if (ready?.state === 'lost' && !signal.aborted) free(engine);
      const told = signal.aborted || !(error instanceof Error) ? undefined : error;
      show({ ...IDLE, preview: undefined, error: told });
      return undefined;
    }
  }, []);

  return { ...view, generate, stop };
}

type EngineRef = RefObject<Promise<Wuerstchen> | undefined>;

/** Loads an engine. If that fails or is aborted, it is forgotten at once, so that the next call begins another load. */
function begin(
  engine: EngineRef,
  options: LoadOptions & { signal: AbortSignal },
): Promise<Wuerstchen> {
  const { signal } = options;
  const loading = load(options);
  const forget = () => {
    if (engine.current === loading) free(engine);
  };
  signal.addEventListener('abort', forget);
  loading.then(() => signal.removeEventListener('abort', forget), forget);
  return loading;
}

function free(engine: EngineRef): void {
  engine.current?.then((engine) => engine.dispose()).catch(() => {});
  engine.current = undefined;
}

function merged(view: PictureState, change: Partial<PictureState>): PictureState {
  if ('preview' in change && view.preview !== change.preview) view.preview?.close();
  return { ...view, ...change };
}

/** What an engine is made of, as values to compare: a literal in the component is a new object at every rendering. */
function partsOf({ model, device, lora = [] }: LoadOptions): readonly unknown[] {
  const loras = lora.flatMap(({ url, blob, weight, adapterConfig }) => [
    url && String(url),
    blob,
    weight,
    adapterConfig instanceof URL ? adapterConfig.href : adapterConfig,
  ]);
  return [device, ...partsOfModel(model), ...loras];
}

function partsOfModel(model: ModelRef): readonly unknown[] {
  if (!model || typeof model === 'string') return [model];
  if ('stored' in model) return ['stored', model.stored];
  return 'length' in model ? Array.from(model) : [model.href];
}

function areSame(a: readonly unknown[], b: readonly unknown[]): boolean {
  return a.length === b.length && a.every((part, i) => part === b[i]);
}
