import './wuerstchen-web/element.js';

const [form, prompt, model, lora, make, stop, status, progress, picture] = [
  'form',
  '#prompt',
  '#model',
  '#lora',
  '#make',
  '#stop',
  '#status',
  '#progress',
  '#picture',
].map((selector) => document.querySelector(selector));

function setBusy(isBusy) {
  make.disabled = isBusy;
  stop.disabled = !isBusy;
}

form.addEventListener('submit', (event) => {
  event.preventDefault();
  setBusy(true);
  status.textContent = 'Loading the model.';
  // What is picked is a property, as an attribute holds text alone; each change of one begins a picture.
  if (model.files.length > 0) picture.model = model.files;
  picture.lora = [...lora.files].map((blob) => ({ blob }));
  picture.setAttribute('prompt', prompt.value);
});

stop.addEventListener('click', () => {
  picture.stop();
  setBusy(false);
  status.textContent = 'Stopped.';
});

picture.addEventListener('progress', ({ detail }) => {
  if (detail.type === 'download') progress.value = detail.overall.loaded / detail.overall.total;
  if (detail.type === 'stage') status.textContent = `Running the ${detail.stage} stage.`;
  if (detail.type === 'step') progress.value = detail.overall;
});

picture.addEventListener('picture', ({ detail }) => {
  setBusy(false);
  status.textContent = `Done with seed ${detail.seed}.`;
});

picture.addEventListener('error', ({ detail }) => {
  setBusy(false);
  status.textContent = detail.hint ? `${detail.message}. ${detail.hint}` : detail.message;
});
