// Fetching for WebAssembly that waits for a file.

import { checkAnswer, unreachable } from './http.js';

/** Fetches a file synchronously, which only workers may do, because WebAssembly waits for it. */
export function fetchNow(url: string): ArrayBuffer {
  const request = new XMLHttpRequest();
  request.open('GET', url, false);
  request.responseType = 'arraybuffer';
  try {
    request.send();
  } catch (cause) {
    throw unreachable(url, cause);
  }
  checkAnswer(url, request.status, request.getResponseHeader('content-type'));
  return request.response;
}
