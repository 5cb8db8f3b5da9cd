/** Parley's GraphQL, as this page speaks it: requests by POST, watching by WebSocket. */

import { createClient } from 'graphql-ws';

/** What the server, or the way to it, objects to. */
export class Failure extends Error {
  constructor(
    readonly code: string,
    message: string,
    readonly retryable = false,
  ) {
    super(message);
  }
}

interface GraphQLError {
  message: string;
  extensions?: { code?: string; retryable?: boolean };
}

const url = new URL('/graphql', location.href);

/** The data of one request. Throws Failure. */
export async function request<Data>(query: string, variables: object = {}): Promise<Data> {
  let result: { data?: Data; errors?: GraphQLError[] };
  try {
    const response = await fetch(url, {
      method: 'POST',
      headers: { 'Content-Type': 'application/json', Accept: 'application/json' },
      body: JSON.stringify({ query, variables }),
    });
    result = await response.json();
  } catch {
    throw new Failure('UNREACHABLE', 'The server cannot be reached. Is it running?', true);
  }
  if (result.errors?.[0]) throw failureOf(result.errors[0]);
  if (!result.data) throw new Failure('INTERNAL', 'The server answered without data.');
  return result.data;
}

const socketUrl = new URL(url);
socketUrl.protocol = url.protocol.replace('http', 'ws');

// Whoever watches knows how far it came, and asks anew for what follows; the client cannot.
const socket = createClient({ url: socketUrl.href, retryAttempts: 0, lazyCloseTimeout: 10_000 });

/** Each result's data, until the server says that it was the last. Calling what is returned ends it.
 * `fail` gets a Failure for what the server refused, anything else for a lost connection. */
export function subscribe<Data>(
  query: string,
  variables: Record<string, unknown>,
  sink: { next: (data: Data) => void; fail: (reason: unknown) => void; end: () => void },
): () => void {
  return socket.subscribe<Data>(
    { query, variables },
    {
      next: ({ data, errors }) => {
        if (errors?.[0]) sink.fail(failureOf(errors[0] as GraphQLError));
        else if (data) sink.next(data);
      },
      error: (reason) => sink.fail(Array.isArray(reason) ? failureOf(reason[0]) : reason),
      complete: sink.end,
    },
  );
}

function failureOf(error: GraphQLError): Failure {
  return new Failure(error.extensions?.code ?? 'INTERNAL', error.message, error.extensions?.retryable);
}
