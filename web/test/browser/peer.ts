// Times three networks on both paths beside onnxruntime-web, in the same page of the same Chromium,
// and prints JSON: `npm run bench:peer`, or `npm run bench:peer -- cpu` for one device. Needs the
// networks, which tests/golden/reference/make_networks.py writes into target/networks.

import { execFileSync } from 'node:child_process';
import { existsSync } from 'node:fs';
import { launch, program, Site } from './site.ts';

const NETWORKS = '../target/networks';

/** Most that a relative error between two sums of the same f32 in other orders may be. */
const MAX_ERROR = 1e-3;

/** Of a software GPU; one round takes minutes. */
const ROUNDS = { cpu: 10, webgpu: 1 };

interface Result {
  readonly error?: string;
  readonly meanPictureDifference: number;
  readonly selfTestMaxError: number;
  readonly networks: Record<
    string,
    { readonly onnxruntime: { readonly relativeErrorToPyTorch: number } }
  >;
}

if (!existsSync(`${NETWORKS}/golden`)) {
  console.error(
    'no networks: python tests/golden/reference/make_networks.py --out target/networks',
  );
  process.exit(1);
}
if (!existsSync(`${NETWORKS}/web/manifest.json`)) {
  const args = ['export', 'web', '-m', NETWORKS, '-o', `${NETWORKS}/web`, '--dtype', 'f32'];
  execFileSync(program, [...args, '--preview-pictures', '0'], { stdio: 'ignore' });
}
// Ours against PyTorch; the program fails where a bound is passed. What the browser makes is compared
// with the native program's by the self-test.
const verify = ['verify', NETWORKS, '--device', 'cpu', '--json'];
const { checks } = JSON.parse(execFileSync(program, verify, { encoding: 'utf8' }));
const nativeErrors = checks.map(({ file, name, relative }: any) => [`${file}/${name}`, relative]);

const site = await Site.open('..');
const results: Record<string, unknown> = { nativeRelativeErrors: Object.fromEntries(nativeErrors) };
const browser = await launch();
const devices = process.argv.slice(2);
let agree = true;
for (const device of devices.length > 0 ? devices : Object.keys(ROUNDS)) {
  const page = await browser.newPage();
  const rounds = ROUNDS[device as keyof typeof ROUNDS];
  await page.goto(`${site.url}web/test/browser/peer.html?device=${device}&rounds=${rounds}`);
  await page.waitForFunction('window.peerResult', undefined, { timeout: 0 });
  const result: Result = await page.evaluate('window.peerResult');
  await page.close();
  results[device] = result;
  const errors = Object.values(result.networks ?? {}).map(
    (network) => network.onnxruntime.relativeErrorToPyTorch,
  );
  agree &&=
    !result.error &&
    result.meanPictureDifference < 1 &&
    [...errors, result.selfTestMaxError].every((error) => error < MAX_ERROR);
}
console.log(JSON.stringify(results, null, 2));
await browser.close();
site.close();
if (!agree) {
  console.error('the two do not compute the same');
  process.exit(1);
}
