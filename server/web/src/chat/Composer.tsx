import { useSignal } from '@preact/signals';
import { useEffect, useRef } from 'preact/hooks';

import { openId, running, send, sending, stop } from './chat';
import { model } from './models';

/** Where a message is written. Enter sends it, Shift+Enter begins a line. */
export function Composer() {
  const text = useSignal('');
  const area = useRef<HTMLTextAreaElement>(null);
  const submit = async () => {
    const message = text.value;
    if (!message.trim() || sending.value || running.value || !model.value) return;
    text.value = '';
    if (!(await send(message))) text.value ||= message;
  };
  const keyed = (event: KeyboardEvent) => {
    if (event.key !== 'Enter' || event.shiftKey || event.isComposing) return;
    event.preventDefault();
    void submit();
  };
  useEffect(() => area.current?.focus(), [openId.value]);
  return (
    <form
      class="composer"
      onSubmit={(event) => {
        event.preventDefault();
        void submit();
      }}
    >
      <textarea
        ref={area}
        rows={1}
        aria-label="Message"
        aria-describedby="keys"
        placeholder="Message"
        value={text.value}
        onInput={(event) => (text.value = event.currentTarget.value)}
        onKeyDown={keyed}
      />
      {running.value ? (
        <button type="button" class="stop" onClick={() => void stop()}>
          Stop
        </button>
      ) : (
        <button type="submit" disabled={!text.value.trim() || sending.value || !model.value}>
          Send
        </button>
      )}
      <p id="keys">Enter sends, Shift+Enter begins a line, Esc stops the reply</p>
    </form>
  );
}
