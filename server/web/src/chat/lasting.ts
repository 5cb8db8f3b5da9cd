import { Failure, subscribe } from './graphql';

const SHORTEST_WAIT_MS = 250;
const LONGEST_WAIT_MS = 5_000;

interface Sink<Data> {
  /** Whether it was the last. */
  next: (data: Data) => boolean;
  /** The connection is lost, and taken up again by itself. */
  lost: () => void;
  /** The server refuses; nothing follows. */
  refused: (failure: Failure) => void;
}

/** Subscribe, over as many connections as it takes, until `next` says that it was the last.
 *
 * `variables` are asked for with each connection. Calling what is returned ends it. */
export function lasting<Data>(
  query: string,
  variables: () => Record<string, unknown>,
  sink: Sink<Data>,
): () => void {
  let ended = false;
  let waitMs = SHORTEST_WAIT_MS;
  let timer: number | undefined;
  let unsubscribe = () => {};

  const next = (data: Data) => {
    waitMs = SHORTEST_WAIT_MS;
    ended = sink.next(data);
  };
  const again = () => {
    sink.lost();
    timer = window.setTimeout(connect, waitMs);
    waitMs = Math.min(waitMs * 2, LONGEST_WAIT_MS);
  };
  const fail = (reason: unknown) => {
    if (reason instanceof Failure && !reason.retryable) sink.refused(reason);
    else again();
  };
  const end = () => {
    if (!ended) again();
  };
  const connect = () => {
    unsubscribe = subscribe(query, variables(), { next, fail, end });
  };

  connect();
  return () => {
    ended = true;
    window.clearTimeout(timer);
    unsubscribe();
  };
}
