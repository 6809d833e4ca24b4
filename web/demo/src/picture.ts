// The large picture: previews while it is made, then the result, one of several if asked for.

import { element, make } from './dom';
import type { Settings } from './settings';

/** Up to this many pixels a side, a preview is shown with its pixels: it shows how little there is yet. */
const PIXELATED_SIDE = 32;

const canvas = element('picture', HTMLCanvasElement);
const frame = element('frame', HTMLDivElement);
const batch = element('batch', HTMLDivElement);
const empty = element('empty', HTMLDivElement);
const film = element('film', HTMLDivElement);
const moment = element('film-moment', HTMLInputElement);

/** The previews of the first picture of a run, and then the picture itself. */
const frames: { readonly bitmap: ImageBitmap; readonly label: string }[] = [];

/** The other pictures of the run. */
const others: ImageBitmap[] = [];

/** Copies a bitmap to a canvas of its size. */
export function draw(bitmap: ImageBitmap, target: HTMLCanvasElement): void {
  target.width = bitmap.width;
  target.height = bitmap.height;
  target.getContext('2d')?.drawImage(bitmap, 0, 0);
  target.classList.toggle('fine', Math.max(bitmap.width, bitmap.height) > PIXELATED_SIDE);
}

/** Makes room for a new picture; the old one stays, dimmed, until there is something to see. */
export function expect({ width, height }: Settings): void {
  frame.dataset.waiting = '';
  batch.hidden = true;
  film.hidden = true;
  for (const { bitmap } of frames.splice(0)) bitmap.close();
  for (const bitmap of others.splice(0)) bitmap.close();
  if (width && height) frame.style.aspectRatio = `${width} / ${height}`;
  frame.scrollIntoView({ block: 'nearest' });
}

/** Ends the waiting for a picture, whether or not one came. */
export function settle(): void {
  delete frame.dataset.waiting;
}

function show(bitmap: ImageBitmap, label: string): void {
  settle();
  empty.hidden = true;
  draw(bitmap, canvas);
  canvas.ariaLabel = label;
}

/** Shows an unfinished picture and keeps it for the film; `step` says which one it is. */
export function showPreview(bitmap: ImageBitmap, prompt: string, step: string): void {
  show(bitmap, `Unfinished: ${prompt}`);
  frames.push({ bitmap, label: step });
}

/** Shows the pictures of a run. `onChoose` is called with the large one: at once with the first. */
export function showPictures(
  bitmaps: readonly ImageBitmap[],
  prompt: string,
  onChoose: (index: number) => void,
): void {
  const choose = (index: number) => {
    const bitmap = bitmaps[index];
    if (!bitmap) return;
    show(bitmap, prompt);
    for (const [other, button] of [...batch.children].entries()) {
      button.ariaPressed = String(other === index);
    }
    film.hidden = index > 0 || frames.length < 2;
    rewind();
    onChoose(index);
  };
  batch.hidden = bitmaps.length < 2;
  batch.replaceChildren(
    ...bitmaps.map((bitmap, index) => {
      const thumbnail = make('canvas', { ariaHidden: 'true' });
      draw(bitmap, thumbnail);
      const button = make('button', { type: 'button' }, thumbnail);
      button.ariaLabel = `Picture ${index + 1}`;
      button.addEventListener('click', () => choose(index));
      return button;
    }),
  );
  const [first, ...rest] = bitmaps;
  if (first) frames.push({ bitmap: first, label: prompt });
  others.push(...rest);
  choose(0);
}

/** Moves the film to its end, the finished picture. */
function rewind(): void {
  moment.max = String(frames.length - 1);
  moment.value = moment.max;
  moment.ariaValueText = 'finished';
}

/** Looks back at a run: the slider shows the picture as it was after each step. */
export function initFilm(): void {
  moment.addEventListener('input', () => {
    const shown = frames[moment.valueAsNumber];
    if (!shown) return;
    show(shown.bitmap, shown.label);
    moment.ariaValueText = shown.label;
  });
}

/** The picture of the empty frame: one disc at the resolutions of the three stages. */
export function drawSketch(): void {
  const sketch = element('sketch', HTMLCanvasElement);
  const context = sketch.getContext('2d');
  if (!context) return;
  const { color } = getComputedStyle(sketch);
  const side = sketch.height;
  context.clearRect(0, 0, sketch.width, side);
  const spacing = (sketch.width - 3 * side) / 2;
  for (const [place, pixels] of [4, 16, 64].entries()) {
    const size = side / pixels;
    // Few pixels are drawn with gaps, so that each one can be seen.
    const gap = pixels < 64 ? Math.ceil(size * 0.05) : 0;
    for (let row = 0; row < pixels; row++) {
      for (let column = 0; column < pixels; column++) {
        context.fillStyle = color;
        context.globalAlpha = 0.08;
        const left = place * (side + spacing) + column * size;
        context.fillRect(left, row * size, size - gap, size - gap);
        context.fillStyle = '#ffc21a';
        context.globalAlpha = coverage(column, row, pixels);
        context.fillRect(left, row * size, size - gap, size - gap);
      }
    }
  }
  context.globalAlpha = 1;
}

/** How much of a pixel lies in the disc, from 5 × 5 points. */
function coverage(column: number, row: number, pixels: number): number {
  let inside = 0;
  for (let point = 0; point < 25; point++) {
    const x = (column + ((point % 5) + 0.5) / 5) / pixels - 0.5;
    const y = (row + (Math.floor(point / 5) + 0.5) / 5) / pixels - 0.5;
    if (Math.hypot(x, y) < 0.36) inside++;
  }
  return inside / 25;
}
