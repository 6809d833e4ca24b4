// The progress of a load or a picture: overall bar, clock, phases of the load, rows of the stages.

import type { GenerateEvent, LoadEvent, ModelInfo, Stage } from 'wuerstchen-web';
import { element, formatBytes, formatDuration, formatParams } from './dom';

export const STAGES: readonly Stage[] = ['text', 'prior', 'decoder', 'vqgan'];

export const STAGE_NAMES: Readonly<Record<Stage, string>> = {
  text: 'Text encoder',
  prior: 'Stage C, prior',
  decoder: 'Stage B, decoder',
  vqgan: 'Stage A, vqgan',
};

const PHASES = ['download', 'verify', 'upload', 'compile', 'selftest'] as const;
type Phase = (typeof PHASES)[number];

const overall = element('overall', HTMLDivElement);
const status = element('status', HTMLParagraphElement);
const clock = element('clock', HTMLParagraphElement);
const phases = element('phases', HTMLOListElement);
const title = document.title;

/** Shows one sentence, which screen readers read aloud; not to be called for every step. */
export function say(text: string): void {
  status.textContent = text;
}

function setOverall(fraction: number): void {
  const percent = Math.round(100 * fraction);
  overall.ariaValueNow = String(percent);
  fill(overall, fraction);
  document.title = `${percent} % · ${title}`;
}

function fill(bar: Element, fraction: number): void {
  const inner = bar.querySelector('span');
  if (inner) inner.style.inlineSize = `${100 * Math.min(fraction, 1)}%`;
}

function row(stage: Stage): { item: HTMLLIElement; bar: Element; count: HTMLElement } {
  const item = element(`stage-${stage}`, HTMLLIElement);
  const [bar, count] = [item.querySelector('.bar'), item.querySelector('small')];
  if (!bar || !count) throw new Error(`incomplete row of ${stage}`);
  return { item, bar, count };
}

/** Ends the progress that is shown, with a last sentence. */
export function finish(text: string): void {
  say(text);
  clock.textContent = '';
  document.title = title;
  phases.hidden = true;
  for (const stage of STAGES) row(stage).item.removeAttribute('aria-current');
}

/** Empties the bar, after a load or before any picture; the rows show the sizes of the model's stages. */
export function showModel(info: ModelInfo): void {
  setOverall(0);
  document.title = title;
  for (const stage of STAGES) {
    const { params, dtype } = info.stages[stage];
    fill(row(stage).bar, 0);
    row(stage).count.textContent = `${formatParams(params)} parameters, ${dtype}`;
  }
}

/** Follows one load. */
export function followLoad(note: (text: string) => void): (event: LoadEvent) => void {
  phases.hidden = false;
  setOverall(0);
  say('Loading the model');
  for (const phase of PHASES) showPhase(phase, 'waiting', '');
  const verified = new Set<string>();
  const uploaded = new Set<string>();
  const endBefore = (phase: Phase) => {
    for (const earlier of PHASES.slice(0, PHASES.indexOf(phase))) showPhase(earlier, 'done');
  };
  return (event) => {
    switch (event.type) {
      case 'download': {
        const { loaded, total, bytesPerSecond, etaMs } = event.overall;
        const amount = `${formatBytes(loaded)} of ${formatBytes(total)}`;
        const speed = event.fromCache ? 'stored here' : `${formatBytes(bytesPerSecond)}/s`;
        showPhase('download', loaded < total ? 'active' : 'done', `${amount}, ${speed}`);
        setOverall(loaded / total);
        clock.textContent = etaMs === undefined ? '' : `${formatDuration(etaMs)} left`;
        break;
      }
      case 'verify':
        verified.add(event.file);
        showPhase('verify', 'active', `${verified.size} ${verified.size === 1 ? 'file' : 'files'}`);
        break;
      case 'upload':
        if (event.loaded >= event.total) uploaded.add(event.file);
        showPhase('upload', 'active', `${uploaded.size} ${uploaded.size === 1 ? 'file' : 'files'}`);
        break;
      case 'compile':
        endBefore('compile');
        setOverall(1);
        clock.textContent = '';
        showPhase('compile', 'active', event.device === 'webgpu' ? 'on the GPU' : 'on the CPU');
        say('Compiling and testing');
        break;
      case 'selftest':
        endBefore('selftest');
        showPhase('selftest', 'done', `largest error ${event.maxError.toExponential(1)}`);
        break;
      case 'lora':
        for (const text of [event.message, ...event.leftOut]) note(`${event.file}: ${text}`);
        break;
      case 'ready':
        break;
    }
  };
}

function showPhase(phase: Phase, state: 'waiting' | 'active' | 'done', text?: string): void {
  const item = element(`phase-${phase}`, HTMLLIElement);
  item.dataset.phase = state;
  if (text !== undefined && item.lastElementChild) item.lastElementChild.textContent = text;
}

/** Follows one run; `close` returns the step at which it stood. */
export function followRun(): {
  onProgress(event: GenerateEvent): void;
  close(timings?: Readonly<Record<Stage | 'total', number>>): string;
} {
  const start = performance.now();
  const spent: Record<Stage, number> = { text: 0, prior: 0, decoder: 0, vqgan: 0 };
  let last = start;
  let current: Stage | undefined;
  let where = 'before the first step';
  let eta: number | undefined;

  const tick = () => {
    const elapsed = formatDuration(performance.now() - start);
    clock.textContent = eta === undefined ? elapsed : `${elapsed}, ${formatDuration(eta)} left`;
  };
  const timer = setInterval(tick, 250);
  const enter = (stage: Stage) => {
    if (stage === current) return;
    if (current) row(current).item.removeAttribute('aria-current');
    current = stage;
    row(stage).item.setAttribute('aria-current', 'step');
    say(STAGE_NAMES[stage]);
  };

  setOverall(0);
  say('Starting');
  for (const stage of STAGES) {
    fill(row(stage).bar, 0);
    row(stage).count.textContent = '';
  }

  return {
    onProgress(event) {
      if (event.type === 'queued') say(`Waiting, ${event.position} before this`);
      if (event.type === 'stage') enter(event.stage);
      if (event.type !== 'step') return;
      const { stage, step, steps } = event;
      enter(stage);
      const now = performance.now();
      spent[stage] += now - last;
      last = now;
      eta = event.etaMs;
      where = `${STAGE_NAMES[stage]}, step ${step} of ${steps}`;
      fill(row(stage).bar, step / steps);
      row(stage).count.textContent = `${step} / ${steps}, ${formatDuration(spent[stage])}`;
      setOverall(event.overall);
      tick();
    },
    close(timings) {
      clearInterval(timer);
      if (timings) {
        for (const stage of STAGES) {
          const { bar, count } = row(stage);
          fill(bar, 1);
          const steps = count.textContent.split(',')[0];
          count.textContent = `${steps}, ${formatDuration(timings[stage])}`;
        }
        setOverall(1);
      }
      return where;
    },
  };
}
