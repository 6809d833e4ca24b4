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

let info: ModelInfo | undefined;
let support: Support | undefined;
let engine: Wuerstchen | undefined;
let job: AbortController | undefined;
/** The picture that the buttons below it act on. */
let shown: { settings: Settings; png: Blob; index: number; isFromPictures: boolean } | undefined;

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
  loadButton.hidden = running || engine !== undefined || info === undefined;
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
async function look(): Promise<void> {
  support = await checkSupport();
  showDevice(support);
  await showStorage();
  info = await inspect(model);
  showOwn(!(model instanceof URL));
  showModel(info);
  offerDefaults(info.defaults);
  offerLikenesses(info.picturePrompts);
  element('model-line', HTMLElement).textContent =
    `Model ${info.name}. ${sentence(info.provenance)} Licence: ${info.licence}.`;
  offerLoad(info);
}

function offerLoad({ bytes, cachedBytes }: ModelInfo): void {
  const missing = bytes - cachedBytes;
  const title = element('load-title', HTMLElement);
  const text = element('load-text', HTMLElement);
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
  try {
    const notes: string[] = [];
    const onProgress = followLoad((note) => notes.push(note));
    const loaded = await load({ ...loadOptions(), signal, onProgress });
    if (notes.length > 0) showNotice('The model is changed', notes.map(sentence).join(' '));
    loaded.addEventListener('lost', () => {
      showNotice(
        'The GPU went away',
        'It is being set up anew from the stored model; your picture goes on by itself.',
      );
    });
    loaded.addEventListener('recovered', () => {
      showNotice('The GPU is back', 'The picture that was interrupted is being made again.');
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
    if (signal.aborted) finish('Loading was stopped; what has arrived is kept.');
    throw error;
  }
}

const loadModel = () => run(async (signal) => void (await loadEngine(signal)), loadModel);

/** Loads the model anew where one is loaded: with other LoRAs, or on another device. */
async function reload(): Promise<void> {
  if (!engine) return;
  await engine.dispose();
  engine = undefined;
  await loadModel();
}

/** Switches to a model in files, or to the one that the link names. */
async function useModel(files: readonly File[] | undefined): Promise<void> {
  if (job) return;
  await engine?.dispose();
  engine = undefined;
  info = undefined;
  const previous = model;
  model = files ?? modelFromLink();
  if (!files) rememberModel(undefined);
  await run(look, () => void useModel(files));
  if (info) await loadModel();
  else model = previous;
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
  await run(async (signal) => {
    const loaded = await loadEngine(signal);
    setState('busy');
    actions.hidden = true;
    expect(settings);
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
          if (event.type !== 'preview') return;
          const step = `${STAGE_NAMES[event.stage]}, step ${event.step}`;
          showPreview(event.bitmap, title, step);
        },
      });
      progress.close(result.timings);
      const pngs = result.images;
      const bitmaps = await Promise.all(pngs.map((png) => createImageBitmap(png)));
      const { width, height } = result;
      const complete = { ...settings, width, height };
      showPictures(bitmaps, title, (index) => {
        const [picture, png] = [bitmaps[index], pngs[index]];
        if (!picture || !png) return;
        const isFromPictures = Object.keys(pictures).length > 0;
        shown = { settings: complete, png, index, isFromPictures };
        actions.hidden = false;
        explain({ prompt: title, picture, index, result, info: loaded.info });
      });
      for (const [index, png] of pngs.entries()) remember(complete, index, png);
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

/** Takes dropped or pasted pictures: as prompts if they land there, else the first one as the picture to start from. */
function takePictures(pictures: readonly File[], place: EventTarget | null): void {
  const [first] = pictures;
  if (isAmongLikenesses(place)) addLikenesses(pictures);
  else if (first) startFrom(first);
}

/** The parts of the prompt that the picture cannot show, as sentences that follow others. */
function told({ unknownWords, cutOff }: Unread): string {
  const unknown = unknownWords.length > 0 ? ` It does not know: ${unknownWords.join(', ')}.` : '';
  const cut = cutOff !== undefined ? ` The prompt is too long; it did not read “${cutOff}”.` : '';
  return unknown + cut;
}

async function start(): Promise<void> {
  const linked = settingsFromLink(link);
  writeSettings(linked);
  drawSeedUnless(linked.seed);
  if (!link.searchParams.has('model')) model = (await rememberedModel()) ?? model;
  await run(look, start);
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
    }, start);
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
      shown.isFromPictures
        ? 'The link is copied: it has the settings, but not the pictures that this one was made from.'
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
void initHistory((settings) => {
  writeSettings({ negativePrompt: '', ...settings });
  lockSeed(true);
  generate.focus({ preventScroll: true });
});
const started = start();
