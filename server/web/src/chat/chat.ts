/** What is on the page, and everything that changes it. */

import { batch, computed, effect, signal } from '@preact/signals';

import {
  CONVERSATION,
  CONVERSATIONS,
  SEND,
  STOP,
  type ConversationEvent,
  type PageInfo,
  type Phase,
  type StoredMessage,
  type StreamEvent,
  type Summary,
} from './documents';
import { Failure, request } from './graphql';
import { keepLoadingModels, loadModels, model, prefer, refreshModels } from './models';
import { attend, watch } from './watch';

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
let lists = 0; // of messages that are on their way
let toldHead: string | null | undefined; // the last message, as the server told it; undefined once that was seen to

export async function start(): Promise<void> {
  window.addEventListener('hashchange', () => void open(idInAddress()));
  keepLoadingModels();
  effect(() => (openId.value ? attend(openId.value, happened) : undefined));
  await Promise.all([tried(loadModels()), tried(loadConversations()), open(idInAddress())]);
}

/** Show a conversation, and go on with its reply if one is being written; null begins a new one. */
export async function open(id: string | null): Promise<void> {
  if (id === openId.value && (id || !messages.value.length)) return;
  unwatch();
  toldHead = undefined;
  batch(() => {
    openId.value = id;
    messages.value = [];
    failure.value = null;
    connected.value = true;
  });
  visit++;
  if (id) await tried(load(id));
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
  if (!sent) {
    void catchUp(); // it may have been stored before the answer was lost
    return false;
  }
  if (mine === visit) {
    const { conversation, message: reply } = sent.sendMessage;
    messages.value = [...messages.value, asked(message, reply), reply];
    openId.value = conversation.id;
    location.hash = conversation.id;
    follow(reply);
    void catchUp();
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

/** Show the messages as the server has them now. Throws Failure. */
async function load(id: string): Promise<void> {
  const mine = visit;
  const found: Message[] = [];
  let after: string | null = null;
  lists++;
  try {
    do {
      const loaded: Loaded = await request(CONVERSATION, { id, after });
      if (mine !== visit) return;
      if (!loaded.conversation) throw new Failure('NOT_FOUND', 'There is no such conversation.');
      const { edges, pageInfo }: Page<StoredMessage> = loaded.conversation.messages;
      found.push(...edges.map(({ node }) => node));
      prefer(loaded.conversation.model);
      after = pageInfo.hasNextPage ? pageInfo.endCursor : null;
    } while (after);
    messages.value = found;
    if (running.value) follow(running.value);
  } finally {
    lists--;
    void catchUp();
  }
}

/** Something did, in the conversation that is open: here, in another tab, or on another device. */
function happened(event: ConversationEvent): void {
  if (event.__typename === 'ConversationDeleted') {
    void open(null);
    location.hash = '';
    failure.value = new Failure('NOT_FOUND', 'This conversation was deleted.');
    void tried(loadConversations());
  }
  if (event.__typename === 'ConversationChanged') {
    const { id, title, head } = event.conversation;
    toldHead = head?.id ?? null;
    conversations.value = conversations.value.map((each) => (each.id === id ? { ...each, title } : each));
    void catchUp();
  }
}

/** Load the messages if others than those on the page are there. What this page does itself is let finish first,
 * so that each news is looked at once, whichever way it comes. */
async function catchUp(): Promise<void> {
  if (sending.value || lists || toldHead === undefined) return;
  const head = toldHead;
  toldHead = undefined;
  if (openId.value === null || head === (messages.value.at(-1)?.id ?? null)) return;
  await tried(Promise.all([load(openId.value), loadConversations()]));
}

/** Write a reply on the page as it is written, from its beginning on. */
function follow({ id, generationId }: StoredMessage): void {
  unwatch();
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
