// node stream.mjs URL < {"query": "...", "variables": {...}}
//
// Subscribes with graphql-sse and prints every result as one line of JSON: {"at": seconds, "next": ...}, then
// {"at": seconds, "complete": true} or {"at": seconds, "error": ...}. `at` counts from the request.

import { text } from 'node:stream/consumers';
import { createClient } from 'graphql-sse';

const request = JSON.parse(await text(process.stdin));
const client = createClient({ url: process.argv[2], retryAttempts: 0 });

const start = performance.now();
const print = (line) => console.log(JSON.stringify({ at: (performance.now() - start) / 1000, ...line }));

try {
  for await (const next of client.iterate(request)) print({ next });
  print({ complete: true });
} catch (error) {
  print({ error: error.message });
  process.exitCode = 1;
} finally {
  client.dispose();
}
