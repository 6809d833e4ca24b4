import { createHash } from 'node:crypto';
import { readdirSync } from 'node:fs';
import { fileURLToPath } from 'node:url';
import { defineConfig, type Plugin } from 'vite';

const here = (path: string) => fileURLToPath(new URL(path, import.meta.url));

/** Writes the names of all emitted files into the service worker, and a version made of them. */
function precache(): Plugin {
  return {
    name: 'precache',
    apply: 'build',
    generateBundle: {
      order: 'post',
      handler(_options, bundle) {
        const worker = bundle['sw.js'];
        if (worker?.type !== 'chunk') throw new Error('the service worker was not built');
        const emitted = Object.values(bundle).filter((output) => output !== worker);
        const files = [...emitted.map((output) => output.fileName), ...readdirSync(here('public'))];
        const hash = createHash('sha256').update(worker.code);
        for (const output of emitted) {
          hash.update(output.fileName);
          hash.update(output.type === 'chunk' ? output.code : output.source);
        }
        const quoted = JSON.stringify(files.sort());
        worker.code = worker.code
          .replace('__FILES__', () => quoted)
          .replace('__VERSION__', () => JSON.stringify(hash.digest('hex').slice(0, 12)));
      },
    },
  };
}

export default defineConfig({
  root: here('.'),
  // Relative, so that the page works under any path.
  base: './',
  plugins: [precache()],
  worker: { format: 'es' },
  build: {
    target: ['chrome123', 'firefox128', 'safari17.5'],
    assetsInlineLimit: 0,
    modulePreload: { polyfill: false },
    rollupOptions: {
      input: { index: here('index.html'), sw: here('src/sw.ts') },
      output: {
        entryFileNames: ({ name }) => (name === 'sw' ? 'sw.js' : 'assets/[name]-[hash].js'),
      },
    },
  },
});
