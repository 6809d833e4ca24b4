import { load, WuerstchenError } from 'wuerstchen-web';
import type { GenerateEvent, LoadEvent, LoadOptions, Wuerstchen } from 'wuerstchen-web';

const form = find('form', HTMLFormElement);
const prompt = find('#prompt', HTMLInputElement);
const model = find('#model', HTMLInputElement);
const lora = find('#lora', HTMLInputElement);
const make = find('#make', HTMLButtonElement);
const stop = find('#stop', HTMLButtonElement);
const status = find('#status', HTMLParagraphElement);
const progress = find('#progress', HTMLProgressElement);
const picture = find('#picture', HTMLCanvasElement);

let engine: Wuerstchen | undefined;

function find<T extends Element>(selector: string, type: new () => T): T {
  const element = document.querySelector(selector);
  if (!(element instanceof type)) throw new Error(`the page has no ${selector}`);
  return element;
}

function show(bitmap: ImageBitmap): void {
  picture.width = bitmap.width;
  picture.height = bitmap.height;
  picture.getContext('2d')?.drawImage(bitmap, 0, 0);
  bitmap.close();
}

function onProgress(event: LoadEvent | GenerateEvent): void {
  switch (event.type) {
    case 'download':
      progress.value = event.overall.loaded / event.overall.total;
      break;
    case 'stage':
      status.textContent = `Running the ${event.stage} stage.`;
      break;
    case 'step':
      progress.value = event.overall;
      break;
    case 'preview':
      show(event.bitmap);
      break;
  }
}

/** The model and its changes, as they are picked. */
function picked(): Pick<LoadOptions, 'model' | 'lora'> {
  const own = model.files?.length ? model.files : './model/manifest.json';
  return { model: own, lora: [...(lora.files ?? [])].map((blob) => ({ blob })) };
}

async function makePicture(signal: AbortSignal): Promise<void> {
  status.textContent = 'Loading the model.';
  engine ??= await load({ ...picked(), onProgress, signal });
  picture.ariaLabel = prompt.value;
  const result = await engine.generate({ prompt: prompt.value, onProgress, signal });
  const [image] = result.images;
  if (image) show(image);
  status.textContent = `Done with seed ${result.seed} on ${engine.device}.`;
}

function explain(error: unknown): string {
  if (!(error instanceof Error)) return String(error);
  const hint = error instanceof WuerstchenError && error.hint;
  return hint ? `${error.message}. ${hint}` : error.message;
}

for (const input of [model, lora]) {
  input.addEventListener('change', () => {
    void engine?.dispose();
    engine = undefined;
  });
}

form.addEventListener('submit', async (event) => {
  event.preventDefault();
  const job = new AbortController();
  const onStop = () => job.abort();
  stop.addEventListener('click', onStop);
  make.disabled = true;
  stop.disabled = false;
  try {
    await makePicture(job.signal);
  } catch (error) {
    status.textContent = job.signal.aborted ? 'Stopped.' : explain(error);
  } finally {
    stop.removeEventListener('click', onStop);
    make.disabled = false;
    stop.disabled = true;
  }
});
