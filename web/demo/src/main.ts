// The page: looks at the device and the model, loads the model and makes pictures, one job at a time.

import type {
  LoadOptions,
  ModelInfo,
  ModelRef,
  Precision,
  Support,
  Tiling,
  Unread,
  Wuerstchen,
} from 'wuerstchen-web';
import { checkSupport, inspect, load, WuerstchenError } from 'wuerstchen-web';
import { runBenchmark } from './benchmark';
import { element, formatBytes, sentence } from './dom';
import { explain } from './explain';
import { downloadPng, initHistory, remember } from './history';
import {
  addLikenesses,
  initLikenesses,
  isAmongLikenesses,
  offerLikenesses,
  readLikenesses,
} from './likenesses';
import { hideError, showDevice, showError, showNotice } from './notices';
import { allowOwn, initOwn, readLoras, rememberedModel, rememberModel, showOwn } from './own';
import { expect, initFilm, settle, showPictures, showPreview } from './picture';
import { finish, followLoad, followRun, say, showModel, STAGE_NAMES } from './progress';
import {
  clearFieldError,
  drawSeed,
  initForm,
  linkTo,
  lockSeed,
  offerDefaults,
  readSettings,
  settingsFromLink,
  showInvalidArgument,
  titleOf,
  writeSettings,
  type Settings,
} from './settings';
import { initSource, readSource, startFrom } from './source';
import { initStorage, keepForOffline, showStorage } from './storage';
import { initTheme } from './theme';
import { offerWords } from './words';

type State = 'idle' | 'loading' | 'ready' | 'busy' | 'error';

const link = new URL(location.href);
let model: ModelRef = modelFromLink();
const generate = element('generate', HTMLButtonElement);
const stop = element('stop', HTMLButtonElement);
const loadButton = element('load', HTMLButtonElement);
const device = element('device', HTMLSelectElement);
const actions = element('actions', HTMLDivElement);

/** Most letters of a prompt's unread end that are shown. */
const SHOWN_LETTERS = 80;

let info: ModelInfo | undefined;
let support: Support | undefined;
let engine: Wuerstchen | undefined;
let job: AbortController | undefined;
/** The picture that the buttons below it act on. */
let shown: { settings: Settings; png: Blob; index: number; besides: string[] } | undefined;
/** Whether the last look at the model failed; the button to load it then looks again. */
let isLost = false;

/** The built-in model, or another one of this site. */
function modelFromLink(): URL {
  const builtIn = new URL('model/manifest.json', document.baseURI);
  const named = link.searchParams.get('model');
  const url =
    named !== null && URL.canParse(named, document.baseURI)
      ? new URL(named, document.baseURI)
      : builtIn;
  return url.origin === location.origin ? url : builtIn;
}

function setState(state: State): void {
  document.documentElement.dataset.state = state;
  const running = state === 'loading' || state === 'busy';
  const focused = document.activeElement;
  generate.hidden = running;
  stop.hidden = !running;
  const isOffered = isLost || (info !== undefined && support?.ok === true);
  loadButton.hidden = running || engine !== undefined || !isOffered;
  device.disabled = running;
  allowOwn(!running);
  // When the focused button goes, the focus must move to another element.
  if (running && (focused === generate || focused === loadButton))
    stop.focus({ preventScroll: true });
  if (!running && focused === stop) generate.focus({ preventScroll: true });
}

/** Runs one job; a second one is refused, not queued. "Try again" calls `again`. */
async function run(work: (signal: AbortSignal) => Promise<void>, again: () => void): Promise<void> {
  if (job) return;
  job = new AbortController();
  const { signal } = job;
  const wake = await navigator.wakeLock?.request('screen').catch(() => undefined);
  hideError();
  say('');
  try {
    await work(signal);
    setState(engine ? 'ready' : 'idle');
  } catch (error) {
    if (signal.aborted) {
      setState(engine ? 'ready' : 'idle');
    } else {
      finish('That did not work.');
      setState('error');
      const known = error instanceof WuerstchenError ? error : undefined;
      const isShown = known?.field !== undefined && showInvalidArgument(known.field, known.message);
      if (!isShown) showError(error, again);
    }
  } finally {
    job = undefined;
    await wake?.release();
  }
}

/** Looks at the device and the model, as far as that needs no download. */
async function look(signal: AbortSignal): Promise<void> {
  support = await checkSupport();
  showDevice(support);
  await showStorage();
  isLost = false;
  try {
    info = await inspect(model, { signal });
  } catch (error) {
    isLost = true;
    if (!engine) {
      element('load-title', HTMLElement).textContent = 'The model was not found';
      element('load-text', HTMLElement).textContent = '';
      loadButton.textContent = 'Look again';
    }
    throw error;
  }
  showOwn(!(model instanceof URL));
  showModel(info);
  offerDefaults(info.defaults);
  offerLikenesses(info.picturePrompts);
  element('model-line', HTMLElement).textContent =
    `Model ${info.name}. ${sentence(info.provenance.replace(/`([^`]*)`/g, '“$1”'))} Licence: ${info.licence}.`;
  offerLoad(info);
}

function offerLoad({ bytes, cachedBytes }: ModelInfo): void {
  const missing = bytes - cachedBytes;
  const title = element('load-title', HTMLElement);
  const text = element('load-text', HTMLElement);
  if (support?.ok !== true) {
    title.textContent = 'Nothing here can run the model';
    text.textContent = support?.message ?? '';
    return;
  }
  title.textContent = missing === 0 ? 'The model is here' : 'From three small models, a picture';
  const { connection } = navigator as { connection?: { saveData?: boolean } };
  const stored = cachedBytes > 0 ? ` ${formatBytes(cachedBytes)} of it are stored here.` : '';
  const saving = connection?.saveData ? ' Data saving is on: nothing loads unless you ask.' : '';
  text.textContent =
    missing === 0
      ? 'It is stored in this browser; nothing needs to be downloaded.'
      : `They are fetched once, then kept in this browser.${stored}${saving}`;
  loadButton.textContent =
    missing === 0 ? 'Load the model' : `Load the model (${formatBytes(missing)})`;
}

function loadOptions(): Pick<LoadOptions, 'model' | 'lora' | 'device'> {
  const lora = readLoras();
  return { model, lora, device: device.value as NonNullable<LoadOptions['device']> };
}

async function loadEngine(signal: AbortSignal): Promise<Wuerstchen> {
  if (engine && engine.state !== 'disposed') return engine;
  engine = undefined;
  setState('loading');
  if (!info) await look(signal);
  try {
    const notes: string[] = [];
    const onProgress = followLoad((note) => notes.push(note));
    const loaded = await load({ ...loadOptions(), signal, onProgress });
    const { storage, message } = loaded.support;
    if (storage.backend === 'memory') {
      notes.push(`The model is gone after this visit. ${sentence(message)}`);
    }
    if (notes.length > 0) showNotice('About this model', notes.map(sentence).join(' '));
    const onGpu = loaded.device === 'webgpu';
    loaded.addEventListener('lost', () => {
      if (onGpu) showNotice('The GPU went away', 'It is being set up anew from the stored model.');
      else showNotice('The computation broke off', 'The model is being loaded anew.');
    });
    loaded.addEventListener('recovered', () => {
      // A job that lost the GPU is repeated.
      const goesOn = onGpu && job ? 'The picture that was interrupted is being made again.' : '';
      showNotice(
        onGpu ? 'The GPU is back' : 'The model is back',
        goesOn || 'Pictures can be made.',
      );
    });
    engine = loaded;
    if (!(model instanceof URL)) rememberModel(loaded.info.id);
    showDevice(loaded.support, loaded);
    element('load-title', HTMLElement).textContent = 'Ready';
    element('load-text', HTMLElement).textContent = 'Write a prompt and press Generate.';
    if (info) showModel(info);
    finish('The model is ready.');
    keepForOffline(loaded.device);
    await showStorage();
    return loaded;
  } catch (error) {
    if (info) showModel(info);
    if (signal.aborted) {
      finish('Loading was stopped; files that have arrived whole are kept.');
      await showStorage();
      info = await inspect(model).catch(() => info);
      if (info) offerLoad(info);
    }
    throw error;
  }
}

const loadModel = () => run(async (signal) => void (await loadEngine(signal)), loadModel);

/** Loads the model anew where one is loaded, or could not be: with other LoRAs, or on another device. */
async function reload(): Promise<void> {
  clearFieldError('lora');
  const hasFailed = document.documentElement.dataset.state === 'error';
  if (!engine && !hasFailed) return;
  await engine?.dispose();
  engine = undefined;
  await loadModel();
}

/** Switches to a model in files, or to the one that the link names. */
async function useModel(files: readonly File[] | undefined): Promise<void> {
  if (job) return;
  const previous = { model, info };
  info = undefined;
  model = files ?? modelFromLink();
  await run(look, () => void useModel(files));
  if (!info) {
    // The model before stays as it is.
    ({ model, info } = previous);
    isLost = info === undefined;
    if (info) offerLoad(info);
    setState(document.documentElement.dataset.state as State);
    return;
  }
  if (!files) rememberModel(undefined);
  await engine?.dispose();
  engine = undefined;
  await loadModel();
}

async function makePictures(): Promise<void> {
  // A visitor who is quicker than the first look at the device and the model must not be refused.
  await started;
  // Enter works while a picture is made, and the form must keep that picture's seed.
  if (job) return;
  const pictures = { ...readSource(), ...readLikenesses() };
  const settings = readSettings(pictures.picturePrompts === undefined);
  if (!settings) return;
  const title = titleOf(settings);
  const besides = whatBesides(Object.keys(pictures));
  await run(async (signal) => {
    const loaded = await loadEngine(signal);
    setState('busy');
    // The picture before stays until the engine has accepted the settings.
    let hasBegun = false;
    const accept = () => {
      if (hasBegun) return;
      hasBegun = true;
      actions.hidden = true;
      expect(settings);
    };
    const progress = followRun();
    try {
      const result = await loaded.generate({
        ...settings,
        ...pictures,
        preview: {},
        intermediates: true,
        format: 'blob',
        signal,
        onProgress(event) {
          progress.onProgress(event);
          if (event.type === 'step' || event.type === 'preview') accept();
          if (event.type !== 'preview') return;
          const step = `${STAGE_NAMES[event.stage]}, step ${event.step}`;
          showPreview(event.bitmap, title, step);
        },
      });
      accept();
      progress.close(result.timings);
      const pngs = result.images;
      const bitmaps = await Promise.all(pngs.map((png) => createImageBitmap(png)));
      const { width, height } = result;
      const complete = { ...settings, width, height };
      showPictures(bitmaps, title, (index) => {
        const [picture, png] = [bitmaps[index], pngs[index]];
        if (!picture || !png) return;
        shown = { settings: complete, png, index, besides };
        actions.hidden = false;
        explain({ prompt: title, picture, index, result, info: loaded.info });
      });
      for (const [index, png] of pngs.entries()) remember(complete, index, png, besides);
      const seconds = (result.timings.total / 1000).toFixed(1);
      finish(`Done in ${seconds} s with seed ${settings.seed}.${told(result.unread)}`);
    } catch (error) {
      const where = progress.close();
      settle();
      if (signal.aborted) finish(`Stopped: ${where}.`);
      throw error;
    }
  }, makePictures);
}

/** What makes a picture besides the settings, which no link carries. */
function whatBesides(pictures: readonly string[]): string[] {
  return [
    pictures.includes('image') ? 'a picture to start from' : '',
    pictures.includes('picturePrompts') ? 'pictures as prompts' : '',
    model instanceof URL ? '' : 'a model of your own',
    readLoras().length > 0 ? 'LoRAs' : '',
  ].filter((text) => text !== '');
}

/** Takes dropped or pasted pictures: as prompts if they land there, else the first one as the picture to start from. */
function takePictures(pictures: readonly File[], place: EventTarget | null): void {
  const [first] = pictures;
  if (isAmongLikenesses(place)) addLikenesses(pictures);
  else if (first) startFrom(first);
}

/** The parts of the prompt that the picture cannot show, as sentences that follow others. */
function told({ unknownWords, cutOff }: Unread): string {
  const unknown = unknownWords.length > 0 ? ` It does not know: ${unknownWords.join(', ')}.` : '';
  const shown = cutOff && [...cutOff].slice(0, SHOWN_LETTERS).join('');
  const rest = shown === cutOff ? '' : '…';
  const cut = shown ? ` The prompt is too long; it did not read “${shown}${rest}”.` : '';
  return unknown + cut;
}

async function start(): Promise<void> {
  const linked = settingsFromLink(link);
  writeSettings(linked);
  drawSeedUnless(linked.seed);
  if (!link.searchParams.has('model')) model = (await rememberedModel()) ?? model;
  await begin();
}

/** Looks at the model, and loads it if it is stored. What has been written into the form stays. */
async function begin(): Promise<void> {
  await run(look, begin);
  if (!info || !support) return;
  if (link.searchParams.has('benchmark')) {
    await run(async () => {
      setState('loading');
      say('Benchmark: loading without the cache');
      device.value = link.searchParams.get('device') ?? device.value;
      // `load` checks their values.
      const tiling = link.searchParams.get('tiling') as Tiling | null;
      const precision = link.searchParams.get('precision') as Precision | null;
      const products = { tiling: tiling ?? undefined, precision: precision ?? undefined };
      await runBenchmark({ ...loadOptions(), ...products }, (done, of) => {
        setState('busy');
        say(`Benchmark: picture ${done + 1} of ${of}`);
      });
      finish('The benchmark is done.');
    }, begin);
  } else if (support.ok && info.cachedBytes === info.bytes) {
    await loadModel();
  }
}

function drawSeedUnless(seed: bigint | undefined): void {
  if (seed === undefined) drawSeed();
  else lockSeed(true);
}

element('controls', HTMLFormElement).addEventListener('submit', (event) => {
  event.preventDefault();
  void makePictures();
});
loadButton.addEventListener('click', loadModel);
stop.addEventListener('click', () => job?.abort());
document.addEventListener('keydown', (event) => {
  if (event.key === 'Escape' && !document.querySelector('dialog[open]')) job?.abort();
});
device.addEventListener('change', reload);
element('download', HTMLButtonElement).addEventListener('click', () => {
  if (shown) downloadPng(shown.png, shown.settings, shown.index);
});
element('vary', HTMLButtonElement).addEventListener('click', () => {
  if (!shown) return;
  startFrom(shown.png);
  say('The next pictures start from this one.');
  element('prompt', HTMLTextAreaElement).focus();
});
element('like', HTMLButtonElement).addEventListener('click', () => {
  if (!shown) return;
  addLikenesses([shown.png]);
  say('The next pictures will be like this one.');
});
element('copy', HTMLButtonElement).addEventListener('click', async () => {
  if (!shown) return;
  const text = linkTo(shown.settings);
  try {
    await navigator.clipboard.writeText(text);
    say(
      shown.besides.length > 0
        ? `The link is copied: it has the settings, but not what else made this picture (${shown.besides.join(', ')}).`
        : 'The link is copied: it makes this picture again.',
    );
  } catch {
    // If the page may not write to the clipboard, the address line holds the link.
    history.replaceState(null, '', text);
    say('The link is in the address line.');
  }
});

initTheme();
initForm();
offerWords(() => model);
initFilm();
initSource();
initLikenesses();
initOwn(useModel, reload, takePictures);
initStorage(function lookAgain() {
  if (engine) return;
  // A picked model is deleted with the storage.
  void (model instanceof URL ? run(look, lookAgain) : useModel(undefined));
});
void initHistory((settings, besides) => {
  writeSettings({ negativePrompt: '', ...settings });
  lockSeed(true);
  generate.focus({ preventScroll: true });
  if (besides.length > 0) say(`This picture was also made with ${besides.join(', ')}.`);
});
addEventListener('hashchange', () => {
  // The address line may hold another link now, or only a place on the page.
  const address = new URL(location.href);
  address.search = '';
  const linked = settingsFromLink(address);
  if (Object.keys(linked).length === 0) return;
  writeSettings(linked);
  drawSeedUnless(linked.seed);
});
const started = start();
