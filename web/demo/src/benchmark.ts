// `?benchmark`: times a load and some pictures, as JSON.

import type { GenerateResult, LoadOptions, Stage } from 'wuerstchen-web';
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

/** Loads without any cache, makes one picture and then five more, and shows the times. */
export async function runBenchmark(
  options: Pick<LoadOptions, 'model' | 'device'>,
  onPicture: (done: number, of: number) => void,
): Promise<void> {
  const section = element('benchmark', HTMLElement);
  section.hidden = false;
  section.scrollIntoView();

  const start = performance.now();
  await using engine = await load({ ...options, cache: 'none' });
  const loadMs = performance.now() - start;

  const results: GenerateResult[] = [];
  for (let picture = 0; picture <= WARM_PICTURES; picture++) {
    onPicture(picture, WARM_PICTURES + 1);
    results.push(await engine.generate({ prompt: PROMPT, seed: picture, preview: false }));
  }
  const [first, ...warm] = results;

  const { priorSteps, decoderSteps, width, height } = engine.info.defaults;
  const steps: Partial<Record<Stage, number>> = { prior: priorSteps, decoder: decoderSteps };
  const stages = STAGES.map((stage) => {
    const ms = median(warm.map(({ timings }) => timings[stage]));
    const count = steps[stage];
    return [stage, count === undefined ? { ms } : { ms, steps: count, msPerStep: ms / count }];
  });
  window.benchmarkResult = {
    model: engine.info.id,
    width,
    height,
    device: engine.device,
    adapter: engine.support.adapter ?? null,
    userAgent: navigator.userAgent,
    selfTestMaxError: engine.selfTest.maxError,
    loadMs,
    first: first?.timings,
    warm: warm.map(({ timings }) => timings),
    warmMedian: {
      totalMs: median(warm.map(({ timings }) => timings.total)),
      stages: Object.fromEntries(stages),
    },
  };
  const json = JSON.stringify(window.benchmarkResult, null, 2);
  element('benchmark-result', HTMLPreElement).textContent = json;
}

function median(values: readonly number[]): number {
  const sorted = values.toSorted((a, b) => a - b);
  return sorted[Math.floor(sorted.length / 2)] ?? NaN;
}
