import { createGraphiQLFetcher, type Fetcher, type FetcherReturnType } from '@graphiql/toolkit';
import { createClient as createSseClient } from 'graphql-sse';
import { createClient as createWsClient } from 'graphql-ws';

// Neither client tries again by itself: a subscription that sends a message must not be sent twice.

/** Queries and mutations by POST, subscriptions over a WebSocket. */
export function overWebSocket(url: URL): Fetcher {
  const socket = new URL(url);
  socket.protocol = url.protocol.replace('http', 'ws');
  return createGraphiQLFetcher({
    url: url.href,
    wsClient: createWsClient({ url: socket.href, retryAttempts: 0 }),
  });
}

/** Everything by POST, answered with an event stream. */
export function overEventStream(url: URL): Fetcher {
  const client = createSseClient({ url: url.href, retryAttempts: 0 });
  return ({ query, variables, operationName }) =>
    client.iterate({ query, variables, ...(operationName && { operationName }) }) as FetcherReturnType;
}
