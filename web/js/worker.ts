// The worker that `load` starts: the engine in a thread of its own, or one of the threads that help it.

import { builds } from './glue.js';
import { serve, type Endpoint } from './serve.js';
import { beThread, THREAD } from './threads.js';

const scope = globalThis as unknown as Endpoint & { readonly name: string };
if (scope.name === THREAD) {
  beThread(globalThis as unknown as Parameters<typeof beThread>[0]);
} else {
  serve(scope, {
    builds,
    fetch: (...request) => fetch(...request),
    mayBlock: true,
  });
}
