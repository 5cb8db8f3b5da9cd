import 'graphiql/setup-workers/vite';
import 'graphiql/style.css';

import { GraphiQL } from 'graphiql';
import { createElement } from 'react';
import { createRoot } from 'react-dom/client';

import { overEventStream, overWebSocket } from './fetcher';
import welcome from './welcome.graphql?raw';

const url = new URL('/graphql', location.href);
const asked = new URLSearchParams(location.search).get('transport');
const fetcher = asked === 'sse' ? overEventStream(url) : overWebSocket(url);

const root = document.getElementById('graphiql');
if (!root) throw new Error('the page has no #graphiql');
createRoot(root).render(createElement(GraphiQL, { fetcher, defaultQuery: welcome }));
