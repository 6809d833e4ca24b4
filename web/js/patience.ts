// Waiting for browsers that may never answer.

/** A working GPU answers within seconds, even if its driver is slow to start. */
export const PATIENCE_MS = 60_000;

/** Settles as `answer` does, or rejects after some milliseconds. */
export async function patiently<T>(
  answer: Promise<T>,
  who: string,
  patience = PATIENCE_MS,
): Promise<T> {
  let timer: ReturnType<typeof setTimeout> | undefined;
  const silence = new Promise<never>((_, reject) => {
    const giveUp = () => reject(new Error(`${who} has not answered for ${patience / 1000} s`));
    timer = setTimeout(giveUp, patience);
  });
  try {
    return await Promise.race([answer, silence]);
  } finally {
    clearTimeout(timer);
  }
}
