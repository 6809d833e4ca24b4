// The progress of a job: stages, steps, and how long the rest may take.

import type { GenerateEvent, Stage } from './types.js';

/** Steps of every stage. */
export type Plan = Readonly<Record<Stage, number>>;

/** Milliseconds per step of the stages that have run. */
export type Pace = Map<Stage, number>;

const STAGES: readonly Stage[] = ['text', 'prior', 'decoder', 'vqgan'];

/** Follows one job. */
export class JobProgress {
  readonly #plan: Record<Stage, number>;
  readonly #pace: Pace;
  readonly #emit: (event: GenerateEvent) => void;
  readonly #begun = performance.now();
  readonly #done: Record<Stage, number> = { text: 0, prior: 0, decoder: 0, vqgan: 0 };
  readonly #ms: Record<Stage, number> = { text: 0, prior: 0, decoder: 0, vqgan: 0 };
  #resumed = this.#begun;

  /** `pace` may hold the measurements of an earlier job of the same size; this job updates them. */
  constructor(plan: Plan, pace: Pace, emit: (event: GenerateEvent) => void) {
    this.#plan = { ...plan };
    this.#pace = pace;
    this.#emit = emit;
    this.#beginStage('text');
  }

  /** Records that a step has been made since the last `resume`. */
  step(stage: Stage, step: number, steps: number): void {
    this.#ms[stage] += performance.now() - this.#resumed;
    this.#done[stage] = step;
    // There may be more steps than planned, for example where frames are made.
    this.#plan[stage] = steps;
    this.#pace.set(stage, this.#ms[stage] / step);
    const overall = sum((stage) => this.#done[stage]) / sum((stage) => this.#plan[stage]);
    this.#emit({ type: 'step', stage, step, steps, overall, etaMs: this.#etaMs() });
    // The text encoders run right before the stages that they are for. Where there is only one, it is for both.
    if (stage === 'text') this.#beginAfter(step === 1 ? 'text' : 'prior');
    if (stage === 'prior' && step === steps && this.#plan.text === 1) this.#beginAfter('prior');
    if (stage === 'decoder' && step === steps) this.#beginAfter('decoder');
  }

  /** Begins the next step. The time since the last one, for example for previews, does not count. */
  resume(): void {
    this.#resumed = performance.now();
  }

  /** Milliseconds of every stage, and of everything so far. */
  timings(): Record<Stage | 'total', number> {
    return { ...this.#ms, total: performance.now() - this.#begun };
  }

  /** Begins the next stage that has steps: a picture that is only reproduced needs no prior. */
  #beginAfter(stage: Stage): void {
    const later = STAGES.slice(STAGES.indexOf(stage) + 1);
    const next = later.find((stage) => this.#plan[stage] > 0);
    if (next) this.#beginStage(next);
  }

  #beginStage(stage: Stage): void {
    const index = STAGES.indexOf(stage);
    this.#emit({ type: 'stage', stage, index, of: STAGES.length });
  }

  /** The time that is left. A stage that has not run yet is assumed to take as long per step as those of this job. */
  #etaMs(): number {
    const mean = sum((stage) => this.#ms[stage]) / sum((stage) => this.#done[stage]);
    return sum((stage) => {
      const left = this.#plan[stage] - this.#done[stage];
      return left * (this.#pace.get(stage) ?? mean);
    });
  }
}

function sum(of: (stage: Stage) => number): number {
  return STAGES.reduce((total, stage) => total + of(stage), 0);
}
