import assert from 'node:assert/strict';
import { test } from 'node:test';

import { JobProgress, type Plan } from '../../js/progress.js';
import type { GenerateEvent, GenerateOptions, Stage } from '../../js/types.js';
import { makeManifest, MODEL_URL, stepsOf, World } from './fake.js';

/** The stages that are told of, and the steps, in their order. */
function told(steps: readonly [Stage, step: number, steps: number][], counts: Partial<Plan> = {}) {
  const lines: string[] = [];
  const plan = { text: 2, prior: 2, decoder: 1, vqgan: 1, ...counts };
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

test('stages without steps are not told of', () => {
  const rest: readonly [Stage, number, number][] = [
    ['decoder', 1, 1],
    ['vqgan', 1, 1],
  ];
  const restLines = ['decoder', 'decoder 1', 'vqgan', 'vqgan 1'];
  assert.deepEqual(told([['text', 1, 1], ...rest], { prior: 0 }), ['text', 'text 1', ...restLines]);
  // Of two text encoders, only the second runs.
  assert.deepEqual(told([['text', 2, 2], ...rest], { prior: 0 }), ['text', 'text 2', ...restLines]);
  const copy: readonly [Stage, number, number][] = [
    ['text', 1, 1],
    ['vqgan', 1, 1],
  ];
  const lines = ['text', 'text 1', 'vqgan', 'vqgan 1'];
  assert.deepEqual(told(copy, { prior: 0, decoder: 0 }), lines);
});

const image = { width: 1, height: 1, data: new Uint8Array(4) };

/** The events of a job that makes these steps. */
async function eventsOf(
  world: World,
  steps: World['cpu']['steps'],
  options: Partial<GenerateOptions>,
): Promise<GenerateEvent[]> {
  await using engine = await world.load();
  world.cpu.steps = steps;
  const events: GenerateEvent[] = [];
  const onProgress = (event: GenerateEvent) => events.push(event);
  await engine.generate({ prompt: 'a', format: 'blob', ...options, onProgress });
  return events;
}

const stages = (events: GenerateEvent[]) =>
  events.flatMap((event) => (event.type === 'stage' ? event.stage : []));

const overall = (events: GenerateEvent[]) =>
  events.flatMap((event) => (event.type === 'step' ? event.overall : []));

test('a job that reproduces its picture tells its stages and steps up to the whole', async () => {
  const copy = { image, strength: 0 };
  const steps: World['cpu']['steps'] = [['text', 1, 1], ...stepsOf('decoder', 2), ['vqgan', 1, 1]];
  const events = await eventsOf(new World(), steps, copy);
  assert.deepEqual(stages(events), ['text', 'decoder', 'vqgan']);
  assert.deepEqual(overall(events), [0.25, 0.5, 0.75, 1]);

  // Stage B over tokens has nothing to do either.
  const world = new World();
  const manifest = makeManifest();
  const defaults = { ...manifest.defaults, temperature: 1 };
  world.server.answers.set(MODEL_URL, () => Response.json({ ...manifest, defaults }));
  const few = await eventsOf(world, [steps[0]!, ['vqgan', 1, 1]], copy);
  assert.deepEqual(stages(few), ['text', 'vqgan']);
  assert.deepEqual(overall(few), [0.5, 1]);
});

test('the plan has the steps of the prior that a strength leaves', async () => {
  const priorSteps = async (options: Partial<GenerateOptions>) => {
    const [share = 0] = overall(await eventsOf(new World(), [['text', 1, 1]], options));
    // Besides, there are steps of the text encoder, the decoder and Stage A.
    return Math.round(1 / share) - 4;
  };
  assert.equal(await priorSteps({ priorSteps: 10 }), 10);
  assert.equal(await priorSteps({ priorSteps: 10, image }), 8);
  assert.equal(await priorSteps({ priorSteps: 10, image, mask: image }), 10);
  assert.equal(await priorSteps({ priorSteps: 10, image, strength: 0.35 }), 4);
  const timesteps = [1, 0.5, 0.25, 0];
  assert.equal(await priorSteps({ timesteps }), 3);
  assert.equal(await priorSteps({ timesteps, image, strength: 0.5 }), 2);
  assert.equal(await priorSteps({ timesteps, image, strength: 0 }), 0);
});
