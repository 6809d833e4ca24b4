// The picture that the next ones start from, if there is one.

import type { GenerateOptions } from 'wuerstchen-web';
import { element } from './dom';
import { initMask, readMask, resetMask } from './mask';
import { clearFieldError } from './settings';

const file = element('source-file', HTMLInputElement);
const picture = element('source-picture', HTMLImageElement);
const chosen = element('source-chosen', HTMLDivElement);
const strength = element('strength', HTMLInputElement);
const share = element('strength-share', HTMLOutputElement);

let image: Blob | undefined;
/** The strength before something was painted. */
let unpainted: string | undefined;

/** The size of the mask until that of the picture is known. */
const UNKNOWN_SIDE = 64;

/** The form's picture to start from, with its mask and strength, as the engine takes them. */
export function readSource(): Pick<GenerateOptions, 'image' | 'mask' | 'strength'> {
  return image ? { image, mask: readMask(), strength: strength.valueAsNumber } : {};
}

/** Shows the picture and starts from it, until another one is chosen or it is removed. */
export function startFrom(blob: Blob): void {
  forget();
  // The field names another file than a picture that comes from elsewhere.
  if (file.files?.[0] !== blob) file.value = '';
  image = blob;
  picture.src = URL.createObjectURL(blob);
  chosen.hidden = false;
}

function forget(): void {
  image = undefined;
  if (picture.src) URL.revokeObjectURL(picture.src);
  picture.removeAttribute('src');
  resetMask(UNKNOWN_SIDE, UNKNOWN_SIDE);
  chosen.hidden = true;
  clearFieldError('image');
}

function showShare(): void {
  share.textContent = `${Math.round(strength.valueAsNumber * 100)} %`;
}

/** Wires the part of the form for the picture to start from. */
export function initSource(): void {
  file.addEventListener('change', () => {
    const [chosenFile] = file.files ?? [];
    if (chosenFile) startFrom(chosenFile);
  });
  // A mask is as large as its picture.
  picture.addEventListener('load', () => resetMask(picture.naturalWidth, picture.naturalHeight));
  element('source-remove', HTMLButtonElement).addEventListener('click', () => {
    forget();
    file.value = '';
    file.focus();
  });
  initMask(
    () => {
      // With a mask, the painted parts are made from pure noise, unless the person chooses less strength afterwards.
      unpainted = strength.value;
      strength.value = strength.max;
      showShare();
    },
    () => {
      if (unpainted !== undefined && strength.value === strength.max) strength.value = unpainted;
      showShare();
    },
  );
  strength.addEventListener('input', showShare);
  // A browser that goes back to the page may fill the form anew.
  addEventListener('pageshow', () => {
    if (!image) file.value = '';
    showShare();
  });
  showShare();
}
