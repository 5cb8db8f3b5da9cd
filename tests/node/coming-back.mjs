// node coming-back.mjs URL < {"query": "...", "variables": {"input": {...}}}
//
// Sends a message with graphql-ws and reads its reply as docs/streaming.md shows it: by the code that stands
// there. Prints {"at": seconds, "next": ...} for every event, {"at": seconds, "lost": true} for every lost
// connection, and {"at": seconds, "complete": true} or {"at": seconds, "error": ...}. `at` counts from the request.

import { readFile } from 'node:fs/promises';
import { text } from 'node:stream/consumers';
import { createClient } from 'graphql-ws';
import WebSocket from 'ws';

const page = await readFile(new URL('../../docs/streaming.md', import.meta.url), 'utf8');
const [, code] = /```js\n(.*?)```/s.exec(page);
const { lasting, reply } = await import(`data:text/javascript,${encodeURIComponent(code)}`);

const request = JSON.parse(await text(process.stdin));
const start = performance.now();
const print = (line) => console.log(JSON.stringify({ at: (performance.now() - start) / 1000, ...line }));

const client = createClient({
  url: process.argv[2].replace('http', 'ws'),
  webSocketImpl: WebSocket,
  retryWait: () => new Promise((resolve) => setTimeout(resolve, 20)), // seconds, if it is left to the client
  on: { closed: ({ code }) => code === 1000 || print({ lost: true }) },
  ...lasting,
});
reply(client, request.query, request.variables.input, {
  next: (event) => print({ next: { data: { event } } }),
  error: (error) => print({ error: Array.isArray(error) ? error : String(error) }),
  complete: () => print({ complete: true }),
});
