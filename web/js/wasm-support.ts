// What WebAssembly can do here, found out with a module of a few bytes.

/** Exports a function that makes a `v128`: valid only where SIMD is known. */
const SIMD_MODULE = new Uint8Array([
  0, 97, 115, 109, 1, 0, 0, 0, 1, 5, 1, 96, 0, 1, 123, 3, 2, 1, 0, 10, 10, 1, 8, 0, 65, 0, 253, 15,
  253, 98, 11,
]);

/** Whether there is WebAssembly at all; browsers in a lockdown mode have none. */
export function hasWasm(): boolean {
  return typeof WebAssembly !== 'undefined';
}

export function hasSimd(): boolean {
  return hasWasm() && WebAssembly.validate(SIMD_MODULE);
}
