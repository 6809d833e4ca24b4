// The words of a prompt while it is typed: completions that the model knows, and words that it has never seen.

import { vocabulary, type ModelRef } from 'wuerstchen-web';
import { element, make } from './dom';

/** Most words that are offered at a time. */
const MOST = 8;
/** Fewest letters of a word for which completions are offered. */
const FEWEST_LETTERS = 2;

const prompt = element('prompt', HTMLTextAreaElement);
const offers = element('words', HTMLDivElement);
const unknown = element('unknown-words', HTMLParagraphElement);

/** Offers words of the current model while a prompt is typed; they are fetched when typing begins. */
export function offerWords(currentModel: () => ModelRef): void {
  let model: ModelRef | undefined;
  let words: Promise<readonly string[]> = Promise.resolve([]);
  prompt.addEventListener('input', async () => {
    if (model !== currentModel()) {
      model = currentModel();
      words = vocabulary(model).then(
        (found) => found ?? [],
        () => {
          // Nothing is offered until they can be fetched; a load reports the error.
          model = undefined;
          return [];
        },
      );
    }
    show(await words);
  });
  prompt.addEventListener('blur', () => {
    // A button that is being pressed must stay until the press is over.
    setTimeout(() => offers.contains(document.activeElement) || offers.replaceChildren(), 200);
  });
}

/** Takes away what was said of the words of another prompt. */
export function forgetWords(): void {
  offers.replaceChildren();
  unknown.hidden = true;
}

function show(known: readonly string[]): void {
  const { value, selectionEnd } = prompt;
  const typed = /[\p{L}\p{N}]*$/u.exec(value.slice(0, selectionEnd))?.[0].toLowerCase() ?? '';
  const fitting =
    typed.length < FEWEST_LETTERS
      ? []
      : known.filter((word) => word.startsWith(typed) && word !== typed).slice(0, MOST);
  offers.replaceChildren(...fitting.map((word) => offer(word, typed.length)));
  const strange =
    known.length === 0 ? [] : strangeWords(value, known, fitting.length > 0 ? typed : '');
  unknown.hidden = strange.length === 0;
  unknown.textContent = `The model does not know: ${strange.join(', ')}.`;
}

/** Words of a prompt that the model does not know, without the unfinished one, which may become a known word. */
function strangeWords(text: string, known: readonly string[], unfinished: string): string[] {
  const all = new Set(known);
  const words =
    text.toLowerCase().match(/(?<!\p{N})\p{L}[\p{L}\p{N}]*|\p{Extended_Pictographic}/gu) ?? [];
  return [...new Set(words)].filter((word) => !all.has(word) && word !== unfinished);
}

function offer(word: string, typed: number): HTMLButtonElement {
  const button = make('button', { type: 'button' }, word);
  button.addEventListener('click', () => {
    const end = prompt.selectionEnd;
    prompt.setRangeText(`${word} `, end - typed, end, 'end');
    prompt.focus();
    prompt.dispatchEvent(new Event('input'));
  });
  return button;
}
