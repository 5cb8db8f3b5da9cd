// node subscribe.mjs WS_URL < {"query": "...", "variables": {...}}
//
// Subscribes with graphql-ws and prints every message as one line of JSON: {"at": seconds, "next": ...}, then
// {"at": seconds, "complete": true} or {"at": seconds, "error": ...}. `at` counts from the request.

import { text } from 'node:stream/consumers';
import { createClient } from 'graphql-ws';
import WebSocket from 'ws';

const request = JSON.parse(await text(process.stdin));
const client = createClient({ url: process.argv[2], webSocketImpl: WebSocket, lazy: false, retryAttempts: 0 });
await new Promise((resolve) => client.on('connected', resolve));

const start = performance.now();
const print = (line) => console.log(JSON.stringify({ at: (performance.now() - start) / 1000, ...line }));

try {
  for await (const next of client.iterate(request)) print({ next });
  print({ complete: true });
} catch (error) {
  const close = error instanceof Error ? {} : { code: error?.code, reason: error?.reason };
  print({ error: Array.isArray(error) ? error : (error?.message ?? close) });
  process.exitCode = 1;
} finally {
  await client.dispose();
}
