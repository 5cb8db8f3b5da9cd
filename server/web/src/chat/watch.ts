import { WATCH, type StreamEvent } from './documents';
import { Failure, subscribe } from './graphql';

const SHORTEST_WAIT_MS = 250;
const LONGEST_WAIT_MS = 5_000;

interface Watcher {
  event: (event: StreamEvent) => void;
  /** The connection is lost (and taken up again by itself), or there again. */
  connected: (yes: boolean) => void;
  /** The server refuses; nothing follows. */
  refused: (failure: Failure) => void;
}

/** Tell every event of a generation once and in order, over as many connections as it takes.
 *
 * Calling what is returned ends the watching; the generation goes on. */
export function watch(id: string, watcher: Watcher): () => void {
  let reached = 0;
  let ended = false;
  let waitMs = SHORTEST_WAIT_MS;
  let timer: number | undefined;
  let unsubscribe = () => {};

  const next = ({ generation: event }: { generation: StreamEvent }) => {
    reached = event.seq;
    ended = 'message' in event;
    waitMs = SHORTEST_WAIT_MS;
    watcher.connected(true);
    watcher.event(event);
  };
  const again = () => {
    watcher.connected(false);
    timer = window.setTimeout(connect, waitMs);
    waitMs = Math.min(waitMs * 2, LONGEST_WAIT_MS);
  };
  const fail = (reason: unknown) => {
    if (reason instanceof Failure && !reason.retryable) watcher.refused(reason);
    else again();
  };
  const end = () => {
    if (!ended) again();
  };
  const connect = () => {
    unsubscribe = subscribe(WATCH, { id, after: reached }, { next, fail, end });
  };

  connect();
  return () => {
    ended = true;
    window.clearTimeout(timer);
    unsubscribe();
  };
}
