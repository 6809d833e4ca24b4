// Hashes that name and verify files.

import { WuerstchenError } from './errors.js';

/** The SHA-256 of some bytes, in hex digits. */
export async function sha256(bytes: Uint8Array): Promise<string> {
  // Pages without a secure connection have none.
  if (!crypto.subtle) {
    throw new WuerstchenError(
      'unsupported',
      'files are verified only over https or from localhost',
    );
  }
  const hash = await crypto.subtle.digest('SHA-256', bytes as Uint8Array<ArrayBuffer>);
  return Array.from(new Uint8Array(hash), (byte) => byte.toString(16).padStart(2, '0')).join('');
}
