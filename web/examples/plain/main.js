import { load } from './wuerstchen-web/index.js';

const [form, prompt, make, stop, status, progress, picture] = [
  'form',
  '#prompt',
  '#make',
  '#stop',
  '#status',
  '#progress',
  '#picture',
].map((selector) => document.querySelector(selector));

let engine;
let job;

function show(bitmap) {
  picture.width = bitmap.width;
  picture.height = bitmap.height;
  picture.getContext('2d').drawImage(bitmap, 0, 0);
  bitmap.close();
}

function onProgress(event) {
  if (event.type === 'download') progress.value = event.overall.loaded / event.overall.total;
  if (event.type === 'stage') status.textContent = `Running the ${event.stage} stage.`;
  if (event.type === 'step') progress.value = event.overall;
  if (event.type === 'preview') show(event.bitmap);
}

async function makePicture(signal) {
  status.textContent = 'Loading the model.';
  engine ??= await load({ model: './model/manifest.json', onProgress, signal });
  picture.ariaLabel = prompt.value;
  const result = await engine.generate({ prompt: prompt.value, onProgress, signal });
  show(result.images[0]);
  status.textContent = `Done with seed ${result.seed} on ${engine.device}.`;
}

form.addEventListener('submit', async (event) => {
  event.preventDefault();
  job = new AbortController();
  make.disabled = true;
  stop.disabled = false;
  await makePicture(job.signal).catch(({ message, hint }) => {
    const problem = hint ? `${message}. ${hint}` : message;
    status.textContent = job.signal.aborted ? 'Stopped.' : problem;
  });
  make.disabled = false;
  stop.disabled = true;
});

stop.addEventListener('click', () => job.abort());
