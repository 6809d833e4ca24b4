// Builds dist/ from js/ and from what wasm-bindgen made in pkg/.

import { execFileSync } from 'node:child_process';
import { copyFileSync, existsSync, readFileSync, rmSync } from 'node:fs';
import { fileURLToPath } from 'node:url';
import { gzipSync } from 'node:zlib';

import { build } from 'esbuild';

const DEVICES = ['cpu', 'webgpu'];

/** Compressed bytes of index.js and what it imports: what every page of a user loads. */
const INDEX_BUDGET = 12 * 1024;

/** Compressed bytes of the WebAssembly files. The larger one holds the shader compiler. */
const WASM_BUDGETS = { cpu: 2.0e6, webgpu: 4.0e6 };

const path = (name) => fileURLToPath(new URL(name, import.meta.url));
const glue = (device) => path(`pkg/${device}/wuerstchen_web.js`);
const wasm = (device) => path(`pkg/${device}/wuerstchen_web_bg.wasm`);

/** Takes out where the glue would look for its file: bundlers of our users would trace it. */
const withoutDefaultUrl = {
  name: 'without-default-url',
  setup({ onLoad }) {
    onLoad({ filter: /wuerstchen_web\.js$/ }, ({ path }) => ({
      contents: readFileSync(path, 'utf8').replace(
        /new URL\((['"])wuerstchen_web_bg\.wasm\1, import\.meta\.url\)/,
        'undefined',
      ),
    }));
  },
};

function checkInputs() {
  const missing = DEVICES.flatMap((device) => [glue(device), wasm(device)]).filter(
    (file) => !existsSync(file),
  );
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
    plugins: [withoutDefaultUrl],
    metafile: true,
    logLevel: 'warning',
  };
  // One class of errors for both entries, hence one file that they share.
  const entries = await build({
    ...options,
    entryPoints: [path('js/index.ts'), path('js/core.ts')],
    splitting: true,
    chunkNames: 'shared',
  });
  await build({ ...options, entryPoints: [path('js/worker.ts')] });
  return entries.metafile;
}

/** What is lost here breaks only in the bundles of our users. */
function checkLiterals() {
  const wanted = {
    'index.js': [/new Worker\(new URL\("\.\/worker\.js",import\.meta\.url\),\{type:"module"\}\)/],
    'core.js': DEVICES.map(urlLiteral),
    'worker.js': DEVICES.map(urlLiteral),
  };
  for (const [file, literals] of Object.entries(wanted)) {
    const code = readFileSync(path(`dist/${file}`), 'utf8');
    for (const literal of literals) {
      if (!literal.test(code)) throw new Error(`dist/${file} has no ${literal}`);
    }
    if (code.includes('web_bg.wasm')) throw new Error(`dist/${file} has the glue's default`);
  }
}

function urlLiteral(device) {
  return new RegExp(`new URL\\("\\./wuerstchen_${device}_bg\\.wasm",import\\.meta\\.url\\)`);
}

const compressed = (file) => gzipSync(readFileSync(file)).length;

function checkBudget(what, size, budget) {
  console.log(`${what}: ${size} bytes gzip of ${budget}`);
  if (size > budget) throw new Error(`${what} is over its budget`);
}

checkInputs();
rmSync(path('dist'), { recursive: true, force: true });
await bundle();
checkLiterals();
const index = compressed(path('dist/index.js')) + compressed(path('dist/shared.js'));
checkBudget('index.js with shared.js', index, INDEX_BUDGET);
execFileSync(process.execPath, [path('node_modules/typescript/bin/tsc'), '--emitDeclarationOnly'], {
  cwd: path('.'),
  stdio: 'inherit',
});
// tsc leaves hand-written declarations where they are.
copyFileSync(path('js/wasm.d.ts'), path('dist/wasm.d.ts'));
for (const device of DEVICES) copyFileSync(wasm(device), path(`dist/wuerstchen_${device}_bg.wasm`));
for (const licence of ['LICENSE-MIT', 'LICENSE-APACHE']) {
  copyFileSync(path(`../${licence}`), path(licence));
}
for (const file of ['worker.js', 'core.js']) {
  console.log(`${file}: ${compressed(path(`dist/${file}`))} bytes gzip`);
}
for (const device of DEVICES) {
  checkBudget(`WebAssembly for ${device}`, compressed(wasm(device)), WASM_BUDGETS[device]);
}
