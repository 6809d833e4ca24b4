// What wasm-bindgen makes, as build.mjs resolves it.

declare module 'wuerstchen-wasm/cpu' {
  type Wasm = import('./wasm.js').Wasm;
  export const __wbg_set_wasm: Wasm['__wbg_set_wasm'];
  export const openDevice: Wasm['openDevice'];
  export const Loader: Wasm['Loader'];
  export const Request: Wasm['Request'];
}

declare module 'wuerstchen-wasm/webgpu' {
  type Wasm = import('./wasm.js').Wasm;
  export const __wbg_set_wasm: Wasm['__wbg_set_wasm'];
  export const openDevice: Wasm['openDevice'];
  export const Loader: Wasm['Loader'];
  export const Request: Wasm['Request'];
}
