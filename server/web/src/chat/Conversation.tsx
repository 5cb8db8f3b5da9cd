import { useLayoutEffect, useRef } from 'preact/hooks';

import { connected, messages, openId, running, type Activity, type Message } from './chat';
import { Markdown } from './Markdown';
import { model } from './models';

const NEAR_THE_END_PX = 48;

/** The messages. Keeps to the end while text arrives, unless the reader has scrolled away from it. */
export function Conversation() {
  const region = useRef<HTMLDivElement>(null);
  const atEnd = useRef(true);
  const follow = () => {
    const { scrollHeight, scrollTop, clientHeight } = region.current!;
    atEnd.current = scrollHeight - scrollTop - clientHeight < NEAR_THE_END_PX;
  };
  useLayoutEffect(() => {
    atEnd.current = true;
  }, [openId.value, messages.value.length]);
  const toEnd = () => {
    if (atEnd.current) region.current!.scrollTop = region.current!.scrollHeight;
  };
  useLayoutEffect(toEnd);
  useLayoutEffect(() => {
    const resized = new ResizeObserver(toEnd); // a phone's keyboard comes and goes
    resized.observe(region.current!);
    return () => resized.disconnect();
  }, []);
  return (
    <div
      class="messages"
      ref={region}
      onScroll={follow}
      role="log"
      aria-label="Messages"
      aria-busy={running.value !== null}
      tabIndex={0}
    >
      {messages.value.map((message) => (
        <Turn key={message.id} message={message} />
      ))}
      {messages.value.length === 0 && openId.value === null && <Welcome />}
    </div>
  );
}

function Welcome() {
  return (
    <div class="welcome">
      <h2>What would you like to know?</h2>
      {model.value === undefined && (
        <p>
          There is no model to ask yet. <code>.venv/bin/parley pull demo</code> installs a small one.
        </p>
      )}
    </div>
  );
}

function Turn({ message }: { message: Message }) {
  if (message.role === 'USER') {
    return (
      <article class="turn asked" aria-label="You">
        <p class="verbatim">{message.content}</p>
      </article>
    );
  }
  return (
    <article class="turn reply" aria-label={`Reply of ${message.model}`} data-status={message.status}>
      {message.reasoning && (
        <details class="reasoning" open={message.content === ''}>
          <summary>Thoughts</summary>
          <p class="verbatim">{message.reasoning}</p>
        </details>
      )}
      {message.content && <Markdown text={message.content} />}
      {message.status === 'GENERATING' && <Doing message={message} />}
      {message.error && (
        <p class="failure" role="alert">
          <code>{message.error.code}</code> {message.error.message}
        </p>
      )}
      <Footer message={message} />
    </article>
  );
}

function Doing({ message }: { message: Message }) {
  if (!connected.value)
    return <Progress text="The connection is lost; trying to take it up again…" progress={null} />;
  if (message.activity) return <Progress {...message.activity} />;
  return message.content ? null : <Progress text="…" progress={null} />;
}

function Progress({ text, progress }: Activity) {
  return (
    <p class="activity" role="status">
      <span class="pulse" aria-hidden="true" />
      {text}
      {progress !== null && <progress value={progress} aria-label={text} />}
    </p>
  );
}

const ENDS: Partial<Record<Message['status'], string>> = {
  STOPPED: 'stopped',
  FAILED: 'failed',
  INTERRUPTED: 'interrupted: the server ended first',
};

function Footer({ message: { status, finishReason, model, usage } }: { message: Message }) {
  if (status === 'GENERATING') return null;
  const facts = [
    model,
    ENDS[status] ?? (finishReason === 'LENGTH' ? 'cut off at its longest allowed length' : null),
    usage?.completionTokens ? `${usage.completionTokens} tokens` : null,
    usage?.tokensPerSecond != null ? `${usage.tokensPerSecond.toFixed(0)} per second` : null,
  ];
  return <footer>{facts.filter((fact) => fact !== null).join(' · ')}</footer>;
}
