// The settings of a picture that a person may choose, in the form and as a link.

import type { Defaults, PictureOptions } from 'wuerstchen-web';
import { element, make, sentence } from './dom';
import { forgetWords } from './words';

/** The settings as the engine takes them; the seed is always known, so that every picture can be made again. */
export type Settings = Omit<PictureOptions, 'seed' | 'timesteps' | 'strength'> & {
  readonly seed: bigint;
};

const MAX_SEED = 2n ** 64n - 1n;
const MAX_PROMPT = 2000;
/** Most pictures at a time that the form offers. */
const MAX_COUNT = 4;

/** Fields with a number: their id and the values that a link may carry. */
const NUMBERS = {
  width: { id: 'width', min: 1, max: 4096, whole: true },
  height: { id: 'height', min: 1, max: 4096, whole: true },
  priorSteps: { id: 'prior-steps', min: 1, max: 1000, whole: true },
  priorGuidanceScale: { id: 'prior-guidance-scale', min: 0, max: 100, whole: false },
  decoderSteps: { id: 'decoder-steps', min: 1, max: 1000, whole: true },
  decoderGuidanceScale: { id: 'decoder-guidance-scale', min: 0, max: 100, whole: false },
  temperature: { id: 'temperature', min: 0, max: 100, whole: false },
  temperatureEnd: { id: 'temperature-end', min: 0, max: 100, whole: false },
} as const;

type NumberName = keyof typeof NUMBERS;
const NUMBER_NAMES = Object.keys(NUMBERS) as NumberName[];

/** Width to height; halves and wholes of the model's side are sizes that the stages can make. */
const ASPECTS: readonly (readonly [number, number])[] = [
  [1, 1],
  [3, 2],
  [2, 3],
  [2, 1],
  [1, 2],
];

const prompt = element('prompt', HTMLTextAreaElement);
const negativePrompt = element('negative-prompt', HTMLTextAreaElement);
const seed = element('seed', HTMLInputElement);
const seedLock = element('seed-lock', HTMLButtonElement);
const aspects = element('aspects', HTMLDivElement);
const controls = element('controls', HTMLFormElement);
const input = (name: NumberName) => element(NUMBERS[name].id, HTMLInputElement);
const tokenSampling = element('token-sampling', HTMLSelectElement);
/** The options of models whose Stage B denoises tokens; other models refuse them. */
const ofTokens = element('of-tokens', HTMLDivElement);

/** Draws a seed that is exact as a JavaScript number. */
export function drawSeed(): void {
  const [high = 0, low = 0] = crypto.getRandomValues(new Uint32Array(2));
  seed.value = String((BigInt(high & 0x1fffff) << 32n) | BigInt(low));
}

export function lockSeed(locked: boolean): void {
  seedLock.ariaPressed = String(locked);
}

function parseSeed(text: string): bigint | undefined {
  if (!/^\d{1,20}$/.test(text)) return undefined;
  const value = BigInt(text);
  return value <= MAX_SEED ? value : undefined;
}

/** The title of a picture: its prompt, or a text for a picture that was made from other pictures alone. */
export const titleOf = ({ prompt }: Settings): string => prompt || 'Like other pictures';

/**
 * Reads the form. If something is missing, shows that at its field and returns nothing. With picture prompts, no words
 * are needed.
 */
export function readSettings(needsWords: boolean): Settings | undefined {
  clearFieldErrors();
  const text = prompt.value.trim();
  if (text === '' && needsWords) {
    return refuse('prompt', prompt, 'Say what the picture should show.');
  }
  if (seedLock.ariaPressed !== 'true' || seed.value.trim() === '') drawSeed();
  const parsed = parseSeed(seed.value.trim());
  if (parsed === undefined) {
    return refuse('seed', seed, `A seed is a whole number from 0 to ${MAX_SEED}.`);
  }
  const numbers: Partial<Record<NumberName, number>> = {};
  for (const name of NUMBER_NAMES) {
    const field = input(name);
    if (!isOffered(field)) continue;
    // The value of such a field is empty.
    if (field.validity.badInput) return refuse(field.id, field, 'Write a number here.');
    if (field.value !== '') numbers[name] = field.valueAsNumber;
  }
  const count = Number(new FormData(controls).get('count'));
  const negative = negativePrompt.value.trim();
  const sampling = samplingOf(tokenSampling.value);
  return {
    prompt: text,
    seed: parsed,
    count,
    ...numbers,
    ...(negative === '' ? {} : { negativePrompt: negative }),
    ...(sampling && isOffered(tokenSampling) ? { tokenSampling: sampling } : {}),
  };
}

function isOffered(field: HTMLElement): boolean {
  return field.closest('[hidden]') === null;
}

type TokenSampling = NonNullable<Settings['tokenSampling']>;

function samplingOf(text: string | null): TokenSampling | undefined {
  const kinds: readonly TokenSampling[] = ['multinomial', 'argmax', 'quant'];
  return kinds.find((kind) => kind === text);
}

/** Fills the form; fields without a setting stay as they are. */
export function writeSettings(settings: Partial<Settings>): void {
  clearFieldErrors();
  if (settings.prompt !== undefined) {
    prompt.value = settings.prompt;
    forgetWords();
  }
  if (settings.negativePrompt !== undefined) negativePrompt.value = settings.negativePrompt;
  if (settings.seed !== undefined) seed.value = String(settings.seed);
  for (const name of NUMBER_NAMES) {
    const value = settings[name];
    if (value !== undefined) input(name).value = String(value);
  }
  if (settings.tokenSampling !== undefined) tokenSampling.value = settings.tokenSampling;
  if (settings.count !== undefined) {
    for (const radio of controls.querySelectorAll<HTMLInputElement>('[name="count"]')) {
      radio.checked = radio.value === String(settings.count);
    }
  }
  checkAspect();
}

/** The values of the last model that was offered, by the ids of their fields. */
const offered = new Map<string, string>();

/** Puts the model's own value into a field where nobody has chosen another one. */
function offerValue(
  field: HTMLInputElement | HTMLSelectElement,
  value: string | number = '',
): void {
  if (field.value === '' || field.value === offered.get(field.id)) field.value = String(value);
  offered.set(field.id, String(value));
}

/** Offers the model's own values: presets of sizes, and those of fields where nobody has chosen one. */
export function offerDefaults(defaults: Defaults): void {
  const { width: columns, height: rows } = defaults;
  aspects.replaceChildren(
    ...ASPECTS.map(([across, down]) => {
      const shorter = Math.min(across, down);
      const width = (columns * across) / shorter;
      const height = (rows * down) / shorter;
      const radio = make('input', { type: 'radio', name: 'aspect', value: `${width}x${height}` });
      radio.addEventListener('change', () => writeSettings({ width, height }));
      const label = make('span', {}, outline(across, down), `${across}:${down}`);
      return make('label', { title: `${width} × ${height} pixels` }, radio, label);
    }),
  );
  for (const name of NUMBER_NAMES) offerValue(input(name), defaults[name]);
  ofTokens.hidden = defaults.tokenSampling === undefined;
  offerValue(tokenSampling, defaults.tokenSampling);
  checkAspect();
}

function outline(across: number, down: number): SVGElement {
  const unit = 18 / Math.max(across, down);
  const svg = document.createElementNS('http://www.w3.org/2000/svg', 'svg');
  svg.setAttribute('viewBox', '0 0 24 24');
  svg.setAttribute('aria-hidden', 'true');
  const rect = document.createElementNS('http://www.w3.org/2000/svg', 'rect');
  const box = {
    x: 12 - (across * unit) / 2,
    y: 12 - (down * unit) / 2,
    width: across * unit,
    height: down * unit,
    rx: 2,
  };
  for (const [name, value] of Object.entries(box)) rect.setAttribute(name, String(value));
  svg.append(rect);
  return svg;
}

function checkAspect(): void {
  const size = `${input('width').value}x${input('height').value}`;
  for (const radio of aspects.querySelectorAll('input')) radio.checked = radio.value === size;
}

function refuse(field: string, control: HTMLElement, message: string): undefined {
  const details = control.closest('details');
  if (details) details.open = true;
  showFieldError(field, control, message);
  control.focus();
}

/** The controls of options whose names differ from those of the options. */
const CONTROLS: Record<string, string> = {
  image: 'source-file',
  picturePrompts: 'picture-prompts-file',
  'picture-prompts': 'picture-prompts-file',
  model: 'model-folder',
  lora: 'lora-file',
};

/** Shows why an option cannot be run, at its control; false if there is no such control. */
export function showInvalidArgument(field: string, message: string): boolean {
  // For an item of a list, the list's control is shown.
  const [option = ''] = field.split('[');
  const id = option.replace(/[A-Z]/g, (letter) => `-${letter.toLowerCase()}`);
  const control = document.getElementById(CONTROLS[option] ?? id);
  if (!control || !errorOf(id)) return false;
  // Numbers have labels that can stand for their names.
  const label = document.querySelector(`label[for="${control.id}"]`)?.textContent;
  const isNamed = label && option in NUMBERS && message.startsWith(`${option} `);
  const name = label?.split(',')[0];
  refuse(id, control, isNamed ? `${name}${message.slice(option.length)}` : message);
  return true;
}

/** Hides what is wrong with a field, because its value is another one now. */
export function clearFieldError(id: string): void {
  const error = errorOf(id);
  if (error) error.hidden = true;
  document.getElementById(CONTROLS[id] ?? id)?.removeAttribute('aria-invalid');
}

/** The element in which the page says what is wrong with a field. */
function errorOf(id: string): HTMLElement | null {
  return document.getElementById(`${id === 'width' || id === 'height' ? 'size' : id}-error`);
}

function showFieldError(id: string, control: HTMLElement, message: string): void {
  control.ariaInvalid = 'true';
  const error = errorOf(id);
  if (!error) throw new Error(`the page has no place for what is wrong with ${id}`);
  error.textContent = sentence(message);
  error.hidden = false;
}

function clearFieldErrors(): void {
  for (const error of controls.querySelectorAll<HTMLElement>('.field-error')) error.hidden = true;
  for (const field of controls.querySelectorAll('[aria-invalid]')) {
    field.removeAttribute('aria-invalid');
  }
}

/** A link to the settings. They follow `#`, which browsers do not send to any server. */
export function linkTo(settings: Settings): string {
  const values = new URLSearchParams();
  for (const [name, value] of Object.entries(settings)) values.set(name, String(value));
  const url = new URL(location.href);
  url.hash = values.toString();
  return url.href;
}

/** The settings of a link, from `#…` or `?…`; values that make no sense are left out. */
export function settingsFromLink(url: URL): Partial<Settings> {
  const values = new URLSearchParams(url.search);
  for (const [name, value] of new URLSearchParams(url.hash.slice(1))) values.set(name, value);

  const settings: { -readonly [K in keyof Settings]?: Settings[K] } = {};
  const text = cutPrompt(values.get('prompt'));
  if (text) settings.prompt = text;
  const negative = cutPrompt(values.get('negativePrompt'));
  if (negative) settings.negativePrompt = negative;
  const linkedSeed = parseSeed(values.get('seed') ?? '');
  if (linkedSeed !== undefined) settings.seed = linkedSeed;
  const sampling = samplingOf(values.get('tokenSampling'));
  if (sampling !== undefined) settings.tokenSampling = sampling;
  const number = (name: string, min: number, max: number, whole: boolean) => {
    const value = Number(values.get(name) || NaN);
    return value >= min && value <= max && (!whole || Number.isInteger(value)) ? value : undefined;
  };
  const count = number('count', 1, MAX_COUNT, true);
  if (count !== undefined) settings.count = count;
  for (const name of NUMBER_NAMES) {
    const { min, max, whole } = NUMBERS[name];
    const value = number(name, min, max, whole);
    if (value !== undefined) settings[name] = value;
  }
  return settings;
}

/** A prompt, cut to the length that the form takes, and without half an emoji at its end. */
function cutPrompt(text: string | null): string | undefined {
  return text
    ?.trim()
    .slice(0, MAX_PROMPT)
    .replace(/[\ud800-\udbff]$/, '');
}

/** Wires the controls that only concern the form. */
export function initForm(): void {
  tokenSampling.value = ''; // until the model's own is known, or another one is chosen
  element('seed-dice', HTMLButtonElement).addEventListener('click', drawSeed);
  seedLock.addEventListener('click', () => lockSeed(seedLock.ariaPressed !== 'true'));
  // A seed that somebody types is kept for the next pictures.
  seed.addEventListener('input', () => lockSeed(seed.value !== ''));
  input('width').addEventListener('input', checkAspect);
  input('height').addEventListener('input', checkAspect);
  for (const chip of element('examples', HTMLDivElement).querySelectorAll('button')) {
    chip.addEventListener('click', () => {
      prompt.value = chip.textContent;
      forgetWords();
      prompt.focus();
    });
  }
  prompt.addEventListener('keydown', (event) => {
    if (event.key !== 'Enter' || event.shiftKey || event.isComposing) return;
    event.preventDefault();
    controls.requestSubmit();
  });
}
