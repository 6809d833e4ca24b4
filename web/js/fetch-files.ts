// Gets all files of a model, some of them ahead of the caller.

import { shardName, type Manifest } from './manifest.js';
import { bring, DownloadProgress, type Brought, type ShardSource } from './shards.js';
import { onAbort } from './signals.js';

/** Files that are fetched, verified and stored at a time: enough to keep the network, the hash and the disk busy. */
const AHEAD = 4;

/**
 * Yields every file of a model, verified: its contents, then its shards in their order. Some are fetched and stored
 * ahead, while the caller works on earlier ones. At most {@link AHEAD} are in memory at a time: the bytes of a file are
 * overwritten when the caller takes the next one.
 */
export async function* fetchFiles(
  manifest: Manifest,
  source: ShardSource,
): AsyncGenerator<Brought, void, void> {
  source.signal?.throwIfAborted();
  const files = [manifest.contents, ...manifest.shards];
  const progress = new DownloadProgress(files, source.emit);
  // This also stops files that are fetched ahead when an earlier file fails, or when the caller takes no more.
  const controller = new AbortController();
  const { signal } = controller;
  const ignore = onAbort(source.signal, (reason) => controller.abort(reason));
  const begun: [Promise<Brought>, room: Uint8Array][] = [];
  // A new array for every file would take longer than to fill it, because the system clears its memory first.
  const largest = files.reduce((most, { bytes }) => Math.max(most, bytes), 0);
  const beginNext = (free?: Uint8Array) => {
    const file = files.shift();
    if (!file) return;
    const room = free ?? new Uint8Array(largest);
    const brought = bring(file, shardName(manifest, file), { ...source, signal }, progress, room);
    // The loop below throws a failure when the file's turn comes. Until then it must not count as unhandled.
    brought.catch(() => undefined);
    begun.push([brought, room]);
  };
  try {
    for (let i = 0; i < AHEAD; i++) beginNext();
    for (let turn = begun.shift(); turn; turn = begun.shift()) {
      const [coming, room] = turn;
      const brought = await coming;
      signal.throwIfAborted();
      yield brought;
      await brought.stored;
      beginNext(room);
    }
  } finally {
    ignore();
    controller.abort();
  }
}
