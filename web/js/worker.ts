// The worker that `load` starts: the engine in a thread of its own.

import { builds } from './glue.js';
import { serve, type Endpoint } from './serve.js';

serve(globalThis as unknown as Endpoint, {
  builds,
  fetch: (...request) => fetch(...request),
  mayBlock: true,
});
