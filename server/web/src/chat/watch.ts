import { ATTEND, WATCH, type ConversationEvent, type StreamEvent } from './documents';
import type { Failure } from './graphql';
import { lasting } from './lasting';

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
  return lasting<{ generation: StreamEvent }>(WATCH, () => ({ id, after: reached }), {
    next: ({ generation: event }) => {
      reached = event.seq;
      watcher.connected(true);
      watcher.event(event);
      return 'message' in event;
    },
    lost: () => watcher.connected(false),
    refused: watcher.refused,
  });
}

/** Tell what a conversation is now, and again whenever anybody changes it. Calling what is returned ends it. */
export function attend(id: string, told: (event: ConversationEvent) => void): () => void {
  return lasting<{ conversation: ConversationEvent }>(ATTEND, () => ({ id }), {
    next: ({ conversation: event }) => {
      told(event);
      return event.__typename === 'ConversationDeleted';
    },
    lost: () => {}, // it tells everything when it is back
    refused: () => {}, // whoever opened the conversation is told the same
  });
}
