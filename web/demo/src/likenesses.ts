// Pictures that the next ones shall be like, for models that take pictures as prompts.

import type { GenerateOptions } from 'wuerstchen-web';
import { element, make } from './dom';

const field = element('of-picture-prompts', HTMLDivElement);
const file = element('picture-prompts-file', HTMLInputElement);
const list = element('picture-prompts-chosen', HTMLUListElement);
const like = element('like', HTMLButtonElement);

/** One of each item of the list; the same picture may be there twice. */
let pictures: readonly { readonly blob: Blob }[] = [];

/** What the form says about them, as the engine takes it; nothing where the model takes none. */
export function readLikenesses(): Pick<GenerateOptions, 'picturePrompts'> {
  if (field.hidden || pictures.length === 0) return {};
  return { picturePrompts: pictures.map(({ blob }) => blob) };
}

/** Whether the form has a place for them. Those that are chosen stay for a model that takes them. */
export function offerLikenesses(isOffered: boolean): void {
  field.hidden = !isOffered;
  like.hidden = !isOffered;
}

/** Whether something lies in the part of the form that is about them. */
export const isAmongLikenesses = (target: EventTarget | null): boolean =>
  target instanceof Node && field.contains(target);

/** Shows pictures and makes others like them, until they are removed. */
export function addLikenesses(blobs: readonly Blob[]): void {
  for (const blob of blobs) {
    const picture = { blob };
    const image = make('img', { src: URL.createObjectURL(blob), alt: 'A picture prompt' });
    const remove = make('button', { type: 'button' }, 'Remove');
    const item = make('li', {}, image, remove);
    remove.addEventListener('click', () => {
      pictures = pictures.filter((other) => other !== picture);
      URL.revokeObjectURL(image.src);
      item.remove();
      file.focus();
    });
    list.append(item);
    pictures = [...pictures, picture];
  }
}

/** Wires the part of the form that is about them. */
export function initLikenesses(): void {
  file.addEventListener('change', () => {
    addLikenesses([...(file.files ?? [])]);
    file.value = '';
  });
}
