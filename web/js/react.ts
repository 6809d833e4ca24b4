// A React hook for the package: `wuerstchen-web/react`.

import { useCallback, useEffect, useRef, useState } from 'react';
import { load } from './index.js';
import type {
  GenerateEvent,
  GenerateOptions,
  GenerateResult,
  LoadEvent,
  LoadOptions,
  LoraRef,
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
  const engine = useRef<Promise<Wuerstchen>>(undefined);
  const job = useRef<AbortController>(undefined);
  const loras = useRef(options.lora);
  // An array literal in the component is a new array at every rendering.
  if (!areSame(loras.current, options.lora)) loras.current = options.lora;

  useEffect(() => {
    latest.current = options;
  });

  useEffect(
    () => () => {
      job.current?.abort();
      engine.current?.then((engine) => engine.dispose()).catch(() => {});
      engine.current = undefined;
    },
    [options.model, options.device, loras.current],
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
    try {
      const onLoad = (event: LoadEvent) => {
        latest.current.onProgress?.(event);
        if (event.type === 'download')
          show({ progress: event.overall.loaded / event.overall.total });
      };
      const loading = (engine.current ??= load({ ...latest.current, onProgress: onLoad, signal }));
      loading.catch(() => {
        if (engine.current === loading) engine.current = undefined;
      });
      const ready = await loading;
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
      const told = signal.aborted || !(error instanceof Error) ? undefined : error;
      show({ ...IDLE, preview: undefined, error: told });
      return undefined;
    }
  }, []);

  return { ...view, generate, stop };
}

function merged(view: PictureState, change: Partial<PictureState>): PictureState {
  if ('preview' in change && view.preview !== change.preview) view.preview?.close();
  return { ...view, ...change };
}

function areSame(a: readonly LoraRef[] = [], b: readonly LoraRef[] = []): boolean {
  const isSame = (a: LoraRef, b?: LoraRef) =>
    String(a.url) === String(b?.url) &&
    a.blob === b?.blob &&
    a.weight === b?.weight &&
    a.adapterConfig === b?.adapterConfig;
  return a.length === b.length && a.every((lora, i) => isSame(lora, b[i]));
}
