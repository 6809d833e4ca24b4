// Notices: errors and what to do about them, and which device computes and why.

import type { Support, Wuerstchen } from 'wuerstchen-web';
import { WuerstchenError } from 'wuerstchen-web';
import { element, entry, formatBytes, make, sentence } from './dom';

/** For each error a title, and advice for errors that have no hint of their own. */
const ADVICE: Readonly<Record<WuerstchenError['code'], readonly [string, string]>> = {
  unsupported: [
    'This browser cannot run the model',
    'Choose “Automatic” as the device, or try a current Chrome, Edge, Firefox or Safari.',
  ],
  'out-of-memory': [
    'The memory did not suffice',
    'Close other tabs, make fewer or smaller pictures, or choose “CPU” as the device.',
  ],
  'device-lost': [
    'The GPU went away twice',
    'The driver may have been reset. Try again, or choose “CPU” as the device.',
  ],
  network: [
    'The model could not be fetched',
    'Check the connection and try again; files that have arrived whole are kept.',
  ],
  integrity: [
    'The model’s files are not what they should be',
    'Try again. If it stays so, the files on the server are damaged or mixed up.',
  ],
  quota: [
    'There is no space left to store the model',
    'Free some space in this browser; without it, the model is fetched at every visit.',
  ],
  'invalid-argument': ['This cannot be made', 'Change the settings named here.'],
  shader: [
    'The GPU computed something wrong',
    'Nothing wrong is shown. Update the browser or driver, or choose “CPU” as the device.',
  ],
  disposed: ['The model was put away', 'Try again: it will be loaded anew.'],
  internal: ['Something broke inside', 'Reload the page. If it comes back, please report it.'],
};

const errorBanner = element('error', HTMLElement);
const noticeBanner = element('notice', HTMLElement);

export function showError(error: unknown, retry: () => void): void {
  const known = error instanceof WuerstchenError ? error : undefined;
  const [title, advice] = ADVICE[known?.code ?? 'internal'];
  const message = error instanceof Error ? error.message : String(error);
  const again = known === undefined || known.retryable;
  fill(errorBanner, title, [sentence(message), adviceOn(known, advice)], again ? retry : undefined);
}

/** What the visitor can do. Most hints of the package are for those who build a page with it. */
function adviceOn(error: WuerstchenError | undefined, usual: string): string {
  if (error?.code === 'unsupported' && !isSecureContext) {
    return 'Open the page by an address that begins with https, or on the machine that serves it.';
  }
  return error?.code === 'invalid-argument' && error.hint ? sentence(error.hint) : usual;
}

export function showNotice(title: string, text: string): void {
  fill(noticeBanner, title, [text]);
}

export function hideError(): void {
  errorBanner.hidden = true;
}

function fill(banner: HTMLElement, title: string, texts: string[], retry?: () => void): void {
  const button = (text: string, act?: () => void) => {
    const node = make('button', { type: 'button' }, text);
    node.addEventListener('click', () => {
      banner.hidden = true;
      // The focus must not go with the button.
      element('generate', HTMLButtonElement).focus({ preventScroll: true });
      act?.();
    });
    return node;
  };
  const actions = make('div', { className: 'actions' });
  if (retry) actions.append(button('Try again', retry));
  actions.append(button('Dismiss'));
  const paragraphs = texts.map((text) => make('p', {}, text));
  banner.replaceChildren(make('h2', {}, title), ...paragraphs, actions);
  banner.hidden = false;
  banner.scrollIntoView({ block: 'nearest' });
}

const KINDS = { webgpu: 'GPU through WebGPU', cpu: 'CPU through WebAssembly' } as const;

/** Shows the device that would compute, or that computes once there is an engine. */
export function showDevice(support: Support, engine?: Wuerstchen): void {
  const device = engine?.device ?? support.device;
  const { adapter, limits, features, storage } = support;
  element('device-summary', HTMLElement).textContent = !support.ok
    ? 'Nothing here can run the model'
    : `${engine ? 'Runs' : 'Will run'} on this device’s ${KINDS[device]}`;
  element('device-message', HTMLElement).textContent = support.message;

  const facts: [string, string][] = [];
  if (adapter) {
    const name = adapter.description || `${adapter.vendor} ${adapter.architecture}`.trim();
    facts.push(['Graphics adapter', `${name || 'unnamed'}${adapter.software ? ', software' : ''}`]);
    const extras = [features.shaderF16 && 'f16', features.subgroups && 'subgroups'];
    facts.push(['Shader features', extras.filter(Boolean).join(', ') || 'basic']);
  }
  if (support.threads) facts.push(['Threads', String(support.threads)]);
  if (limits) facts.push(['Largest buffer', formatBytes(limits.maxBufferSize)]);
  const { backend, free } = storage;
  const place = { opfs: 'private file system', cache: 'browser cache', memory: 'memory only' };
  facts.push(['Keeps the model in', place[backend]]);
  if (free !== undefined) facts.push(['Space left', formatBytes(free)]);
  if (engine) {
    const { ok, maxError, checks } = engine.selfTest;
    facts.push(['Self-test', `${ok ? 'passed' : 'failed'}, ${checks.length} checks`]);
    facts.push(['Largest relative error', maxError.toExponential(1)]);
  }
  element('device-facts', HTMLDListElement).replaceChildren(...facts.map(([k, v]) => entry(k, v)));
}
