// Both WebAssembly builds, and where their files lie.

import * as cpu from 'wuerstchen-wasm/cpu';
import * as webgpu from 'wuerstchen-wasm/webgpu';

import type { DeviceKind } from './types.js';
import type { Wasm } from './wasm.js';

/** A build whose files are not fetched yet. */
export interface WasmBuild {
  readonly module: Wasm;
  /** The default location of its files. Bundlers trace the literals below. */
  readonly first: () => URL;
  readonly rest: () => URL;
}

export const builds: Readonly<Record<DeviceKind, WasmBuild>> = {
  cpu: {
    module: cpu,
    first: () => new URL('./wuerstchen_cpu_bg.wasm', import.meta.url),
    rest: () => new URL('./wuerstchen_cpu_rest.wasm', import.meta.url),
  },
  webgpu: {
    module: webgpu,
    first: () => new URL('./wuerstchen_webgpu_bg.wasm', import.meta.url),
    rest: () => new URL('./wuerstchen_webgpu_rest.wasm', import.meta.url),
  },
};
