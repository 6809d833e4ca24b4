// A custom element for the package: `wuerstchen-web/element` defines `<wuerstchen-image>`.

import { load } from './index.js';
import type {
  DeviceKind,
  GenerateEvent,
  GenerateOptions,
  GenerateResult,
  LoadEvent,
  LoraRef,
  ModelRef,
  Wuerstchen,
} from './types.js';

const NUMBERS = ['width', 'height', 'prior-steps', 'decoder-steps'];

const ATTRIBUTES = ['model', 'device', 'prompt', 'negative-prompt', 'seed', ...NUMBERS];

/** A loaded model, which the elements of a page share. */
interface Shared {
  readonly engine: Promise<Wuerstchen>;
  /** Stops the loading. */
  readonly loading: AbortController;
  /** The elements that get the events of the loading. */
  readonly users: Set<WuerstchenImage>;
}

const engines = new Map<unknown, Shared>();

// Servers render pages where there is no HTMLElement.
const Base = globalThis.HTMLElement ?? (class {} as typeof HTMLElement);

/**
 * `<wuerstchen-image model="/model/manifest.json" prompt="a red circle"></wuerstchen-image>`: makes its picture as soon
 * as it has a model and a prompt, and anew when an attribute is set, or when it is put into the page again. Elements
 * with the same model URL and `device`, and without LoRAs, share one engine, which is disposed of with the last of them.
 *
 * Attributes: `model`, `device`, `prompt`, `negative-prompt`, `seed`, `width`, `height`, `prior-steps`,
 * `decoder-steps`. Events, with their `detail`: `progress` (a {@link LoadEvent} or {@link GenerateEvent}), `picture`
 * (the {@link GenerateResult}), `error` (the error). A preview's bitmap is closed after its event. Parts for styles:
 * `picture`, `message`.
 */
export class WuerstchenImage extends Base {
  static readonly observedAttributes = ATTRIBUTES;

  #model: ModelRef | undefined;
  #lora: readonly LoraRef[] | undefined;
  #canvas: HTMLCanvasElement | undefined;
  #message: HTMLElement | undefined;
  #job: AbortController | undefined;
  /** The key of its engine. */
  #key: unknown;
  #scheduled = false;

  /** The model: the attribute's URL, or files, which no attribute can hold. */
  get model(): ModelRef | undefined {
    return this.#model ?? this.getAttribute('model') ?? undefined;
  }

  set model(model: ModelRef | undefined) {
    this.#model = model;
    this.#schedule();
  }

  /** LoRAs that change the model. */
  get lora(): readonly LoraRef[] | undefined {
    return this.#lora;
  }

  set lora(lora: readonly LoraRef[] | undefined) {
    this.#lora = lora;
    this.#schedule();
  }

  /** Stops the picture that is being made; a change of an attribute begins a new one. */
  stop(): void {
    this.#job?.abort();
  }

  connectedCallback(): void {
    if (!this.#canvas) {
      const root = this.attachShadow({ mode: 'open' });
      this.#style(root);
      const part = <Name extends 'canvas' | 'p'>(name: Name, part: string, role: string) => {
        const element = document.createElement(name);
        element.part.add(part);
        element.role = role;
        return root.appendChild(element);
      };
      this.#canvas = part('canvas', 'picture', 'img');
      this.#message = part('p', 'message', 'status');
    }
    // What was set before the page knew this element hides the accessors.
    for (const name of ['model', 'lora'] as const) {
      if (!Object.hasOwn(this, name)) continue;
      const { [name]: value } = this;
      Reflect.deleteProperty(this, name);
      Object.assign(this, { [name]: value });
    }
    this.#schedule();
  }

  /** Another document, such as that of a popup, takes no style sheet of the old one. */
  adoptedCallback(): void {
    if (this.shadowRoot) this.#style(this.shadowRoot);
  }

  disconnectedCallback(): void {
    this.#schedule();
  }

  attributeChangedCallback(): void {
    this.#schedule();
  }

  #style(root: ShadowRoot): void {
    const view = this.ownerDocument.defaultView;
    if (!view) return;
    // Content security policies forbid a <style>.
    const style = new view.CSSStyleSheet();
    style.replaceSync(':host{display:inline-block}canvas{width:100%}p:empty{display:none}');
    root.adoptedStyleSheets = [style];
  }

  /** Several changes at once make one picture. */
  #schedule(): void {
    if (this.#scheduled) return;
    this.#scheduled = true;
    queueMicrotask(() => {
      this.#scheduled = false;
      void this.#update();
    });
  }

  async #update(): Promise<void> {
    this.#job?.abort();
    const { model } = this;
    const prompt = this.getAttribute('prompt');
    const canMake = this.isConnected && model !== undefined && prompt !== null;
    const engine = this.#engineOf(canMake ? model : undefined);
    if (!canMake || !engine) return;
    const job = (this.#job = new AbortController());
    this.#tell('', true, prompt);
    try {
      const ready = await engine;
      // The engine is loaded for all elements that share it, so a stop only ends this element's picture.
      job.signal.throwIfAborted();
      const result = await ready.generate({
        ...this.#options(prompt),
        onProgress: (event) => this.#show(event),
        signal: job.signal,
      });
      const [image] = result.images;
      if (image) this.#draw(image);
      this.#tell('', false, prompt);
      this.#send('picture', result);
    } catch (error) {
      // The next job shows its own state.
      if (this.#job !== job) return;
      const message = error instanceof Error ? error.message : String(error);
      this.#tell(job.signal.aborted ? '' : message, false, prompt);
      if (!job.signal.aborted) this.#send('error', error);
    }
  }

  #options(prompt: string): GenerateOptions<'bitmap'> {
    const options: Record<string, unknown> = { prompt };
    const name = (attribute: string) =>
      attribute.replace(/-(.)/, (_, c: string) => c.toUpperCase());
    for (const attribute of [...NUMBERS, 'seed', 'negative-prompt']) {
      const value = this.getAttribute(attribute)?.trim();
      if (!value) continue;
      // A seed may have more digits than a number holds. The engine refuses text that is no number.
      if (attribute === 'seed' && /^\d+$/.test(value)) options.seed = BigInt(value);
      else options[name(attribute)] = attribute === 'negative-prompt' ? value : Number(value);
    }
    return options as unknown as GenerateOptions<'bitmap'>;
  }

  /** The engine of a model; releases the engine that the element had before, if that is another one. */
  #engineOf(model: ModelRef | undefined): Promise<Wuerstchen> | undefined {
    const device = this.getAttribute('device') ?? undefined;
    const key = model === undefined ? undefined : this.#keyOf(model, device);
    if (key !== this.#key) this.#leave();
    this.#key = key;
    if (model === undefined) return undefined;
    let shared = engines.get(key);
    if (!shared) {
      const users = new Set<WuerstchenImage>();
      const onProgress = (event: LoadEvent) => users.forEach((user) => user.#show(event));
      const loading = new AbortController();
      const engine = load({
        model,
        device: device as DeviceKind,
        lora: this.#lora,
        onProgress,
        signal: loading.signal,
      });
      const begun = { engine, loading, users };
      shared = begun;
      engines.set(key, begun);
      // The next change tries again, if none has yet.
      engine.catch(() => engines.get(key) === begun && engines.delete(key));
    }
    shared.users.add(this);
    return shared.engine;
  }

  /** The key of an engine. Elements with files or LoRAs have engines of their own. */
  #keyOf(model: ModelRef, device: string | undefined): unknown {
    const own = [model, device, this.#lora];
    if (typeof model === 'string' && !this.#lora?.length) {
      // Unlike `new URL`, a link also takes what is no URL, which `load` refuses.
      return `${device} ${Object.assign(document.createElement('a'), { href: model }).href}`;
    }
    const old = this.#key;
    return Array.isArray(old) && own.every((value, i) => value === old[i]) ? old : own;
  }

  #leave(): void {
    const shared = engines.get(this.#key);
    shared?.users.delete(this);
    if (shared?.users.size !== 0) return;
    engines.delete(this.#key);
    shared.loading.abort();
    shared.engine.then((engine) => engine.dispose()).catch(() => {});
  }

  #show(event: LoadEvent | GenerateEvent): void {
    if (event.type === 'preview') this.#draw(event.bitmap);
    this.#send('progress', event);
    if (event.type === 'preview') event.bitmap.close();
  }

  #draw(bitmap: ImageBitmap): void {
    if (!this.#canvas) return;
    const { width, height } = bitmap;
    Object.assign(this.#canvas, { width, height });
    this.#canvas.getContext('2d')?.drawImage(bitmap, 0, 0);
  }

  #tell(message: string, isBusy: boolean, prompt: string): void {
    this.ariaBusy = String(isBusy);
    if (this.#canvas) this.#canvas.ariaLabel = prompt;
    if (this.#message) this.#message.textContent = message;
  }

  #send(type: string, detail: unknown): void {
    this.dispatchEvent(new CustomEvent(type, { detail }));
  }
}

const elements = globalThis.customElements;
// Another copy of this package may have defined it.
if (elements && !elements.get('wuerstchen-image')) {
  elements.define('wuerstchen-image', WuerstchenImage);
}

/** The events of `<wuerstchen-image>`. */
export interface WuerstchenImageEventMap extends Omit<
  HTMLElementEventMap,
  'progress' | 'picture' | 'error'
> {
  readonly progress: CustomEvent<LoadEvent | GenerateEvent>;
  readonly picture: CustomEvent<GenerateResult<'bitmap'>>;
  readonly error: CustomEvent<unknown>;
}

export interface WuerstchenImage {
  addEventListener<Type extends keyof WuerstchenImageEventMap>(
    type: Type,
    listener: (this: WuerstchenImage, event: WuerstchenImageEventMap[Type]) => unknown,
    options?: boolean | AddEventListenerOptions,
  ): void;
  addEventListener(
    type: string,
    listener: EventListenerOrEventListenerObject,
    options?: boolean | AddEventListenerOptions,
  ): void;
}

declare global {
  interface HTMLElementTagNameMap {
    'wuerstchen-image': WuerstchenImage;
  }
}
