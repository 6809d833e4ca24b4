// How threads divide tasks among them: numbers from 0 up, for each of which the program calls one function.

/** Calls the function of a task, which Rust knows by two addresses. */
export type Call = (data: number, vtable: number, task: number) => void;

// What all threads share: words of 32 bits.
/**
 * The round in the upper bits, the number of the next task in the lower ones. Between rounds, that number is
 * {@link CLOSED}.
 */
const TICKET = 0;
/** Number of tasks of the round, and their function. */
const TASKS = 1;
const DATA = 2;
const VTABLE = 3;
/** Number of tasks of the round that other threads than the first have finished. */
const FINISHED = 4;
/** Changes with every round. */
const ROUND = 5;
/** Number of threads that sleep until it changes. */
const SLEEPERS = 6;
/** Whether a task has failed on another thread than the first. */
const FAILED = 7;
const WORDS = 8;

const TASK_BITS = 16;
const CLOSED = (1 << TASK_BITS) - 1;
const ROUNDS = 1 << (32 - TASK_BITS);

/** How often a thread looks for work before it sleeps; this takes about as long as waking up. */
const LOOKS = 4000;

/** What {@link Tasks} and {@link serveTasks} share. */
export function newBoard(): Int32Array {
  const board = new Int32Array(new SharedArrayBuffer(WORDS * Int32Array.BYTES_PER_ELEMENT));
  board[TICKET] = CLOSED;
  return board;
}

/** The first thread, which has tasks. */
export class Tasks {
  #round = 0;

  constructor(
    private readonly board: Int32Array,
    private readonly call: Call,
  ) {}

  /** Runs all tasks, on any thread. None is running any more when it returns or throws. */
  run(tasks: number, data: number, vtable: number): void {
    const { board, call } = this;
    if (tasks > CLOSED) {
      for (let task = 0; task < tasks; task++) call(data, vtable, task);
      return;
    }
    // While the round is closed no task can be taken, so that no thread uses these.
    Atomics.store(board, TASKS, tasks);
    Atomics.store(board, DATA, data);
    Atomics.store(board, VTABLE, vtable);
    Atomics.store(board, FINISHED, 0);
    this.#round = (this.#round + 1) % ROUNDS;
    Atomics.store(board, TICKET, this.#round << TASK_BITS);
    Atomics.add(board, ROUND, 1);
    if (Atomics.load(board, SLEEPERS) > 0) Atomics.notify(board, ROUND);
    let own = 0;
    try {
      for (let task = take(board); task !== undefined; task = take(board)) {
        own += 1;
        call(data, vtable, task);
      }
    } finally {
      const taken = Atomics.or(board, TICKET, CLOSED) & CLOSED;
      awaitFinished(board, taken - own);
    }
    if (Atomics.load(board, FAILED)) throw new WebAssembly.RuntimeError('a thread has failed');
  }
}

/** Runs tasks on another thread until its worker is terminated. */
export function serveTasks(board: Int32Array, call: Call): never {
  for (;;) {
    const round = Atomics.load(board, ROUND);
    for (let task = take(board); task !== undefined; task = take(board)) {
      try {
        call(Atomics.load(board, DATA), Atomics.load(board, VTABLE), task);
      } catch (error) {
        console.error(error);
        Atomics.store(board, FAILED, 1);
      }
      Atomics.add(board, FINISHED, 1);
      Atomics.notify(board, FINISHED);
    }
    for (let looks = 0; looks < LOOKS && Atomics.load(board, ROUND) === round; looks++);
    Atomics.add(board, SLEEPERS, 1);
    // Chromium takes two seconds to end a worker that blocks. With `waitAsync`, now and then one never ended.
    Atomics.wait(board, ROUND, round);
    Atomics.sub(board, SLEEPERS, 1);
  }
}

/** The number of a task that nobody else has taken. As long as it runs, the round stays as it is. */
function take(board: Int32Array): number | undefined {
  for (;;) {
    const ticket = Atomics.load(board, TICKET);
    const task = ticket & CLOSED;
    if (task >= Atomics.load(board, TASKS)) return undefined;
    if (Atomics.compareExchange(board, TICKET, ticket, ticket + 1) === ticket) return task;
  }
}

function awaitFinished(board: Int32Array, count: number): void {
  for (let looks = 0; ; looks++) {
    const finished = Atomics.load(board, FINISHED);
    if (finished === count) return;
    if (looks > LOOKS) Atomics.wait(board, FINISHED, finished);
  }
}
