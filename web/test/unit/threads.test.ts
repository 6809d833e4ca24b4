// How threads divide tasks, and the memory that they share, in threads of Node.

import assert from 'node:assert/strict';
import { execFileSync } from 'node:child_process';
import { mkdtempSync, readFileSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { test } from 'node:test';
import { isMainThread, Worker, workerData } from 'node:worker_threads';

import { MAX_PAGES, withSharedMemory } from '../../js/shared-memory.js';
import { newBoard, serveTasks, Tasks, type Call } from '../../js/tasks.js';

/** What a thread of these tests gets. */
interface Work {
  readonly board: Int32Array;
  readonly counts: Int32Array;
  /** How many tasks other threads than the first have run. */
  readonly helped: Int32Array;
}

/** Each task counts its calls, and what it is given. Some last longer than others. */
function counter({ counts, helped }: Work, isMain: boolean): Call {
  return (data, vtable, task) => {
    if (vtable !== data + 1) throw new Error('the two halves of a function do not fit');
    if (data < 0 && !isMain) throw new Error('on purpose');
    for (let i = 0; i < (task % 7) * 100; i++) Atomics.load(counts, 0);
    Atomics.add(counts, task, data);
    if (!isMain) Atomics.add(helped, 0, 1);
  };
}

if (isMainThread) {
  await tests();
} else {
  const work = workerData as Work;
  serveTasks(work.board, counter(work, false));
}

function open(threads: number, size: number) {
  const work: Work = {
    board: newBoard(),
    counts: new Int32Array(new SharedArrayBuffer(4 * size)),
    helped: new Int32Array(new SharedArrayBuffer(4)),
  };
  const workers = Array.from(
    { length: threads - 1 },
    () => new Worker(new URL(import.meta.url), { workerData: work, stderr: true }),
  );
  const tasks = new Tasks(work.board, counter(work, true));
  return { ...work, tasks, close: () => Promise.all(workers.map((worker) => worker.terminate())) };
}

async function tests() {
  for (const threads of [1, 2, 4]) {
    test(`with ${threads} threads each task runs once`, async () => {
      const { tasks, counts, close } = open(threads, 5000);
      let expected = 0;
      for (let round = 0; round < 20_000; round++) {
        const number = round % 50 === 0 ? 5000 : round % 9;
        tasks.run(number, round, round + 1);
        expected += number * round;
        // The last round of all tasks is complete when it returns.
        if (round % 1000 !== 0) continue;
        const sum = counts.reduce((sum, count) => sum + count, 0);
        assert.equal(sum, expected, `after round ${round}`);
      }
      await close();
      assert.equal(
        counts.reduce((sum, count) => sum + count, 0),
        expected,
      );
      // Those from 8 up only run in the rounds of all tasks.
      assert.ok(counts.subarray(8).every((count) => count === counts[8]));
    });
  }

  test('a thread that has slept helps again, whatever the number of tasks', async () => {
    const { tasks, counts, helped, close } = open(2, 20_000);
    for (let time = 1; time <= 3; time++) {
      const before = Number(helped[0]);
      // A thread may take a while to start, and to wake up.
      for (let round = 0; Number(helped[0]) === before; round++) {
        assert.ok(round < 10_000, 'the other thread does not help');
        tasks.run(20_000, 1, 2);
      }
      await new Promise((done) => setTimeout(done, 100));
    }
    assert.ok(counts.every((count) => count === counts[0]));
    await close();
  });

  test('a task that fails on another thread fails the round', async () => {
    const { tasks, close } = open(2, 4000);
    const failing = () => {
      // It may take a few rounds until the other thread has started.
      for (let round = 0; round < 10_000; round++) tasks.run(4000, -5, -4);
    };
    assert.throws(failing, /a thread has failed/);
    await close();
  });

  test('a task that fails on the first thread ends the round', async () => {
    const { tasks, counts, close } = open(2, 1000);
    assert.throws(() => tasks.run(1000, 3, 3), /do not fit|a thread has failed/);
    tasks.run(0, 1, 2);
    assert.equal(counts[0], 0);
    await close();
  });

  test('instances share a memory that was their own', () => {
    const folder = mkdtempSync(join(tmpdir(), 'wuerstchen-shared-'));
    const text = `(module
      (import "a" "note" (func $note (param i32)))
      (import "a" "table" (table 1 funcref))
      (import "a" "global" (global $global i32))
      (memory (export "memory") 3)
      (data (i32.const 8) "\\2a")
      (func (export "store") (param i32 i32) (i32.store (local.get 0) (local.get 1)))
      (func (export "load") (param i32) (result i32)
        (call $note (global.get $global)) (i32.load8_u (local.get 0))))`;
    const importing = `(module
      (import "first" "store" (func $store (param i32 i32)))
      (import "first" "memory" (memory 3))
      (func (export "set") (call $store (i32.const 600) (i32.const 77))))`;
    const assembled = (name: string, source: string) => {
      const file = join(folder, name);
      writeFileSync(`${file}.wat`, source);
      const assembler = 'node_modules/binaryen/bin/wasm-as';
      const features = ['--enable-reference-types', '--enable-mutable-globals'];
      execFileSync(process.execPath, [assembler, ...features, `${file}.wat`, '-o', file]);
      return withSharedMemory(readFileSync(file));
    };
    const { bytes, pages } = assembled('own', text);
    assert.equal(pages, 3);
    const memory = new WebAssembly.Memory({ initial: pages, maximum: MAX_PAGES, shared: true });
    const notes: number[] = [];
    const table = new WebAssembly.Table({ initial: 1, element: 'anyfunc' });
    const a = { note: (value: number) => notes.push(value), table, global: 9 };
    const instance = () =>
      new WebAssembly.Instance(new WebAssembly.Module(bytes), { a, threads: { memory } }).exports;
    const [one, two] = [instance(), instance()];
    const [store, load] = [one['store'], two['load']] as ((...values: number[]) => number)[];
    assert.equal(one['memory'], memory);
    store?.(500, 12);
    assert.deepEqual([load?.(8), load?.(500), notes], [0x2a, 12, [9, 9]]);

    const other = assembled('imported', importing);
    assert.equal(other.pages, 3);
    const imports = { first: one as WebAssembly.ModuleImports, threads: { memory } };
    const rest = new WebAssembly.Instance(new WebAssembly.Module(other.bytes), imports);
    (rest.exports['set'] as () => void)();
    assert.equal(load?.(600), 77);
  });
}
