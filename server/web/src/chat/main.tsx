import { options, render } from 'preact';

import { App } from './App';
import { start } from './chat';

options.debounceRendering = requestAnimationFrame; // a fast model writes more often than a screen shows

const root = document.getElementById('app');
if (!root) throw new Error('the page has no #app');
render(<App />, root);
void start();
