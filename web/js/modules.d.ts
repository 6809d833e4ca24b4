// What wasm-bindgen makes, as build.mjs resolves it.

declare module 'wuerstchen-wasm/*' {
  type Wasm = import('./wasm.js').Wasm;
  export const __wbg_set_wasm: Wasm['__wbg_set_wasm'];
  export const openDevice: Wasm['openDevice'];
  export const Loader: Wasm['Loader'];
  export const Request: Wasm['Request'];
}
