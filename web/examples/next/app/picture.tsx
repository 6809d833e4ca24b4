'use client';

import { useEffect, useRef, useState, type SubmitEvent } from 'react';
import { load, WuerstchenError } from 'wuerstchen-web';
import type { GenerateEvent, LoadEvent, Wuerstchen } from 'wuerstchen-web';

/** Makes pictures; the model is loaded with the first, and freed when the component goes. */
export function Picture() {
  const [prompt, setPrompt] = useState('a red circle on a white background');
  const [status, setStatus] = useState('The model is loaded with the first picture.');
  const [progress, setProgress] = useState(0);
  const [isBusy, setBusy] = useState(false);
  const [label, setLabel] = useState('No picture yet');
  const canvas = useRef<HTMLCanvasElement>(null);
  const engine = useRef<Wuerstchen>(undefined);
  const job = useRef<AbortController>(undefined);

  useEffect(
    () => () => {
      job.current?.abort();
      void engine.current?.dispose();
      engine.current = undefined;
    },
    [],
  );

  function show(bitmap: ImageBitmap) {
    if (canvas.current) {
      canvas.current.width = bitmap.width;
      canvas.current.height = bitmap.height;
      canvas.current.getContext('2d')?.drawImage(bitmap, 0, 0);
    }
    bitmap.close();
  }

  function onProgress(event: LoadEvent | GenerateEvent) {
    switch (event.type) {
      case 'download':
        setProgress(event.overall.loaded / event.overall.total);
        break;
      case 'stage':
        setStatus(`Running the ${event.stage} stage.`);
        break;
      case 'step':
        setProgress(event.overall);
        break;
      case 'preview':
        show(event.bitmap);
        break;
    }
  }

  async function makePicture(signal: AbortSignal) {
    setStatus('Loading the model.');
    engine.current ??= await load({ model: './model/manifest.json', onProgress, signal });
    const { device } = engine.current;
    setLabel(prompt);
    const result = await engine.current.generate({ prompt, onProgress, signal });
    const [image] = result.images;
    if (image instanceof ImageBitmap) show(image);
    setStatus(`Done with seed ${result.seed} on ${device}.`);
  }

  async function onSubmit(event: SubmitEvent<HTMLFormElement>) {
    event.preventDefault();
    const { signal } = (job.current = new AbortController());
    setBusy(true);
    try {
      await makePicture(signal);
    } catch (error) {
      setStatus(signal.aborted ? 'Stopped.' : explain(error));
    } finally {
      setBusy(false);
    }
  }

  return (
    <>
      <form onSubmit={onSubmit}>
        <label htmlFor="prompt">Prompt</label>
        <input
          id="prompt"
          value={prompt}
          onChange={(event) => setPrompt(event.target.value)}
          required
        />
        <button id="make" disabled={isBusy}>
          Make a picture
        </button>{' '}
        <button id="stop" type="button" disabled={!isBusy} onClick={() => job.current?.abort()}>
          Stop
        </button>
      </form>
      <p id="status" role="status">
        {status}
      </p>
      <label htmlFor="progress">Progress</label>
      <progress id="progress" value={progress} />
      <canvas ref={canvas} id="picture" role="img" aria-label={label} />
    </>
  );
}

function explain(error: unknown): string {
  if (!(error instanceof Error)) return String(error);
  const hint = error instanceof WuerstchenError && error.hint;
  return hint ? `${error.message}. ${hint}` : error.message;
}
