// Builds the scripts of dist/ from js/ and from the glue that wasm-bindgen made in pkg/.

import { execFileSync } from 'node:child_process';
import { copyFileSync, existsSync, readFileSync, rmSync } from 'node:fs';
import { fileURLToPath } from 'node:url';
import { gzipSync } from 'node:zlib';

import { build } from 'esbuild';

const DEVICES = ['cpu', 'webgpu'];

/** Compressed bytes of index.js and what it imports: what every page of a user loads. */
const INDEX_BUDGET = 13 * 1024;

/** The same of each thin entry, which imports index.js. */
const ENTRY_BUDGET = 2 * 1024;
const THIN_ENTRIES = ['react', 'element'];

const path = (name) => fileURLToPath(new URL(name, import.meta.url));
const glue = (device) => path(`pkg/${device}/wuerstchen_web_bg.js`);

function checkInputs() {
  const missing = DEVICES.map(glue).filter((file) => !existsSync(file));
  if (missing.length > 0) {
    console.error(`wasm-bindgen has to make these first:\n  ${missing.join('\n  ')}`);
    process.exit(1);
  }
}

async function bundle() {
  const options = {
    bundle: true,
    format: 'esm',
    target: 'es2022',
    minify: true,
    outdir: path('dist'),
    alias: Object.fromEntries(DEVICES.map((device) => [`wuerstchen-wasm/${device}`, glue(device)])),
    logLevel: 'warning',
  };
  // One class of errors for both entries, hence one file that they share.
  await build({
    ...options,
    entryPoints: [path('js/index.ts'), path('js/core.ts')],
    splitting: true,
    chunkNames: 'shared',
  });
  await build({ ...options, entryPoints: [path('js/worker.ts')] });
  const external = ['./index.js', 'react'];
  const keep = ({ path }) => (external.includes(path) ? { path, external: true } : undefined);
  const plugins = [{ name: 'external', setup: (build) => build.onResolve({ filter: /./ }, keep) }];
  const entryPoints = THIN_ENTRIES.map((name) => path(`js/${name}.ts`));
  await build({ ...options, entryPoints, plugins });
}

/** What is lost here breaks only in the bundles of our users. */
function checkLiterals() {
  const wanted = {
    'index.js': [/new Worker\(new URL\("\.\/worker\.js",import\.meta\.url\),\{type:"module"\}\)/],
    'core.js': DEVICES.flatMap(urlLiterals),
    'worker.js': DEVICES.flatMap(urlLiterals),
  };
  for (const [file, literals] of Object.entries(wanted)) {
    const code = readFileSync(path(`dist/${file}`), 'utf8');
    for (const literal of literals) {
      if (!literal.test(code)) throw new Error(`dist/${file} has no ${literal}`);
    }
    if (code.includes('web_bg.wasm')) throw new Error(`dist/${file} has the glue's default`);
  }
}

function urlLiterals(device) {
  return ['bg', 'rest'].map(
    (part) =>
      new RegExp(`new URL\\("\\./wuerstchen_${device}_${part}\\.wasm",import\\.meta\\.url\\)`),
  );
}

const compressed = (file) => gzipSync(readFileSync(path(file))).length;

checkInputs();
rmSync(path('dist'), { recursive: true, force: true });
await bundle();
checkLiterals();
const index = compressed('dist/index.js') + compressed('dist/shared.js');
console.log(`index.js with shared.js: ${index} bytes gzip of ${INDEX_BUDGET}`);
if (index > INDEX_BUDGET) throw new Error('index.js with shared.js is over its budget');
for (const name of THIN_ENTRIES) {
  const bytes = compressed(`dist/${name}.js`);
  console.log(`${name}.js: ${bytes} bytes gzip of ${ENTRY_BUDGET}`);
  if (bytes > ENTRY_BUDGET) throw new Error(`${name}.js is over its budget`);
}
execFileSync(process.execPath, [path('node_modules/typescript/bin/tsc'), '--emitDeclarationOnly'], {
  cwd: path('.'),
  stdio: 'inherit',
});
// tsc leaves hand-written declarations where they are.
copyFileSync(path('js/wasm.d.ts'), path('dist/wasm.d.ts'));
for (const licence of ['LICENSE-MIT', 'LICENSE-APACHE']) {
  copyFileSync(path(`../${licence}`), path(licence));
}
for (const file of ['worker.js', 'core.js']) {
  console.log(`${file}: ${compressed(`dist/${file}`)} bytes gzip`);
}
