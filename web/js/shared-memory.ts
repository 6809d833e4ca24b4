// Changes a WebAssembly module so that its instances can share one memory.
//
// Source: WebAssembly Core Specification, chapter "Binary Format", section "Modules".

/** Pages that a shared memory can have: 4 GiB. */
export const MAX_PAGES = 1 << 16;

/** A module that imports its memory as `threads.memory`. */
export interface SharedModule {
  readonly bytes: Uint8Array<ArrayBuffer>;
  /** Pages with which the memory begins. */
  readonly pages: number;
}

const HEADER_BYTES = 8;

// Sections, and kinds of imports.
const IMPORTS = 2;
const MEMORIES = 5;
const [FUNCTION, TABLE, MEMORY, GLOBAL] = [0, 1, 2, 3];

/** Flags of the limits of memories and tables. */
const HAS_MAXIMUM = 1;
const IS_SHARED = 2;

/** Takes a module that imports something, and has one memory, its own or an imported one. */
export function withSharedMemory(module: Uint8Array): SharedModule {
  const reader = new Reader(module, HEADER_BYTES);
  const sections = [module.slice(0, HEADER_BYTES)];
  let place = 0;
  let imports: Uint8Array[] = [];
  let pages = 0;
  while (reader.at < module.length) {
    const start = reader.at;
    const id = reader.number();
    const end = reader.number() + reader.at;
    if (id === IMPORTS) {
      place = sections.length;
      for (let left = reader.number(); left > 0; left--) {
        if (reader.at >= end) throw new Error('the imports of the program are cut off');
        const first = reader.at;
        const memory = skipImport(reader);
        if (memory === undefined) imports.push(module.slice(first, reader.at));
        else pages = memory;
      }
    } else if (id === MEMORIES) {
      reader.number();
      pages = skipLimits(reader);
    } else {
      sections.push(module.slice(start, end));
    }
    reader.at = end;
  }
  const limits = [HAS_MAXIMUM | IS_SHARED, ...encoded(pages), ...encoded(MAX_PAGES)];
  const memory = [...named('threads'), ...named('memory'), MEMORY, ...limits];
  imports = [...imports, Uint8Array.from(memory)];
  const content = joined([Uint8Array.from(encoded(imports.length)), ...imports]);
  const header = Uint8Array.from([IMPORTS, ...encoded(content.length)]);
  sections.splice(place, 0, header, content);
  return { bytes: joined(sections), pages };
}

/** Gives the pages with which an imported memory begins, and undefined for other imports. */
function skipImport(reader: Reader): number | undefined {
  for (let name = 0; name < 2; name++) {
    const length = reader.number();
    reader.at += length;
  }
  const kind = reader.number();
  if (kind === MEMORY) return skipLimits(reader);
  if (kind === FUNCTION) {
    reader.number();
  } else if (kind === GLOBAL) {
    reader.at += 2;
  } else if (kind === TABLE) {
    reader.at += 1;
    skipLimits(reader);
  } else {
    throw new Error(`the program has an import of kind ${kind}`);
  }
  return undefined;
}

/** Gives the least size. */
function skipLimits(reader: Reader): number {
  const flags = reader.number();
  const least = reader.number();
  if (flags & HAS_MAXIMUM) reader.number();
  return least;
}

/** Reads numbers in LEB128, which have seven bits in a byte. */
class Reader {
  constructor(
    private readonly bytes: Uint8Array,
    public at: number,
  ) {}

  number(): number {
    let value = 0;
    for (let shift = 0; ; shift += 7) {
      const byte = this.bytes[this.at++] ?? 0;
      value += (byte & 127) * 2 ** shift;
      if (byte < 128) return value;
    }
  }
}

function encoded(value: number): number[] {
  return value < 128 ? [value] : [128 | (value & 127), ...encoded(value >>> 7)];
}

function named(name: string): number[] {
  return [...encoded(name.length), ...new TextEncoder().encode(name)];
}

function joined(parts: readonly Uint8Array[]): Uint8Array<ArrayBuffer> {
  const whole = new Uint8Array(parts.reduce((sum, part) => sum + part.length, 0));
  let at = 0;
  for (const part of parts) {
    whole.set(part, at);
    at += part.length;
  }
  return whole;
}
