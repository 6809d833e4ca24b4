// `?benchmark`: times a load and some pictures, as JSON. `?benchmark&precision=f16` and `&tiling=small` are options of
// the load.

import type { GenerateResult, LoadEvent, LoadOptions, Measured, Stage } from 'wuerstchen-web';
import { load } from 'wuerstchen-web';
import { element } from './dom';
import { STAGES } from './progress';

declare global {
  interface Window {
    benchmarkResult?: unknown;
  }
}

const WARM_PICTURES = 5;
const PROMPT = 'a red apple on a blue background';

/** Loads without any cache, makes one picture and then five more, and shows the times beside the device's speed. */
export async function runBenchmark(
  options: Pick<LoadOptions, 'model' | 'device' | 'tiling' | 'precision'>,
  onPicture: (done: number, of: number) => void,
): Promise<void> {
  const section = element('benchmark', HTMLElement);
  section.hidden = false;
  section.scrollIntoView();
  const shown = element('benchmark-result', HTMLPreElement);
  shown.textContent = 'Running…';
  try {
    window.benchmarkResult = await measure(options, onPicture);
    shown.textContent = JSON.stringify(window.benchmarkResult, null, 2);
  } catch (error) {
    shown.textContent = 'It did not end.';
    throw error;
  }
}

async function measure(
  options: Pick<LoadOptions, 'model' | 'device' | 'tiling' | 'precision'>,
  onPicture: (done: number, of: number) => void,
): Promise<unknown> {
  const start = performance.now();
  let measured: Measured | undefined;
  let loadMs = NaN;
  const onProgress = (event: LoadEvent) => {
    // The load ends here: the measurement of the device follows.
    if (event.type === 'selftest') loadMs = performance.now() - start;
    if (event.type === 'measured') measured = event;
  };
  await using engine = await load({ ...options, cache: 'none', measure: true, onProgress });

  const results: GenerateResult[] = [];
  for (let picture = 0; picture <= WARM_PICTURES; picture++) {
    onPicture(picture, WARM_PICTURES + 1);
    results.push(await engine.generate({ prompt: PROMPT, seed: picture, preview: false }));
  }
  const [first, ...warm] = results;

  const { defaults } = engine.info;
  const { priorSteps, decoderSteps, width, height } = defaults;
  const steps: Partial<Record<Stage, number>> = { prior: priorSteps, decoder: decoderSteps };
  const scales: Partial<Record<Stage, number>> = {
    text: defaults.priorGuidanceScale,
    prior: defaults.priorGuidanceScale,
    decoder: defaults.decoderGuidanceScale,
  };
  const stages = STAGES.map((stage) => {
    const ms = median(warm.map(({ timings }) => timings[stage]));
    const count = steps[stage] ?? 1;
    // Guidance takes a second prediction.
    const predictions = count * ((scales[stage] ?? 0) > 1 ? 2 : 1);
    const work = measured?.work.find((work) => work.stage === stage);
    return [
      stage,
      { ms, steps: count, msPerStep: ms / count, ...reached(work, predictions, count, ms) },
    ];
  });
  return {
    model: engine.info.id,
    width,
    height,
    device: engine.device,
    adapter: engine.support.adapter ?? null,
    userAgent: navigator.userAgent,
    selfTestMaxError: engine.selfTest.maxError,
    products: measured?.products,
    reach: measured && {
      multiplyAddsPerSec: measured.multiplyAddsPerSec,
      bytesPerSec: measured.bytesPerSec,
    },
    loadMs,
    first: first?.timings,
    warm: warm.map(({ timings }) => timings),
    warmMedian: {
      totalMs: median(warm.map(({ timings }) => timings.total)),
      stages: Object.fromEntries(stages),
    },
  };
}

/** The speed of a stage: multiply-adds, and bytes of weights, which every step reads once. */
function reached(
  work: Measured['work'][number] | undefined,
  predictions: number,
  steps: number,
  ms: number,
) {
  if (!work) return {};
  const { multiplyAdds, weightBytes } = work;
  return {
    multiplyAddsPerSec: (multiplyAdds * predictions * 1000) / ms,
    weightBytesPerSec: (weightBytes * steps * 1000) / ms,
  };
}

function median(values: readonly number[]): number {
  const sorted = values.toSorted((a, b) => a - b);
  return sorted[Math.floor(sorted.length / 2)] ?? NaN;
}
