// The worker that `load` starts: the engine in a thread of its own.

import { toErrorData, WuerstchenError } from './errors.js';
import { builds } from './glue.js';
import { serve, type Endpoint } from './serve.js';

const endpoint = globalThis as unknown as Endpoint;
serve(endpoint, { builds, fetch: (...request) => fetch(...request), mayBlock: true });

// The rest of the code that could not be fetched: what called it never settles.
addEventListener('error', (event) => {
  if (!(event.error instanceof WuerstchenError)) return;
  event.preventDefault();
  endpoint.postMessage({ type: 'failed', error: toErrorData(event.error), isBroken: true }, []);
});
