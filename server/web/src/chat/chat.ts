/** What is on the page, and everything that changes it. */

import { batch, computed, signal } from '@preact/signals';

import {
  CONVERSATION,
  CONVERSATIONS,
  SEND,
  STOP,
  type PageInfo,
  type Phase,
  type StoredMessage,
  type StreamEvent,
  type Summary,
} from './documents';
import { Failure, request } from './graphql';
import { keepLoadingModels, loadModels, model, prefer, refreshModels } from './models';
import { watch } from './watch';

export interface Message extends StoredMessage {
  activity?: Activity | undefined;
}

/** What goes on while no text comes; `progress` from 0 to 1, where that is known. */
export interface Activity {
  text: string;
  progress: number | null;
}

interface Page<Node> {
  edges: { node: Node }[];
  pageInfo: PageInfo;
}

export const conversations = signal<Summary[]>([]);
export const olderThan = signal<string | null>(null);
export const openId = signal<string | null>(null);
export const messages = signal<Message[]>([]);
export const connected = signal(true);
export const failure = signal<Failure | null>(null);
export const sending = signal(false);

export const running = computed(() => {
  const last = messages.value.at(-1);
  return last?.status === 'GENERATING' ? last : null;
});

let unwatch = () => {};
let visit = 0; // goes up with each conversation that is opened, so that what arrives late is not shown elsewhere

export async function start(): Promise<void> {
  window.addEventListener('hashchange', () => void open(idInAddress()));
  keepLoadingModels();
  await Promise.all([tried(loadModels()), tried(loadConversations()), open(idInAddress())]);
}

/** Show a conversation, and go on with its reply if one is being written; null begins a new one. */
export async function open(id: string | null): Promise<void> {
  if (id === openId.value && (id || !messages.value.length)) return;
  unwatch();
  batch(() => {
    openId.value = id;
    messages.value = [];
    failure.value = null;
    connected.value = true;
  });
  const mine = ++visit;
  if (id) await tried(load(id, () => mine === visit));
}

/** Whether the message was taken; if not, `failure` says why. */
export async function send(message: string): Promise<boolean> {
  const conversationId = openId.value;
  const mine = visit;
  sending.value = true;
  failure.value = null;
  const sent = await tried(
    request<{ sendMessage: { id: string; conversation: Summary; message: StoredMessage } }>(SEND, {
      input: { message, model: model.value, conversationId },
    }),
  );
  sending.value = false;
  if (!sent) return false;
  if (mine === visit) {
    const { conversation, message: reply } = sent.sendMessage;
    messages.value = [...messages.value, asked(message, reply), reply];
    openId.value = conversation.id;
    location.hash = conversation.id;
    follow(reply);
  }
  void tried(loadConversations());
  return true;
}

/** End the reply that is being written; its text stays. */
export async function stop(): Promise<void> {
  if (running.value) await tried(request(STOP, { id: running.value.generationId }));
}

export async function loadConversations(after: string | null = null): Promise<void> {
  const { conversations: page } = await request<{ conversations: Page<Summary> }>(CONVERSATIONS, { after });
  const loaded = page.edges.map(({ node }) => node);
  batch(() => {
    conversations.value = after ? [...conversations.value, ...loaded] : loaded;
    olderThan.value = page.pageInfo.hasNextPage ? page.pageInfo.endCursor : null;
  });
}

/** What it comes to; where it fails the page says so. */
export async function tried<Value>(work: Promise<Value>): Promise<Value | undefined> {
  try {
    return await work;
  } catch (reason) {
    failure.value = reason instanceof Failure ? reason : new Failure('INTERNAL', String(reason));
    return undefined;
  }
}

interface Loaded {
  conversation: { model: string | null; messages: Page<StoredMessage> } | null;
}

async function load(id: string, stillOpen: () => boolean): Promise<void> {
  let after: string | null = null;
  do {
    const loaded: Loaded = await request(CONVERSATION, { id, after });
    if (!stillOpen()) return;
    if (!loaded.conversation) throw new Failure('NOT_FOUND', 'There is no such conversation.');
    const { edges, pageInfo }: Page<StoredMessage> = loaded.conversation.messages;
    messages.value = [...messages.value, ...edges.map(({ node }) => node)];
    prefer(loaded.conversation.model);
    after = pageInfo.hasNextPage ? pageInfo.endCursor : null;
  } while (after);
  if (running.value) follow(running.value);
}

/** Write a reply on the page as it is written, from its beginning on. */
function follow({ id, generationId }: StoredMessage): void {
  if (!generationId) return;
  const change = (changes: Partial<Message>) => {
    messages.value = messages.value.map((each) => (each.id === id ? { ...each, ...changes } : each));
  };
  const heard = { content: '', reasoning: '' };
  let loading = false;
  unwatch = watch(generationId, {
    event: (event) => {
      change(changesBy(event, heard));
      const loads = 'phase' in event && event.phase === 'LOADING_MODEL';
      if (loading !== loads) void tried(refreshModels()); // what it shows has changed just now
      loading = loads;
    },
    connected: (yes) => {
      connected.value = yes;
    },
    refused: (reason) => {
      failure.value = reason;
    },
  });
}

function changesBy(event: StreamEvent, heard: { content: string; reasoning: string }): Partial<Message> {
  switch (event.__typename) {
    case 'GenerationStarted':
      return {};
    case 'PhaseChanged':
      return { activity: { text: event.detail ?? PHASES[event.phase], progress: event.progress } };
    case 'ModelSwitched':
      if (event.discardText) heard.content = heard.reasoning = '';
      return {
        ...heard,
        model: event.toModel,
        activity: { text: `Asking ${event.toModel} instead: ${event.reason}`, progress: null },
      };
    case 'ReasoningDelta':
      heard.reasoning += event.text;
      return { reasoning: heard.reasoning, activity: undefined };
    case 'TextDelta':
      heard.content += event.text;
      return { content: heard.content, activity: undefined };
    case 'GenerationCompleted':
    case 'GenerationStopped':
    case 'GenerationFailed':
      return { ...event.message, activity: undefined };
  }
}

const PHASES: Record<Phase, string> = {
  QUEUED: 'Waiting for its turn…',
  LOADING_MODEL: 'Loading the model…',
  WAITING: 'Waiting for the first words…',
  RETRYING: 'Trying again…',
};

function asked(content: string, reply: StoredMessage): Message {
  return {
    ...reply,
    id: `before ${reply.id}`,
    role: 'USER',
    content,
    status: 'COMPLETED',
    generationId: null,
  };
}

function idInAddress(): string | null {
  return location.hash.slice(1) || null;
}
