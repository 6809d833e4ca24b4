'use client';

import { useState } from 'react';
import { Picture } from './picture';

export default function Page() {
  const [isOpen, setOpen] = useState(true);
  return (
    <main>
      <h1>Würstchen with Next.js</h1>
      {isOpen && <Picture />}
      <p>
        <button type="button" onClick={() => setOpen(!isOpen)}>
          {isOpen ? 'Close, and free the memory' : 'Open'}
        </button>
      </p>
    </main>
  );
}
