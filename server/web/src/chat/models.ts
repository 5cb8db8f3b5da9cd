/** The models that can be asked, and the one that is. */

import { computed, signal } from '@preact/signals';

import { PROVIDERS, REFRESH, type Model, type Provider } from './documents';
import { request } from './graphql';

const KEPT = 'parley.model';
const EVERY_MS = 10_000;

export const providers = signal<Provider[]>([]);
const listed = computed(() => providers.value.flatMap((provider) => provider.models));
const wanted = signal(localStorage.getItem(KEPT));

/** The name of the model that the next message goes to; none while none is listed. */
export const model = computed(() => {
  const answering = listed.value.filter(({ state }) => state !== 'UNREACHABLE' && state !== 'FAILED');
  const ready = answering.find(({ state }) => state === 'READY');
  return (listed.value.find(({ name }) => name === wanted.value) ?? ready ?? answering[0])?.name;
});

/** Throws Failure. */
export async function loadModels(): Promise<void> {
  const answer = await request<{ providers: Provider[] }>(PROVIDERS);
  providers.value = answer.providers.filter(({ enabled }) => enabled);
}

/** For when it is known that the server's own list is out of date. Throws Failure. */
export async function refreshModels(): Promise<void> {
  await request(REFRESH);
  await loadModels();
}

/** Keep what is shown of the models true while somebody looks. */
export function keepLoadingModels(): void {
  window.setInterval(() => {
    if (!document.hidden) loadModels().catch(() => {}); // whoever needs the server then is told that it is away
  }, EVERY_MS);
}

/** From now on, here and when the page is opened again. */
export function choose(name: string): void {
  wanted.value = name;
  localStorage.setItem(KEPT, name);
}

/** For the conversation that is open. */
export function prefer(name: string | null): void {
  if (name) wanted.value = name;
}

const STATES: Record<Model['state'], string> = {
  COLD: 'not loaded',
  LOADING: 'loading',
  READY: 'ready',
  UNREACHABLE: 'unreachable',
  FAILED: 'failed to load',
};

export function label({ displayName, state }: Model): string {
  return `${displayName} · ${STATES[state]}`;
}
