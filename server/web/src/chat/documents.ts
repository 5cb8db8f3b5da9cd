/** What this page asks, and the shape of the answers. A test holds each document against schema.graphql. */

export interface Model {
  name: string;
  displayName: string;
  state: 'COLD' | 'LOADING' | 'READY' | 'UNREACHABLE' | 'FAILED';
}

export interface Provider {
  name: string;
  enabled: boolean;
  configured: boolean;
  health: { status: 'UP' | 'DOWN' | 'UNKNOWN'; lastError: string | null };
  models: Model[];
}

export const PROVIDERS = /* GraphQL */ `
  {
    providers {
      name
      enabled
      configured
      health {
        status
        lastError
      }
      models {
        name
        displayName
        state
      }
    }
  }
`;

export const REFRESH = /* GraphQL */ `
  {
    availableModels(refresh: true) {
      name
    }
  }
`;

export interface Summary {
  id: string;
  title: string;
}

export interface PageInfo {
  hasNextPage: boolean;
  endCursor: string | null;
}

export const CONVERSATIONS = /* GraphQL */ `
  query ($after: String) {
    conversations(first: 50, after: $after) {
      edges {
        node {
          id
          title
        }
      }
      pageInfo {
        hasNextPage
        endCursor
      }
    }
  }
`;

export interface ChatError {
  code: string;
  message: string;
}

export interface Usage {
  completionTokens: number | null;
  tokensPerSecond: number | null;
}

export interface StoredMessage {
  id: string;
  role: 'USER' | 'ASSISTANT';
  content: string;
  reasoning: string | null;
  status: 'GENERATING' | 'COMPLETED' | 'STOPPED' | 'FAILED' | 'INTERRUPTED';
  finishReason: 'STOP' | 'LENGTH' | null;
  model: string | null;
  error: ChatError | null;
  usage: Usage | null;
  generationId: string | null;
}

const MESSAGE = /* GraphQL */ `
  fragment Stored on Message {
    id
    role
    content
    reasoning
    status
    finishReason
    model
    generationId
    error {
      code
      message
    }
    usage {
      completionTokens
      tokensPerSecond
    }
  }
`;

export const CONVERSATION = /* GraphQL */ `
  query ($id: ID!, $after: String) {
    conversation(id: $id) {
      title
      model
      messages(after: $after) {
        edges {
          node {
            ...Stored
          }
        }
        pageInfo {
          hasNextPage
          endCursor
        }
      }
    }
  }
  ${MESSAGE}
`;

export const SEND = /* GraphQL */ `
  mutation ($input: MessageInput!) {
    sendMessage(input: $input) {
      id
      conversation {
        id
        title
      }
      message {
        ...Stored
      }
    }
  }
  ${MESSAGE}
`;

export const STOP = /* GraphQL */ `
  mutation ($id: ID!) {
    stopGeneration(id: $id) {
      id
    }
  }
`;

export type StreamEvent = { seq: number } & (
  | { __typename: 'GenerationStarted' }
  | { __typename: 'PhaseChanged'; phase: Phase; detail: string | null; progress: number | null }
  | { __typename: 'ModelSwitched'; toModel: string; reason: string; discardText: boolean }
  | { __typename: 'TextDelta' | 'ReasoningDelta'; text: string }
  | { __typename: 'GenerationCompleted' | 'GenerationStopped' | 'GenerationFailed'; message: StoredMessage }
);

export type Phase = 'QUEUED' | 'LOADING_MODEL' | 'WAITING' | 'RETRYING';

export const WATCH = /* GraphQL */ `
  subscription ($id: ID!, $after: Int!) {
    generation(id: $id, after: $after) {
      __typename
      seq
      ... on PhaseChanged {
        phase
        detail
        progress
      }
      ... on ModelSwitched {
        toModel
        reason
        discardText
      }
      ... on ReasoningDelta {
        text
      }
      ... on TextDelta {
        text
      }
      ... on GenerationCompleted {
        message {
          ...Stored
        }
      }
      ... on GenerationStopped {
        message {
          ...Stored
        }
      }
      ... on GenerationFailed {
        message {
          ...Stored
        }
      }
    }
  }
  ${MESSAGE}
`;

export type ConversationEvent =
  | { __typename: 'ConversationChanged'; conversation: Summary & { head: { id: string } | null } }
  | { __typename: 'GenerationBegan' | 'GenerationEnded' | 'ConversationDeleted' };

export const ATTEND = /* GraphQL */ `
  subscription ($id: ID!) {
    conversation(id: $id) {
      __typename
      ... on ConversationChanged {
        conversation {
          id
          title
          head {
            id
          }
        }
      }
    }
  }
`;
