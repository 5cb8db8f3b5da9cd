import { defineConfig } from 'vite';

export default defineConfig({
  build: {
    assetsInlineLimit: 0, // the pages' policy allows files of this server, not data: URLs
    chunkSizeWarningLimit: 4000, // GraphiQL's editor is large, and read from this machine
    modulePreload: { polyfill: false },
    rolldownOptions: {
      input: ['index.html', 'graphiql.html'],
      checks: { moduleLevelDirective: false }, // 'use client' means something to servers that render React
    },
  },
  server: { proxy: { '/graphql': { target: 'http://127.0.0.1:8000', ws: true } } }, // for `npm run dev`
  worker: { format: 'es' },
});
