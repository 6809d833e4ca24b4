// Pictures that the next ones shall resemble, for models that take pictures as prompts.

import type { GenerateOptions } from 'wuerstchen-web';
import { element, make } from './dom';
import { clearFieldError } from './settings';

const field = element('of-picture-prompts', HTMLDivElement);
const file = element('picture-prompts-file', HTMLInputElement);
const list = element('picture-prompts-chosen', HTMLUListElement);
const like = element('like', HTMLButtonElement);

/** The pictures of the list, in its order; the same picture may be there twice. */
let pictures: readonly { readonly blob: Blob }[] = [];

/** The form's picture prompts, as the engine takes them; nothing if the model takes none. */
export function readLikenesses(): Pick<GenerateOptions, 'picturePrompts'> {
  if (field.hidden || pictures.length === 0) return {};
  return { picturePrompts: pictures.map(({ blob }) => blob) };
}

/** Shows or hides the form's picture prompts. Chosen pictures stay for a later model that takes them. */
export function offerLikenesses(isOffered: boolean): void {
  field.hidden = !isOffered;
  like.hidden = !isOffered;
}

/** Whether an element lies in the part of the form for picture prompts. */
export const isAmongLikenesses = (target: EventTarget | null): boolean =>
  target instanceof Node && field.contains(target);

/** Shows pictures and uses them as prompts until they are removed. */
export function addLikenesses(blobs: readonly Blob[]): void {
  clearFieldError('picture-prompts');
  for (const blob of blobs) {
    const picture = { blob };
    const image = make('img', { src: URL.createObjectURL(blob), alt: 'A picture prompt' });
    const remove = make('button', { type: 'button' }, 'Remove');
    const item = make('li', {}, image, remove);
    remove.addEventListener('click', () => {
      pictures = pictures.filter((other) => other !== picture);
      URL.revokeObjectURL(image.src);
      item.remove();
      clearFieldError('picture-prompts');
      file.focus();
    });
    list.append(item);
    pictures = [...pictures, picture];
  }
}

/** Wires the part of the form for picture prompts. */
export function initLikenesses(): void {
  file.addEventListener('change', () => {
    addLikenesses([...(file.files ?? [])]);
    file.value = '';
  });
}
