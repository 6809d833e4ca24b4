// Times pictures of the built-in model on the CPU with one thread and with several, by turns in one page, and prints
// JSON: `npm run bench:threads`, or `npm run bench:threads -- 4` for another number than the processor has.

import { launch, openPage, Site, web } from './site.ts';

const ROUNDS = 30;

const site = await Site.open(web);
const browser = await launch();
const page = await openPage(browser, site);
const wanted = process.argv[2] ? Number(process.argv[2]) : undefined;
const result = await page.evaluate(
  async ({ wanted, rounds }) => {
    const { load } = (window as any).wuerstchen;
    const model = '/pkg/model/manifest.json';
    const open = (threads?: number) => load({ model, device: 'cpu', cache: 'none', threads });
    const engines = [await open(1), await open(wanted)];
    const seconds: number[][] = [[], []];
    const stages: Record<string, number>[][] = [[], []];
    const make = async (engine: any) => {
      const begun = performance.now();
      const { timings } = await engine.generate({ prompt: 'a cat face', seed: 1 });
      return { seconds: (performance.now() - begun) / 1000, timings };
    };
    for (const engine of engines) await make(engine);
    for (let round = 0; round < rounds; round++) {
      for (const [i, engine] of engines.entries()) {
        const made = await make(engine);
        seconds[i]?.push(made.seconds);
        stages[i]?.push(made.timings);
      }
    }
    const median = (values: number[]) => values.sort((a, b) => a - b)[values.length >> 1] ?? 0;
    const of = (i: number) => ({
      threads: engines[i].support.threads,
      medianSeconds: median(seconds[i] ?? []),
      leastSeconds: Math.min(...(seconds[i] ?? [])),
      medianMs: Object.fromEntries(
        ['text', 'prior', 'decoder', 'vqgan'].map((stage) => [
          stage,
          median((stages[i] ?? []).map((timings) => timings[stage] ?? 0)),
        ]),
      ),
    });
    return { rounds, one: of(0), several: of(1) };
  },
  { wanted, rounds: ROUNDS },
);
const { one, several } = result;
console.log(
  JSON.stringify({ ...result, ratio: one.medianSeconds / several.medianSeconds }, null, 2),
);
await browser.close();
site.close();
