// "How it works": the outputs of each stage for the last prompt, with sizes computed from the data.

import type { GenerateResult, Latents, ModelInfo, Stage } from 'wuerstchen-web';
import {
  element,
  entry,
  formatBytes,
  formatCount,
  formatDuration,
  formatFactor,
  formatParams,
  make,
} from './dom';
import { draw } from './picture';

type Rgb = readonly [number, number, number];
const NEGATIVE: Rgb = [36, 74, 122];
const ZERO: Rgb = [244, 245, 242];
const POSITIVE: Rgb = [240, 166, 0];

const lead = element('how-lead', HTMLParagraphElement);

export interface Made {
  readonly prompt: string;
  readonly picture: ImageBitmap;
  /** Number of the picture in its run. */
  readonly index: number;
  readonly result: GenerateResult;
  readonly info: ModelInfo;
}

export function explain(made: Made): void {
  const { intermediates, width, height } = made.result;
  if (!intermediates) return;
  const picture = 3 * width * height;
  const embedding = channels(intermediates.imageEmbedding, made.index);
  const latents = channels(intermediates.latents, made.index);

  lead.replaceChildren(
    'What each stage made of ',
    make('q', { dir: 'auto' }, made.prompt),
    `, from ${formatCount(embedding.count)} numbers to ${formatCount(picture)}.`,
  );
  fill('prior', heatmaps(embedding, 'image embedding'), [
    ...compression('Image embedding', embedding, width, height, picture),
    ...cost('prior', made),
  ]);
  fill('decoder', heatmaps(latents, 'latents'), [
    ...compression('Latents', latents, width, height, picture),
    ...cost('decoder', made),
  ]);
  const canvas = make('canvas', { role: 'img', ariaLabel: made.prompt });
  draw(made.picture, canvas);
  const maps = make('div', { className: 'maps' }, canvas);
  fill(
    'vqgan',
    [maps],
    [
      entry('Picture', `3 × ${height} × ${width}`),
      entry('Numbers', formatCount(picture)),
      entry('Pixels for each latent cell', cell(latents, width, height)),
      ...cost('vqgan', made),
    ],
  );
}

function fill(stage: Stage, pictures: Node[], facts: Node[]): void {
  const place = element(`made-${stage}`, HTMLDivElement);
  place.replaceChildren(...pictures, make('dl', {}, ...facts));
}

function compression(
  name: string,
  made: Channels,
  width: number,
  height: number,
  picture: number,
): HTMLElement[] {
  return [
    entry(name, `${made.maps.length} × ${made.height} × ${made.width}`),
    entry('Numbers', formatCount(made.count)),
    entry('Pixels for each cell', cell(made, width, height)),
    entry('Fewer numbers than the picture', formatFactor(picture / made.count)),
  ];
}

function cell(made: Channels, width: number, height: number): string {
  const side = (pixels: number, cells: number) => Number((pixels / cells).toFixed(2));
  return `${side(width, made.width)} × ${side(height, made.height)}`;
}

function cost(stage: Stage, { result, info }: Made): HTMLElement[] {
  const { params, bytes, dtype } = info.stages[stage];
  return [
    entry('Parameters', `${formatParams(params)}, ${formatBytes(bytes)} as ${dtype}`),
    entry('Time', formatDuration(result.timings[stage])),
  ];
}

interface Channels {
  readonly width: number;
  readonly height: number;
  readonly count: number;
  readonly maps: readonly Float32Array[];
}

/** One picture's channels out of `[B, C, H, W]`. */
function channels({ shape, values }: Latents, index: number): Channels {
  const [, depth = 0, height = 0, width = 0] = shape;
  const area = width * height;
  const maps = Array.from({ length: depth }, (_, channel) => {
    const start = (index * depth + channel) * area;
    return values.subarray(start, start + area);
  });
  return { width, height, count: depth * area, maps };
}

function heatmaps({ width, height, maps }: Channels, name: string): Node[] {
  const range = maps.reduce((most, map) => map.reduce((m, v) => Math.max(m, Math.abs(v)), most), 0);
  const grid = make('div', {
    className: 'maps',
    role: 'img',
    ariaLabel: `The ${maps.length} channels of the ${name}, ${height} by ${width} cells each`,
  });
  grid.dataset.columns = String(Math.min(4, Math.ceil(Math.sqrt(maps.length))));
  grid.append(...maps.map((map) => heatmap(map, width, height, range)));
  const ramp = heatmap(
    Float32Array.from({ length: 65 }, (_, i) => i - 32),
    65,
    1,
    32,
  );
  const limit = range.toFixed(1);
  return [grid, make('div', { className: 'scale' }, `−${limit}`, ramp, limit)];
}

function heatmap(map: Float32Array, width: number, height: number, range: number) {
  const canvas = make('canvas', { width, height });
  const image = new ImageData(width, height);
  map.forEach((value, pixel) => image.data.set(colour(range && value / range), 4 * pixel));
  canvas.getContext('2d')?.putImageData(image, 0, 0);
  return canvas;
}

/** The colour of a value from -1 through 0 to 1. */
function colour(value: number): number[] {
  const end = value < 0 ? NEGATIVE : POSITIVE;
  const share = Math.abs(value);
  return [...ZERO.map((zero, i) => zero + share * ((end[i] ?? 0) - zero)), 255];
}
