// The theme, light or dark: as the system asks for, until a person presses the button.

import { element } from './dom';
import { drawSketch } from './picture';

export function initTheme(): void {
  const button = element('theme', HTMLButtonElement);
  const system = matchMedia('(prefers-color-scheme: dark)');
  const root = document.documentElement;
  const isDark = () => (root.dataset.theme ? root.dataset.theme === 'dark' : system.matches);
  const show = () => {
    button.ariaPressed = String(isDark());
    drawSketch();
  };
  button.addEventListener('click', () => {
    root.dataset.theme = isDark() ? 'light' : 'dark';
    try {
      localStorage.setItem('theme', root.dataset.theme);
    } catch {
      // If storage is blocked, the choice lasts as long as the page.
    }
    show();
  });
  system.addEventListener('change', show);
  show();
}
