// The mask: painting over the parts of a picture that shall be made anew.

import { element } from './dom';

/** Distance that an arrow key moves the brush, in widths of the brush. */
const KEY_STEP = 0.5;

const ARROWS: Readonly<Record<string, readonly [number, number]>> = {
  ArrowLeft: [-1, 0],
  ArrowRight: [1, 0],
  ArrowUp: [0, -1],
  ArrowDown: [0, 1],
};

const canvas = element('mask', HTMLCanvasElement);
const brush = element('mask-brush', HTMLInputElement);
const clear = element('mask-clear', HTMLButtonElement);
const cursor = element('mask-cursor', HTMLSpanElement);

/** A point in pixels of the mask. */
interface Point {
  readonly x: number;
  readonly y: number;
}

/** The last place of the brush. */
let at: Point = { x: 0, y: 0 };

function context(): CanvasRenderingContext2D {
  const found = canvas.getContext('2d', { willReadFrequently: true });
  if (!found) throw new Error('this browser gave no canvas');
  return found;
}

/** Diameter of the brush in pixels. */
function brushSize(): number {
  return brush.valueAsNumber * Math.min(canvas.width, canvas.height);
}

/** The mask, as large as the picture and white where it is painted; nothing if nothing is painted. */
export function readMask(): ImageData | undefined {
  // The button to clear the mask shows as soon as something is painted.
  if (clear.hidden) return undefined;
  const mask = context().getImageData(0, 0, canvas.width, canvas.height);
  const { data } = mask;
  for (let pixel = 0; pixel < data.length; pixel += 4) {
    data.fill(data[pixel + 3] ?? 0, pixel, pixel + 3);
    data[pixel + 3] = 255;
  }
  return mask;
}

/** An empty mask for a picture of this size. */
export function resetMask(width: number, height: number): void {
  canvas.width = width;
  canvas.height = height;
  at = { x: width / 2, y: height / 2 };
  forget();
}

function forget(): void {
  context().clearRect(0, 0, canvas.width, canvas.height);
  clear.hidden = true;
}

/** Paints from the last place of the brush to this one. */
function stroke(to: Point): void {
  const paint = context();
  paint.strokeStyle = getComputedStyle(canvas).color;
  paint.lineWidth = brushSize();
  paint.lineCap = 'round';
  paint.beginPath();
  paint.moveTo(at.x, at.y);
  // A line of no length would leave no trace.
  paint.lineTo(to.x + 1e-3, to.y);
  paint.stroke();
  at = to;
}

function showCursor({ x, y }: Point): void {
  const size = (100 * brushSize()) / canvas.width;
  cursor.style.inlineSize = `${size}%`;
  cursor.style.insetInlineStart = `${(100 * x) / canvas.width}%`;
  cursor.style.insetBlockStart = `${(100 * y) / canvas.height}%`;
}

/** Wires the mask. `onFirst` is called when its first stroke is made, `onClear` when the person clears it. */
export function initMask(onFirst: () => void, onClear: () => void): void {
  const paint = (to: Point) => {
    stroke(to);
    if (clear.hidden) onFirst();
    clear.hidden = false;
  };
  const place = ({ offsetX, offsetY }: MouseEvent): Point => ({
    x: (offsetX / canvas.clientWidth) * canvas.width,
    y: (offsetY / canvas.clientHeight) * canvas.height,
  });
  /** The pointer that paints: a press that began elsewhere, or another finger, does not. */
  let painter: number | undefined;
  canvas.addEventListener('pointerdown', (event) => {
    if (!event.isPrimary || event.button !== 0) return;
    painter = event.pointerId;
    canvas.setPointerCapture(event.pointerId);
    at = place(event);
    paint(at);
  });
  canvas.addEventListener('pointermove', (event) => {
    const point = place(event);
    // A mouse that only rests here must not move the brush of the keys either.
    if (event.pointerId === painter) paint(point);
    showCursor(point);
  });
  canvas.addEventListener('lostpointercapture', () => (painter = undefined));
  canvas.addEventListener('keydown', (event) => {
    const arrow = ARROWS[event.key];
    if (!arrow && event.key !== ' ') return;
    event.preventDefault();
    if (arrow) {
      const step = KEY_STEP * brushSize();
      const clamp = (value: number, most: number) => Math.min(Math.max(value, 0), most);
      at = {
        x: clamp(at.x + arrow[0] * step, canvas.width),
        y: clamp(at.y + arrow[1] * step, canvas.height),
      };
    } else {
      paint(at);
    }
    showCursor(at);
  });
  canvas.addEventListener('focus', () => showCursor(at));
  clear.addEventListener('click', () => {
    forget();
    onClear();
    canvas.focus();
  });
}
