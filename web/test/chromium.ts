// How tests start Chromium.

/** Options for Chromium as Debian ships it, which asks for nothing on the network, with further arguments. */
export const chromiumOptions = (...args: string[]) => ({
  executablePath: process.env.CHROMIUM ?? '/usr/bin/chromium',
  args: [
    '--no-sandbox',
    '--disable-quic',
    '--no-first-run',
    '--disable-background-networking',
    '--disable-component-update',
    '--disable-sync',
    ...args,
  ],
});
