import { defineConfig } from 'vite';

// Relative, so that the page works under any path.
export default defineConfig({ base: './' });
