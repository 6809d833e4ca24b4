// Elements of the page and numbers as text.

/** The element of index.html with this id; its absence is a mistake in the page. */
export function element<T extends Element>(id: string, type: new () => T): T {
  const found = document.getElementById(id);
  if (!(found instanceof type)) throw new Error(`no ${type.name} #${id}`);
  return found;
}

/** A new element with properties and children. */
export function make<K extends keyof HTMLElementTagNameMap>(
  tag: K,
  properties: Partial<HTMLElementTagNameMap[K]> = {},
  ...children: (Node | string)[]
): HTMLElementTagNameMap[K] {
  const node = Object.assign(document.createElement(tag), properties);
  node.append(...children);
  return node;
}

/** A term and its description, for a `<dl>`. */
export function entry(term: string, description: string): HTMLElement {
  return make('div', {}, make('dt', {}, term), make('dd', {}, description));
}

/**
 * A message as a sentence: the engine's begin in lower case and have no full stop. Names and addresses stay as they are.
 */
export function sentence(message: string): string {
  const text = message.trim().replace(/^[a-z](?=[a-z]* )/, (first) => first.toUpperCase());
  return /[.!?]$/.test(text) ? text : `${text}.`;
}

const whole = new Intl.NumberFormat('en', { maximumFractionDigits: 0 });
const oneDigit = new Intl.NumberFormat('en', { maximumFractionDigits: 1 });

export const formatCount = (value: number) => whole.format(value);

export const formatFactor = (value: number) => `${oneDigit.format(value)}×`;

/** In decimal units, as downloads are stated. */
export function formatBytes(bytes: number): string {
  if (bytes < 1000) return `${whole.format(bytes)} bytes`;
  if (bytes < 1e6) return `${oneDigit.format(bytes / 1e3)} kB`;
  if (bytes < 1e9) return `${oneDigit.format(bytes / 1e6)} MB`;
  return `${oneDigit.format(bytes / 1e9)} GB`;
}

export function formatParams(params: number): string {
  if (params < 1e6) return `${oneDigit.format(params / 1e3)} k`;
  if (params < 1e9) return `${oneDigit.format(params / 1e6)} M`;
  return `${oneDigit.format(params / 1e9)} B`;
}

export function formatDuration(ms: number): string {
  if (ms < 1000) return `${whole.format(ms)} ms`;
  if (ms < 60_000) return `${(ms / 1000).toFixed(1)} s`;
  const seconds = Math.round(ms / 1000);
  return `${Math.floor(seconds / 60)} min ${seconds % 60} s`;
}
