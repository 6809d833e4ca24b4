import assert from 'node:assert/strict';
import { test } from 'node:test';

import { JobProgress } from '../../js/progress.js';
import type { Stage } from '../../js/types.js';

/** The stages that are told of, and the steps, in their order. */
function told(steps: readonly [Stage, step: number, steps: number][]): string[] {
  const lines: string[] = [];
  const plan = { text: 2, prior: 2, decoder: 1, vqgan: 1 };
  const progress = new JobProgress(plan, new Map(), (event) => {
    if (event.type === 'stage') lines.push(event.stage);
    if (event.type === 'step') lines.push(`${event.stage} ${event.step}`);
  });
  for (const step of steps) progress.step(...step);
  return lines;
}

test('every stage is told of before its first step, with two text encoders and with one', () => {
  const prior: readonly [Stage, number, number][] = [
    ['prior', 1, 2],
    ['prior', 2, 2],
  ];
  const rest: readonly [Stage, number, number][] = [
    ['decoder', 1, 1],
    ['vqgan', 1, 1],
  ];
  const priorLines = ['prior', 'prior 1', 'prior 2'];
  const restLines = ['decoder', 'decoder 1', 'vqgan', 'vqgan 1'];
  assert.deepEqual(told([['text', 1, 2], ...prior, ['text', 2, 2], ...rest]), [
    ...['text', 'text 1'],
    ...priorLines,
    'text 2',
    ...restLines,
  ]);
  assert.deepEqual(told([['text', 1, 1], ...prior, ...rest]), [
    ...['text', 'text 1'],
    ...priorLines,
    ...restLines,
  ]);
});
