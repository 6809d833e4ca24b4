// The one error type of the package, and its form for messages between threads.

import { isObject, messageOf } from './values.js';

/** What went wrong; see {@link WuerstchenError}. */
export type ErrorCode =
  | 'unsupported'
  | 'out-of-memory'
  | 'device-lost'
  | 'network'
  | 'integrity'
  | 'quota'
  | 'invalid-argument'
  | 'shader'
  | 'disposed'
  | 'internal';

const RETRYABLE: Record<ErrorCode, boolean> = {
  unsupported: false,
  'out-of-memory': false,
  'device-lost': true,
  network: true,
  integrity: true,
  quota: false,
  'invalid-argument': false,
  shader: false,
  disposed: false,
  internal: false,
};

const REPORT_HINT = 'Please report it, with what the console of the browser says.';

/**
 * The error of all rejections of this package, except those of an abort, which reject with the signal's reason.
 *
 * - `unsupported`: this browser cannot run the requested device.
 * - `out-of-memory`: the GPU has no memory left, or there is none to start WebAssembly or to hand a job to it.
 * - `device-lost`: the GPU went away during a load, or twice in one job (once if there is no worker).
 * - `network`: a file could not be fetched; the message names it.
 * - `integrity`: a file is damaged or missing, or does not belong to the others.
 * - `quota`: the browser gives no storage; `load` goes on without storing instead.
 * - `invalid-argument`: an option cannot be run; `field` has its name if a single option is at fault.
 * - `shader`: the GPU computes wrongly or refused a shader.
 * - `disposed`: the engine was disposed of.
 * - `internal`: a bug in this package, or WebAssembly has used up its own memory.
 */
export class WuerstchenError extends Error {
  override readonly name = 'WuerstchenError';
  readonly code: ErrorCode;
  /** Whether the same call may succeed later. */
  readonly retryable: boolean;
  /** What a person can do about it. */
  readonly hint?: string;
  /** The option that cannot be run, such as `priorSteps`. */
  readonly field?: string;

  constructor(
    code: ErrorCode,
    message: string,
    options: { retryable?: boolean; hint?: string; field?: string; cause?: unknown } = {},
  ) {
    super(message, options.cause === undefined ? undefined : { cause: options.cause });
    this.code = code;
    this.retryable = options.retryable ?? RETRYABLE[code];
    this.hint = options.hint;
    this.field = options.field;
  }
}

/** WebAssembly has stopped; `cause` is what it threw, maybe in a task for which nobody waits, or why. */
export class Crash extends Error {
  constructor(override readonly cause: unknown) {
    super('WebAssembly stopped');
  }
}

/** A {@link WuerstchenError} as plain data: structured cloning drops the fields of an error. */
export interface ErrorData {
  readonly code: ErrorCode;
  readonly message: string;
  readonly retryable: boolean;
  readonly hint?: string;
  readonly field?: string;
  readonly stack?: string;
}

export function toErrorData(error: unknown): ErrorData {
  const { code, message, retryable, hint, field, stack } = asWuerstchenError(error);
  return { code, message, retryable, hint, field, stack };
}

export function fromErrorData(data: ErrorData): WuerstchenError {
  const error = new WuerstchenError(data.code, data.message, data);
  error.stack = data.stack;
  return error;
}

/** Anything that was thrown, here or in WebAssembly, as an error with a code. */
export function asWuerstchenError(error: unknown): WuerstchenError {
  if (error instanceof WuerstchenError) return error;
  if (error instanceof Crash) return asWuerstchenError(error.cause);
  const code = textOf(error, 'code');
  const isKnown = code !== undefined && Object.hasOwn(RETRYABLE, code);
  return isKnown
    ? new WuerstchenError(code as ErrorCode, messageOf(error), {
        // What WebAssembly refuses, it refuses again.
        retryable: code === 'device-lost',
        field: textOf(error, 'field'),
        cause: error,
      })
    : new WuerstchenError('internal', messageOf(error), { cause: error, hint: REPORT_HINT });
}

/** The same error, said to be that of an option. */
export function withField(error: unknown, field: string): WuerstchenError {
  const { code, message, retryable, hint } = asWuerstchenError(error);
  return new WuerstchenError(code, message, { retryable, hint, field, cause: error });
}

/** A property of what was thrown, if it is text: the code of a DOMException is a number. */
function textOf(error: unknown, name: 'code' | 'field'): string | undefined {
  const value = isObject(error) ? (error as { [K in typeof name]?: unknown })[name] : undefined;
  return typeof value === 'string' ? value : undefined;
}
