'use client';

import { useEffect, useRef, useState, type SubmitEvent } from 'react';
import { WuerstchenError } from 'wuerstchen-web';
import type { LoraRef, ModelRef } from 'wuerstchen-web';
import { useWuerstchen } from 'wuerstchen-web/react';

/** Makes pictures; the model is loaded with the first, and freed when the component goes. */
export function Picture() {
  const [prompt, setPrompt] = useState('a red circle on a white background');
  const [model, setModel] = useState<ModelRef>('./model/manifest.json');
  const [lora, setLora] = useState<readonly LoraRef[]>([]);
  const { state, progress, preview, result, error, generate, stop } = useWuerstchen({
    model,
    lora,
  });
  const canvas = useRef<HTMLCanvasElement>(null);

  const shown = preview ?? result?.images[0];
  useEffect(() => {
    if (!canvas.current || !(shown instanceof ImageBitmap)) return;
    canvas.current.width = shown.width;
    canvas.current.height = shown.height;
    canvas.current.getContext('2d')?.drawImage(shown, 0, 0);
  }, [shown]);

  function onSubmit(event: SubmitEvent<HTMLFormElement>) {
    event.preventDefault();
    void generate({ prompt });
  }

  let status = result
    ? `Done with seed ${result.seed}.`
    : 'The model is loaded with the first picture.';
  if (error) status = explain(error);
  if (state === 'loading') status = 'Loading the model.';
  if (state === 'making') status = 'Making the picture.';

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
        <label htmlFor="model">
          A model of your own: the folder that <code>wuerstchen export web</code> wrote
        </label>
        <input
          id="model"
          type="file"
          ref={(input) => {
            // React has no name for this attribute.
            if (input) input.webkitdirectory = true;
          }}
          onChange={({ target }) => setModel(target.files ?? './model/manifest.json')}
        />
        <label htmlFor="lora">A LoRA</label>
        <input
          id="lora"
          type="file"
          accept=".safetensors"
          onChange={({ target }) => setLora([...(target.files ?? [])].map((blob) => ({ blob })))}
        />
        <button id="make" disabled={state !== 'idle'}>
          Make a picture
        </button>{' '}
        <button id="stop" type="button" disabled={state === 'idle'} onClick={stop}>
          Stop
        </button>
      </form>
      <p id="status" role="status">
        {status}
      </p>
      <label htmlFor="progress">Progress</label>
      <progress id="progress" value={progress} />
      <canvas
        ref={canvas}
        id="picture"
        role="img"
        aria-label={result ? prompt : 'No picture yet'}
      />
    </>
  );
}

function explain(error: Error): string {
  const hint = error instanceof WuerstchenError && error.hint;
  return hint ? `${error.message}. ${hint}` : error.message;
}
