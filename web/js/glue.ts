// Both WebAssembly builds, and where their files lie.

import * as cpu from 'wuerstchen-wasm/cpu';
import * as webgpu from 'wuerstchen-wasm/webgpu';

import type { DeviceKind } from './types.js';
import type { Wasm } from './wasm.js';

/** A build whose file is not fetched yet. */
export interface WasmBuild {
  readonly module: Wasm;
  /** Where the file lies if nothing else is said. Bundlers trace the literals below. */
  readonly url: () => URL;
}

export const builds: Readonly<Record<DeviceKind, WasmBuild>> = {
  cpu: { module: cpu, url: () => new URL('./wuerstchen_cpu_bg.wasm', import.meta.url) },
  webgpu: { module: webgpu, url: () => new URL('./wuerstchen_webgpu_bg.wasm', import.meta.url) },
};
