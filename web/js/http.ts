// Fetching, with errors that name the URL.

import { WuerstchenError } from './errors.js';

/**
 * A successful answer that is a file: an HTML page in its place is what many servers send for a
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
    init.signal?.throwIfAborted();
    throw unreachable(url, cause);
  }
  checkAnswer(url, response.status, response.headers.get('content-type'));
  return response;
}

/** No answer at all. */
export function unreachable(url: string, cause: unknown): WuerstchenError {
  return new WuerstchenError('network', `${url} could not be fetched: ${cause}`, {
    cause,
    hint: 'Check the connection, and that the server allows requests from this origin.',
  });
}

/** Throws unless the answer is a successful one with a file. */
export function checkAnswer(url: string, status: number, contentType: string | null): void {
  if (status < 200 || status > 299) {
    throw new WuerstchenError('network', `${url} answered with status ${status}`, {
      retryable: status >= 500,
    });
  }
  if (contentType?.includes('text/html')) {
    throw new WuerstchenError('network', `${url} is an HTML page, not the expected file`, {
      retryable: false,
    });
  }
}

/** An answer that began well and did not end. */
export function brokenOff(url: string, cause: unknown): WuerstchenError {
  return new WuerstchenError('network', `${url} broke off: ${cause}`, { cause });
}

/** A URL relative to the page, as one that means the same in a worker. */
export function absoluteUrl(url: string | URL): string {
  try {
    return new URL(url, globalThis.document?.baseURI ?? globalThis.location?.href).href;
  } catch (cause) {
    throw new WuerstchenError('invalid-argument', `"${url}" is not a URL`, { cause });
  }
}
