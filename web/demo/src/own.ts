// A person's own model and LoRAs, from files that were picked or dropped on the page.

import type { LoraRef, ModelRef } from 'wuerstchen-web';
import { cache } from 'wuerstchen-web';
import { element, make } from './dom';
import { say } from './progress';

/** The key under which the page stores the id of the last picked model. */
const KEY = 'own-model';

/** The weight of a LoRA when it is picked. */
const WEIGHT = '1';

const loraFile = element('lora-file', HTMLInputElement);
const loraList = element('loras', HTMLUListElement);
const folder = element('model-folder', HTMLInputElement);
const builtIn = element('model-built-in', HTMLButtonElement);

/** The LoRAs of the form, with the fields of their weights. */
let loras: { readonly blob: File; readonly weight: HTMLInputElement }[] = [];

/** The LoRAs as the engine takes them. */
export function readLoras(): LoraRef[] {
  return loras.map(({ blob, weight }) => {
    return {
      blob,
      weight: Number.isFinite(weight.valueAsNumber) ? weight.valueAsNumber : Number(WEIGHT),
    };
  });
}

/** The model that was picked at an earlier visit, if it is still stored. */
export async function rememberedModel(): Promise<ModelRef | undefined> {
  let stored: string | null = null;
  try {
    stored = localStorage.getItem(KEY);
  } catch {
    // If storage is blocked, nothing is remembered.
  }
  if (stored === null || !(await cache.list()).some(({ id }) => id === stored)) return undefined;
  return { stored };
}

/** Loads the model of this id at the next visit, or the built-in one. */
export function rememberModel(id: string | undefined): void {
  try {
    if (id === undefined) localStorage.removeItem(KEY);
    else localStorage.setItem(KEY, id);
  } catch {
    // If storage is blocked, the model lasts as long as the page.
  }
}

/** Allows or forbids to pick and drop files; they are forbidden while the engine is busy. */
export function allowOwn(isAllowed: boolean): void {
  const fields = [
    loraFile,
    folder,
    builtIn,
    ...loraList.querySelectorAll<HTMLInputElement>('input, button'),
  ];
  for (const field of fields) field.disabled = !isAllowed;
}

/** Offers a way back to the built-in model. */
export function showOwn(isOwn: boolean): void {
  builtIn.hidden = !isOwn;
}

/**
 * Wires the part of the form for own models and LoRAs, and the page for dropped or pasted files. Pictures go to
 * `onPictures`, with the element where they landed. The other callbacks mean that the model has to be loaded anew.
 */
export function initOwn(
  onModel: (files: readonly File[] | undefined) => void,
  onLoras: () => void,
  onPictures: (pictures: readonly File[], place: EventTarget | null) => void,
): void {
  loraFile.addEventListener('change', () => {
    addLoras([...(loraFile.files ?? [])], onLoras);
    loraFile.value = '';
  });
  folder.addEventListener('change', () => {
    const files = [...(folder.files ?? [])];
    if (files.length > 0) onModel(files);
    folder.value = '';
  });
  builtIn.addEventListener('click', () => onModel(undefined));
  // Text goes where it is dropped.
  const hasFiles = ({ dataTransfer }: DragEvent) => dataTransfer?.types.includes('Files');
  document.addEventListener('dragover', (event) => {
    if (hasFiles(event)) event.preventDefault();
  });
  document.addEventListener('drop', async (event) => {
    if (!hasFiles(event)) return;
    event.preventDefault();
    const files = await droppedFiles(event.dataTransfer).catch(() => undefined);
    if (!files) return say('What was dropped cannot be read.');
    if (arePictures(files)) return onPictures(files, event.target);
    if (folder.disabled) return say('Drop it again when this is done.');
    const isLora = ({ name }: File) => /\.safetensors$/i.test(name);
    if (files.length > 0 && files.every(isLora)) addLoras(files, onLoras);
    else if (files.some(({ name }) => name === 'manifest.json')) onModel(files);
    else
      say(
        'This page takes pictures, LoRAs (.safetensors), and folders that “wuerstchen export web” wrote.',
      );
  });
  document.addEventListener('paste', (event) => {
    const files = [...(event.clipboardData?.files ?? [])];
    if (!arePictures(files)) return;
    event.preventDefault();
    onPictures(files, event.target);
  });
}

const arePictures = (files: readonly File[]) =>
  files.length > 0 && files.every(({ type }) => /^image\/(?!svg)/.test(type));

function addLoras(files: readonly File[], onChange: () => void): void {
  for (const blob of files) {
    const label = `Weight of ${blob.name}`;
    const weight = make('input', { type: 'number', step: '0.1', value: WEIGHT, ariaLabel: label });
    const remove = make('button', { type: 'button' }, 'Remove');
    const item = make('li', {}, make('span', {}, blob.name), weight, remove);
    weight.addEventListener('change', onChange);
    remove.addEventListener('click', () => {
      loras = loras.filter((lora) => lora.weight !== weight);
      item.remove();
      loraFile.focus();
      onChange();
    });
    loras.push({ blob, weight });
    loraList.append(item);
  }
  if (files.length === 0) return;
  // LoRAs may be dropped while this part of the form is closed.
  const details = loraList.closest('details');
  if (details) details.open = true;
  onChange();
}

/** The dropped files and those in dropped folders, with paths as in a picked folder. */
async function droppedFiles(data: DataTransfer | null): Promise<File[]> {
  // All entries are read at once, because they are gone after the first wait. Some items are files without an entry.
  const entries = [...(data?.items ?? [])].map(
    (item) => item.webkitGetAsEntry() ?? item.getAsFile() ?? [],
  );
  const files = await Promise.all(
    entries.map((found) => ('fullPath' in found ? filesOf(found) : found)),
  );
  return files.flat();
}

async function filesOf(entry: FileSystemEntry): Promise<File[]> {
  if (entry instanceof FileSystemFileEntry) {
    const file = await new Promise<File>((resolve, reject) => entry.file(resolve, reject));
    Object.defineProperty(file, 'webkitRelativePath', { value: entry.fullPath.slice(1) });
    return [file];
  }
  const reader = (entry as FileSystemDirectoryEntry).createReader();
  const files: File[] = [];
  for (;;) {
    // A reader returns at most a hundred entries at a time, and none at the end.
    const some = await new Promise<FileSystemEntry[]>((resolve, reject) =>
      reader.readEntries(resolve, reject),
    );
    if (some.length === 0) return files;
    files.push(...(await Promise.all(some.map(filesOf))).flat());
  }
}
