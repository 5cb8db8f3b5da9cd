import { useSignal } from '@preact/signals';
import { useEffect } from 'preact/hooks';

import { failure, stop } from './chat';
import { Composer } from './Composer';
import { Conversation } from './Conversation';
import { ModelPicker } from './ModelPicker';
import { Sidebar } from './Sidebar';

export function App() {
  const sidebarOpen = useSignal(false); // where the window is narrow; else it always is
  useEffect(() => {
    const keyed = (event: KeyboardEvent) => {
      if (event.key !== 'Escape') return;
      if (sidebarOpen.value) sidebarOpen.value = false;
      else void stop();
    };
    window.addEventListener('keydown', keyed);
    return () => window.removeEventListener('keydown', keyed);
  }, []);
  return (
    <div class={sidebarOpen.value ? 'app sidebar-open' : 'app'}>
      <header>
        <button
          type="button"
          class="menu"
          aria-label="Conversations"
          aria-expanded={sidebarOpen.value}
          aria-controls="sidebar"
          onClick={() => (sidebarOpen.value = !sidebarOpen.value)}
        >
          ☰
        </button>
        <h1>Parley</h1>
        <ModelPicker />
      </header>
      <Sidebar onLeave={() => (sidebarOpen.value = false)} />
      <main>
        <Conversation />
        {failure.value && <Alert code={failure.value.code} message={failure.value.message} />}
        <Composer />
      </main>
    </div>
  );
}

function Alert({ code, message }: { code: string; message: string }) {
  return (
    <div class="failure alert" role="alert">
      <p>
        <code>{code}</code> {message}
      </p>
      <button type="button" aria-label="Dismiss" onClick={() => (failure.value = null)}>
        ×
      </button>
    </div>
  );
}
