// node event-source.mjs URL < {"query": "...", "variables": {...}}
//
// Subscribes with an EventSource, which comes back by itself and then names the last event that it had. Prints
// {"at": seconds, "next": ...} for every result, {"at": seconds, "lost": true} for every lost connection, and
// {"at": seconds, "complete": true}. `at` counts from the request.

import { text } from 'node:stream/consumers';
import { EventSource } from 'eventsource';

const body = await text(process.stdin);
const source = new EventSource(process.argv[2], {
  fetch: (url, init) =>
    fetch(url, {
      ...init,
      method: 'POST',
      headers: { ...init.headers, 'Content-Type': 'application/json' },
      body,
    }),
});

const start = performance.now();
const print = (line) => console.log(JSON.stringify({ at: (performance.now() - start) / 1000, ...line }));

source.addEventListener('next', (event) => print({ next: JSON.parse(event.data) }));
source.addEventListener('error', () => print({ lost: true }));
source.addEventListener('complete', () => {
  print({ complete: true });
  source.close();
});
