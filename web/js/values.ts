// The types of callers' values. `instanceof` would refuse values of iframes, which have other classes.

export function isObject(value: unknown): value is object {
  return typeof value === 'object' && value !== null;
}

/** The name of a class of the platform, such as `Blob`: the same for the values of every window. */
export function classOf(value: unknown): string {
  try {
    return Object.prototype.toString.call(value).slice(8, -1);
  } catch {
    return 'revoked Proxy';
  }
}

/** Whether a value is text or an object that names a place. */
export function isUrl(value: unknown): value is string | URL {
  return typeof value === 'string' || ['URL', 'Location'].includes(classOf(value));
}

/** A value as text for a message, also if it cannot be converted to a string. */
export function show(value: unknown): string {
  if (typeof value === 'string') return `"${value}"`;
  return isObject(value) || typeof value === 'function'
    ? `[object ${classOf(value)}]`
    : String(value);
}

/** The message of something that was thrown. */
export function messageOf(thrown: unknown): string {
  const message = isObject(thrown) && 'message' in thrown ? thrown.message : undefined;
  // Firefox has errors with names alone.
  if (message === '' && 'name' in Object(thrown)) return String((thrown as Error).name);
  if (typeof message === 'string') return message;
  return typeof thrown === 'string' ? thrown : show(thrown);
}
