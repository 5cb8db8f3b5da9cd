import { conversations, loadConversations, olderThan, openId, tried } from './chat';

export function Sidebar({ onLeave }: { onLeave: () => void }) {
  return (
    <nav id="sidebar" class="sidebar" aria-label="Conversations" onClick={onLeave}>
      <a class="new" href="#">
        New conversation
      </a>
      <ul>
        {conversations.value.map(({ id, title }) => (
          <li key={id}>
            <a href={`#${id}`} title={title} aria-current={id === openId.value ? 'page' : undefined}>
              {title || 'Untitled'}
            </a>
          </li>
        ))}
      </ul>
      {olderThan.value && (
        <button
          type="button"
          onClick={(event) => {
            event.stopPropagation();
            void tried(loadConversations(olderThan.value));
          }}
        >
          Older ones
        </button>
      )}
      <a class="graphiql" href="/graphql">
        GraphiQL
      </a>
    </nav>
  );
}
