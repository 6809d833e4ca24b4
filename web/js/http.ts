// Fetching, with errors that name the URL.

import { WuerstchenError } from './errors.js';
import { throwIfAborted } from './signals.js';
import { isObject, messageOf, show } from './values.js';

/**
 * A successful response that is a file. An HTML page in its place is an error, because many servers send one for a
 * path that does not exist.
 */
export async function request(
  fetcher: typeof fetch,
  url: string,
  init: RequestInit,
): Promise<Response> {
  let response: Response;
  try {
    // Called without a receiver: `fetch` as a method of another object throws.
    response = await fetcher(url, init);
  } catch (cause) {
    throwIfAborted(init.signal ?? undefined);
    if (cause instanceof WuerstchenError) throw cause;
    throw unreachable(url, cause);
  }
  if (!isObject(response) || !('headers' in response)) {
    const message = `fetch must give a Response for ${url}, got ${show(response)}`;
    throw new WuerstchenError('invalid-argument', message, { field: 'fetch' });
  }
  checkAnswer(url, response.status, response.headers.get('content-type'));
  return response;
}

/** The error of a server that did not respond at all. */
export function unreachable(url: string, cause: unknown): WuerstchenError {
  return new WuerstchenError('network', `${url} could not be fetched: ${messageOf(cause)}`, {
    cause,
    hint:
      'Check the connection, that the server allows requests from this origin (CORS), and that the ' +
      'content security policy does (connect-src).',
  });
}

/** Statuses that ask for another attempt: Request Timeout, Too Early and Too Many Requests. */
const TRY_LATER = [408, 425, 429];

/** Throws unless the answer is a successful one with a file. */
export function checkAnswer(url: string, status: number, contentType: string | null): void {
  if (status < 200 || status > 299) {
    throw new WuerstchenError('network', `${url} answered with status ${status}`, {
      retryable: status >= 500 || TRY_LATER.includes(status),
      hint: 'Check that the file lies there, and that a signed URL has not expired.',
    });
  }
  if (contentType?.toLowerCase().includes('text/html')) {
    throw new WuerstchenError('network', `${url} is an HTML page, not the expected file`, {
      retryable: false,
      hint: 'Check that the file lies there: many servers answer so for what does not exist.',
    });
  }
}

/** The error of a response that began well and broke off. */
export function brokenOff(url: string, cause: unknown): WuerstchenError {
  return new WuerstchenError('network', `${url} broke off: ${messageOf(cause)}`, {
    hint: 'Check the connection and try again.',
    cause,
  });
}

/**
 * An absolute URL from one that is relative to the page, because it must mean the same in a worker. `field` is the
 * option that has it.
 */
export function absoluteUrl(url: string | URL, field?: string): string {
  try {
    return new URL(url, globalThis.document?.baseURI ?? globalThis.location?.href).href;
  } catch (cause) {
    throw new WuerstchenError('invalid-argument', `${show(String(url))} is not a URL`, {
      hint: 'Where there is no page, a URL has to be absolute.',
      field,
      cause,
    });
  }
}

/** The URL of a file in the folder of a manifest, with the same query, which may grant access. */
export function besides(url: string, file: string): string {
  try {
    const found = new URL(file, url);
    if (!found.search) found.search = new URL(url).search;
    return found.href;
  } catch (cause) {
    throw new WuerstchenError('invalid-argument', `nothing can lie beside ${url}`, {
      hint: 'Give the model as the URL of a file on a server: blob: and data: have no folders.',
      field: 'model',
      cause,
    });
  }
}
